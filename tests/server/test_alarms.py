"""Alarm limits and dead bands against the rules of EPICS records."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from daq_ioc.attributes import Reading, Severity, Status
from daq_ioc.server.alarms import NO_LIMITS, Event, Judge, Limits

ALL = Limits(lolo=-2, low=-1, high=1, hihi=2, hysteresis=0.25)


def statuses(limits: Limits, *values: float) -> list[str]:
    judge = Judge(limits)
    return [judge.judge(Reading(value, 0.0))[0].status.value for value in values]


def told(limits: Limits, *values: float) -> list[str]:
    """Of each value, the initials of the events it makes."""
    judge = Judge(limits)
    events = [judge.judge(Reading(value, 0.0))[1] for value in values]
    return ["".join(str(kind.name)[0] for kind in Event if kind in event) for event in events]


def test_each_limit_is_reached_at_its_value() -> None:
    assert statuses(ALL, 0.99, 1, 1.99, 2, -0.99, -1, -1.99, -2, 0) == [
        "NO_ALARM", "HIGH", "HIGH", "HIHI", "NO_ALARM", "LOW", "LOW", "LOLO", "NO_ALARM",
    ]  # fmt: skip


def test_an_alarm_ends_only_beyond_its_hysteresis() -> None:
    assert statuses(ALL, 0.9, 1, 0.8, 0.75, 0.74, 0.9) == [
        "NO_ALARM", "HIGH", "HIGH", "HIGH", "NO_ALARM", "NO_ALARM",
    ]  # fmt: skip
    assert statuses(ALL, 2, 1.8, 1.7, 0.8, 0.7) == ["HIHI", "HIHI", "HIGH", "HIGH", "NO_ALARM"]
    assert statuses(ALL, -2, -1.8, -1.7, -0.7) == ["LOLO", "LOLO", "LOW", "NO_ALARM"]


def test_severities_are_those_configured_and_none_switches_a_limit_off() -> None:
    judge = Judge(Limits(high=1, hihi=2, hsv="MAJOR", hhsv="NO_ALARM"))
    reading, _ = judge.judge(Reading(3.0, 0.0))
    assert (reading.severity, reading.status) == (Severity.MAJOR, Status.HIGH)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ((Severity.NO_ALARM, Status.NO_ALARM), (Severity.MAJOR, Status.HIHI)),
        ((Severity.MINOR, Status.READ), (Severity.MAJOR, Status.HIHI)),
        ((Severity.MAJOR, Status.STATE), (Severity.MAJOR, Status.STATE)),
        ((Severity.INVALID, Status.COMM), (Severity.INVALID, Status.COMM)),
    ],
)
def test_the_worst_of_device_and_limits_wins(
    device: tuple[Severity, Status], expected: tuple[Severity, Status]
) -> None:
    reading, _ = Judge(ALL).judge(Reading(5.0, 1.0, *device))
    assert (reading.severity, reading.status, reading.time) == (*expected, 1.0)


def test_nan_is_in_no_alarm_of_limits() -> None:
    assert statuses(ALL, 5, float("nan"), 0.9) == ["HIHI", "NO_ALARM", "NO_ALARM"]


def test_without_dead_bands_every_reading_is_told() -> None:
    assert told(NO_LIMITS, 1, 1, 1) == ["VLA", "VL", "VL"]


def test_dead_bands_are_measured_from_what_was_told_last() -> None:
    limits = Limits(mdel=1, adel=2)
    values = [0, 0.5, 1, 1.1, 2.0, 2.1, 3.2, 3.2]
    assert told(limits, *values) == ["VLA", "", "", "V", "", "L", "V", ""]
    assert told(Limits(mdel=0, adel=0), 1, 1, 2) == ["VLA", "", "VL"]


def test_alarms_and_not_a_number_pass_every_dead_band() -> None:
    nan, inf = float("nan"), float("inf")
    limits = Limits(mdel=100, adel=100, high=5)
    assert told(limits, 0, 6, 6, 0) == ["VLA", "A", "", "A"]
    assert told(Limits(mdel=100, adel=-1), 0, nan, nan, 0, inf, inf, -inf) == [
        "VLA", "VL", "L", "VL", "VL", "L", "VL",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"low": 2, "high": 1}, "limits must rise"),
        ({"lolo": 2, "hihi": 1}, "limits must rise"),
        ({"high": float("nan")}, "finite"),
        ({"hysteresis": -1}, "greater than or equal to 0"),
        ({"mdel": -2}, "greater than or equal to -1"),
        ({"hsv": "WORSE"}, "'NO_ALARM', 'MINOR', 'MAJOR' or 'INVALID'"),
        ({"hyhi": 1}, "Extra inputs"),
    ],
)
def test_limits_that_cannot_be_meant(limits: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Limits.model_validate(limits)
