"""When frames leave the instrument: its pace, its limited memory, and what is lost on the way.

Nothing here knows USB or sampling; times are ``time.monotonic()`` seconds. Not thread-safe: the
instrument's lock is held around every call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from daq_ioc.driver.joulescope.js110.protocol import FRAME_BYTES, FRAME_SAMPLES, SAMPLE_RATE
from daq_ioc.emulator.encode import INDEX_WORD, USB_INDEX_WORD, Words
from daq_ioc.emulator.faults import Edit, Faults, Item

FRAME_TIME: Final = FRAME_SAMPLES / SAMPLE_RATE
"""63 µs, exact."""

_FAST_FRAMES: Final = 1 << 16  # frames that a stream without pace makes ahead

FrameSource = Callable[[int, int], Words]
"""Frames [start, stop) of the stream, uint16 (n, 256), a copy with index words 0."""


class Stream:
    """One stream, from its start: frame 0 is complete ``frame_time`` after ``start``.

    ``depth``: frames kept for a host that is late; what comes when they are full is dropped.
    ``realtime``: frames at 2 MSPS, else as fast as they are read.
    """

    def __init__(
        self,
        source: FrameSource,
        faults: Faults,
        *,
        start: float,
        depth: int,
        realtime: bool,
        frame_time: float = FRAME_TIME,
    ) -> None:
        self._source = source
        self._faults = faults
        self._start = start
        self._depth = depth
        self._realtime = realtime
        self._frame_time = frame_time
        self._queue: deque[tuple[int, int]] = deque()  # frames sampled and not sent, as [a, b)
        self._queued = 0
        self._ready: deque[Item] = deque()  # made of frames by faults, to be sent first
        self._lost_until = 0
        self.produced = 0
        """Frames sampled so far."""
        self.discarded = 0
        """Frames dropped because the host was late."""

    def advance(self, now: float) -> None:
        """Sample what is due."""
        if not self._realtime:
            if self._queued == 0:
                self._accept(self.produced + _FAST_FRAMES, _FAST_FRAMES)
            return
        due = int((now - self._start) / self._frame_time + 1e-6)
        if due > self.produced:
            room = 0 if self._faults.silent else self._depth - self._queued
            accepted = self._accept(due, room)
            if not self._faults.silent:
                self.discarded += due - accepted
            self.produced = due

    def position(self) -> int:
        """The first frame that new settings can change."""
        if self._realtime or not self._queue:
            return self.produced
        return self._queue[0][0]

    def _accept(self, due: int, room: int) -> int:
        """Queue up to ``room`` frames of those until ``due``; returns where they end."""
        stop = min(due, self.produced + room)
        if stop > self.produced:
            self._queue.append((self.produced, stop))
            self._queued += stop - self.produced
            self.produced = stop
        self._drop_lost()
        return stop

    def _drop_lost(self) -> None:
        while self._queue and self._queue[0][0] < self._lost_until:
            first, stop = self._queue.popleft()
            kept = min(stop, self._lost_until)
            self._queued -= kept - first
            if kept < stop:
                self._queue.appendleft((kept, stop))

    def ready_at(self, length: int, now: float) -> float | None:
        """When ``take(length)`` is worth while: all is there, or a fault. None: unknown."""
        if self._faults.silent:
            return None
        self.advance(now)
        if self._ready:
            return now
        wanted = min(-(-length // FRAME_BYTES), self._depth)
        fault = self._faults.next_frame()
        if fault is not None:
            first = self._queue[0][0] if self._queue else self.produced
            wanted = min(wanted, max(1, fault - first + 1))
        missing = wanted - self._queued
        if missing <= 0 or not self._realtime:
            return now
        return self._start + (self.produced + missing) * self._frame_time

    def take(self, length: int, now: float) -> bytes | None:
        """The packets that are there, up to ``length`` bytes rounded up to a packet.

        None when there are none. Ends after a short packet. Raises what faults ask for.
        """
        if self._faults.silent:
            return None
        self.advance(now)
        parts: list[bytes] = []
        wanted = -(-length // FRAME_BYTES) * FRAME_BYTES
        while wanted > 0 and (self._ready or self._fill(wanted // FRAME_BYTES)):
            item = self._ready.popleft()
            if isinstance(item, Exception) or len(item) > wanted:
                if parts:
                    self._ready.appendleft(item)
                    break
                if isinstance(item, Exception):
                    raise item
            parts.append(item)
            wanted -= len(item)
            if len(item) % FRAME_BYTES or not item:
                break
        return b"".join(parts) if parts else None

    def _fill(self, frames: int) -> bool:
        """Make ready up to ``frames`` frames; False when nothing is due."""
        while self._queue:
            first, stop = self._queue[0]
            fault = self._faults.take(first)
            if isinstance(fault, int):
                self._lost_until = first + fault
                self._drop_lost()
                continue
            strikes = self._faults.next_frame()
            count = min(frames, stop - first)
            if fault is not None:
                count = 1
            elif strikes is not None:
                count = min(count, strikes - first)
            self._make(first, count, fault)
            return True
        return False

    def _make(self, first: int, count: int, fault: Edit | None) -> None:
        frames = self._source(first, first + count)
        number = np.arange(first, first + count)
        frames[:, INDEX_WORD] = number & 0xFFFF
        if frames[0, 0] & 0xFF != 0x80:  # a pattern's checker takes both index words as one
            frames[:, USB_INDEX_WORD] = (number * 63 // 125) & 0x7FF  # microframes of 125 µs
        self._ready.extend([frames.tobytes()] if fault is None else fault(frames[0]))
        last = self._queue[0][1]
        self._queue.popleft()
        if first + count < last:
            self._queue.appendleft((first + count, last))
        self._queued -= count
