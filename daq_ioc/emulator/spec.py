"""Specifications of emulated instruments: text to a backend. The options are told in `__init__`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daq_ioc.emulator import calibrations, remote
from daq_ioc.emulator.backend import Backend
from daq_ioc.emulator.js110 import JS110, Options


def get_backend(spec: str = "js110") -> Backend:
    """A pyusb backend with the instruments of ``spec``.

    ValueError for an unknown instrument, option or value, naming the allowed ones, or if a control
    socket cannot be made.
    """
    made = [_instrument(part) for part in spec.split(";")]
    for instrument, sockets in made:  # last, since they stay
        for path in sockets:
            try:
                remote.serve(path, instrument)
            except OSError as error:
                raise ValueError(f"emulator option control={path}: {error.strerror}") from error
    return Backend([instrument for instrument, _ in made])


def _choice(**meanings: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text not in meanings:
            raise ValueError(f"one of {', '.join(meanings)}")
        return meanings[text]

    return convert


def _number(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError("above 0")
    return value


def _ppm(text: str) -> float:
    value = float(text)
    if not abs(value) <= 1000:
        raise ValueError("-1000 to 1000")
    return value


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


# Option: the field of Options that it sets, and how its text becomes a value.
_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "serial": ("serial", str),
    "seed": ("seed", int),
    "pace": ("realtime", _choice(realtime=True, fast=False)),
    "firmware": ("firmware", _version),
    "queue_ms": ("queue_ms", _number),
    "ppm": ("ppm", _ppm),
    "calibration": ("calibration", _choice(**{name: name for name in calibrations.KINDS})),
}
_OTHERS = ("plugged", "fault", "control")


def _instrument(text: str) -> tuple[JS110, list[str]]:
    """An instrument, and where its control sockets are to be."""
    model, _, rest = text.strip().partition(":")
    if model != "js110":
        raise ValueError(f"unknown emulated instrument {model!r}; allowed: js110")
    pairs = [_pair(item) for item in rest.split(",") if item.strip()]
    fields = dict(_field(name, value) for name, value in pairs if name in _FIELDS)
    others = [pair for pair in pairs if pair[0] in _OTHERS]
    plugged = [
        _value(name, value, _choice(yes=1, no=0)) for name, value in others if name == "plugged"
    ]
    instrument = JS110(Options(**fields))
    for name, value in others:
        if name == "fault":
            answer = remote.execute(instrument, value)
            if not answer.startswith("ok"):
                raise ValueError(f"emulator option fault={value}: {answer.removeprefix('error ')}")
    if plugged and not plugged[-1]:
        instrument.unplug()
    return instrument, [value for name, value in others if name == "control"]


def _pair(item: str) -> tuple[str, str]:
    name, _, value = (part.strip() for part in item.partition("="))
    if name not in _FIELDS and name not in _OTHERS:
        allowed = ", ".join((*_FIELDS, *_OTHERS))
        raise ValueError(f"unknown emulator option {name!r}; allowed: {allowed}")
    if not value:
        raise ValueError(f"emulator option {name} needs a value, as {name}=...")
    return name, value


def _field(name: str, value: str) -> tuple[str, Any]:
    field, convert = _FIELDS[name]
    return field, _value(name, value, convert)


def _value(name: str, value: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(value)
    except ValueError as error:
        raise ValueError(f"emulator option {name}={value}: {error}") from error
