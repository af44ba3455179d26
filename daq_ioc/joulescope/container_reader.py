"""Read the tagged-record container, whole or damaged.

Unlike with the maker's reader, a record whose checksum fails is an error, never data.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from daq_ioc.joulescope.container import (
    COLLECTION_END,
    COLLECTION_START,
    CRC,
    END,
    FILE_HEADER,
    HEADER_SIZE,
    MAGIC,
    MIN_RECORD,
    RECORD_HEADER,
    SIGN_PAYLOADS,
    SIGN_START_RECORD,
    SIGNATURE_END,
    SIGNATURE_START,
    VERSION,
    Buffer,
    ChecksumError,
    Collection,
    ContainerError,
    NotAContainerError,
    Record,
    TruncatedError,
    crc32,
    monocypher,
    record_size,
)

_SHORT = 256  # bytes read at once; most records but those of data are shorter
_AT_ONCE = 1 << 20  # bytes verified at once
_RESIDUE = 0x2144DF1C  # CRC-32 of any bytes with their own CRC-32 behind them


class Reader:
    """Read a container from a binary file object that can seek.

    Records are read by offset, each verified on its own, so that a damaged record hides nothing
    behind it. ``size`` is the usable length: ``length`` as the header has it, if it is not 0
    (never closed) and not more than there is; :attr:`file_size` is what there is.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Of a plain file, one system call reads at an offset, and nobody's position moves.
        self._descriptor = file.fileno() if isinstance(file, io.FileIO) else None
        self._buffer = bytearray()
        self.file_size = file.seek(0, os.SEEK_END)
        head = self._read(0, HEADER_SIZE)
        if len(head) < HEADER_SIZE:
            raise NotAContainerError(f"too short for a container: {len(head)} bytes")
        magic, self.length, version, crc = FILE_HEADER.unpack(head)
        if magic != MAGIC:
            raise NotAContainerError("not a Joulescope container: it does not begin with its magic")
        if crc32(head[:-4]) != crc:
            raise ChecksumError("the container's file header fails its checksum")
        if version != VERSION:
            raise ContainerError(f"container version {version}; only version {VERSION} is known")
        self.size = min(self.length or self.file_size, self.file_size)

    def _read(self, offset: int, length: int) -> bytes:
        if self._descriptor is not None:
            return os.pread(self._descriptor, length, offset)
        self._file.seek(offset)
        return self._file.read(length)

    def peek(self, offset: int) -> tuple[bytes, int, int]:
        """Tag, flags and stored length of the record at ``offset``, not verified.

        TruncatedError when fewer bytes than the smallest record follow.
        """
        head = self._read(offset, 8) if 0 <= offset <= self.size - MIN_RECORD else b""
        if len(head) < 8:
            raise TruncatedError(f"no record at offset {offset}: the file has {self.size} bytes")
        return RECORD_HEADER.unpack(head)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file as they are, not verified; TruncatedError if there are fewer."""
        data = self._read(offset, length)
        if len(data) != length:
            raise TruncatedError(f"{length} bytes at offset {offset} go past the end of the file")
        return data

    def record(self, offset: int) -> Record:
        """The record at ``offset``, verified: TruncatedError, ChecksumError."""
        body = self._read(offset, _SHORT) if 0 <= offset <= self.size - MIN_RECORD else b""
        if len(body) < MIN_RECORD:
            raise TruncatedError(f"no record at offset {offset}: the file has {self.size} bytes")
        tag, flags, length = RECORD_HEADER.unpack_from(body)
        size = record_size(length)
        if offset + size > self.size:
            raise TruncatedError(f"record at offset {offset} goes past the end of the file")
        if size > len(body):
            body = self.read(offset, size)
        if crc32(memoryview(body)[: size - 4]) != CRC.unpack_from(body, size - 4)[0]:
            raise ChecksumError(f"record at offset {offset} fails its checksum")
        return Record(offset, tag, flags, body[8 : 8 + length])

    def payload(self, offset: int, tag: bytes, length: int) -> memoryview:
        """Verified payload of the record of known tag and length at ``offset``, without copies.

        ChecksumError if that record, plain, is not there; TruncatedError.
        """
        body = memoryview(self.read(offset, record_size(length)))
        _check((body,), offset, tag, length)
        return body[8 : 8 + length]

    def verify(self, offset: int, tag: bytes, length: int) -> None:
        """Raise what `payload` would; in less time, for the bytes need not be kept."""
        _check(self._passing(offset, record_size(length)), offset, tag, length)

    def _passing(self, offset: int, length: int) -> Iterator[Buffer]:
        """Bytes of the file in parts, each of which holds until the next one is taken.

        They always come in the same memory: that of a new buffer would first have to be mapped and
        cleared page by page, which can take longer than to read and verify what it receives.
        """
        while length:
            size = min(length, _AT_ONCE)
            part: Buffer
            if self._descriptor is None:
                part = self._read(offset, size)
            else:
                if len(self._buffer) < size:
                    self._buffer = bytearray(size)
                part = memoryview(self._buffer)[:size]
                part = part[: os.preadv(self._descriptor, [part], offset)]
            if not part:
                raise TruncatedError(f"{length} bytes at offset {offset} go past the end")
            yield part
            offset += len(part)
            length -= len(part)

    def collection(self, record: Record) -> Collection:
        """What a CLS record begins; RuntimeError for another record."""
        if record.tag != COLLECTION_START:
            raise RuntimeError(f"{record.tag!r} at offset {record.offset} begins no collection")
        return Collection.decode(record.offset, record.payload)

    def skip(self, record: Record) -> int:
        """Offset behind ``record``, a whole collection counting as one record.

        ContainerError for a collection that is still open or whose end is not where it should be.
        """
        if record.tag != COLLECTION_START:
            return record.end
        end = self.collection(record).end
        if end <= record.offset or self.peek(end)[0] != COLLECTION_END:
            raise ContainerError(f"collection at offset {record.offset} has no end")
        return self.record(end).end

    def records(self, *, verify: bool = True) -> Iterator[Record]:
        """All records up to END, collections entered.

        ``verify`` checks signatures, whoever made them: ChecksumError if one does not match.
        """
        offset, signing, signed = HEADER_SIZE, b"", bytearray()
        while offset <= self.size - MIN_RECORD:
            record = self.record(offset)
            if record.tag == END:
                return
            if record.tag == SIGNATURE_END and signing:
                if not monocypher().signature_check(record.stored, signing[8:], bytes(signed)):
                    raise ChecksumError(f"signature at offset {offset} does not match")
                signing = b""
            if record.tag == SIGNATURE_START and verify:
                signing = record.stored
                signed.clear()
                if len(signing) != 40 or signing[0] != 1:
                    raise ContainerError(f"unknown kind of signature at offset {offset}")
            if signing and (record.tag != SIGNATURE_START or signing[1] & SIGN_START_RECORD):
                payload_only = signing[1] & SIGN_PAYLOADS
                signed += (
                    record.stored
                    if payload_only
                    else self._read(offset, record.end - record.offset)
                )
            yield record
            offset = record.end


def _check(parts: Iterable[Buffer], offset: int, tag: bytes, length: int) -> None:
    """ChecksumError unless ``parts`` are the whole plain record that is meant to be there."""
    crc = 0
    for k, part in enumerate(parts):
        if k == 0 and part[:8] != RECORD_HEADER.pack(tag, 0, length):
            raise ChecksumError(f"no {tag.decode()} record of {length} bytes at offset {offset}")
        crc = crc32(part, crc)
    if crc != _RESIDUE:
        raise ChecksumError(f"record at offset {offset} fails its checksum")
