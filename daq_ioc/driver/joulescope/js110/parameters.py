"""The user parameters of a JS110: names, allowed values, and what each stands for on the wire.

Names and values are those of the maker's host software. Three of its parameters are not the
instrument's but the host's, and are found elsewhere here: ``buffer_duration`` and
``reduction_frequency`` are ``buffer_span`` and ``dt`` of the device, ``sampling_frequency`` is the
rate of a recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.joulescope.suppression import DEFAULT_MODE, SuppressMode

Wire = int | str


class Where(Enum):
    """What a change of a parameter leads to."""

    SETTINGS = auto()
    """A SETTINGS packet, at once."""
    EXTIO = auto()
    """An EXTIO packet, at once."""
    HOST = auto()
    """Other conversion of the samples, at once."""
    STREAM = auto()
    """Other transfers, from the next start of streaming."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """``options``: allowed values, and each on the wire; ``aliases``: other words for them."""

    where: Where
    default: str
    options: Mapping[str, Wire]
    aliases: Mapping[object, str] = field(default_factory=dict)

    def name_of(self, value: object, parameter: str) -> str:
        """The option that ``value`` means. Raises ValueError that lists the options."""
        if isinstance(value, str) and value in self.options:
            return value
        try:
            if value in self.aliases:
                return self.aliases[value]
        except TypeError:  # not hashable, so no alias
            pass
        if isinstance(value, int | float) and str(value) in self.options:
            return str(value)
        allowed = ", ".join(self.options)
        raise ValueError(f"{parameter} is one of: {allowed}; not {value!r}")


_OFF_ON: Final = {"off": 0, "on": 1}
_OFF_ON_ALIASES: Final[dict[object, str]] = {False: "off", True: "on", "0": "off", "1": "on"}
_LSB: Final = {
    "normal": protocol.LSB_NORMAL,
    "gpi0": protocol.LSB_GPI0,
    "gpi1": protocol.LSB_GPI1,
}
_EDGES: Final = {str(k): k for k in range(9)}

RANGES: Final = ("10 A", "2 A", "180 mA", "18 mA", "1.8 mA", "180 uA", "18 uA")
"""Current ranges by index; 7 is off, 8 a missing sample."""

_RANGE_ALIASES: Final[dict[object, str]] = {
    "on": "auto",
    "180 µA": "180 uA",
    "18 µA": "18 uA",
    **dict(enumerate(RANGES)),
    **{str(k): name for k, name in enumerate(RANGES)},
}

_SETTINGS: Final = {
    "sensor_power": Parameter(Where.SETTINGS, "on", _OFF_ON, _OFF_ON_ALIASES),
    "i_range": Parameter(
        Where.SETTINGS,
        "auto",
        {
            "auto": protocol.SELECT_AUTO,
            **{name: 1 << k for k, name in enumerate(RANGES)},
            "off": protocol.SELECT_OFF,
        },
        _RANGE_ALIASES,
    ),
    "source": Parameter(
        Where.SETTINGS,
        "raw",
        {
            "off": protocol.SOURCE_OFF,
            "raw": protocol.SOURCE_RAW,
            "pattern_usb": protocol.SOURCE_PATTERN_USB,
            "pattern_control": protocol.SOURCE_PATTERN_CONTROL,
            "pattern_sensor": protocol.SOURCE_PATTERN_SENSOR,
        },
        {"on": "raw"},
    ),
    "v_range": Parameter(
        Where.SETTINGS,
        "15V",
        {"15V": 0, "5V": 1},
        {"low": "15V", 0: "15V", "high": "5V", 1: "5V", "15 V": "15V", "5 V": "5V"},
    ),
    "ovr_to_lsb": Parameter(Where.SETTINGS, "off", _OFF_ON, _OFF_ON_ALIASES),
    "control_test_mode": Parameter(
        Where.SETTINGS,
        "normal",
        {
            "normal": protocol.STREAM_ON,
            "usb": protocol.STREAM_TEST_USB,
            "fpga": protocol.STREAM_TEST_FPGA,
            "both": protocol.STREAM_TEST_BOTH,
        },
    ),
}

_EXTIO: Final = {
    "trigger_source": Parameter(Where.EXTIO, "auto", {"auto": 0, "gpi0": 2, "gpi1": 3}),
    "current_lsb": Parameter(Where.EXTIO, "normal", _LSB),
    "voltage_lsb": Parameter(Where.EXTIO, "normal", _LSB),
    "gpo0": Parameter(Where.EXTIO, "0", {"0": 0, "1": 1}, {False: "0", True: "1"}),
    "gpo1": Parameter(Where.EXTIO, "0", {"0": 0, "1": 1}, {False: "0", True: "1"}),
    "io_voltage": Parameter(
        Where.EXTIO,
        "3.3V",
        {
            f"{mv // 1000}.{mv // 100 % 10}V": mv
            for mv in (1800, 2100, 2500, 2700, 3000, 3300, 3600, 5000)
        },
    ),
}

_, _PRE, _WINDOW, _POST = DEFAULT_MODE.split("_")

_HOST: Final = {
    "current_ranging_type": Parameter(
        Where.HOST,
        "interp",
        {kind: kind for kind in ("off", "mean", "interp", "nan")},
        {"interpolate": "interp", "NaN": "nan", None: "off", False: "off"},
    ),
    "current_ranging_samples_pre": Parameter(Where.HOST, _PRE, _EDGES),
    "current_ranging_samples_window": Parameter(
        Where.HOST, _WINDOW, {k: k for k in ("m", "n", *map(str, range(13)))}
    ),
    "current_ranging_samples_post": Parameter(Where.HOST, _POST, _EDGES),
}

_STREAM: Final = {
    "transfer_length": Parameter(Where.STREAM, "256", {str(1 << k): 1 << k for k in range(9)}),
    # The maker's software stops at 8, 129 ms. That leaves little for a busy computer.
    "transfer_outstanding": Parameter(Where.STREAM, "16", {str(1 << k): 1 << k for k in range(6)}),
}

PARAMETERS: Final[Mapping[str, Parameter]] = {**_SETTINGS, **_EXTIO, **_HOST, **_STREAM}

CURRENT_RANGING: Final = "current_ranging"
"""Writes the four ``current_ranging_`` parameters at once, as ``type_pre_window_post``."""


class Parameters:
    """The present values of all parameters, as their option names."""

    def __init__(self) -> None:
        self._names = {name: parameter.default for name, parameter in PARAMETERS.items()}

    def __getitem__(self, name: str) -> str:
        return self.current_ranging if name == CURRENT_RANGING else self._names[_known(name)]

    def wire(self, name: str) -> int:
        """What the parameter's present value is on the wire."""
        value = PARAMETERS[name].options[self._names[name]]
        if not isinstance(value, int):
            raise TypeError(f"{name} is not a number")
        return value

    def set(self, name: str, value: object) -> Where:
        """Change one; what follows from it is returned.

        Raises ValueError, which names the parameter and its options, and then changes nothing.
        """
        if name == CURRENT_RANGING:
            self._set_current_ranging(value)
            return Where.HOST
        parameter = PARAMETERS[_known(name)]
        self._names[name] = parameter.name_of(value, name)
        return parameter.where

    @property
    def current_ranging(self) -> str:
        kind = self._names["current_ranging_type"]
        parts = (self._names[f"current_ranging_samples_{k}"] for k in ("pre", "window", "post"))
        return "off" if kind == "off" else "_".join((kind, *parts))

    def _set_current_ranging(self, value: object) -> None:
        text = "off" if value in (None, False) else str(value)
        SuppressMode.parse(text)
        if text in ("off", ""):
            self._names["current_ranging_type"] = "off"
            return
        kind, *parts = (DEFAULT_MODE if text == "normal" else text.lower()).split("_")
        changes = {"current_ranging_type": kind}
        for key, part in zip(("pre", "window", "post"), parts, strict=True):
            changes[f"current_ranging_samples_{key}"] = part
        self._names |= {k: PARAMETERS[k].name_of(v, k) for k, v in changes.items()}

    def settings(self, *, connected: bool, streaming: bool) -> protocol.Settings:
        """The SETTINGS packet of the present values; the current path is open unless connected."""
        return protocol.Settings(
            sensor_power=self.wire("sensor_power"),
            select=self.wire("i_range") if connected else protocol.SELECT_OFF,
            source=self.wire("source"),
            options=self.wire("v_range") * protocol.OPTION_VOLTAGE_RANGE
            | self.wire("ovr_to_lsb") * protocol.OPTION_OVERFLOW_TO_LSB,
            streaming=self.wire("control_test_mode") if streaming else protocol.STREAM_OFF,
        )

    def extio(self) -> protocol.Extio:
        """The EXTIO packet of the present values."""
        return protocol.Extio(
            trigger_source=self.wire("trigger_source"),
            current_lsb=self.wire("current_lsb"),
            voltage_lsb=self.wire("voltage_lsb"),
            gpo0=self.wire("gpo0"),
            gpo1=self.wire("gpo1"),
            io_voltage=self.wire("io_voltage"),
        )


def _known(name: str) -> str:
    if name not in PARAMETERS:
        names = ", ".join((*PARAMETERS, CURRENT_RANGING))
        raise ValueError(f"a JS110 has no parameter {name!r}; it has: {names}")
    return name
