"""The PV table: a device's attributes under a prefix, with the names and types EPICS gives them.

Every server, listing and check is made from these rows. Knows names, record types and limits; knows
no protocol and holds no values.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from daq_ioc.attributes import Attribute, Kind
from daq_ioc.errors import UsageError
from daq_ioc.server.alarms import NO_LIMITS, Limits

NAME_LENGTH = 60
"""Characters EPICS base keeps of a record name."""

NAME_CHARACTERS = r"A-Za-z0-9_\-+:\[\]<>;{}"
"""As a regular expression's set. No dot: it separates the record from its field."""


@dataclass(frozen=True, slots=True)
class Row:
    """One PV: its full name, what it shows, and when that is an alarm."""

    pv: str
    attribute: Attribute
    alarms: Limits = NO_LIMITS

    @property
    def record_type(self) -> str:
        """Record type whose fields the PV has, as ``.RTYP`` tells it."""
        kind, writable = self.attribute.kind, self.attribute.writable
        if kind is Kind.TEXT or self.attribute.length > 1:
            return "waveform"
        if kind is Kind.ENUM:
            return ("b" if len(self.attribute.choices) == 2 else "mbb") + ("o" if writable else "i")
        names = {Kind.DOUBLE: "ai ao", Kind.LONG: "longin longout"}
        return names.get(kind, "stringin stringout").split()[writable]

    @property
    def access(self) -> str:
        """``r`` or ``rw``."""
        return "rw" if self.attribute.writable else "r"

    @property
    def limits(self) -> str:
        """What may be put, for people: limits of a number or the words of an enum."""
        low, high = self.attribute.low, self.attribute.high
        if self.attribute.choices:
            return " | ".join(self.attribute.choices)
        if low is None and high is None:
            return ""
        return f"{'' if low is None else f'{low:g}'} .. {'' if high is None else f'{high:g}'}"


def checked_prefix(prefix: str) -> str:
    """``prefix``, if PV names can begin with it. Raises ValueError."""
    if not re.fullmatch(f"[{NAME_CHARACTERS}]*", prefix):
        raise ValueError("PV names have letters, digits and _ - + : [ ] < > ; { } only")
    return prefix


def rows(
    prefix: str, attributes: Iterable[Attribute], limits: Mapping[str, Limits] | None = None
) -> list[Row]:
    """The PVs of one device, ``limits`` by attribute name.

    Raises UsageError for a name that EPICS cannot serve.
    """
    alarms = limits or {}
    try:
        checked_prefix(prefix)
    except ValueError as error:
        raise UsageError(f"the prefix {prefix!r} is not allowed: {error}") from None
    made = [Row(prefix + a.name, a, alarms.get(a.name, NO_LIMITS)) for a in attributes]
    longest = max(made, key=lambda row: len(row.pv), default=None)
    if longest is not None and len(longest.pv) > NAME_LENGTH:
        room = NAME_LENGTH - len(longest.attribute.name)
        raise UsageError(
            f"the prefix {prefix!r} is too long: with it the PV {longest.pv} has "
            f"{len(longest.pv)} characters of at most {NAME_LENGTH}; use at most {room}"
        )
    return made


def joined(tables: Iterable[Sequence[Row]]) -> list[Row]:
    """All PVs of several devices. Raises UsageError if two have the same name."""
    seen: dict[str, Row] = {}
    for table in tables:
        for row in table:
            if row.pv in seen:
                raise UsageError(f"two PVs are named {row.pv}; give each device its own prefix")
            seen[row.pv] = row
    return list(seen.values())


_COLUMNS = ("name", "type", "access", "units", "precision", "length", "takes", "description")


def _cells(row: Row) -> list[str]:
    item = row.attribute
    precision = str(item.precision) if item.kind is Kind.DOUBLE else ""
    length = str(item.length) if item.length > 1 else ""
    return [
        row.pv,
        row.record_type,
        row.access,
        item.units,
        precision,
        length,
        row.limits,
        item.doc,
    ]


def as_csv(table: Iterable[Row]) -> str:
    """The table as CSV with a header line, for other programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_cells(row) for row in table)
    return out.getvalue()


ARCHIVED_LENGTH = 100
"""Elements of the longest array suggested for an archive; recordings are for the rest."""

ARCHIVE_PERIOD = 1.0
"""s between two values of a reading that is suggested for an archive."""


def as_archiver(table: Iterable[Row]) -> str:
    """What to archive, as the EPICS Archiver Appliance takes it (``archivePV``): a JSON list.

    Readings of the instrument are scanned, so that a short ``dt`` does not fill the archive;
    everything else changes rarely, and is monitored. Commands, and arrays of more than
    ARCHIVED_LENGTH elements, are left out.
    """
    entries = [
        {
            "pv": row.pv,
            "samplingmethod": "SCAN" if row.attribute.live else "MONITOR",
            "samplingperiod": f"{ARCHIVE_PERIOD:g}",
        }
        for row in table
        if not row.attribute.momentary and row.attribute.length <= ARCHIVED_LENGTH
    ]
    return "[\n" + ",\n".join(f" {json.dumps(entry)}" for entry in entries) + "\n]\n"


def as_text(table: Iterable[Row]) -> str:
    """The table in aligned columns, for people and for grep."""
    shown = ("name", "type", "access", "units", "description")
    keep = [_COLUMNS.index(name) for name in shown]
    lines = [[cells[i] for i in keep] for cells in ([*_COLUMNS], *map(_cells, table))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


FORMATS = {"text": as_text, "csv": as_csv, "archiver": as_archiver}
"""Listings by name."""
