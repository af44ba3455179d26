"""What a device makes of an instrument that is read now and then: a buffer of rows, their readings.

One row a period. Every row is published as it comes; nothing here knows what its numbers mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from daq_ioc.attributes import Attribute, Group, Kind, Reading, Severity, Status, Value
from daq_ioc.device.buffer import Array, Column, RingBuffer
from daq_ioc.driver import DriverError

DT_MIN: Final = 0.01
"""Shortest period, s."""

SPAN_MAX: Final = 10_000.0
"""Longest time a buffer is made for, s: 1 000 000 rows at the shortest period."""

TIME: Final = "TIME"
"""The first column: Unix time of the row, s."""

Readings = dict[str, Reading]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the ``count`` values of a column that are numbers; all NaN if there is none.

    ``std`` is that of a sample (n - 1), 0 for a single value.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Array) -> Statistics:
        known = values[~np.isnan(values)]
        if not len(known):
            return cls(0, math.nan, math.nan, math.nan, math.nan)
        std = float(known.std(ddof=1)) if len(known) > 1 else 0.0
        return cls(len(known), float(known.mean()), std, float(known.min()), float(known.max()))


class RowBuffer(RingBuffer):
    """Rows of numbers with their times: a column TIME (Unix s) and one per name, all float64."""

    def __init__(self, names: Sequence[str], capacity: int) -> None:
        super().__init__({name: Column(np.float64, np.nan) for name in (TIME, *names)}, capacity)

    def recent(self, seconds: float, *names: str) -> dict[str, Array]:
        """The named columns, or all, of the last ``seconds`` up to the newest row, oldest first."""
        count = 64
        while True:
            rows = self.last(count, *({TIME, *names} if names else ()))
            times = rows[TIME]
            # Periods change and rows come late: how many rows that is, only their times tell.
            if len(times) < count or times[0] <= times[-1] - seconds:
                break
            count *= 4
        wanted = times > times[-1] - seconds if len(times) else slice(0)
        return {name: rows[name][wanted] for name in names or rows}

    def statistics(self, seconds: float) -> dict[str, Statistics]:
        """Statistics of each column but the time, over the last ``seconds``."""
        return {
            name: Statistics.of(values)
            for name, values in self.recent(seconds).items()
            if name != TIME
        }


class Rows:
    """Takes rows, gives readings. The buffer holds the last ``span`` s whatever the period ``dt``.

    ``columns`` are the numbers of a row after its time; of those in ``averaged`` the mean over the
    last WINDOW s (at first ``window``) is a reading too. Raises ValueError for columns that cannot
    be, and for times beyond the limits.
    """

    def __init__(
        self,
        columns: Sequence[Attribute],
        averaged: Sequence[str],
        *,
        dt: float,
        span: float,
        window: float,
    ) -> None:
        if not DT_MIN <= span <= SPAN_MAX:
            raise ValueError(f"buffer_span takes {DT_MIN:g} to {SPAN_MAX:g} s, not {span:g}")
        if not (isinstance(window, (int, float)) and window >= DT_MIN):
            raise ValueError(f"window takes {DT_MIN:g} s or more, not {window!r}")
        for column in columns:
            if column.kind is not Kind.DOUBLE or column.length != 1 or column.writable:
                raise ValueError(f"{column.name}: a column is a single double, and read only")
        self._columns = tuple(replace(column, live=True) for column in columns)
        self._averaged = tuple(averaged)
        self.dt = dt
        self._tick = 0.0
        """When the present period began, in the computer's monotonic time."""
        self._span = span
        self.attributes = self._attributes()
        # A row more than fits, for one that is read a little early.
        capacity = math.ceil(span / DT_MIN) + 1
        self.buffer = RowBuffer([column.name for column in self._columns], capacity)
        self._window = min(window, span)

    def _attributes(self) -> tuple[Attribute, ...]:
        by_name = {column.name: column for column in self._columns}
        for name in self._averaged:
            if name not in by_name:
                raise ValueError(f"{name} is to be averaged, and is not among the columns")
        means = tuple(
            replace(by_name[name], name=f"{name}_MEAN", doc=f"{name}, mean over WINDOW")
            for name in self._averaged
        )
        window = Attribute(
            "WINDOW",
            Kind.DOUBLE,
            "Time the means are taken over",
            units="s",
            precision=3,
            writable=True,
            group=Group.SETTING,
            low=DT_MIN,
            high=self._span,
        )
        width = 1 + len(self._columns)
        return (
            Attribute(TIME, Kind.DOUBLE, "UTC of the row", "s", live=True),
            Attribute("TIME_TEXT", Kind.STRING, "TIME as ISO 8601", live=True),
            *self._columns,
            *means,
            *((window,) if means else ()),
            Attribute(
                "LIST", Kind.DOUBLE, "A row: time, then the columns", length=width, live=True
            ),
        )

    @property
    def dt(self) -> float:
        """Period, s. A new one counts from the newest row, so it takes effect at once."""
        return self._dt

    @dt.setter
    def dt(self, seconds: float) -> None:
        self._dt = max(DT_MIN, seconds)

    @property
    def pause(self) -> float:
        """Time until the driver is to be read again, s."""
        return max(0.0, self._tick + self._dt - time.monotonic())

    def begin(self) -> None:
        """The instrument is there (again), and read at once."""
        self._tick = time.monotonic()

    def take(self, rows: npt.NDArray[np.float64]) -> list[Readings]:
        """Add rows; the readings of each. DriverError if they are not what was declared."""
        rows = np.atleast_2d(np.asarray(rows, np.float64))
        if rows.shape[1:] != (1 + len(self._columns),):
            raise DriverError(
                f"the driver gave numbers of shape {rows.shape}; "
                f"it declares rows of a time and {len(self._columns)} columns"
            )
        if not ((rows[:, 0] > 0) & (rows[:, 0] < 1e11)).all():
            raise DriverError(f"the driver gave {rows[:, 0]} as times; they are in Unix s")
        # On to the period that is now, by whole periods: a row that was read late moves none of
        # those that follow. The little more is for one read early by a rounding error.
        periods = math.floor((time.monotonic() - self._tick) / self._dt + 1e-6)
        self._tick += periods * self._dt
        readings = []
        for row in rows:
            values = zip(self.buffer.columns, row[:, np.newaxis], strict=True)
            self.buffer.append(self.buffer.stop_id, dict(values))
            readings.append(self._readings(row))
        return readings

    def end(self) -> list[Readings]:
        """The instrument is gone; nothing is left to be published."""
        return []

    def _readings(self, row: npt.NDArray[np.float64]) -> Readings:
        when = float(row[0])
        text = datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds")
        readings = {
            TIME: Reading(when, when),
            "TIME_TEXT": Reading(text.replace("+00:00", "Z"), when),
            "LIST": Reading(row.copy(), when),
        }
        for column, value in zip(self._columns, row[1:].tolist(), strict=True):
            readings[column.name] = _number(value, when)
        if self._averaged:
            recent = self.buffer.recent(self._window, *self._averaged)
            for name, values in recent.items():
                readings[f"{name}_MEAN"] = _number(Statistics.of(values).mean, when)
        return readings

    def put(self, name: str, value: Value) -> None:
        """Write an attribute of the rows."""
        if name == "WINDOW":
            self._window = float(value)

    def values(self) -> Mapping[str, Value]:
        """Present values of the attributes that can be written."""
        return {"WINDOW": self._window} if self._averaged else {}


def _number(value: float, when: float) -> Reading:
    """A reading; what is not a number is undefined."""
    if math.isnan(value):
        return Reading(value, when, Severity.INVALID, Status.UDF)
    return Reading(value, when)
