"""Find everything in a JLS version 1 file, whole or damaged, without touching sample data.

A `Recording` knows the metadata, where each block and each data record lies, and what is wrong. Its
index grows block by block as far as it is asked. A finished recording is indexed by hopping over
its blocks; one that was never closed, or was cut, is followed as far as whole records go. Since
blocks and data records have fixed sizes, a damaged record is located by where it must be, and what
lies behind it keeps its place. Nothing here decodes samples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.jls.layout import RAW, Config, RecordingError, Sizes, payload_bytes, record_bytes
from daq_ioc.joulescope import container, container_reader
from daq_ioc.joulescope.container import ContainerError

log = logging.getLogger(__name__)

T = TypeVar("T")

V2_MAGIC = b"jlsfmt\r\n \n \x1a  \xb2\x1c"
"""How a JLS version 2 file begins, which has the same file name extension."""

_SCAN_BYTES = 1 << 20
_LONGEST = 1 << 28
_UNKNOWN = 1 << 62  # samples, while they are being counted


@dataclass(frozen=True, slots=True)
class DataRecord:
    """One data record: its offset in the file, and the samples ``first`` to ``stop`` it holds."""

    offset: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block: samples ``first`` to ``stop``, its data records and its reductions.

    ``data`` is the offset of the first data record, ``end`` that of the CLE record with the
    reductions, or 0 in an unfinished block. ``voltage_range`` is None if it was lost.
    ``sample_id`` is the stream's id of the first sample, if known.
    """

    number: int
    first: int
    stop: int
    data: int
    end: int
    voltage_range: int | None
    sample_id: int | None


class Recording:
    """Index of a recording. Raises as `DataReader.open`.

    ``config`` (`Config`), ``config_json``, ``calibration`` (container bytes, b"" if damaged, or
    None), ``user_data``, ``footer_user_data``; ``size`` in samples; ``finished``: properly closed;
    ``problems``: texts on what is damaged or missing, growing as damage is met.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = _open_container(file)
        self.problems: list[str] = []
        self.config_json: dict[str, Any] = {}
        self.footer: dict[str, Any] | None = None
        self.user_data: Any = None
        self.footer_user_data: Any = None
        self.calibration: bytes | None = None
        self.finished = False
        self._config: Config | None = None
        self._data = 0
        self._blocks: list[Block] = []
        self._next = 0  # offset of the next block, 0 when there is none
        self._tail = 0  # offset of the record behind the data, where the index has come to it
        self._checked: set[int] = set()
        self._walk()
        if self._config is None:
            raise RecordingError("not a recording: it has no configuration record")
        self.config: Config = self._config
        self._format: str = self.config.data_format
        self._record_size: int = (
            record_bytes(self._format, self.sizes.record) if self.has_data else 0
        )
        self.size: int = 0
        self._begin()

    def problem(self, text: str) -> None:
        """Note damage, once, for the user to see."""
        if text not in self.problems:
            self.problems.append(text)
            log.warning("%s", text)

    def _record(self, offset: int) -> container.Record:
        """A verified record that is not absurdly long, as one with a damaged length can seem."""
        if self.file.peek(offset)[2] > _LONGEST:
            raise container.ChecksumError(f"record at offset {offset} has a damaged length")
        return self.file.record(offset)

    def _walk(self, offset: int = container.HEADER_SIZE) -> None:
        """Read the records outside the data, from ``offset`` to the end."""
        while offset:
            try:
                record = self._record(offset)
                if record.tag == container.END:
                    self._end(record)
                    return
                if record.tag == container.COLLECTION_START:
                    if self._begins_block(record):  # the outer collection's start is lost
                        self._data = record.offset
                        return
                    self._data = record.end
                    offset = self.file.skip(record)
                elif record.tag == container.COLLECTION_END and not self._data:
                    raise RecordingError("the start of the data is lost")
                else:
                    self._metadata(record)
                    offset = record.end
            except ContainerError as error:
                if self._data:
                    break
                offset = self._after_damage(offset, error)
        self.problem("recording was not finished, or has been cut")

    def _end(self, record: container.Record) -> None:
        self.finished = self.footer is not None
        if not self.finished:
            self.problem("the final record with the number of samples is missing")
        if self.file.length != self.file.file_size:
            extra = self.file.file_size - record.end
            self.problem(f"file header states {self.file.length} bytes; {extra} follow the end")

    def _after_damage(self, damaged: int, error: ContainerError) -> int:
        """Offset of the next record behind a damaged one before the data, 0 if there is none."""
        tag = self._tag(damaged)
        found = self.find(damaged + 8, limit=damaged + 16 * _SCAN_BYTES)
        if found:
            self.problem(str(error))
            harmless = (container.USER_JSON, container.META_JSON, container.COLLECTION_START)
            if self.calibration is None and tag not in harmless:
                self.problem("the calibration is lost; current, voltage and power are unknown")
                self.calibration = b""
        return found

    def _begins_block(self, record: container.Record) -> bool:
        """Whether this collection is a block: data follows, where the outer one has blocks."""
        return self._tag(record.end) == container.DATA_BINARY

    def find(self, offset: int, *, limit: int) -> int:
        """Offset of the first whole record from ``offset`` on that can stand outside of data."""
        tags = (
            container.COLLECTION_START, container.COLLECTION_END, container.META_JSON,
            container.USER_JSON, container.SUBFILE,
        )  # fmt: skip
        codes = np.array([int.from_bytes(tag, "little") for tag in tags], "<u4")
        limit = min(limit, self.file.size - container.MIN_RECORD + 1)
        for start in range(offset, limit, _SCAN_BYTES):
            stop = min(start + _SCAN_BYTES, self.file.size - self.file.size % 8)
            words = np.frombuffer(self.file.read(start, stop - start), "<u4")[::2]
            for k in np.flatnonzero(np.isin(words, codes)).tolist():
                try:
                    return self._record(start + 8 * k).offset
                except ContainerError:
                    continue
        return 0

    def _metadata(self, record: container.Record) -> None:
        """Take what a record outside the data says; unknown ones are ignored."""
        tag = record.tag
        if tag == container.SUBFILE:
            name, content = container.split_subfile(record.payload)
            if name == "calibration":
                self.calibration = content
        elif tag == container.META_JSON:
            meta = json.loads(record.payload)
            if meta.get("type") == "config":
                self.config_json, self._config = meta, Config.parse(meta)
            elif meta.get("type") == "footer":
                self.footer = meta
            else:
                log.warning("unknown metadata of type %r", meta.get("type"))
        elif tag == container.USER_JSON and self.footer is None:
            self.user_data = json.loads(record.payload)
        elif tag == container.USER_JSON:
            self.footer_user_data = json.loads(record.payload)

    def _begin(self) -> None:
        """Prepare the index of blocks; count the samples if no footer tells."""
        self._next = self._data
        if self.footer is None and self._data and self.config.sizes:
            self.size = _UNKNOWN
            while self._next:
                self._index_next()
            self.size = self._blocks[-1].stop if self._blocks else 0
            if self._tail:  # the blocks are complete, only their collection's start was damaged
                self._walk(self._tail)
        if self.footer is not None:
            self.size = int(self.footer["size"])
        if self.size and not self._data:
            raise RecordingError(f"no data, where {self.size} samples are expected")

    @property
    def has_data(self) -> bool:
        return self.config.sizes is not None

    @property
    def sizes(self) -> Sizes:
        """RecordingError if the recording has no samples."""
        if self.config.sizes is None:
            raise RecordingError("the recording has no samples")
        return self.config.sizes

    @property
    def block_count(self) -> int:
        """Number of blocks that the samples take."""
        return -(-self.size // self.sizes.block) if self.config.sizes else 0

    def block(self, number: int) -> Block | None:
        """A block by its number, or None if the file has lost it."""
        while len(self._blocks) <= number and self._next:
            self._index_next()
        if number < len(self._blocks):
            return self._blocks[number]
        self.problem(f"samples from {self.sizes.block * len(self._blocks)} on are lost")
        return None

    def _index_next(self) -> None:
        """Append the block at ``_next`` to the index and find the one after it."""
        number, offset = len(self._blocks), self._next
        first = number * self.sizes.block
        self._next = 0
        if first >= self.size:
            return
        try:
            record = self._record(offset)
        except ContainerError as error:
            self._index_damaged(number, offset, error)
            return
        if record.tag != container.COLLECTION_START:
            self._tail = record.end
            return
        collection = self.file.collection(record)
        info = _block_info(collection.data)
        self._append(number, record.end, collection.end, info)

    def _index_damaged(self, number: int, offset: int, error: ContainerError) -> None:
        """A block whose first record is damaged begins where its first data record is found."""
        for data in range(offset + container.MIN_RECORD, offset + 256, 8):
            if self._tag(data) == container.DATA_BINARY:
                self.problem(str(error))
                self._append(number, data, 0, (None, None))
                return

    def _is_whole(self, offset: int, tag: bytes) -> bool:
        """Whether a record of ``tag`` is here and undamaged."""
        try:
            return self._record(offset).tag == tag
        except ContainerError:
            return False

    def _append(
        self, number: int, data: int, end: int, info: tuple[int | None, int | None]
    ) -> None:
        sizes = self.sizes
        first = number * sizes.block
        if not 0 < end < self.file.size - container.MIN_RECORD:
            end = self._expected_end(first, data)
        samples = self._count(data, end) if end else self._count_open(data)
        stop = min(first + samples, self.size, first + sizes.block)
        if samples:
            self._blocks.append(Block(number, first, stop, data, end, *info))
        if end:
            self._next = self._behind(number, end, samples // sizes.reduction)

    def _behind(self, number: int, end: int, rows: int) -> int:
        """Offset of what follows a block whose end record, at ``end``, has so many rows."""
        tag, _, length = self.file.peek(end)
        stated = end + container.record_size(length)
        expected = end + container.record_size(self._row_bytes(rows))
        if tag == container.COLLECTION_END and (stated == expected or self._follows(stated)):
            return stated
        self.problem(f"end of block {number} is damaged")
        if self._follows(expected):
            return expected
        return self.find(end + 8, limit=end + _SCAN_BYTES)

    def _follows(self, offset: int) -> bool:
        """Whether a record that can follow a block is at ``offset``."""
        starts = self._is_whole(offset, container.COLLECTION_START)
        return starts or self._is_whole(offset, container.COLLECTION_END)

    def _row_bytes(self, rows: int) -> int:
        """Payload size of a block's reductions."""
        if self.config.reduction_format == "v1":
            return rows * len(self.config.reduction_fields) * 4 * 4
        values = 4 * len(statistics.FIELDS)
        return 16 + 8 * (1 + values) + 8 * rows + values * (4 * rows + -4 * rows % 8)

    def _tag(self, offset: int) -> bytes:
        try:
            return self.file.peek(offset)[0]
        except ContainerError:
            return b""

    def _is_end(self, offset: int) -> bool:
        return self._tag(offset) == container.COLLECTION_END

    def _expected_end(self, first: int, data: int) -> int:
        """Where a block whose start does not tell must end; 0 if it does not, being unfinished."""
        samples = min(self.sizes.block, self.size - first)
        full, rest = divmod(samples, self.sizes.record)
        end = data + full * self._record_size
        if rest:
            end += record_bytes(self._format, rest)
        return end if self._is_end(end) else 0

    def _count(self, data: int, end: int) -> int:
        """Samples in the data records between two offsets."""
        full, rest = divmod(end - data, self._record_size)
        samples = full * self.sizes.record
        return samples + (self._samples_at(end - rest) if rest else 0)

    def _samples_at(self, offset: int) -> int:
        """Samples in a short data record, as it states."""
        try:
            tag, _, length = self.file.peek(offset)
        except ContainerError:
            return 0
        if tag != container.DATA_BINARY:
            return 0
        if self._format == RAW:
            return length // 4
        # The first array is that of the current, float32; its length in bytes is in its entry.
        return int.from_bytes(self.file.read(offset + 28, 4), "little") // 4

    def _count_open(self, data: int) -> int:
        """Samples in the whole data records of a block that has no end."""
        samples, sizes = 0, self.sizes
        for k in range(sizes.block // sizes.record):
            offset = data + k * self._record_size
            if self._is_whole(offset, container.DATA_BINARY):
                self._checked.add(offset)
                samples = k * sizes.record + min(self._samples_at(offset), sizes.record)
        return samples

    def records(self, block: Block, first: int, stop: int) -> list[DataRecord]:
        """The data records of ``block`` that hold samples ``first`` to ``stop``."""
        size = self.sizes.record
        found = []
        for k in range((first - block.first) // size, -(-(stop - block.first) // size)):
            start = block.first + k * size
            offset = block.data + k * self._record_size
            found.append(DataRecord(offset, start, min(start + size, block.stop)))
        return found

    def payload(self, record: DataRecord) -> memoryview | None:
        """Verified payload of a data record, or None, and a problem noted, if it is damaged."""
        return self._seen(record, self.file.payload)

    def verified(self, record: DataRecord) -> bool:
        """Whether a data record is undamaged, else a problem is noted. Looked at only once."""
        if record.offset not in self._checked:
            self._seen(record, self.file.verify)
        return record.offset in self._checked

    def _seen(self, record: DataRecord, look: Callable[[int, bytes, int], T]) -> T | None:
        """What a method of the file that verifies the record returns, None if it is damaged."""
        length = payload_bytes(self._format, record.stop - record.first)
        try:
            found = look(record.offset, container.DATA_BINARY, length)
        except ContainerError as error:
            self.problem(f"samples {record.first} to {record.stop} are lost: {error}")
            return None
        self._checked.add(record.offset)
        return found

    def raw(self, record: DataRecord, first: int, stop: int) -> npt.NDArray[np.uint16] | None:
        """Raw words (n, 2) of samples ``first`` to ``stop``, which are in ``record``.

        None if it is damaged.
        """
        if not self.verified(record):
            return None
        low, high = 4 * (first - record.first), 4 * (stop - record.first)
        data = self.file.read(record.offset + 8 + low, high - low)
        return np.frombuffer(data, "<u2").reshape(-1, 2)

    def reductions(self, block: Block) -> bytes | None:
        """Verified payload of the record with a block's reductions, None if there is none."""
        if not block.end:
            return None
        try:
            record = self._record(block.end)
            payload = record.payload
        except ContainerError as error:
            self.problem(f"reductions of block {block.number} are lost: {error}")
            return None
        return payload if record.tag == container.COLLECTION_END else None


def _open_container(file: BinaryIO) -> container_reader.Reader:
    file.seek(0)
    if file.read(len(V2_MAGIC)) == V2_MAGIC:
        raise container.NotAContainerError("a JLS version 2 file: read it with the package pyjls")
    return container_reader.Reader(file)


def _block_info(data: bytes) -> tuple[int | None, int | None]:
    """Voltage range and stream sample id that the start of a block tells."""
    if not data:
        return 0, None
    try:
        info = json.loads(data)
        return int(info.get("v_range", 0)), info.get("sample_id")
    except (ValueError, TypeError, AttributeError):
        return None, None
