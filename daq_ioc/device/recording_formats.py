"""What a recording is written as: the sinks that take a stream's samples, one per file format.

A sink gets stretches of sample ids that follow each other, takes these samples from the buffers,
and writes what has been overwritten there as missing. It has no thread and decides nothing.

* JLS1 raw: the instrument's own words at the full rate, and the stream's reductions.
* JLS1 float, JLS2: calibrated current, voltage and power at any of RATES.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.device.buffer import OverrunError
from daq_ioc.device.stream import REDUCTION, Stream
from daq_ioc.downsample import FULL_RATE, RATES, Downsampler
from daq_ioc.jls.layout import FLOAT
from daq_ioc.jls.writer import Sizes, Writer
from daq_ioc.jls.writer_v2 import WriterV2
from daq_ioc.samples import MISSING_BITS, MISSING_WORD

FORMATS: Final = ("JLS1 raw", "JLS1 float", "JLS2")
RAW_FORMAT, FLOAT_FORMAT, JLS2_FORMAT = range(3)

RECORD_RATES: Final = tuple(rate for rate in RATES if rate not in (20, 5))
"""Samples/s; an EPICS enum has 16 choices at most, so 20 and 5 are left out."""

_SIZES: Final = Sizes.for_rate(FULL_RATE)

STEP: Final = _SIZES.record
"""Samples that are written at once, and of which a raw recording's records are."""

_PIECE: Final = REDUCTION

Signals = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """What is recorded: a stream, and what the instrument says of itself and its calibration."""

    stream: Stream
    identity: Mapping[str, str]
    calibration: bytes | None


class Sink(ABC):
    """A file being written. ``samples`` in it, ``dropped`` of them missing. OSError if it fails."""

    samples = 0
    dropped = 0
    mending = "repair the file with daq-ioc repair"
    """What to do with a file that could not be finished."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Size of the file so far."""

    @abstractmethod
    def write(self, first: int, stop: int) -> None:
        """Take samples [first, stop) of the stream, which follow those before."""

    @abstractmethod
    def close(self, about: Mapping[str, Any]) -> None:
        """Finish the file, with ``about`` as what is known of the recording at its end."""


def open_sink(
    kind: int,
    file: BinaryIO,
    source: Source,
    sampler: Downsampler,
    first_id: int,
    about: Mapping[str, Any],
) -> Sink:
    """A sink of FORMATS[kind] whose first sample stands for stream samples from ``first_id`` on."""
    if kind == RAW_FORMAT:
        return RawSink(file, source, about)
    if kind == FLOAT_FORMAT:
        return FloatSink(file, source, sampler, first_id, about)
    return Jls2Sink(file, source, sampler, first_id, about)


class RawSink(Sink):
    """JLS version 1, raw: fed with whole records, but for the last one."""

    def __init__(self, file: BinaryIO, source: Source, about: Mapping[str, Any]) -> None:
        self._stream = stream = source.stream
        self._voltage_range = stream.voltage_range
        self._writer = Writer(file, calibration=source.calibration, user_data=dict(about))
        self._writer.start(FULL_RATE, sizes=_SIZES)

    @property
    def bytes(self) -> int:
        return self._writer.bytes

    def write(self, first: int, stop: int) -> None:
        count = stop - first
        raw = np.full((count, 2), MISSING_WORD, np.uint16)
        rows = statistics.empty((count // REDUCTION,))
        self._read(first, stop, raw, rows)
        self._writer.write_record(first, raw, rows, self._voltage_range)
        self.samples += count
        if (rows["length"] < REDUCTION).any() or count % REDUCTION:
            self.dropped += int(np.count_nonzero((raw == MISSING_WORD).all(axis=1)))

    def _read(self, first: int, stop: int, raw: Any, rows: statistics.Rows) -> None:
        """Fill ``raw`` and ``rows`` with what the buffers still have."""
        stream = self._stream
        begin = first
        while begin < stop:
            try:
                raw[begin - first :] = stream.buffer.read(begin, stop, "raw")["raw"]
                break
            except OverrunError as error:
                # Whole reductions, so that samples and statistics tell the same.
                begin = ceil_reduction(error.start_id) * REDUCTION
                raw[: min(begin, stop) - first] = MISSING_WORD
        low, high = begin // REDUCTION, stop // REDUCTION
        if low < high:
            rows[low - first // REDUCTION :] = stream.reductions.read(low, high, "row")["row"]

    def close(self, about: Mapping[str, Any]) -> None:
        self._writer.close(dict(about))


class SampledSink(Sink):
    """Calibrated samples, downsampled by ``sampler``, of which the first begins at ``first_id``."""

    def __init__(self, source: Source, sampler: Downsampler, first_id: int) -> None:
        self._stream, self._sampler, self._first_id = source.stream, sampler, first_id

    def write(self, first: int, stop: int) -> None:
        for begin in range(first, stop, _PIECE):
            signals = self._sampler.push(*self._read(begin, min(begin + _PIECE, stop)))
            count = len(signals["current"])
            if count:
                self._append(signals)
                self.samples += count
                self.dropped += int(np.count_nonzero(np.isnan(signals["current"])))

    def _read(self, first: int, stop: int) -> list[npt.NDArray[Any]]:
        """Current, voltage and bits of these samples."""
        count = stop - first
        read: list[npt.NDArray[Any]] = [np.full(count, np.nan, np.float32) for _ in range(2)]
        read.append(np.full(count, MISSING_BITS, np.uint8))
        begin = first
        while begin < stop:
            try:
                found = self._stream.buffer.read(begin, stop, "current", "voltage", "bits")
            except OverrunError as error:
                begin = error.start_id
            else:
                for array, part in zip(read, found.values(), strict=True):
                    array[begin - first :] = part
                break
        return read

    @property
    def next_time(self) -> float:
        """Unix time at the middle of the stream samples that the next sample stands for."""
        factor = self._sampler.factor
        middle = self._first_id + self.samples * factor + (factor - 1) / 2
        return self._stream.clock.time_of(middle)

    @abstractmethod
    def _append(self, signals: Signals) -> None:
        """Write the six fields of the samples that follow."""


class FloatSink(SampledSink):
    """JLS version 1, float. Its records last about 0.1 s at every rate, so no more can be lost."""

    def __init__(
        self,
        file: BinaryIO,
        source: Source,
        sampler: Downsampler,
        first_id: int,
        about: Mapping[str, Any],
    ) -> None:
        super().__init__(source, sampler, first_id)
        rate = FULL_RATE // sampler.factor
        self._writer = Writer(file, calibration=source.calibration, user_data=dict(about))
        self._writer.start(rate, FLOAT, Sizes.for_rate(rate))

    @property
    def bytes(self) -> int:
        return self._writer.bytes

    def _append(self, signals: Signals) -> None:
        first = self._first_id // self._sampler.factor
        self._writer.write(first + self.samples, signals, self._stream.voltage_range)

    def close(self, about: Mapping[str, Any]) -> None:
        self._writer.close(dict(about))


class Jls2Sink(SampledSink):
    """JLS version 2. Every MARK s it says when a sample was taken."""

    MARK: Final = 1.0
    mending = "the end of the file may be missing"

    def __init__(
        self,
        file: BinaryIO,
        source: Source,
        sampler: Downsampler,
        first_id: int,
        about: Mapping[str, Any],
    ) -> None:
        super().__init__(source, sampler, first_id)
        self._rate = FULL_RATE // sampler.factor
        self._writer = WriterV2(file, self._rate, source.identity, dict(about))
        self._marked = 0
        try:
            self._writer.mark(self.next_time)
        except OSError:
            with suppress(OSError):  # the same again
                self._writer.close({})
            raise

    @property
    def bytes(self) -> int:
        return self._writer.bytes

    def _append(self, signals: Signals) -> None:
        if self.samples - self._marked >= self.MARK * self._rate:
            self._writer.mark(self.next_time)
            self._marked = self.samples
        self._writer.append(signals)

    def close(self, about: Mapping[str, Any]) -> None:
        try:
            if self.samples > self._marked:
                self._writer.mark(self.next_time)
        finally:
            self._writer.close(dict(about))


def ceil_reduction(sample_id: int) -> int:
    """Number of the first reduction that begins at or after a sample."""
    return -(-sample_id // REDUCTION)
