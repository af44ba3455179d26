"""One recording: a thread that follows a stream's buffer by sample id, and writes one file.

It never holds up acquisition. Where it comes too late, because the disk was slow for longer than
the buffer lasts, the samples it lost are written as missing and counted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Final

from daq_ioc import __version__
from daq_ioc.device import paths
from daq_ioc.device.recording_formats import (
    FORMATS,
    RAW_FORMAT,
    RECORD_RATES,
    STEP,
    Sink,
    Source,
    ceil_reduction,
    open_sink,
)
from daq_ioc.device.stream import REDUCTION
from daq_ioc.downsample import FULL_RATE, Downsampler
from daq_ioc.errors import UserError

log = logging.getLogger(__name__)

FREE_TO_START: Final = 16 << 20
FREE_TO_GO_ON: Final = 4 << 20
"""Free bytes on the disk below which a recording is not begun, or ended while it can be."""

_WAIT: Final = 0.5


class RecordState(IntEnum):
    IDLE = 0
    RECORDING = 1
    STOPPING = 2
    ERROR = 3


@dataclass(slots=True)
class Options:
    """What the next recording will be; see the attributes of these names."""

    directory: str = ""
    name: str = paths.DEFAULT_NAME
    format: int = RAW_FORMAT
    rate: int = 0
    limit: float = 0.0
    pretrigger: float = 0.0
    note: str = ""


class Recording:
    """One file being written by a thread of its own, from its creation to its end.

    Sample ids are those of the stream. A lower rate needs samples from before the first one it
    records and after the last one, for its filters; so a stopped recording still waits for those,
    1.9 s at 10 samples/s, and one whose instrument was lost ends that much earlier.
    """

    def __init__(
        self, root: Path, options: Options, source: Source, changed: Callable[[], None]
    ) -> None:
        rate = RECORD_RATES[options.rate]
        _check(options.format, rate, source.stream.rate)
        self._stream, self._changed = source.stream, changed
        self._sampler = Downsampler(rate)
        self.raw = options.format == RAW_FORMAT
        self.rate = rate
        self.state = RecordState.RECORDING
        self.message = "recording"
        self._ending = threading.Lock()
        self._first = self._first_id(options.pretrigger)
        self._next_id = self._first - self._sampler.before
        self._end_id: int | None = None
        if options.limit:
            samples = max(1, round(options.limit * rate)) * self._sampler.factor
            self._end_id = self._first + samples + self._sampler.after
        self._reason = "time limit reached"
        self._give_up = math.inf
        if free_bytes(root) < FREE_TO_START:
            raise UserError(f"the disk of {root} is full; free space on it")
        serial = source.identity.get("serial", "unknown")
        self.path, self._file = paths.create(root, options.directory, options.name, serial)
        try:
            self._sink = self._open(options, source)
            self._thread = threading.Thread(target=self._run, name="recorder")
            self._thread.start()
        except Exception as error:
            self._file.close()
            raise UserError(f"cannot write {self.path}: {error}") from error
        log.info("recording to %s", self.path)

    def _first_id(self, pretrigger: float) -> int:
        """The newest whole reduction, or one earlier by ``pretrigger`` s as far as it is there.

        Not before the present stream, nor for a raw recording before the last change of the
        voltage range: it has one of each. What the filters need before it must be there, too.
        """
        stream, before = self._stream, self._sampler.before
        newest = stream.reductions.stop_id
        wanted = newest - round(pretrigger * stream.rate / REDUCTION)
        begins = stream.first_id
        if self.raw:
            begins = max(begins, stream.voltage_range_from)
        # The buffer's oldest reduction is about to be overwritten.
        oldest = stream.buffer.start_id + (REDUCTION if stream.buffer.start_id else 0)
        return max(min(wanted, newest), ceil_reduction(max(begins, oldest) + before)) * REDUCTION

    def _time(self, sample_id: float) -> dict[str, str | float]:
        when = self._stream.clock.time_of(sample_id)
        text = datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds")
        return {"": text, "_unix": when}

    def _open(self, options: Options, source: Source) -> Sink:
        # A sample of a lower rate is of the middle of the samples that it stands for.
        start = self._time(self._first + (self._sampler.factor - 1) / 2)
        about = {
            **{f"start{key}": value for key, value in start.items()},
            "first_sample": self._first - self._stream.first_id,
            **source.identity,
            "software": f"daq_ioc {__version__}",
            "note": options.note,
        }
        return open_sink(options.format, self._file, source, self._sampler, self._first, about)

    @property
    def samples(self) -> int:
        return self._sink.samples

    @property
    def bytes(self) -> int:
        return self._bytes if self._file.closed else self._sink.bytes

    @property
    def dropped(self) -> int:
        return self._sink.dropped

    def end(self, reason: str, at: int | None = None) -> None:
        """Finish with sample ``at``, or the newest there is; does not wait.

        None will come after ``at``; after the newest one those come that the filters need.
        """
        with self._ending:
            if self.state not in (RecordState.RECORDING, RecordState.STOPPING):
                return
            if at is None:
                at = self._stream.buffer.stop_id + self._sampler.after
                self._give_up = time.monotonic() + self._sampler.after / self._stream.rate + 1
            if self._end_id is None or at < self._end_id:
                self._end_id = at
                if self.state is RecordState.RECORDING:
                    self._reason = reason
            self.state, self.message = RecordState.STOPPING, "finishing the file"
        self._stream.buffer.wake()

    def join(self, timeout: float) -> bool:
        """Wait until it is finished, or ``timeout`` s; whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        state = RecordState.IDLE
        try:
            self._follow()
        except OSError as error:
            state = RecordState.ERROR
            self._reason = _explain(error, self.path)
        except UserError as error:
            state = RecordState.ERROR
            self._reason = str(error)
        except Exception as error:  # whatever happened, the file is to be finished
            log.exception("recording failed")
            state = RecordState.ERROR
            self._reason = f"recording failed: {error}"
        try:
            self._finish()
        except OSError as error:
            state = RecordState.ERROR
            self._reason = f"{_explain(error, self.path)}; {self._sink.mending}"
        except Exception as error:
            log.exception("the recording could not be finished")
            state = RecordState.ERROR
            self._reason = f"the file could not be finished: {error}"
        finally:
            self._bytes = os.fstat(self._file.fileno()).st_size
            self._file.close()
        with self._ending:
            self.message, self.state = self._reason, state
        log.log(
            logging.ERROR if state is RecordState.ERROR else logging.INFO,
            "recording %s ended: %s (%d samples, %d missing)",
            self.path,
            self.message,
            self.samples,
            self.dropped,
        )
        self._changed()

    def _finish(self) -> None:
        stop = self._time(self._first + self.samples * self._sampler.factor)
        self._sink.close(
            {
                **{f"stop{key}": value for key, value in stop.items()},
                "dropped": self.dropped,
                "reason": self._reason,
            }
        )
        os.fsync(self._file.fileno())

    def _follow(self) -> None:
        """Write step after step until the end."""
        stream = self._stream
        while True:
            stop = self._next_id + STEP
            if time.monotonic() > self._give_up:  # the stream stands still
                stop = min(stop, stream.buffer.stop_id)
            if self._end_id is not None:
                stop = min(stop, self._end_id)
            if stop <= self._next_id:
                return
            changed = stream.voltage_range_from
            if self.raw and self._next_id < changed <= stop and stream.buffer.stop_id >= changed:
                self.end("the voltage range changed, and a recording has one", changed)
                continue
            # Whole reductions that are in this record are there a moment after its samples.
            if not stream.buffer.wait(stop, _WAIT):
                continue
            if not stream.reductions.wait(stop // REDUCTION, _WAIT):
                continue
            size = self._sink.bytes
            self._sink.write(self._next_id, stop)
            self._next_id = stop
            self._changed()
            if free_bytes(self.path.parent) < FREE_TO_GO_ON + self._sink.bytes - size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check(kind: int, rate: int, stream_rate: float) -> None:
    """UserError for what cannot be recorded."""
    if kind == RAW_FORMAT and rate != stream_rate:
        raise UserError(
            f"{FORMATS[kind]} holds the instrument's own samples, {rate_text(stream_rate)}; "
            f"choose that RECORD_RATE, or another RECORD_FORMAT"
        )
    if stream_rate != FULL_RATE:
        raise UserError(f"{FORMATS[kind]} takes samples at {rate_text(FULL_RATE)}; choose another")


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path.parent} is full; free space on it"
    return f"cannot write {path}: {error.strerror or error}"


def rate_text(rate: float) -> str:
    """As operators read it: ``2 MHz``, ``500 kHz``, ``10 Hz``."""
    for factor, unit in ((1e6, "MHz"), (1e3, "kHz")):
        if rate >= factor:
            return f"{rate / factor:g} {unit}"
    return f"{rate:g} Hz"


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that ``path`` is or will be on."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            disk = os.statvfs(place)
            return disk.f_bavail * disk.f_frsize
    return 0
