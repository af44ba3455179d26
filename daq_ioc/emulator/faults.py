"""What can go wrong, on demand: a testing aid that may be used from any thread.

Faults of the stream name the frame they strike, counted since the stream's start (not modulo
65536); without one they strike the next frame to be sent. Each strikes once. Faults of requests
hold for a number of times, or until ``clear()``.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import FRAME_BYTES, FRAME_SAMPLES

FOREVER = 1 << 60
"""Number of times of a fault that does not end by itself."""


class Stall(Exception):  # noqa: N818 - the bus's own word
    """The instrument refuses: STALL. A bulk endpoint is then halted until CLEAR_FEATURE."""


class BusError(Exception):
    """The transfer fails as by a transmission error."""


class Unplugged(Exception):  # noqa: N818
    """The instrument is not there."""


Frame = npt.NDArray[np.uint16]
Item = bytes | Exception
"""What the endpoint answers next: packets, or a failure."""
Edit = Callable[[Frame], list[Item]]
"""Makes of a frame uint16 (256,), which it may change, what is sent instead of it."""

TOO_MUCH = bytes(1 << 22)
"""More than any transfer asks for: the host sees an overflow."""


class Faults:
    """The faults that one instrument has pending.

    ``changed`` is the instrument's lock, notified after each change; ``settle`` is called before
    silence begins or ends, so that what was sampled until then is known.
    """

    def __init__(
        self, changed: threading.Condition, settle: Callable[[], None] = lambda: None
    ) -> None:
        self._changed = changed
        self._settle: Callable[[], None] = lambda: None
        self._silent = False
        self._order = itertools.count()
        self.clear()
        self._settle = settle

    def clear(self) -> None:
        """No fault any more; what was lost stays lost."""
        with self._changed:
            self._frames: list[tuple[int, int, Edit | int]] = []
            self._stalls: dict[int, int] = {}
            self._replies: dict[int, tuple[bytes, int]] = {}
            self._delays: dict[int | None, float] = {}
            self.silent = False
            self.busy = False
            self.result = protocol.RESULT_OK
            self._changed.notify_all()

    # ---- the stream

    def frame(self, edit: Edit | int, at: int | None = None) -> None:
        """Apply ``edit`` to frame ``at``; a number loses so many frames from there on."""
        with self._changed:
            heapq.heappush(self._frames, (at or 0, next(self._order), edit))
            self._changed.notify_all()

    def lose(self, frames: int = 1, at: int | None = None) -> None:
        """Lose ``frames`` frames on their way: the index goes on."""
        self.frame(frames, at)

    def duplicate(self, at: int | None = None) -> None:
        """Send one frame twice."""
        self.frame(lambda frame: [frame.tobytes(), frame.tobytes()], at)

    def set_header(self, offset: int, value: int, at: int | None = None) -> None:
        """Set byte ``offset`` of one frame's 8-byte header: 0 type, 1 status, 2 to 7 as there."""

        def edit(frame: Frame) -> list[Item]:
            frame.view(np.uint8)[offset] = value
            return [frame.tobytes()]

        self.frame(edit, at)

    def frame_type(self, value: int, at: int | None = None) -> None:
        """One frame of another buffer_type, as 0x02 or 0x80."""
        self.set_header(0, value, at)

    def frame_status(self, value: int, at: int | None = None) -> None:
        """One frame with this status."""
        self.set_header(1, value, at)

    def frame_length(self, value: int, at: int | None = None) -> None:
        """One frame that says to be ``value`` (0 to 32767) bytes long."""

        def edit(frame: Frame) -> list[Item]:
            frame[1] = (int(frame[1]) & protocol.FRAME_VOLTAGE_RANGE) | value
            return [frame.tobytes()]

        self.frame(edit, at)

    def backward(self, by: int = 1, at: int | None = None) -> None:
        """One frame with an index that is ``by`` too low."""

        def edit(frame: Frame) -> list[Item]:
            frame[2] = (int(frame[2]) - by) & 0xFFFF
            return [frame.tobytes()]

        self.frame(edit, at)

    def garbage(self, at: int | None = None, seed: int = 0) -> None:
        """One frame of random bytes."""
        noise = np.random.default_rng(seed).bytes(FRAME_BYTES)
        self.frame(lambda _: [noise], at)

    def missing(self, samples: int = FRAME_SAMPLES, at: int | None = None) -> None:
        """One frame whose first ``samples`` samples are marked missing."""

        def edit(frame: Frame) -> list[Item]:
            frame[4 : 4 + 2 * samples] = 0xFFFF
            return [frame.tobytes()]

        self.frame(edit, at)

    def flip_toggle(self, at: int | None = None) -> None:
        """One frame with the toggle bit of every sample inverted."""

        def edit(frame: Frame) -> list[Item]:
            frame[5::2] ^= 2
            return [frame.tobytes()]

        self.frame(edit, at)

    def flip_voltage_range(self, at: int | None = None) -> None:
        """One frame that says the other voltage range than it was sampled with."""

        def edit(frame: Frame) -> list[Item]:
            frame[1] ^= protocol.FRAME_VOLTAGE_RANGE
            return [frame.tobytes()]

        self.frame(edit, at)

    def short(self, length: int = 100, at: int | None = None) -> None:
        """Of one frame only ``length`` (0 to 511) bytes: a short packet, which ends a transfer."""
        self.frame(lambda frame: [frame.tobytes()[: min(length, FRAME_BYTES - 1)]], at)

    def stall(self, at: int | None = None) -> None:
        """Stall the endpoint before frame ``at``; no frame is lost by it alone."""
        self.frame(lambda frame: [Stall("bulk"), frame.tobytes()], at)

    def error(self, at: int | None = None) -> None:
        """Fail one transfer before frame ``at`` as by a transmission error."""
        self.frame(lambda frame: [BusError("bulk"), frame.tobytes()], at)

    def overflow(self, at: int | None = None) -> None:
        """Send more than was asked for, instead of frame ``at``."""
        self.frame(lambda _: [TOO_MUCH], at)

    @property
    def silent(self) -> bool:
        """While True nothing is sent, without an error; what is sampled meanwhile is lost."""
        return self._silent

    @silent.setter
    def silent(self, value: bool) -> None:
        with self._changed:
            self._settle()
            self._silent = value
            self._changed.notify_all()

    def next_frame(self) -> int | None:
        """The frame that the next fault strikes; 0 is at once."""
        return self._frames[0][0] if self._frames else None

    def take(self, frame: int) -> Edit | int | None:
        """Take one fault that is to strike ``frame``, or should have before."""
        if self._frames and self._frames[0][0] <= frame:
            return heapq.heappop(self._frames)[2]
        return None

    # ---- requests

    def stall_request(self, request: int, times: int = FOREVER) -> None:
        """Answer ``request`` (bRequest) with STALL so many times."""
        with self._changed:
            self._stalls[request] = times

    def reply(self, request: int, data: bytes, times: int = FOREVER) -> None:
        """Answer the IN ``request`` with ``data`` so many times."""
        with self._changed:
            self._replies[request] = (data, times)

    def delay(self, seconds: float, request: int | None = None) -> None:
        """Answer ``request``, or all of them, only after ``seconds``."""
        with self._changed:
            self._delays[request] = seconds

    def delay_of(self, request: int) -> float:
        """How long to wait before answering ``request``, in s."""
        return self._delays.get(request, self._delays.get(None, 0.0))

    def answer(self, request: int, *, to_host: bool) -> bytes | None:
        """The wrong answer to a request; None: the right one. Raises ``Stall``."""
        times = self._stalls.get(request, 0)
        if times > 0:
            self._stalls[request] = times - 1
            raise Stall(f"request {request}")
        data, times = self._replies.get(request, (b"", 0))
        if not to_host or times <= 0:
            return None
        self._replies[request] = (data, times - 1)
        return data
