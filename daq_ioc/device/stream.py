"""What a device makes of a stream of current and voltage: buffers, statistics, charge, energy.

Everything is built from reductions: the statistics of 20 000 samples, aligned to sample ids that
are multiples of it. A window is a whole number of reductions, so windows tile the stream; charge
and energy sum them; a recording stores them. They are kept in a buffer of their own, by number.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import numpy as np

from daq_ioc import statistics
from daq_ioc.attributes import Attribute, Group, Kind, Reading, Severity, Status, Value
from daq_ioc.device.buffer import Column, RingBuffer
from daq_ioc.device.clock import Forward, SampleClock
from daq_ioc.device.trace import Trace
from daq_ioc.samples import MISSING_BITS, MISSING_WORD, SampleBlock

REDUCTION: Final = 20_000
"""Samples in a reduction: that of a JLS recording, 10 ms at 2 000 000 samples/s."""

_BATCH: Final = 10
"""Reductions made at once where nobody waits for a window: several cost little more than one.

The usual windows and the records of a recording are whole batches, and so wait for none."""

_BUFFER_MIN: Final = 4 * _BATCH
"""Reductions in the smallest buffer, several times what comes at once."""

COLUMNS: Final = {
    "raw": Column(np.uint16, MISSING_WORD, (2,)),
    "current": Column(np.float32, np.nan),
    "voltage": Column(np.float32, np.nan),
    "bits": Column(np.uint8, MISSING_BITS),
}
"""13 bytes a sample."""

_ROWS: Final = {"row": Column(statistics.ROW, statistics.empty(), (len(statistics.FIELDS),))}

Readings = dict[str, Reading]

_SIGNALS: Final = (("CURRENT", "A"), ("VOLTAGE", "V"), ("POWER", "W"))
_STATISTICS: Final = ("STD", "MIN", "MAX", "P2P")
_WORDS: Final = {
    "STD": "standard deviation",
    "MIN": "minimum",
    "MAX": "maximum",
    "P2P": "peak to peak",
}


def _reading(
    name: str, doc: str, units: str = "", precision: int = 6, length: int = 1
) -> Attribute:
    return Attribute(
        name, Kind.DOUBLE, doc, units=units, precision=precision, length=length, live=True
    )


def _attributes() -> tuple[Attribute, ...]:
    rows = [_reading(name, f"{name.capitalize()}, mean over dt", u, 9) for name, u in _SIGNALS]
    rows += [
        _reading(f"{name}_{kind}", f"{name.capitalize()}, {_WORDS[kind]} over dt", units, 9)
        for name, units in _SIGNALS
        for kind in _STATISTICS
    ]
    rows += [
        _reading("STATS", "I, V, P: mean, std, min, max, p2p", length=15, precision=9),
        _reading("CHARGE", "Charge since ACCUM_RESET", "C", 9),
        _reading("ENERGY", "Energy since ACCUM_RESET", "J", 9),
        _reading("TIME", "UTC of the window's newest sample", "s"),
        Attribute("TIME_TEXT", Kind.STRING, "TIME as ISO 8601", live=True),
        _reading("SAMPLE_RATE", "Samples per second", "Hz", 0),
        _reading("SAMPLES", "Samples since the IOC started", precision=0),
        _reading("DROPPED", "Samples lost since the IOC started", precision=0),
        _reading("LAG", "How late the readings are", "s", 3),
        _reading("BUFFER_SPAN", "Time held in the buffer", "s", 3),
        Attribute(
            "ACCUM_RESET",
            Kind.ENUM,
            "Put 1 to clear CHARGE and ENERGY",
            choices=("0", "1"),
            writable=True,
            group=Group.SETTING,
            momentary=True,
        ),
    ]
    return tuple(rows)


ATTRIBUTES: Final = _attributes()


class Stream:
    """Takes blocks, gives readings. One thread feeds it; the buffers may be read by any.

    ``rate`` samples/s; ``span`` of the buffer, s. Sample ids of this class never go back: each new
    stream of the driver continues after the last one, at the next multiple of a reduction.
    """

    def __init__(self, rate: float, span: float) -> None:
        self.rate = rate
        reductions = max(_BUFFER_MIN, int(np.ceil(span * rate / REDUCTION)))
        self.buffer = RingBuffer(COLUMNS, reductions * REDUCTION)
        # More than the buffer's, so that they outlast the samples they belong to.
        self.reductions = RingBuffer(_ROWS, 2 * reductions)
        self.clock = SampleClock(rate)
        self._forward = Forward()
        self._trace = Trace(self.buffer, self.reductions, REDUCTION, rate)
        self.attributes = (*ATTRIBUTES, *self._trace.attributes)
        self.first_id = 0
        """Where the present stream of the driver begins."""
        self.voltage_range = 0
        """Of the newest samples, and so of those from `voltage_range_from` on."""
        self.voltage_range_from = 0
        self.samples = 0
        self.dropped = 0
        self._charge = self._energy = 0.0
        self._accumulators = threading.Lock()
        self._window: list[statistics.Rows] = []
        self._window_lost = 0
        self._window_begin = 0
        self._overflows: list[tuple[int, int, tuple[int, int]]] = []  # blocks that have some
        self._per_window = 1

    @property
    def dt(self) -> float:
        """Length of a window, s: a whole number of reductions."""
        return self._per_window * REDUCTION / self.rate

    @dt.setter
    def dt(self, seconds: float) -> None:
        self._per_window = max(1, round(seconds * self.rate / REDUCTION))

    @property
    def pause(self) -> float:
        """Time until the driver is to be read again, s: a stream is read all the time."""
        return 0.0

    def put(self, name: str, value: Value) -> None:
        """Write an attribute of the stream."""
        if name == "ACCUM_RESET" and value:
            with self._accumulators:
                self._charge = self._energy = 0.0
        self._trace.put(name, value)

    def values(self) -> Mapping[str, Value]:
        """Present values of the attributes that can be written, and of those they change."""
        with self._accumulators:
            charge, energy = self._charge, self._energy
        totals = {"ACCUM_RESET": 0, "CHARGE": charge, "ENERGY": energy}
        return {**totals, **self._trace.values()}

    def begin(self) -> None:
        """A new stream of the driver begins, with its sample id 0."""
        self.first_id = -(-self.buffer.stop_id // REDUCTION) * REDUCTION
        self.clock = SampleClock(self.rate, self.first_id)
        self._trace.begin(self.first_id)
        self._window.clear()

    def take(self, block: SampleBlock) -> list[Readings]:
        """Add a block; the readings of every window that is complete with it."""
        first = self.first_id + block.sample_id
        self.clock.update(self.first_id + block.arrival_id, block.arrival)
        rows = {name: getattr(block, name) for name in COLUMNS}
        self.buffer.append(first, rows)
        if block.voltage_range != self.voltage_range:
            self.voltage_range, self.voltage_range_from = block.voltage_range, first
        self.samples += len(block)
        self.dropped += block.lost
        if any(block.overflow):
            self._overflows.append((first, first + len(block), block.overflow))
        return self._reduce(at_least=_BATCH)

    def end(self) -> list[Readings]:
        """The driver's stream has ended: count the samples that fill no reduction, too."""
        readings = self._reduce(at_least=1)
        stop = self.buffer.stop_id
        rest = stop % REDUCTION
        if rest and stop > self.first_id:
            self._add(self._rows(stop - rest, stop, rest))
        return [*readings, self._publish(stop)] if self._window else readings

    def _reduce(self, at_least: int) -> list[Readings]:
        """Reduce what has come, once it completes a window or is ``at_least`` so many rows."""
        readings: list[Readings] = []
        stop = self.buffer.stop_id // REDUCTION
        number = max(self.reductions.stop_id, self.first_id // REDUCTION)
        collected = sum(map(len, self._window))
        # In steps that the buffer holds in one piece, and that end where a window ends.
        while number < stop:
            wanted = max(1, self._per_window - collected)
            if stop - number < min(wanted, at_least):
                break
            per_buffer = self.buffer.capacity // REDUCTION
            until = min(stop, (number // per_buffer + 1) * per_buffer, number + wanted)
            end = until * REDUCTION
            rows = self._rows(number * REDUCTION, end, REDUCTION)
            self.reductions.append(number, {"row": rows})
            self._add(rows)
            number = until
            collected += len(rows)
            if collected >= self._per_window:
                readings.append(self._publish(end))
                collected = 0
        return readings

    def _rows(self, begin: int, stop: int, samples_per_row: int) -> statistics.Rows:
        """Statistics of samples in the buffer; counts those of them that are missing."""
        current = self.buffer.view(begin, stop, "current")
        voltage = self.buffer.view(begin, stop, "voltage")
        bits = self.buffer.view(begin, stop, "bits")
        rows = statistics.reduce_rows(current, voltage, bits, samples_per_row)
        if (rows["length"] < samples_per_row).any():
            self._window_lost += int(np.count_nonzero(bits == MISSING_BITS))
        return rows

    def _add(self, rows: statistics.Rows) -> None:
        """Add to the window, and to charge and energy, where missing samples add nothing."""
        self._window.append(rows)
        length = rows["length"]
        sums = np.add.reduce(rows["mean"] * length, axis=0, where=length > 0) / self.rate
        with self._accumulators:
            self._charge += float(sums[0])
            self._energy += float(sums[2])

    def _publish(self, stop_id: int) -> Readings:
        """Readings of the window that ends before sample ``stop_id``; the next window begins."""
        row = statistics.combine(np.concatenate(self._window))
        lost = self._window_lost
        self._window.clear()
        self._window_lost = 0
        over = self._overflowed(stop_id)
        when = self._forward(self.clock.time_of(stop_id - 1))
        length = int(row["length"][0])
        severity, status = Severity.NO_ALARM, Status.NO_ALARM
        if length == 0:
            severity, status = Severity.INVALID, Status.READ
        elif lost:
            severity, status = Severity.MINOR, Status.READ
        values: dict[str, Value] = {}
        table = []
        for k, (name, _) in enumerate(_SIGNALS):
            mean, low, high = (float(row[field][k]) for field in ("mean", "min", "max"))
            spread = float(row["variance"][k])
            std = float(np.sqrt(spread / (length - 1))) if length > 1 else spread
            table += [mean, std, low, high, high - low]
            values[name] = mean
            values |= dict(zip((f"{name}_{s}" for s in _STATISTICS), table[-4:], strict=True))
        values["STATS"] = np.array(table)
        values |= self._trace.readings(stop_id)
        readings = {name: Reading(value, when, severity, status) for name, value in values.items()}
        for name, value in values.items():
            if length and name.startswith(over):
                readings[name] = Reading(value, when, Severity.MAJOR, Status.HWLIMIT)
        counts = self._counts(when)
        return readings | {name: Reading(value, when) for name, value in counts.items()}

    def _overflowed(self, stop_id: int) -> tuple[str, ...]:
        """The readings that overflow spoils in the window before ``stop_id``; the next one begins.

        A block that lies across two windows spoils both.
        """
        begin, self._window_begin = self._window_begin, stop_id
        inside = [n for first, stop, n in self._overflows if first < stop_id and stop > begin]
        self._overflows = [each for each in self._overflows if each[1] > stop_id]
        current, voltage = (any(n[k] for n in inside) for k in (0, 1))
        if not (current or voltage):
            return ()
        return (*(("CURRENT",) * current), *(("VOLTAGE",) * voltage), "POWER", "STATS")

    def _counts(self, when: float) -> dict[str, Value]:
        text = datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds")
        return {
            "CHARGE": self._charge,
            "ENERGY": self._energy,
            "TIME": when,
            "TIME_TEXT": text.replace("+00:00", "Z"),
            "SAMPLE_RATE": self.rate,
            "SAMPLES": float(self.samples),
            "DROPPED": float(self.dropped),
            "LAG": datetime.now(UTC).timestamp() - when,
            "BUFFER_SPAN": len(self.buffer) / self.rate,
        }
