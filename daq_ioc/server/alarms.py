"""Alarm limits and dead bands of a PV: what a reading's severity is, and who is to hear of it.

The rules are those of EPICS records (ai, ao, longin, longout). Knows no protocol and no network.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Flag, auto
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from daq_ioc.attributes import Attribute, Kind, Reading, Severity, Status, Value

SeverityName = Literal["NO_ALARM", "MINOR", "MAJOR", "INVALID"]


class Limits(BaseModel):
    """What the configuration says of one number; without a limit there is no alarm for it.

    ``hysteresis``: how far, in units of the value, it must come back before an alarm ends.
    ``mdel`` and ``adel``: how far it must move before monitors, and archivers, are told; -1 tells
    them of every reading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    hihi: float | None = None
    high: float | None = None
    low: float | None = None
    lolo: float | None = None
    hhsv: SeverityName = "MAJOR"
    hsv: SeverityName = "MINOR"
    lsv: SeverityName = "MINOR"
    llsv: SeverityName = "MAJOR"
    hysteresis: float = Field(default=0.0, ge=0)
    mdel: float = Field(default=-1.0, ge=-1)
    adel: float = Field(default=-1.0, ge=-1)

    @model_validator(mode="after")
    def _in_order(self) -> Limits:
        given = [
            limit for limit in (self.lolo, self.low, self.high, self.hihi) if limit is not None
        ]
        if any(lower > upper for lower, upper in pairwise(given)):
            raise ValueError("limits must rise: lolo <= low <= high <= hihi")
        return self

    @property
    def levels(self) -> tuple[tuple[Status, float | None, Severity], ...]:
        """Status, limit and severity in the order in which EPICS looks at them."""
        return (
            (Status.HIHI, self.hihi, Severity[self.hhsv]),
            (Status.LOLO, self.lolo, Severity[self.llsv]),
            (Status.HIGH, self.high, Severity[self.hsv]),
            (Status.LOW, self.low, Severity[self.lsv]),
        )


NO_LIMITS = Limits()


class Event(Flag):
    """What a client can ask to be told of."""

    VALUE = auto()
    LOG = auto()
    ALARM = auto()


class Judge:
    """Follows the readings of one PV, each of which it is to see once and in order."""

    def __init__(self, limits: Limits = NO_LIMITS) -> None:
        self._limits = limits
        self._level = Status.NO_ALARM
        self._alarm = (Severity.INVALID, Status.UDF)
        self._told: dict[Event, float] = {}

    def judge(self, reading: Reading) -> tuple[Reading, Event]:
        """The reading with its severity, and what has happened.

        Where the device and a limit both object, the worse severity wins, and the device's if they
        are equal: it knows more.
        """
        severity, status = self._of_limits(reading.value)
        if severity > reading.severity:
            reading = replace(reading, severity=severity, status=status)
        event = Event(0)
        if (reading.severity, reading.status) != self._alarm:
            event |= Event.ALARM
            self._alarm = (reading.severity, reading.status)
        for kind, band in ((Event.VALUE, self._limits.mdel), (Event.LOG, self._limits.adel)):
            if self._moved(kind, band, reading.value):
                event |= kind
        return reading, event

    def _of_limits(self, value: Value) -> tuple[Severity, Status]:
        limits = self._limits
        if limits is NO_LIMITS or not isinstance(value, (int, float)):
            return Severity.NO_ALARM, Status.NO_ALARM
        for status, limit, severity in limits.levels:
            if limit is None or severity is Severity.NO_ALARM:
                continue
            sign = 1 if status in (Status.HIHI, Status.HIGH) else -1
            margin = limits.hysteresis if self._level is status else 0.0
            if sign * value >= sign * limit - margin:
                self._level = status
                return severity, status
        self._level = Status.NO_ALARM
        return Severity.NO_ALARM, Status.NO_ALARM

    def _moved(self, kind: Event, band: float, value: Value) -> bool:
        """Whether the value is beyond the dead band around what was last told."""
        if band < 0 or not isinstance(value, (int, float)):
            return True
        old = self._told.get(kind, math.nan)
        if math.isfinite(old) and math.isfinite(value):
            moved = abs(value - old) > band
        else:
            moved = not (old == value or (math.isnan(old) and math.isnan(value)))
            moved = moved or kind not in self._told
        if moved:
            self._told[kind] = float(value)
        return moved


def checked(name: str, attribute: Attribute | None) -> None:
    """Raise ValueError unless there is a PV of this name that can have limits."""
    if attribute is None:
        raise ValueError("there is no such PV; 'daq-ioc pvs CONFIG' lists them")
    if attribute.kind not in (Kind.DOUBLE, Kind.LONG) or attribute.length > 1:
        raise ValueError(f"{name} is not a single number, so it has no limits and no dead bands")
