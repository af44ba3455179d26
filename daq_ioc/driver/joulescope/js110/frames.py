"""The frames of a JS110's bulk stream: checked, put in order, gaps made visible.

A frame is 512 bytes: a header with a 16-bit index, then 126 samples. Input is what one USB transfer
brought; output are runs of samples as they were taken, lost frames included as counts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daq_ioc.driver.joulescope.js110.protocol import (
    FRAME_BYTES,
    FRAME_RAW,
    FRAME_SAMPLES,
    FRAME_VOLTAGE_RANGE,
    SAMPLE_RATE,
)

FRAME_SECONDS: Final = FRAME_SAMPLES / SAMPLE_RATE

_INDEX_SPAN: Final = 1 << 16
_SLACK: Final = round(0.25 / FRAME_SECONDS)
"""Frames by which the clock may be wrong: what a late host finds queued."""
_DRIFT: Final = 500e-6
"""More than the instrument's and this computer's clocks ever differ."""
# The first words of a good frame: type, status 0, and the length with the voltage range masked off;
# then the index, and another one masked off.
_WORD_MASK: Final = np.uint32(0xFFFF_FFFF ^ FRAME_VOLTAGE_RANGE << 16)
_WORD_GOOD: Final = np.uint32(FRAME_BYTES << 16 | FRAME_RAW)
_INDEX_BIT: Final = 32
_HEADER_MASK: Final = np.uint64(_INDEX_SPAN - 1 << _INDEX_BIT | int(_WORD_MASK))
_HEADER_GOOD: Final = int(_WORD_GOOD)

Frames = npt.NDArray[np.uint8]


@dataclass(slots=True)
class FrameCounters:
    """What arrived since streaming began, in frames.

    ``good``; ``lost``: absent, and replaced by missing samples; ``repeated``: came again or
    out of order, ignored; ``foreign``: not sample frames, ignored; ``marked``: status or length is
    not that of a good frame, but the index is the next one, used; ``partial``: cut short, ignored.
    """

    good: int = 0
    lost: int = 0
    repeated: int = 0
    foreign: int = 0
    marked: int = 0
    partial: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive samples of one voltage range: ``raw`` uint16 (n, 2), or ``missing`` lost ones."""

    voltage_range: int
    raw: npt.NDArray[np.uint16] | None = None
    missing: int = 0


class FrameParser:
    """Follows one stream, which began with index 0 at ``began`` (``time.monotonic()``).

    An index alone does not tell a loss of 60 000 frames from a step back by 5 536, nor one of
    70 000 from one of 4 464. The clock does: a stream is never ahead of it, and only a loss leaves
    it behind.
    """

    def __init__(self, began: float) -> None:
        self.counters = FrameCounters()
        self._expected = 0
        self._voltage_range = 0
        self._refused: int | None = None  # index of a frame just ignored as out of order
        self._frames = 0  # since the start, lost ones included
        self._lead = -began  # most that the frames were ahead of the clock, s

    def parse(self, transfer: Any, arrival: float, *, prompt: bool = True) -> list[Run]:
        """The samples of a transfer that was complete at ``arrival`` (``time.monotonic()``).

        ``transfer`` is any bytes-like object; the runs are copies, its memory may be used again.
        ``prompt`` says that the transfer was waited for, so that its arrival is not late.
        """
        data: Frames = np.frombuffer(transfer, np.uint8)
        count, rest = divmod(len(data), FRAME_BYTES)
        self.counters.partial += rest > 0
        frames = data[: count * FRAME_BYTES].reshape(count, FRAME_BYTES)
        absent = self._absent(count, arrival)
        if absent < _INDEX_SPAN // 2 and self._expects(frames):
            runs = self._use(frames)
        else:
            runs = self._sort(frames, absent, prompt)
        lead = self._frames * FRAME_SECONDS - arrival
        self._lead = max(lead, self._lead - count * FRAME_SECONDS * _DRIFT)
        return runs

    def _expects(self, frames: Frames) -> bool:
        """Whether all frames are good and have the indices that come next."""
        headers = frames.view("<u8")[:, 0] - np.uint64(self._expected << _INDEX_BIT)
        stop = _HEADER_GOOD + (len(frames) << _INDEX_BIT)
        wanted = np.arange(_HEADER_GOOD, stop, 1 << _INDEX_BIT, dtype=np.uint64)
        return bool((headers & _HEADER_MASK == wanted).all())

    def _absent(self, count: int, arrival: float) -> int:
        """How many frames the clock says are absent when ``count`` more have come."""
        lead = (self._frames + count) * FRAME_SECONDS - arrival
        return max(0, round((self._lead - lead) / FRAME_SECONDS))

    def _use(self, frames: Frames) -> list[Run]:
        """Runs of frames that are good and in order; a new one where the voltage range changes."""
        if len(frames) == 0:
            return []
        ranges = frames[:, 3] >> 7
        cuts = np.flatnonzero(ranges[1:] != ranges[:-1]) + 1
        self._advance(len(frames))
        self._voltage_range = int(ranges[-1])
        self._refused = None
        self.counters.good += len(frames)
        return [
            Run(int(ranges[start]), _samples(frames[start:stop]))
            for start, stop in itertools.pairwise((0, *cuts.tolist(), len(frames)))
        ]

    def _advance(self, frames: int) -> None:
        self._frames += frames
        self._expected = (self._expected + frames) % _INDEX_SPAN

    def _sort(self, frames: Frames, absent: int, prompt: bool) -> list[Run]:
        """The same where something is wrong: a step for each stretch between two irregularities."""
        runs: list[Run] = []
        good = frames.view("<u4")[:, 0] & _WORD_MASK == _WORD_GOOD
        index: Any = frames.view("<u2")[:, 2]
        ordered = np.zeros(len(frames), np.bool_)
        ordered[1:] = good[1:] & good[:-1] & (np.diff(index.astype(np.int64)) % _INDEX_SPAN == 1)
        starts = np.flatnonzero(~ordered).tolist()
        for start, stop in itertools.pairwise((*starts, len(frames))):
            number = int(index[start])
            ahead = (number - self._expected) % _INDEX_SPAN
            if not good[start]:
                runs += self._odd(frames[start : start + 1], ahead)
                continue
            # Whole turns of the index are lost where it jumps, if it jumps at all.
            turns = prompt and (ahead > 0 or stop == len(frames))
            lost = 0 if number == self._resumed() else self._lost(ahead, absent, turns)
            if ahead and stop < len(frames) and self._follows(int(index[stop])):
                lost = None  # the next frame knows nothing of a jump: this index is wrong
            if lost is None:
                again = min(stop - start, _INDEX_SPAN - ahead)
                self.counters.repeated += again
                self._refused = int(index[start + again - 1])
                runs += self._use(frames[start + again : stop])
                continue
            if lost:
                runs.append(self._lose(lost))
                absent = max(0, absent - lost)
            self._expected = number
            runs += self._use(frames[start:stop])
        return runs

    def _resumed(self) -> int | None:
        """The index that would follow frames ignored as out of order: the count was restarted."""
        return None if self._refused is None else (self._refused + 1) % _INDEX_SPAN

    def _follows(self, number: int) -> bool:
        """Whether a frame is the one after the expected one."""
        return (number - self._expected) % _INDEX_SPAN == 1

    def _lost(self, ahead: int, absent: int, turns: bool) -> int | None:
        """How many frames were lost before one that is ``ahead`` of the expected index.

        None if that frame is no later one. ``absent`` is what the clock says; whether it can tell
        how often the index wrapped here say ``turns``.
        """
        wraps = max(0, (absent + _SLACK - ahead) // _INDEX_SPAN) if turns else 0
        lost = ahead + wraps * _INDEX_SPAN
        return lost if lost <= absent + _SLACK else None

    def _odd(self, frame: Frames, ahead: int) -> list[Run]:
        """A frame that is not good: used if only its status or length is odd, as the maker does."""
        if frame[0, 0] != FRAME_RAW:
            self.counters.foreign += 1
            return []
        if ahead:
            self.counters.repeated += 1
            return []
        self.counters.marked += 1
        self._advance(1)
        return [Run(self._voltage_range, _samples(frame))]

    def _lose(self, frames: int) -> Run:
        self.counters.lost += frames
        self._advance(frames)
        return Run(self._voltage_range, missing=frames * FRAME_SAMPLES)


def _samples(frames: Frames) -> npt.NDArray[np.uint16]:
    """Raw words (n, 2) of whole frames, as a copy."""
    return frames[:, 8:].reshape(-1).view("<u2").reshape(-1, 2)
