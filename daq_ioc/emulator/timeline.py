"""What the emulated instrument samples over time: settings as they followed each other.

The timeline counts frames since the instrument got its power and never stops; a stream is a part
of it. It is the one truth of the emulator: what is sent, the on-instrument statistics and what
tests compare with all come from here. No locks, no clocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daq_ioc.driver.joulescope.js110.protocol import FRAME_SAMPLES
from daq_ioc.emulator import encode
from daq_ioc.emulator.encode import Block, Period, Wire, Words
from daq_ioc.emulator.target import Target, Waveform, join

_PERIODS_KEPT = 4  # 18 MB each when all their frames were used
_SEGMENTS_KEPT = 200  # the truth before so many changes of settings is forgotten
_RUN_FRAMES = 4096  # so many frames are gathered at once


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums and extremes of current (A), voltage (V), power (W), in this order, over samples."""

    samples: int
    sums: npt.NDArray[np.float64]
    least: npt.NDArray[np.float64]
    most: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Segment:
    """Frames from ``start`` on, until the next segment; ``origin`` is the waveform's beginning."""

    start: int
    origin: int
    wire: Wire | None
    lead: Block | None


class Timeline:
    """Segments of constant settings; frame numbers count from power-on."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._segments = [_Segment(0, 0, None, None)]
        self._periods: OrderedDict[Wire, Period] = OrderedDict()

    @property
    def wire(self) -> Wire | None:
        """The newest settings; None while nothing is sampled."""
        return self._segments[-1].wire

    def switch(self, frame: int, wire: Wire | None, origin: int | None = None) -> None:
        """Use ``wire`` from ``frame`` on; ``origin`` restarts the waveform at that frame.

        What was planned for ``frame`` and later is replaced.
        """
        segments = self._segments
        before = self._at(frame - 1) if frame > 0 else segments[0]
        while segments and segments[-1].start >= frame:
            segments.pop()
        origin = before.origin if origin is None else origin
        lead = None
        if wire is not None and wire != before.wire:
            last = self._last_range(before, frame - 1)
            lead = encode.switched(self._target, frame - origin, wire, before.wire, last)
        segments.append(_Segment(frame, origin, wire, lead))
        del segments[:-_SEGMENTS_KEPT]

    def frames(self, start: int, stop: int) -> Words:
        """Frames [start, stop) uint16 (n, 256), a copy; index words are 0."""
        runs = [run.frames for _, run in self._runs(start, stop)]
        return np.concatenate(runs) if runs else Block.empty(0).frames

    def words(self, start: int, stop: int) -> Words:
        """Raw samples [start, stop) uint16 (n, 2), counted from frame 0."""
        first = start // FRAME_SAMPLES
        words = encode.words_of(self.frames(first, -(-stop // FRAME_SAMPLES)))
        return words[start - first * FRAME_SAMPLES : stop - first * FRAME_SAMPLES]

    def totals(self, start: int, stop: int) -> Totals:
        """Of the calibrated samples [start, stop), counted from frame 0."""
        if start >= stop:
            return Totals(0, np.zeros(3), np.full(3, np.nan), np.full(3, np.nan))
        parts = list(self._summaries(start, stop))
        sums, least, most = (
            np.array(column, dtype=np.float64) for column in zip(*parts, strict=True)
        )
        return Totals(stop - start, sums.sum(axis=0), least.min(axis=0), most.max(axis=0))

    def ideal(self, start: int, stop: int) -> Waveform:
        """The target itself over samples [start, stop): no ADC, no ranges."""
        parts = []
        for segment, first, last in self._pieces(start, stop, FRAME_SAMPLES):
            parts.append(self._ideal(segment, first, last))
        whole = parts[0]
        for part in parts[1:]:
            whole = join(whole, part)
        return whole

    def gpi(self, frame: int) -> int:
        """The input pins at the beginning of ``frame``: bit 0 GPI0, bit 1 GPI1."""
        segment = self._at(frame)
        sample = (frame - segment.origin) * FRAME_SAMPLES
        connected = segment.wire is not None and segment.wire.connected
        return int(self._target.samples(sample, 1, connected=connected).gpi[0])

    def _ideal(self, segment: _Segment, first: int, last: int) -> Waveform:
        connected = segment.wire is not None and segment.wire.connected
        begin, origin = segment.start * FRAME_SAMPLES, segment.origin * FRAME_SAMPLES
        lead = 0 if segment.lead is None else len(segment.lead.frames) * FRAME_SAMPLES
        if lead > FRAME_SAMPLES and first < begin + lead:
            # The target was connected or disconnected here; its transient starts at `begin`.
            whole = self._target.switched(begin - origin, lead, connected=connected)
            head = whole[first - begin : min(last, begin + lead) - begin]
            if last <= begin + lead:
                return head
            return join(head, self._ideal(segment, begin + lead, last))
        return self._target.samples(first - origin, last - first, connected=connected)

    def _at(self, frame: int) -> _Segment:
        for segment in reversed(self._segments):
            if segment.start <= frame:
                return segment
        return self._segments[0]

    def _last_range(self, segment: _Segment, frame: int) -> int:
        if segment.wire is None:
            return encode.RANGE_OFF
        raw = encode.words_of(self._run(segment, frame, frame + 1).frames)[-1]
        return int(raw[0] & 3 | (raw[1] & 1) << 2)

    def _pieces(self, start: int, stop: int, scale: int = 1) -> Iterator[tuple[_Segment, int, int]]:
        ends = [segment.start * scale for segment in self._segments[1:]] + [stop]
        for segment, end in zip(self._segments, ends, strict=True):
            end = min(end, stop)
            if start < end:
                yield segment, start, end
                start = end

    def _runs(self, start: int, stop: int) -> Iterator[tuple[_Segment, Block]]:
        for segment, first, end in self._pieces(start, stop):
            frame = first
            while frame < end:
                run = self._run(segment, frame, min(end, frame + _RUN_FRAMES))
                yield segment, run
                frame += len(run.frames)

    def _run(self, segment: _Segment, start: int, stop: int) -> Block:
        """Frames from ``start`` on, perhaps not all until ``stop``."""
        if segment.wire is None:
            return Block.empty(stop - start)
        lead, age = segment.lead, start - segment.start
        if lead is not None and 0 <= age < len(lead.frames):
            return lead[age : age + stop - start]
        return self._period(segment.wire).run(start - segment.origin, stop - start)

    def _period(self, wire: Wire) -> Period:
        period = self._periods.pop(wire, None) or Period(self._target, wire)
        self._periods[wire] = period
        if len(self._periods) > _PERIODS_KEPT:
            self._periods.popitem(last=False)
        return period

    def _summaries(
        self, start: int, stop: int
    ) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Sums, least and most over parts of [start, stop): whole frames, and cut ones."""
        first, last = -(-start // FRAME_SAMPLES), stop // FRAME_SAMPLES
        if first > last:  # within one frame
            yield self._cut(start, stop)
            return
        for _, run in self._runs(first, last):
            yield run.sums.sum(axis=0), run.least.min(axis=0), run.most.max(axis=0)
        if start < first * FRAME_SAMPLES:
            yield self._cut(start, first * FRAME_SAMPLES)
        if last * FRAME_SAMPLES < stop:
            yield self._cut(last * FRAME_SAMPLES, stop)

    def _cut(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        wire = self._at(start // FRAME_SAMPLES).wire
        values = encode.calibrate(self.words(start, stop), wire.voltage_range if wire else 0)
        return values.sum(axis=1, dtype=np.float64), values.min(axis=1), values.max(axis=1)
