"""Record fields of a PV: ``.DESC``, ``.EGU``, ``.PREC``, ``.SEVR`` and what else clients read.

They are made from the PV's row, so that they are right by construction (caproto's own record fields
leave ``.EGU`` empty, ``.UDF`` at 49 and ``.NORD`` at 0), and all of them are read only: the table
declares them, not clients.
"""

from __future__ import annotations

from typing import Any

import caproto
from caproto.server import menus

from daq_ioc.attributes import Attribute, Kind, Severity, Status
from daq_ioc.server.corrections import Data
from daq_ioc.server.table import Row

SEVERITIES: tuple[str, ...] = menus.menuAlarmSevr.get_string_tuple()
_SCANS = menus.menuScan.get_string_tuple()
_ELEMENTS = menus.menuFtype.get_string_tuple()
_ORDINALS = (
    "ZR", "ON", "TW", "TH", "FR", "FV", "SX", "SV", "EI", "NI", "TE", "EL", "TV", "TT", "FT", "FF",
)  # fmt: skip


class _ReadOnly(Data):
    """No client may write."""

    def check_access(self, hostname: str, username: str) -> Any:  # noqa: ARG002
        return caproto.AccessRights.READ


class _Text(_ReadOnly, caproto.ChannelString):  # type: ignore[misc]
    pass


class _Double(_ReadOnly, caproto.ChannelDouble):  # type: ignore[misc]
    pass


class _Long(_ReadOnly, caproto.ChannelInteger):  # type: ignore[misc]
    pass


class _Menu(_ReadOnly, caproto.ChannelEnum):  # type: ignore[misc]
    pass


def field(row: Row, name: str, now: str | int | None = None) -> Any:
    """The field of this name; its value is that of a PV without a reading yet, or ``now``.

    Raises KeyError if this record type does not have it.
    """
    value, choices = _static(row)[name]
    value = value if now is None else now
    if choices:
        return _Menu(value=value, enum_strings=choices)
    if isinstance(value, str):
        return _Text(value=value, long_string_max_length=max(len(value) + 1, 61))
    if isinstance(value, int):
        return _Long(value=value)
    return _Double(value=value, units=row.attribute.units, precision=row.attribute.precision)


_Fields = dict[str, tuple[str | int | float, tuple[str, ...]]]


def _static(row: Row) -> _Fields:
    """All fields of a PV: value, and choices where it is a menu."""
    item, rtyp = row.attribute, row.record_type
    fields: _Fields = {
        "NAME": (row.pv, ()),
        "RTYP": (rtyp, ()),
        "DESC": (item.doc, ()),
        "ASG": ("DEFAULT", ()),
        "DISP": (0, ()),
        "SEVR": ("INVALID", SEVERITIES),
        "STAT": ("UDF", ()),
        "UDF": (1, ()),
        "SCAN": ("I/O Intr", _SCANS),
        "TSE": (-2, ()),
    }
    if item.kind is Kind.TEXT or item.length > 1:
        fields |= _waveform(item)
    elif item.kind is Kind.ENUM:
        fields |= _enum(item, rtyp)
    if item.kind in (Kind.DOUBLE, Kind.LONG):
        fields |= _number(row)
    return fields


def _waveform(item: Attribute) -> _Fields:
    text = item.kind is Kind.TEXT
    return {
        "NELM": (TEXT_LENGTH if text else item.length, ()),
        "NORD": (0, ()),
        "FTVL": ("CHAR" if text else "DOUBLE", _ELEMENTS),
    }


TEXT_LENGTH = 1024
"""Bytes of a long string, its terminator included; a path may be longer, but no name in it."""


def _enum(item: Attribute, rtyp: str) -> _Fields:
    if rtyp in ("bi", "bo"):
        return {"ZNAM": (item.choices[0], ()), "ONAM": (item.choices[1], ())}
    words: _Fields = {}
    for index, ordinal in enumerate(_ORDINALS):
        words[f"{ordinal}ST"] = (item.choices[index] if index < len(item.choices) else "", ())
        words[f"{ordinal}VL"] = (index, ())
    return words


def _number(row: Row) -> _Fields:
    item, rtyp, alarms = row.attribute, row.record_type, row.alarms
    cast = float if item.kind is Kind.DOUBLE else int
    low, high = cast(item.low or 0), cast(item.high or 0)
    fields: _Fields = {"EGU": (item.units, ()), "LOPR": (low, ()), "HOPR": (high, ())}
    if item.kind is Kind.DOUBLE:
        fields["PREC"] = (item.precision, ())
    if rtyp == "waveform":
        return fields
    names = {Status.HIHI: "HHSV", Status.HIGH: "HSV", Status.LOW: "LSV", Status.LOLO: "LLSV"}
    for status, limit, severity in alarms.levels:
        fields[status.value] = (cast(limit or 0), ())
        shown = Severity.NO_ALARM if limit is None else severity
        fields[names[status]] = (shown.name, SEVERITIES)
    for name, value in (
        ("HYST", alarms.hysteresis), ("MDEL", alarms.mdel), ("ADEL", alarms.adel),
    ):  # fmt: skip
        fields[name] = (cast(value), ())
    if item.writable:
        fields |= {"DRVL": (low, ()), "DRVH": (high, ())}
    return fields
