"""The last seconds as points to be plotted: mean and envelope of current, voltage and power.

A point is a fixed number of samples, aligned to multiples of it, so that each is computed once. It
is made of reductions where it is at least one of them long, or where the trace is longer than
EXACT_SPAN; such a trace may have fewer points than asked for, 100 a second at 2 MSPS. A short trace
is made of the samples themselves. Every envelope is exact: of all samples of its point, and no
others. A trace never reaches back over a gap in time, into an earlier stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.attributes import Attribute, Group, Kind, Value
from daq_ioc.device.buffer import Column, RingBuffer

EXACT_SPAN: Final = 1.0
"""Traces up to this long are made of samples, s: as many of them cost a few ms at once."""

PERIOD: Final = 0.1
"""Least time between two traces, s."""

_SPAN_DEFAULT: Final = 10.0
_SPAN_MIN: Final = 0.001
_POINTS_MIN: Final = 10
_POINTS_MAX: Final = 10_000
_POINTS_DEFAULT: Final = 1000
_PIECE: Final = 1 << 16  # samples that stay in the cache

_SIGNALS: Final = (("CURRENT", "A"), ("VOLTAGE", "V"), ("POWER", "W"))
_KINDS: Final = (("", "mean"), ("_MIN", "minimum"), ("_MAX", "maximum"))
_POINT: Final = {"point": Column(np.float64, np.nan, (len(_KINDS), len(_SIGNALS)))}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many ``samples`` make a point and how many ``points`` are shown; those there are."""

    samples: int
    points: int
    ring: RingBuffer

    @classmethod
    def make(cls, span: int, points: int, reduction: int, exact: int) -> _Plan:
        """For ``span`` samples and at most ``points``; all spans up to ``exact`` from samples."""
        unit = 1 if span <= exact and span < points * reduction else reduction
        samples = unit * -(-span // (points * unit))
        count = max(_POINTS_MIN, round(span / samples))
        return cls(samples, count, RingBuffer(_POINT, count))


class Trace:
    """Traces of ``samples``, whose ``reductions`` are of ``reduction`` samples each.

    ``rate`` samples/s. `values` has the span and the number of points that are really shown. The
    thread that appends to the buffers calls `begin` and `readings`.
    """

    def __init__(
        self, samples: RingBuffer, reductions: RingBuffer, reduction: int, rate: float
    ) -> None:
        self._samples, self._reductions = samples, reductions
        self._reduction, self._rate = reduction, rate
        self._span_max = samples.capacity / rate
        self._span = min(_SPAN_DEFAULT, self._span_max)
        self._points = _POINTS_DEFAULT
        self._first_id = self._due_id = 0
        self._plan = self._planned()
        self.attributes = (*_arrays(), *_options(self._span_max))

    def _planned(self) -> _Plan:
        span = max(1, round(self._span * self._rate))
        exact = round(EXACT_SPAN * self._rate)
        return _Plan.make(span, self._points, self._reduction, exact)

    def put(self, name: str, value: Value) -> None:
        """Change ``TRACE_SPAN`` (s) or ``TRACE_POINTS``."""
        if name == "TRACE_SPAN":
            self._span = float(value)
        elif name == "TRACE_POINTS":
            self._points = int(value)
        self._plan = self._planned()

    def values(self) -> Mapping[str, Value]:
        """The span and the number of points that are shown."""
        plan = self._plan
        span = min(plan.points * plan.samples / self._rate, self._span_max)
        return {"TRACE_SPAN": span, "TRACE_POINTS": plan.points}

    def begin(self, first_id: int) -> None:
        """A stream begins with sample ``first_id``; what was before is no part of its traces."""
        self._first_id = self._due_id = first_id
        self._plan = self._planned()

    def readings(self, stop_id: int) -> dict[str, Value]:
        """Values of the traces that end before sample ``stop_id``; none when it is too early."""
        if stop_id < self._due_id:
            return {}
        self._due_id = stop_id + round(PERIOD * self._rate)
        plan = self._plan
        self._extend(plan, stop_id)
        known = plan.ring.last(plan.points, "point")["point"]
        shown = np.full((plan.points, len(_KINDS), len(_SIGNALS)), np.nan)
        shown[plan.points - len(known) :] = known
        values: dict[str, Value] = {
            f"{signal}_TRACE{kind}": shown[:, j, k].copy()
            for j, (kind, _) in enumerate(_KINDS)
            for k, (signal, _) in enumerate(_SIGNALS)
        }
        number = stop_id // plan.samples
        centres = np.arange(number - plan.points, number) + 0.5
        values["TIME_TRACE"] = np.subtract(stop_id, centres * plan.samples) / self._rate
        return values

    def _extend(self, plan: _Plan, stop_id: int) -> None:
        """Compute the points that are complete and not there yet."""
        whole = plan.samples % self._reduction == 0
        oldest = self._reductions.start_id * self._reduction if whole else self._samples.start_id
        stop = stop_id // plan.samples
        begin = -(-max(self._first_id, oldest) // plan.samples)
        begin = max(begin, stop - plan.points, plan.ring.stop_id)
        if begin < stop:
            points = self._of_reductions if whole else self._of_samples
            plan.ring.append(begin, {"point": points(begin, stop, plan.samples)})

    def _of_reductions(self, begin: int, stop: int, samples: int) -> Array:
        """Points [begin, stop), float64 (n, kind, signal)."""
        each = samples // self._reduction
        rows = self._reductions.read(begin * each, stop * each, "row")["row"]
        rows = rows[:, : len(_SIGNALS)].reshape(stop - begin, each, len(_SIGNALS))
        row = statistics.combine(rows, axis=1)
        return np.stack([row["mean"], row["min"], row["max"]], axis=1)

    def _of_samples(self, begin: int, stop: int, samples: int) -> Array:
        """Points [begin, stop), float64 (n, kind, signal)."""
        points = np.empty((stop - begin, len(_KINDS), len(_SIGNALS)))
        step = max(1, _PIECE // samples)
        for k in range(begin, stop, step):
            part = k, min(k + step, stop)
            first, last = part[0] * samples, part[1] * samples
            current = self._samples.view(first, last, "current").reshape(-1, samples)
            voltage = self._samples.view(first, last, "voltage").reshape(-1, samples)
            for signal, values in enumerate((current, voltage, current * voltage)):
                points[part[0] - begin : part[1] - begin, :, signal] = _envelope(values)
        return points


def _envelope(values: Array) -> Array:
    """Mean, minimum, maximum, float64 (m, 3), of the finite ones of ``values`` (m, n)."""
    found = np.empty((len(values), 3))
    found[:, 0] = values.mean(axis=1, dtype=np.float64)
    found[:, 1], found[:, 2] = values.min(axis=1), values.max(axis=1)
    # A value that is not finite shows in its mean; only then is every one looked at.
    partial = np.flatnonzero(~np.isfinite(found[:, 0]))
    if len(partial):
        values = values[partial]
        used = np.isfinite(values)
        count = used.sum(axis=1)
        total = np.where(used, values, 0).sum(axis=1, dtype=np.float64)
        low = np.where(used, values, np.inf).min(axis=1)
        high = np.where(used, values, -np.inf).max(axis=1)
        with np.errstate(invalid="ignore"):  # 0 of none is not a number, as it should be
            found[partial] = np.stack([total / count, low, high], axis=1)
        found[partial[count == 0]] = np.nan
    return found


def _arrays() -> tuple[Attribute, ...]:
    def array(name: str, doc: str, units: str) -> Attribute:
        return Attribute(name, Kind.DOUBLE, doc, units, 9, length=_POINTS_MAX, live=True)

    return (
        *(
            array(f"{signal}_TRACE{kind}", f"{signal.capitalize()} trace, {word}", units)
            for signal, units in _SIGNALS
            for kind, word in _KINDS
        ),
        array("TIME_TRACE", "Time before now of each trace point", "s"),
    )


def _options(span_max: float) -> tuple[Attribute, ...]:
    def option(kind: Kind, name: str, doc: str, units: str, low: float, high: float) -> Attribute:
        group = Group.SETTING
        return Attribute(name, kind, doc, units, 3, (), 1, True, group, low, high)

    return (
        option(Kind.DOUBLE, "TRACE_SPAN", "Length of the traces", "s", _SPAN_MIN, span_max),
        option(Kind.LONG, "TRACE_POINTS", "Points of the traces", "", _POINTS_MIN, _POINTS_MAX),
    )
