"""What a device shows and takes: one declaration per quantity, and the values that belong to it.

Process variables, the list of them, the documentation and panels are all made from `Attribute`
rows. Rows are declared by whoever has the quantity: an instrument's driver its settings and
columns, the device its readings, the recorder its options. Nothing here knows a network protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt


class Kind(StrEnum):
    """Type of a value."""

    DOUBLE = "double"
    LONG = "long"
    ENUM = "enum"
    STRING = "string"
    """At most 39 characters."""
    TEXT = "long string"


class Group(StrEnum):
    """What a client must be allowed to do in order to write an attribute."""

    READING = "reading"
    SETTING = "setting"
    RECORDING = "recording"
    TARGET = "target"


class Severity(IntEnum):
    """How far a value can be trusted, in the numbers of EPICS."""

    NO_ALARM = 0
    MINOR = 1
    MAJOR = 2
    INVALID = 3


class Status(StrEnum):
    """Why a severity is not NO_ALARM, in the names of EPICS."""

    NO_ALARM = "NO_ALARM"
    READ = "READ"
    COMM = "COMM"
    STATE = "STATE"
    UDF = "UDF"
    HIHI = "HIHI"
    HIGH = "HIGH"
    LOW = "LOW"
    LOLO = "LOLO"
    HWLIMIT = "HWLIMIT"


Value: TypeAlias = float | int | str | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One quantity.

    ``name``: unique in its device, the end of the PV's name. ``doc``: one line, at most 40
    characters. ``units``: at most 7 ASCII characters. ``precision``: digits after the point.
    ``choices``: the words of an enum; its values are their indices. ``length``: most elements, for
    arrays of doubles (1 is a scalar). ``low`` and ``high``: limits of what may be put.
    ``live``: the value comes from the instrument, so it cannot be trusted while that is gone.
    ``momentary``: a command; putting it does something and it is 0 again.
    """

    name: str
    kind: Kind
    doc: str
    units: str = ""
    precision: int = 6
    choices: tuple[str, ...] = ()
    length: int = 1
    writable: bool = False
    group: Group = Group.READING
    low: float | None = None
    high: float | None = None
    live: bool = False
    momentary: bool = False

    def __post_init__(self) -> None:
        if len(self.doc) > 40 or not self.doc.isascii():
            raise ValueError(f"{self.name}: the description has more than 40 ASCII characters")
        if len(self.units) > 7 or not self.units.isascii():
            raise ValueError(f"{self.name}: units have more than 7 ASCII characters")
        if bool(self.choices) != (self.kind is Kind.ENUM) or len(self.choices) > 16:
            raise ValueError(f"{self.name}: an enum, and only an enum, has 1 to 16 choices")
        if any(len(choice) > 25 for choice in self.choices):
            raise ValueError(f"{self.name}: a choice has more than 25 characters")

    def checked(self, value: Any) -> Value:
        """``value`` as this attribute takes it; an enum takes an index or one of its words.

        Raises ValueError that names the attribute and what it takes.
        """
        if self.kind is Kind.ENUM:
            return self._choice(value)
        if self.kind in (Kind.STRING, Kind.TEXT):
            if not isinstance(value, str):
                raise ValueError(f"{self.name} takes text, not {value!r}")
            return value
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} takes a number, not {value!r}") from None
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        if not (np.isfinite(number) and low <= number <= high):
            raise ValueError(f"{self.name} takes {self.low} to {self.high}, not {number:g}")
        return int(number) if self.kind is Kind.LONG else number

    def _choice(self, value: Any) -> int:
        if isinstance(value, str) and value in self.choices:
            return self.choices.index(value)
        try:
            index = int(value)
        except (TypeError, ValueError, OverflowError):  # the last one is infinity's
            index = -1
        if not 0 <= index < len(self.choices):
            allowed = ", ".join(self.choices)
            raise ValueError(f"{self.name} takes one of: {allowed}; not {value!r}")
        return index


@dataclass(frozen=True, slots=True)
class Reading:
    """A value with when it was measured (Unix s) and whether to trust it."""

    value: Value
    time: float
    severity: Severity = Severity.NO_ALARM
    status: Status = Status.NO_ALARM
