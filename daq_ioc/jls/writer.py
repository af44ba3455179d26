"""Write a JLS version 1 recording: the one writer behind `DataRecorder` and the IOC's recorder.

    writer = Writer(path, calibration=calibration.data)
    writer.start(sampling_frequency=2_000_000)
    while recording:
        writer.write(sample_id, {"raw": raw, "current": i, "voltage": v, "bits": b}, voltage_range)
    writer.close()

A recording is a row of blocks, a block a row of data records and the statistics ("reductions") of
its samples, all of fixed sizes; only the last of everything may be short. Each whole data record is
handed to the operating system at once, so that a killed process loses less than one of them.
Readers place samples by these fixed sizes, hence two rules: samples follow each other without gap
(missing ones are written as missing), and the voltage range holds for a whole block.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.jls import arrays
from daq_ioc.jls.layout import FLOAT, FORMAT_VERSION, NONE, RAW, SCALES, Sizes
from daq_ioc.jls.reduction import reduce_windows
from daq_ioc.jls.reductions import pack_v2
from daq_ioc.joulescope import container, container_writer

__all__ = ["FLOAT", "NONE", "RAW", "Sizes", "Writer"]

Signals = Mapping[str, npt.NDArray[Any]]


def json_bytes(value: Any) -> bytes:
    """JSON text as recordings hold it. TypeError for what JSON cannot express."""
    return json.dumps(value).encode()


class Writer:
    """A recording being written. Any OSError of a write goes to the caller, who then closes.

    ``file`` is a path, which is created (FileExistsError if it exists, unless ``overwrite``), or a
    binary file object at position 0 that can seek, which the writer does not close. ``calibration``
    are container bytes; ``user_data`` is anything JSON can express, else TypeError.

    Attributes: ``samples`` written, ``bytes`` in the file, ``next_id`` of the next sample.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        calibration: bytes | None = None,
        user_data: Any = None,
        overwrite: bool = False,
    ) -> None:
        note = None if user_data is None else json_bytes(user_data)
        self._owned: BinaryIO | None = None
        if isinstance(file, str | os.PathLike):
            # Unbuffered: what is written is the operating system's at once.
            flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
            self._file: BinaryIO = os.fdopen(os.open(file, flags, 0o666), "wb", buffering=0)
            self._owned = self._file
        else:
            self._file = file
        self.samples = 0
        self.next_id: int | None = None
        self.closed = False
        self._failed = False
        self._sizes: Sizes | None = None
        self._format = NONE
        self._block_keys: tuple[str, ...] = ()
        self._block_samples = 0
        self._voltage_range: int | None = None
        self._rows = statistics.empty((0,))  # of the block being written
        self._pending: dict[str, npt.NDArray[Any]] = {}
        self._pending_range: int | None = None
        self._held = 0
        try:
            self._container = container_writer.Writer(self._file)
            if note is not None:
                self._container.append(container.USER_JSON, note)
            if calibration is not None:
                self._container.append_subfile("calibration", calibration)
        except BaseException:
            if self._owned is not None:
                self._owned.close()
            raise

    @property
    def bytes(self) -> int:
        """Size of the file so far."""
        return self._container.size

    @property
    def started(self) -> bool:
        return self._sizes is not None

    @property
    def sizes(self) -> Sizes:
        """RuntimeError before `start`."""
        if self._sizes is None:
            raise RuntimeError("the recording has not started")
        return self._sizes

    def start(
        self,
        sampling_frequency: float,
        data_format: str = RAW,
        sizes: Sizes | None = None,
        block_keys: tuple[str, ...] = ("v_range", "sample_id"),
    ) -> None:
        """Say what comes: rate in samples/s, format ``raw`` or ``float32_v2``.

        ``block_keys`` is what each block says of itself, in this order. ValueError for another
        format, a rate that is not positive, or sizes beyond the format.
        """
        sizes = Sizes() if sizes is None else sizes
        if self.started or self.closed:
            raise RuntimeError("the recording has started already")
        if data_format not in (RAW, FLOAT):
            raise ValueError(f"data format {data_format!r}: expected {RAW} or {FLOAT}")
        if not (sampling_frequency > 0 and math.isfinite(sampling_frequency)):
            raise ValueError(f"sampling frequency {sampling_frequency} is not positive")
        if 4 * sizes.record > arrays.MAX_BYTES and data_format == FLOAT:
            raise ValueError(f"{sizes}: a float record has at most {arrays.MAX_BYTES // 4} samples")
        self._configure(sampling_frequency, data_format, sizes)
        self._container.collection_start(0)
        self._rows = statistics.empty((sizes.block // sizes.reduction,))
        self._sizes, self._format, self._block_keys = sizes, data_format, block_keys

    def _configure(self, rate: float, data_format: str, sizes: Sizes | None) -> None:
        config = {
            "type": "config",
            "data_recorder_format_version": FORMAT_VERSION,
            "sampling_frequency": rate if isinstance(rate, int | float) else float(rate),
            "samples_per_reduction": sizes.reduction if sizes else 0,
            "samples_per_tlv": sizes.record if sizes else 0,
            "samples_per_block": sizes.block if sizes else 0,
            "reduction_fields": list(statistics.FIELDS),
            "data_format": data_format,
            "reduction_format": "v2",
        }
        self._container.append(container.META_JSON, json_bytes(config))

    def write(self, sample_id: int, signals: Signals, voltage_range: int = 0) -> None:
        """Write samples ``sample_id`` on, a stretch of any length; what fills no record is kept.

        A raw recording needs ``raw`` uint16 (n, 2), and for the statistics either ``current``,
        ``voltage`` and ``bits``, or the six fields of `statistics.FIELDS`, each (n,). A float
        recording needs the six fields. ValueError when the samples do not follow those before, or
        when the voltage range changes inside a block; nothing is written then.
        """
        needed = self._needed(signals)
        count = len(signals[needed[0]])
        if any(len(signals[name]) != count for name in needed):
            raise ValueError("signals differ in length")
        if count == 0:
            return
        self._check(sample_id, self._held, voltage_range)
        size = self.sizes.record
        if not self._pending:
            self._pending = {
                name: np.empty((size, *signals[name].shape[1:]), _dtype(name, signals[name]))
                for name in needed
            }
        if self.next_id is None:
            self.next_id = sample_id
        self._pending_range = voltage_range
        done = 0
        while done < count:
            take = min(size - self._held, count - done)
            for name in needed:
                part = signals[name][done : done + take]
                self._pending[name][self._held : self._held + take] = part
            self._held += take
            done += take
            if self._held == size:
                self._flush(self.next_id)

    def _needed(self, signals: Signals) -> tuple[str, ...]:
        """Names of the signals that this recording uses; KeyError for one that is missing."""
        names: tuple[str, ...] = statistics.FIELDS
        if self._format == RAW:
            names = ("raw", *names)
            if "bits" in signals:
                names = ("raw", "current", "voltage", "bits")
        for name in names:
            if name not in signals:
                raise KeyError(f"signal {name!r} is needed for a {self._format} recording")
        return names

    def _check(self, sample_id: int, held: int, voltage_range: int) -> None:
        """Refuse what readers would misplace."""
        size = self.sizes.block
        if self.closed or self._failed:
            raise ValueError("the recording is closed" if self.closed else "the recording failed")
        if self.next_id is not None and sample_id != self.next_id + held:
            raise ValueError(f"samples from {sample_id}: expected {self.next_id + held}")
        before = self._pending_range if held else self._voltage_range
        inside = (self._block_samples + held) % size
        if voltage_range not in (0, 1):
            raise ValueError(f"voltage range {voltage_range}: expected 0 or 1")
        if inside and self._format == RAW and voltage_range != before:
            raise ValueError(
                f"voltage range changed from {before} to {voltage_range} inside a block: "
                f"possible only after every {size} samples ({size - inside} from now)"
            )

    def flush(self) -> None:
        """Write the samples held as a short data record; only the last one may be short."""
        if self._held and self.next_id is not None:
            self._flush(self.next_id)

    def _flush(self, sample_id: int) -> None:
        """Write the samples held, from ``sample_id`` on, as one data record."""
        count, self._held = self._held, 0
        signals = {name: values[:count] for name, values in self._pending.items()}
        fields = {name: values for name, values in signals.items() if name != "raw"}
        rows = reduce_windows(fields, self.sizes.reduction)
        data = signals["raw"] if self._format == RAW else signals
        self.write_record(sample_id, data, rows, self._pending_range or 0)

    def write_record(
        self,
        sample_id: int,
        data: npt.NDArray[np.uint16] | Signals,
        rows: statistics.Rows,
        voltage_range: int = 0,
    ) -> None:
        """Write one whole data record with its reduction rows, computed elsewhere.

        ``data`` is raw uint16 (n, 2), or the six fields of a float recording. n is the record size,
        or less for the last record of the recording; ``rows`` has n // reduction size rows.
        """
        count = len(data["current"]) if isinstance(data, Mapping) else len(data)
        sizes = self.sizes
        self._check(sample_id, 0, voltage_range)
        if self._held or self._block_samples % sizes.record or not 0 < count <= sizes.record:
            raise ValueError("a data record is whole, but for the last one")
        if rows.shape != (count // sizes.reduction, len(statistics.FIELDS)):
            raise ValueError(f"rows {rows.shape} do not belong to {count} samples")
        if isinstance(data, Mapping) != (self._format == FLOAT):
            raise ValueError(f"data does not fit a {self._format} recording")
        if isinstance(data, Mapping):
            parts = _pack_fields(data, count)
        else:
            parts = [np.ascontiguousarray(data, "<u2").data]
        try:
            if self._block_samples == 0:
                facts = {"v_range": voltage_range, "sample_id": sample_id}
                start = json_bytes({key: facts[key] for key in self._block_keys})
                self._container.collection_start(1, data=start)
                self._voltage_range = voltage_range
            self._container.append_parts(container.DATA_BINARY, parts)
            self._file.flush()
            done = self._block_samples // sizes.reduction
            self._rows[done : done + len(rows)] = rows
            self._block_samples += count
            self.samples += count
            self.next_id = sample_id + count
            if self._block_samples == sizes.block:
                self._end_block()
        except OSError:
            self._failed = True
            raise

    def _end_block(self) -> None:
        rows = self._rows[: self._block_samples // self.sizes.reduction]
        self._container.collection_end(data=pack_v2(rows))
        self._file.flush()
        self._block_samples = 0

    def close(self, footer_user_data: Any = None) -> None:
        """Write what is held and the end of the recording, and see it on disk. Once is enough.

        After a failed write the recording ends with the last whole record. OSError when even that
        cannot be written: the file then is as after a crash, and `daq-ioc repair` completes it.
        """
        if self.closed:
            return
        note = None if footer_user_data is None else json_bytes(footer_user_data)
        try:
            if not self.started:
                self._configure(0, NONE, None)
            elif not self._failed:
                self.flush()
        finally:
            self.closed = True
            try:
                self._finish(note)
            finally:
                if self._owned is not None:
                    self._owned.close()

    def _finish(self, note: Any) -> None:
        if len(self._container.collections) == 2:
            self._end_block()
        while self._container.collections:
            self._container.collection_end()
        footer = {"type": "footer", "size": self.samples}
        self._container.append(container.META_JSON, json_bytes(footer))
        if note is not None:
            self._container.append(container.USER_JSON, note)
        self._container.finalize()
        self._file.flush()
        if self._owned is not None:
            os.fsync(self._owned.fileno())


def _dtype(name: str, values: npt.NDArray[Any]) -> np.dtype[Any]:
    """How samples wait for their record: integers as they are, values as float32."""
    if name == "raw":
        return np.dtype(np.uint16)
    return np.dtype(np.uint8 if values.dtype == np.uint8 else np.float32)


def _pack_fields(signals: Signals, count: int) -> list[bytes | memoryview]:
    """Payload of a float data record. Fields stored as uint8 keep fractions, and NaN as 0."""
    stored = {}
    for k, (name, scale) in enumerate(zip(statistics.FIELDS, SCALES, strict=True)):
        values = np.asarray(signals[name])
        if scale is None:
            stored[k << 4 | 1] = values.astype(np.float32, copy=False)
        elif values.dtype == np.uint8:
            stored[k << 4 | 1] = np.minimum(values, np.uint8(255 // scale)) * np.uint8(scale)
        else:
            product = np.multiply(values, scale, dtype=np.float32)
            np.fmax(product, 0, out=product)  # unlike clip, it makes NaN 0
            stored[k << 4 | 1] = np.fmin(product, 255, out=product).astype(np.uint8)
    return arrays.pack_parts(stored, count)
