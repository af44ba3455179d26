"""`DataReader`: query a JLS version 1 recording as the maker's class of that name does."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.jls.api import UNITS, allocate, item, statistics_api
from daq_ioc.jls.decode import FloatDecoder, Piece, RawDecoder, RawProcessorSettings, all_fields
from daq_ioc.jls.layout import RAW
from daq_ioc.jls.recording import Recording
from daq_ioc.jls.rows import RowReader, single, windows
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.statistics import FIELDS, Rows

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class DataReader:
    """Read samples and statistics from a recording.

    Sample ids count from 0 at the start of the file. Every query takes ``start`` and ``stop`` with
    ``units`` None or ``"samples"`` (negative ones count from the end), or ``"seconds"`` from the
    start of the recording; None is the start or the end. Attributes: ``config`` and ``footer``
    (dicts), ``calibration``, ``user_data``, ``footer_user_data``, ``raw_processor``, and
    ``problems``: texts on what the file has lost, so far as it was looked at.

    Differences from the maker's class:

    * Files that were not closed, were cut, or are damaged: all samples of all whole data records
      are there; the others read as missing, and ``problems`` says which. Theirs claims one block,
      and returns damaged samples, or those of a neighbour, as if they were right.
    * The voltage range of each block converts its samples; theirs uses that of the block touched
      last for all.
    * ``raw_current`` and ``raw_voltage`` are one value per sample.
    * Seconds outside the recording raise ValueError (theirs: the whole file instead), and are
      rounded to the nearest sample, so that k / rate is sample k. Sample numbers must be integers.
    * A single field may be given by its name. ``input_sampling_frequency`` is that of the file.
    * Empty and reversed ranges give empty arrays; statistics of no samples are NaN.
    * Statistics use one rule: samples whose current is finite count. Accumulation is in float64.
    * Queries on a closed reader raise OSError. Opening another file forgets the one before.
    * Paths may be `pathlib` paths; the reader is a context manager.

    Kept although it looks wrong: the first 8 samples of a raw file are replaced by its range-switch
    suppression, which begins as if the current had been off, while stored reductions hold what the
    instrument's host saw (``raw_processor.suppress_mode = 'off'`` shows the samples as they are);
    ranges and input bits in float files that the maker's downsampling wrote are as it wrote them,
    multiplied and wrapped; units of variances are those of the field.
    """

    def __init__(self) -> None:
        self.raw_processor = RawProcessorSettings()
        self._file: BinaryIO | None = None
        self._recording: Recording | None = None
        self._forget()

    def _forget(self) -> None:
        self.config: dict[str, Any] | None = None
        self.footer: dict[str, Any] | None = None
        self.calibration: Calibration | None = None
        self.user_data: Any = None
        self.footer_user_data: Any = None
        self._voltage_range = 0
        self._decoder: RawDecoder | FloatDecoder | None = None
        self._rows: RowReader | None = None

    def open(self, filehandle: str | os.PathLike[str] | BinaryIO) -> DataReader:
        """Open a path, or a binary file object that can seek, which `close` leaves open.

        OSError when there is no such file or it is no recording container, ValueError (KeyError,
        AttributeError for unknown formats) when it cannot be understood.
        """
        self.close()
        self._forget()
        if isinstance(filehandle, str | os.PathLike):
            file: BinaryIO = os.fdopen(os.open(Path(filehandle), os.O_RDONLY), "rb", buffering=0)
            self._file = file
        else:
            file = filehandle
        try:
            self._load(Recording(file))
        except BaseException:
            self.close()
            raise
        return self

    def _load(self, recording: Recording) -> None:
        self.config = recording.config_json
        self.footer = recording.footer or {"type": "footer", "size": recording.size}
        self.user_data = recording.user_data
        self.footer_user_data = recording.footer_user_data
        self.calibration = _calibration(recording.calibration)
        if recording.has_data:
            if recording.config.data_format == RAW:
                self._decoder = RawDecoder(recording, self.calibration, self.raw_processor)
            else:
                self._decoder = FloatDecoder(recording)
            self._rows = RowReader(recording, self._decoder)
        self._recording = recording

    def close(self) -> None:
        """Close the file if `open` opened it; once is enough."""
        if self._file is not None:
            self._file.close()
        self._file = self._recording = self._decoder = self._rows = None

    def __enter__(self) -> DataReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        if self._recording is None:
            return "DataReader closed"
        return f"DataReader {self.duration:.2f} seconds ({self._recording.size} samples)"

    def summary_string(self) -> str:
        """The text of `str` and four lines of configuration."""
        sizes = [f"samples_per_{name}" for name in ("reduction", "tlv", "block")]
        config = self._opened().config_json
        lines = (f"    {name} = {config[name]!r}" for name in ("sampling_frequency", *sizes))
        return "\n".join([str(self), *lines])

    def _opened(self) -> Recording:
        if self._recording is None:
            raise OSError("no recording is open")
        return self._recording

    @property
    def recording(self) -> Recording:
        """The index of the open file. OSError when closed."""
        return self._opened()

    @property
    def rows(self) -> RowReader:
        """Its reduction rows. OSError when closed, or without samples."""
        if self._rows is None:
            raise OSError("no recording with samples is open")
        return self._rows

    @property
    def problems(self) -> list[str]:
        """What is damaged or missing, one text each."""
        return list(self._opened().problems)

    @property
    def sample_id_range(self) -> list[int]:
        """First sample and end: ``[0, size]``; ``[0, 0]`` when closed."""
        return [0, self._recording.size if self._recording else 0]

    @property
    def sampling_frequency(self) -> float:
        """Samples per second; 1.0 when there is none, or no file."""
        return self._positive("sampling_frequency")

    @property
    def output_sampling_frequency(self) -> float:
        """The same: samples per second in the file."""
        return self.sampling_frequency

    @property
    def input_sampling_frequency(self) -> float:
        """Samples per second of the instrument, if the file tells; else as in the file."""
        if self.config and "input_sampling_frequency" in self.config:
            return self._positive("input_sampling_frequency")
        return self.sampling_frequency

    def _positive(self, key: str) -> float:
        value = float(self.config[key]) if self.config and self._recording else 0.0
        return value if value > 0 else 1.0

    @property
    def reduction_frequency(self) -> float:
        """Reduction rows per second; 1.0 when there are none."""
        if self._recording is None or not self._recording.has_data:
            return 1.0
        return self.sampling_frequency / self._recording.sizes.reduction

    @property
    def duration(self) -> float:
        """Length of the recording in s."""
        return self.sample_id_range[1] / self.sampling_frequency

    @property
    def voltage_range(self) -> int:
        """Voltage range (0 is 15 V, 1 is 5 V) of the last raw sample read; 0 before."""
        return self._voltage_range

    def time_to_sample_id(self, t: float | None) -> int | None:
        """The sample nearest to ``t`` seconds; None for None and outside of the recording."""
        if t is None:
            return None
        sample = round(t * self.sampling_frequency)
        if not 0 <= sample <= self.sample_id_range[1]:
            log.warning("time %.6f s is outside of the recording", t)
            return None
        return sample

    def sample_id_to_time(self, s: int | None) -> float | None:
        """Seconds from the start of the recording; None for None."""
        return None if s is None else s / self.sampling_frequency

    def normalize_time_arguments(
        self, start: float | None, stop: float | None, units: str | None = None
    ) -> tuple[int, int]:
        """``start`` and ``stop`` as sample ids. ValueError when outside of the recording.

        TypeError for sample numbers that are not integers.
        """
        size = self.sample_id_range[1]
        if units not in (None, "samples", "seconds"):
            raise ValueError(f"invalid time units: {units}")
        first, last = (
            self._sample(value, default, units)
            for value, default in ((start, 0), (stop, size))
        )  # fmt: skip
        if not (first == last == 0):
            if not 0 <= first < size:
                raise ValueError(f"start sample out of range: {first} of {size}")
            if not 0 <= last <= size:
                raise ValueError(f"stop sample out of range: {last} of {size}")
        return first, last

    def _sample(self, value: float | None, default: int, units: str | None) -> int:
        if value is None:
            return default
        if units == "seconds":
            sample = self.time_to_sample_id(value)
            if sample is None:
                raise ValueError(f"time out of range: {value} s of {self.duration} s")
            return sample
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        try:
            sample = operator.index(number)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"sample number must be an integer: {value!r}") from None
        return sample + self.sample_id_range[1] if sample < 0 else sample

    def samples_get(
        self,
        start: float | None = None,
        stop: float | None = None,
        units: str | None = None,
        fields: str | Sequence[str] | None = None,
    ) -> dict[str, Any] | None:
        """Every sample of a range: ``{'time': {...}, 'signals': {name: {'value', 'units'}}}``.

        ``fields``: the six of `statistics.FIELDS`; for raw files also ``raw`` uint16 (n, 2),
        ``raw_current``, ``raw_voltage`` (14-bit codes) and ``bits``. Default: the six, and raw for
        raw files. Values are float32, integers of raw files uint8 or uint16. Unknown fields are
        empty for raw files, ValueError for float files. None if the file never had samples.
        MemoryError, with the bytes needed, before trying what cannot fit; see `pieces`.
        """
        recording = self._opened()
        first, last = self.normalize_time_arguments(start, stop, units)
        if not recording.has_data:
            return None
        last = max(first, last)
        names = self._field_names(fields)
        arrays = allocate(names, last - first, raw=isinstance(self._decoder, RawDecoder))
        done = 0
        for piece in self._pieces(first, last, names):
            count = len(next(iter(piece.values()))) if piece else 0
            for name, values in piece.items():
                arrays[name][done : done + count] = values
            done += count
        signals = {name: {"value": arrays[name], "units": UNITS.get(name, "")} for name in names}
        if "raw" in signals and isinstance(self._decoder, RawDecoder):
            signals["raw"]["voltage_range"] = self._range_at(last)
        return {"time": self._time(first, last), "signals": signals}

    def _field_names(self, fields: str | Sequence[str] | None) -> tuple[str, ...]:
        raw = isinstance(self._decoder, RawDecoder)
        if fields is None:
            return (*FIELDS, "raw") if raw else FIELDS
        names = (fields,) if isinstance(fields, str) else tuple(fields)
        for name in names:
            if not raw and name not in FIELDS:
                raise ValueError(f"field {name} is not in a float recording")
            if raw and name not in UNITS:
                log.warning("unknown field %s", name)
        return names

    def _range_at(self, stop: int) -> int:
        """Voltage range of the sample before ``stop``."""
        recording = self._opened()
        block = recording.block(max(0, stop - 1) // recording.sizes.block) if stop else None
        if block is not None:
            self._voltage_range = block.voltage_range or 0
        return self._voltage_range

    def pieces(
        self,
        start: float | None = None,
        stop: float | None = None,
        units: str | None = None,
        fields: str | Sequence[str] | None = None,
    ) -> Iterator[dict[str, Array]]:
        """The samples of a range of any length in pieces of bounded size, {name: array}."""
        recording = self._opened()
        first, last = self.normalize_time_arguments(start, stop, units)
        if recording.has_data:
            yield from self._pieces(first, last, self._field_names(fields))

    def _pieces(self, first: int, last: int, names: tuple[str, ...]) -> Iterator[Piece]:
        decoder = self._decoder
        if isinstance(decoder, FloatDecoder):
            yield from decoder.pieces(first, last, names)
        elif decoder is not None and first < last:
            self._range_at(last)
            known = [name for name in names if name in UNITS]
            for piece in decoder.pieces(first, last):
                yield {name: values for name, values in all_fields(piece).items() if name in known}

    def _time(self, first: int, last: int) -> dict[str, Any]:
        rate = self.sampling_frequency
        t1, t2 = first / rate, last / rate

        return {
            "range": item([t1, t2], "s"),
            "delta": item(t2 - t1, "s"),
            "sample_id_range": item([first, last], "samples"),
            "sample_id_limits": item(self.sample_id_range, "samples"),
            "samples": item(last - first, "samples"),
            "input_sampling_frequency": item(self.input_sampling_frequency, "Hz"),
            "output_sampling_frequency": item(self.output_sampling_frequency, "Hz"),
            "sampling_frequency": item(rate, "Hz"),
        }

    def get_reduction(
        self,
        start: float | None = None,
        stop: float | None = None,
        units: str | None = None,
        out: Rows | None = None,
    ) -> Rows:
        """Stored reduction rows (n, 6) of a range, from the row that holds ``start`` on.

        There are (stop - start) // samples_per_reduction of them. ``out``, if given, receives them
        (ValueError if it is too small). Rows that the file lost are computed from the samples.
        Kept from the maker: no row for the last samples that do not fill one.
        """
        self._opened()
        first, last = self.normalize_time_arguments(start, stop, units)
        rows = statistics.empty((0,))
        if self._rows is not None:
            row, count = first // self._rows.samples, max(0, last - first) // self._rows.samples
            rows = self._rows.rows(row, row + count)
        return _into(rows, out)

    def data_get(
        self,
        start: float | None,
        stop: float | None,
        increment: float | None = None,
        units: str | None = None,
        out: Rows | None = None,
    ) -> Rows:
        """Statistics rows (n, 6) of consecutive windows of ``increment`` samples (rounded; 1).

        n is (stop - start) // increment. The member ``variance`` is the sum of squared deviations.
        ``out``, if given, receives the rows (ValueError if it is too small).

        Differences from the maker's method: windows are exactly those asked for, where theirs
        moves or drops some when increment is above a reduction; ``out`` works; rows of one sample
        have length 1 and min = max = value.
        """
        self._opened()
        first, last = self.normalize_time_arguments(start, stop, units)
        size = 1 if increment is None else max(1, int(np.round(increment)))
        count = max(0, last - first) // size
        if count == 0 or self._rows is None or self._decoder is None:
            return _into(statistics.empty((0,)), out)
        if out is not None and len(out) < count:
            raise ValueError(f"out has {len(out)} rows, {count} are needed")
        rows = statistics.empty((count,)) if out is None else out[:count]
        spr, stop_ = self._rows.samples, first + count * size
        if size == 1:
            single(self._decoder.pieces(first, stop_), rows)
        elif first % spr == 0 and size % spr == 0:
            rows[:] = self._rows.grouped(first // spr, count, size // spr)
        elif size < 2 * spr:
            window = (size,) if isinstance(self._decoder, RawDecoder) else ()
            windows(self._decoder.pieces(first, stop_, *window), size, rows)
        else:
            for k in range(count):
                low = first + k * size
                rows[k] = self._rows.statistics(low, low + size)
        return rows

    def statistics_get(
        self, start: float | None = None, stop: float | None = None, units: str | None = None
    ) -> dict[str, Any]:
        """Statistics over a range: ``{'time': {...}, 'signals': {...}, 'source': ...}``.

        Each of the six signals has 'µ', 'σ2', 'min', 'max' and 'p2p', current and power also '∫'
        (C, J: mean times the whole duration); each ``{'value', 'units'}``. ``time`` has range,
        delta (s) and samples: those counted. One sample is used where start equals stop. Ranges
        that a reduction covers use it, and samples at both edges. ValueError if stop is before
        start.
        """
        recording = self._opened()
        first, last = self.normalize_time_arguments(start, stop, units)
        if last < first:
            raise ValueError(f"stop {last} is before start {first}")
        if first == last:
            last = min(first + 1, recording.size)
        row = self._rows.statistics(first, last) if self._rows else statistics.empty()
        rate = self.sampling_frequency
        return statistics_api(row, first / rate, last / rate)


def _calibration(data: bytes | None) -> Calibration:
    """The calibration of a recording; of a damaged one nothing is known, so all is NaN."""
    if data is None:
        return Calibration.default()
    if data == b"":
        unknown = np.full(9, np.nan, np.float32)
        default = Calibration.default()
        return replace(default, current_gain=unknown, voltage_gain=unknown[:2].copy())
    return Calibration.from_bytes(data)


def _into(rows: Rows, out: Rows | None) -> Rows:
    if out is None:
        return rows
    if len(out) < len(rows):
        raise ValueError(f"out has {len(out)} rows, {len(rows)} are needed")
    out[: len(rows)] = rows
    return out[: len(rows)]
