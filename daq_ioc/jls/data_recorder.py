"""The module ``joulescope.data_recorder`` of the maker, as our own: scripts change the import only.

`DataRecorder` writes JLS version 1 files, `DataReader` reads them. Names, arguments, units, results
and errors are those of joulescope 1.5.0; what it does wrong is done right here, and each such
difference is named in the docstring of what does it. Files go both ways between the two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO

import numpy as np

from daq_ioc import statistics
from daq_ioc.jls.data_reader import DataReader
from daq_ioc.jls.layout import FLOAT, FORMAT_VERSION, RAW, Sizes
from daq_ioc.jls.writer import Writer

__all__ = [
    "DATA_RECORDER_FORMAT_VERSION",
    "REDUCTIONS_PER_TLV",
    "SAMPLES_PER_REDUCTION",
    "TLVS_PER_BLOCK",
    "DataReader",
    "DataRecorder",
    "construct_record_filename",
]

DATA_RECORDER_FORMAT_VERSION = FORMAT_VERSION

SAMPLES_PER_REDUCTION = 20000
REDUCTIONS_PER_TLV = 20
TLVS_PER_BLOCK = 5
"""Sizes of recordings started from now on, at every sampling frequency: 10 ms, 0.2 s and 1 s at
2 MSPS. A program may change them; readers take the sizes from the file."""

_SOURCE_SCALES: dict[str, Mapping[str, int]] = {
    "DownsamplingStreamBuffer": {"current_range": 16, "current_lsb": 255, "voltage_lsb": 255}
}
"""By the name of their class: sources whose samples of these fields come multiplied."""


def construct_record_filename() -> str:
    """File name of a recording that starts now: UTC as ``YYYYMMDD_HHMMSS.jls``."""
    return datetime.now(UTC).strftime("%Y%m%d_%H%M%S.jls")


class DataRecorder:
    """Record to a file, from a stream buffer or from chunks of samples.

    ``filehandle`` is a path (created or overwritten), or a binary file object at position 0 that
    can seek, which stays open. ``calibration``: container bytes, or a calibration object with
    ``data`` or ``save()``. ``user_data``: anything JSON can express, else TypeError.

    Differences from the maker's class: paths may be `pathlib` paths; it is a context manager; a
    file object not at position 0 is refused instead of overwritten from 0; a calibration object
    that was never saved or loaded is saved (theirs: TypeError).
    """

    def __init__(
        self,
        filehandle: str | os.PathLike[str] | BinaryIO,
        calibration: Any = None,
        user_data: Any = None,
    ) -> None:
        data = _calibration_bytes(calibration)
        self._writer = Writer(filehandle, calibration=data, user_data=user_data, overwrite=True)
        self._source: Any = None

    def __enter__(self) -> DataRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, rate: float, data_format: str, keys: tuple[str, ...]) -> None:
        record = SAMPLES_PER_REDUCTION * REDUCTIONS_PER_TLV
        sizes = Sizes(SAMPLES_PER_REDUCTION, record, record * TLVS_PER_BLOCK)
        self._writer.start(rate, data_format, sizes, keys)

    def stream_notify(self, stream_buffer: Any) -> None:
        """Record what is new in a stream buffer; the first call decides where recording starts.

        The buffer has ``output_sampling_frequency``, ``has_raw``, ``sample_id_range``,
        ``voltage_range``, a length in samples, ``samples_get`` and ``data_get`` (see
        `DataReader`). Samples it holds at the first call are not recorded. Whole data records are
        written as they come; the rest, and ``stream_buffer`` None, at the end. ValueError when it
        is not always the same buffer, is shorter than a data record, has lost samples not yet
        recorded, or has changed its voltage range inside a block.

        Differences from the maker's method: a buffer that is too short is refused before anything
        is written; a voltage range that changes inside a block is refused, where theirs writes
        samples that later convert wrongly (the format holds one range per block); the ranges and
        input bits of the downsampling buffer, which come multiplied, are stored right; nothing
        is written behind the end of a closed recording.
        """
        if self._writer.closed:
            return
        finish = stream_buffer is None
        source = self._source if finish else stream_buffer
        if source is None:
            return
        _, stop = source.sample_id_range
        if self._source is None:
            self._attach(source, int(stop))
        elif source is not self._source:
            raise ValueError("a recording has one stream buffer")
        self._record(source, finish=finish)

    def _attach(self, source: Any, stop: int) -> None:
        needed = SAMPLES_PER_REDUCTION * REDUCTIONS_PER_TLV
        if len(source) < needed:
            raise ValueError(
                f"stream buffer of {len(source)} samples is too small: {needed} needed"
            )
        data_format = RAW if source.has_raw else FLOAT
        self._start(source.output_sampling_frequency, data_format, ("v_range", "sample_id"))
        self._source, self._writer.next_id = source, stop

    def _record(self, source: Any, *, finish: bool) -> None:
        start, stop = source.sample_id_range
        position, size = self._writer.next_id, self._writer.sizes.record
        if position is None or start > position:
            raise ValueError(f"samples {position} to {start} were lost before they were recorded")
        while position + size <= stop or (finish and position < stop):
            end = min(position + size, int(stop))
            spr = self._writer.sizes.reduction
            rows = statistics.empty(((end - position) // spr,))
            if len(rows):
                source.data_get(position, end, spr, out=rows)
            data = _samples_of(source, position, end)
            self._writer.write_record(position, data, rows, int(source.voltage_range))
            position = end

    def insert(self, data: Any) -> None:
        """Record a chunk of samples of any length, as `DataReader.samples_get` returns them.

        All six fields are needed; with ``raw``, and its ``voltage_range``, in the first chunk the
        recording is raw, else float. None writes what is held as the last, short data record.
        KeyError for a missing field, ValueError when a chunk does not follow the one before.

        Differences from the maker's method: a gap or an overlap is refused with nothing written
        (theirs: AssertionError, or an unreadable file); a short last record states its true sample
        count and has no rows of samples that do not exist; a sample counts in the statistics of
        all fields if its current is finite, as everywhere else.
        """
        if data is None:
            self._writer.flush()
            return
        signals = {name: signal["value"] for name, signal in data["signals"].items()}
        raw = data["signals"].get("raw", {})
        if not self._writer.started:
            keys = ("sample_id", "v_range") if raw else ("sample_id",)
            rate = data["time"]["sampling_frequency"]["value"]
            missing = [name for name in statistics.FIELDS if name not in signals]
            if missing:
                raise KeyError(f"chunk lacks {', '.join(missing)}")
            self._start(rate, RAW if raw else FLOAT, keys)
        first = int(data["time"]["sample_id_range"]["value"][0])
        self._writer.write(first, signals, int(raw.get("voltage_range", 0)))

    def close(self, footer_user_data: Any = None) -> None:
        """Finish the recording; once is enough. ``footer_user_data`` is anything JSON can express.

        OSError when the end cannot be written; what is on disk then can be repaired.
        """
        try:
            self.stream_notify(None)
        finally:
            self._writer.close(footer_user_data)


def _calibration_bytes(calibration: Any) -> bytes | None:
    """Container bytes of what the caller gives as a calibration."""
    if calibration is None or isinstance(calibration, bytes | bytearray | memoryview):
        return None if calibration is None else bytes(calibration)
    data = getattr(calibration, "data", None)
    if data is None and callable(getattr(calibration, "save", None)):
        data = calibration.save()
    if data is None:
        raise TypeError(f"calibration is neither bytes nor a calibration: {calibration!r}")
    return bytes(data)


def _samples_of(source: Any, start: int, stop: int) -> Any:
    """What a data record holds of a stream buffer: raw words, or the six fields."""
    if source.has_raw:
        return source.samples_get(start, stop, fields="raw")
    signals = source.samples_get(start, stop, fields=list(statistics.FIELDS))["signals"]
    values = {name: signals[name]["value"] for name in statistics.FIELDS}
    for name, scale in _SOURCE_SCALES.get(type(source).__name__, {}).items():
        values[name] = np.divide(values[name], scale, dtype=np.float32)
    return values
