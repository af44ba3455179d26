"""Instruments: one module or folder each, and what a device expects of them.

A driver talks to one instrument and knows nothing above it. It is either a `RowDriver`, read now
and then, or a `StreamDriver`, which brings current and voltage by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from daq_ioc.attributes import Attribute, Value
from daq_ioc.errors import UsageError, UserError
from daq_ioc.samples import SampleBlock


class DriverError(UserError):
    """The instrument does not do what it should; the text says what, and what helps."""


class NotConnectedError(DriverError):
    """The instrument is not there, or not any more."""


class Driver(ABC):  # methods that do nothing here are for instruments that need none
    """One instrument. What an instrument does not have it leaves as it is here.

    ``settings``: what can be set or watched on it, besides what `read` brings. ``option_of``: the
    constructor's argument that a setting begins with, where there is one.
    """

    name: ClassVar[str]
    settings: Sequence[Attribute] = ()
    option_of: ClassVar[Mapping[str, str]] = {}

    def open(self) -> None:  # noqa: B027
        """Connect and set the instrument up.

        Raises NotConnectedError if it is not there, DriverError if it cannot be used. After an
        error or `close` it can be opened again.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of the instrument. Never raises; may be called at any time."""

    @abstractmethod
    def read(self) -> Any:
        """The next samples; blocks until they are there, for no longer than about a second.

        Raises NotConnectedError when the instrument is gone, DriverError for what else goes wrong.
        """

    def values(self) -> Mapping[str, Value]:
        """Present values of `settings` by name, as the instrument has them; makes no transfers."""
        return {}

    def put(self, name: str, value: Value) -> None:
        """Change a setting, waiting until the instrument has it. ValueError refuses the value."""
        raise ValueError(f"{self.name} has no setting {name!r} (value {value!r})")

    def restore(self, name: str, value: Value) -> None:
        """Have `open` set a setting, too; for use before it. ValueError refuses the value."""
        raise ValueError(f"{self.name} has no setting {name!r} (value {value!r})")

    def poll(self) -> None:  # noqa: B027
        """Ask for what `read` does not bring; called now and then, by another thread."""


class RowDriver(Driver):
    """An instrument that is read when asked: a row of numbers, of which the first is the time.

    ``columns`` declares the others, each a double. For those named in ``averaged`` the mean over
    the last seconds is served as well, at first over ``window`` s.
    """

    columns: Sequence[Attribute]
    averaged: Sequence[str] = ()
    window: float = 10.0

    @abstractmethod
    def read(self) -> npt.NDArray[np.float64]:
        """A row, float64 (1, 1 + columns): Unix time in s, then the columns; NaN is no value."""


class StreamDriver(Driver):
    """An instrument that streams current and voltage by itself.

    ``sample_rate``: samples per second. ``calibration_data``: the calibration as the instrument
    keeps it, for recordings. ``fixed_while_recording``: settings of which a recording has but one.
    """

    sample_rate: float
    calibration_data: bytes | None = None
    fixed_while_recording: Sequence[str] = ()

    @abstractmethod
    def read(self) -> SampleBlock:
        """The next samples; those of a new stream begin with sample id 0."""

    def identity(self) -> Mapping[str, str]:
        """``model``, ``serial``, ``firmware``, ``hardware`` of the open instrument."""
        return {}


_BUILT_IN = {
    "js110": "daq_ioc.driver.joulescope.js110:Driver",
    "onboard": "daq_ioc.driver.onboard:Driver",
}
_ALSO_CALLED = {"simple_daq": "onboard"}
ENTRY_POINT_GROUP = "daq_ioc.driver"


def names() -> list[str]:
    """Names of all drivers: built in, and found by entry point in installed packages."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def load(name: str) -> type[Driver]:
    """The driver class of this name. Raises UsageError that lists the names there are."""
    name = _ALSO_CALLED.get(name, name)
    found: Any = None
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            found = point.load()
        except Exception as error:
            raise UsageError(f"driver {name!r}: {point.value} cannot be loaded: {error}") from error
    if found is None:
        raise UsageError(f"there is no driver {name!r}; drivers are: {', '.join(names())}")
    if not (isinstance(found, type) and issubclass(found, (RowDriver, StreamDriver))):
        raise UsageError(f"driver {name!r}: {found!r} is neither a RowDriver nor a StreamDriver")
    return found


def recordable() -> list[str]:
    """Names of the drivers whose instruments have raw samples, which a recording needs."""
    found = []
    for name in names():
        with suppress(UsageError, ImportError):  # one that cannot be loaded records nothing
            if issubclass(load(name), StreamDriver):
                found.append(name)
    return found
