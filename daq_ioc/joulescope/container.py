"""The tagged-record container that holds Joulescope calibrations and JLS version 1 recordings.

A 32-byte file header, then records of tag, length, payload and CRC-32, up to an ``END`` record.
Records can nest in collections, be zlib-compressed, encrypted and signed. This module knows records
and bytes only; what a tag means for a calibration or a recording is told elsewhere.

Unlike the maker's reader, a record whose checksum fails is an error, never data.

Signatures (EdDSA on Curve25519 with BLAKE2b) and encryption (XChaCha20-Poly1305) need the package
pymonocypher, the extra ``daq-ioc[crypto]``; everything else works without it.

`crc32` is zlib's function of that name, computed by zlib-ng: a recording is bytes and checksums,
and with the standard library's the checksums would take most of the time.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from zlib_ng.zlib_ng import crc32 as crc32

MAGIC = b"\xd3tagfmt \r\n \n  \x1a\x1c"
HEADER_SIZE = 32
VERSION = 1
FLAG_COMPRESSED = 0x80
FLAG_ENCRYPTED = 0x40

HEADER = b"HDR"
END = b"END"
COLLECTION_START = b"CLS"
COLLECTION_END = b"CLE"
SUBFILE = b"SUB"
INDEX = b"IDX"
META_JSON = b"MJS"
DATA_JSON = b"AJS"
DATA_BINARY = b"ABN"
USER_JSON = b"UJS"
USER_BINARY = b"UBN"
CALIBRATION_JSON = b"CJS"
SIGNATURE_START = b"SGS"
SIGNATURE_END = b"SGE"
ENCRYPTION = b"ENC"

SIGN_START_RECORD = 1
"""Signature flag: the SGS record itself is signed too."""
SIGN_PAYLOADS = 2
"""Signature flag: payload bytes only are signed, not whole records."""

MIN_RECORD = 16
_JOIN = 4096
_SHORT = 256  # bytes read at once; most records but those of data are shorter
_AT_ONCE = 1 << 20  # bytes verified at once
_RESIDUE = 0x2144DF1C  # CRC-32 of any bytes with their own CRC-32 behind them
EPOCH = 1514764800
"""2018-01-01T00:00:00Z in Unix seconds, where container times begin; their unit is 2**-30 s."""

_FILE_HEADER = struct.Struct("<16sQ3xBI")
_RECORD_HEADER = struct.Struct("<3sBI")
_COLLECTION = struct.Struct("<QHBx")
_COMMON_HEADER = struct.Struct("<qIIHHI16s")
_CRC = struct.Struct("<I")

Buffer = bytes | bytearray | memoryview


class ContainerError(ValueError):
    """The bytes are not what the container format says; the text says where and what."""


class NotAContainerError(ContainerError, OSError):
    """The file is too short for a header, or does not begin with the container's magic bytes."""


class TruncatedError(ContainerError):
    """A record goes on past the end of the file."""


class ChecksumError(ContainerError):
    """A checksum or a signature does not match."""


def _padding(length: int) -> int:
    """Zero bytes after a payload, so that its CRC ends on a multiple of 8."""
    return -(length + 4) % 8


def record_size(length: int) -> int:
    """Bytes of a whole record with a stored payload of ``length`` bytes."""
    return 12 + length + _padding(length)


def timestamp(unix_seconds: float) -> int:
    """A Unix time in container units: 2**-30 s since 2018."""
    return round((unix_seconds - EPOCH) * 2**30)


def _monocypher() -> Any:
    try:
        return importlib.import_module("monocypher")
    except ImportError as error:
        raise ContainerError(
            "signed and encrypted records need pymonocypher: pip install 'daq-ioc[crypto]'"
        ) from error


def can_sign() -> bool:
    """Whether the library for signatures and encryption is installed."""
    return importlib.util.find_spec("monocypher") is not None


@dataclass(frozen=True, slots=True)
class Header:
    """The common header record: what the file is about.

    ``time`` is in container units (see :func:`timestamp`); ``version`` is major, minor, patch.
    """

    time: int = field(default_factory=lambda: timestamp(time.time()))
    version: tuple[int, int, int] = (0, 0, 0)
    product_id: int = 0
    vendor_id: int = 0
    subtype_id: int = 0
    hardware_compatibility: int = 0
    serial_number: bytes = bytes(16)

    def encode(self) -> bytes:
        """The 40 payload bytes. ValueError when a number does not fit its field."""
        if len(self.serial_number) != 16:
            raise ContainerError("the serial number of a header has 16 bytes")
        major, minor, patch = self.version
        try:
            return _COMMON_HEADER.pack(
                self.time, major << 24 | minor << 16 | patch, self.product_id, self.vendor_id,
                self.subtype_id, self.hardware_compatibility, self.serial_number,
            )  # fmt: skip
        except struct.error as error:
            raise ContainerError(f"a header field does not fit: {error}") from error

    @classmethod
    def decode(cls, payload: bytes) -> Header:
        """Inverse of :meth:`encode`; ContainerError unless there are 40 bytes."""
        if len(payload) != _COMMON_HEADER.size:
            raise ContainerError(f"a header record has 40 bytes, not {len(payload)}")
        time_, version, product, vendor, subtype, hardware, serial = _COMMON_HEADER.unpack(payload)
        parts = version >> 24, version >> 16 & 0xFF, version & 0xFFFF
        return cls(time_, parts, product, vendor, subtype, hardware, serial)


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection: ``start`` and ``end`` are file offsets of its CLS and CLE records.

    ``end`` is 0 while the collection is open. ``data`` are the application's bytes in the CLS.
    """

    start: int
    id: int = 0
    type: int = 0
    data: bytes = b""
    end: int = 0

    def encode(self) -> bytes:
        """Payload of the CLS record."""
        return _COLLECTION.pack(self.end, self.id, self.type) + self.data

    @classmethod
    def decode(cls, start: int, payload: bytes) -> Collection:
        """From the payload of the CLS record at offset ``start``."""
        if len(payload) < _COLLECTION.size:
            raise ContainerError(f"collection start at offset {start} is too short")
        end, id_, type_ = _COLLECTION.unpack_from(payload)
        return cls(start, id_, type_, payload[_COLLECTION.size :], end)


@dataclass(frozen=True, slots=True)
class Record:
    """One verified record; ``stored`` is its payload as in the file, ``end`` the next offset."""

    offset: int
    tag: bytes
    flags: int
    stored: bytes

    @property
    def end(self) -> int:
        return self.offset + record_size(len(self.stored))

    @property
    def payload(self) -> bytes:
        """The payload, inflated if it was compressed; ContainerError if it is encrypted."""
        if self.flags & FLAG_ENCRYPTED:
            raise ContainerError(f"record at offset {self.offset} is encrypted")
        return self._inflate(self.stored)

    def _inflate(self, data: bytes) -> bytes:
        if not self.flags & FLAG_COMPRESSED:
            return data
        try:
            return zlib.decompress(data)
        except zlib.error as error:
            raise ContainerError(f"record at offset {self.offset}: {error}") from error

    def decrypt(
        self,
        encryption: Record,
        signing_key: bytes,
        encryption_key: bytes,
        nonce: bytes,
        associated_data: bytes | None = None,
    ) -> bytes:
        """The plain payload, given the ENC record that follows this one.

        ``signing_key`` is the 32-byte public key of the signer, ``encryption_key`` has 32 and
        ``nonce`` 24 bytes. ChecksumError when any of them or the data is wrong.
        """
        if encryption.tag != ENCRYPTION or len(encryption.stored) != 80:
            raise ContainerError(f"encrypted record at offset {self.offset} has no ENC record")
        mac, signature = encryption.stored[:16], encryption.stored[16:]
        crypto = _monocypher()
        plain = crypto.unlock(encryption_key, nonce, mac, self.stored, associated_data)
        if plain is None:
            raise ChecksumError(f"record at offset {self.offset} does not decrypt: wrong key?")
        if not crypto.signature_check(signature, signing_key, plain):
            raise ChecksumError(f"record at offset {self.offset}: signature does not match")
        return self._inflate(plain)


def split_subfile(payload: bytes) -> tuple[str, bytes]:
    """Name and content of an embedded file, from the payload of a SUB record."""
    if len(payload) < 128:
        raise ContainerError("an embedded file record has at least 128 bytes")
    try:
        return payload[:128].split(b"\0", 1)[0].decode(), payload[128:]
    except UnicodeDecodeError as error:
        raise ContainerError(f"the name of an embedded file is not UTF-8: {error}") from error


def _compress(payload: Buffer) -> tuple[int, Buffer]:
    """Flags and payload: compressed if that makes it shorter."""
    squeezed = zlib.compress(payload, 1)
    return (FLAG_COMPRESSED, squeezed) if len(squeezed) < len(payload) else (0, payload)


class Writer:
    """Write a container to a binary file object that can seek, positioned at 0.

    Each record is in the file in whole when its method returns. When a write fails the file is cut
    back to its last whole record, so that it stays readable and short final records may still fit.
    """

    def __init__(self, file: BinaryIO) -> None:
        if file.tell() != 0:
            raise ContainerError("a container begins at position 0 of its file")
        self._file = file
        self._size = 0
        self._open: list[Collection] = []
        self._signing: tuple[bytes, int] | None = None
        self._signed = bytearray()
        self._write(self._file_header())
        self._size = HEADER_SIZE

    @property
    def size(self) -> int:
        """Bytes written so far; the offset of the next record."""
        return self._size

    @property
    def collections(self) -> tuple[Collection, ...]:
        """The open collections, outermost first."""
        return tuple(self._open)

    def _file_header(self) -> bytes:
        header = _FILE_HEADER.pack(MAGIC, self._size, VERSION, 0)[:-4]
        return header + _CRC.pack(crc32(header))

    def _write(self, *parts: Buffer) -> None:
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:  # an unbuffered file may take less than it is given
                    view = view[self._file.write(view) :]
        except OSError:
            self._file.seek(self._size)
            self._file.truncate()
            raise

    def append(self, tag: bytes, payload: Buffer = b"", *, compress: bool = False) -> int:
        """Append a record with a tag of 3 bytes; return its offset in the file."""
        flags = 0
        if compress:
            flags, payload = _compress(payload)
        return self._append(tag, flags, payload)

    def append_parts(self, tag: bytes, parts: Sequence[Buffer]) -> int:
        """Append a record whose payload is several buffers one after the other, uncopied."""
        return self._append(tag, 0, *parts)

    def _append(self, tag: bytes, flags: int, *payload: Buffer) -> int:
        if len(tag) != 3:
            raise ContainerError(f"a tag has 3 bytes, not {tag!r}")
        views = [memoryview(part).cast("B") for part in payload]
        length = sum(map(len, views))
        views.insert(0, memoryview(_RECORD_HEADER.pack(tag, flags, length)))
        views.append(memoryview(bytes(_padding(length))))
        crc = 0
        for view in views:
            crc = crc32(view, crc)
        views.append(memoryview(_CRC.pack(crc)))
        offset = self._size
        if length < _JOIN or self._signing:  # short records in one write, long ones uncopied
            views = [memoryview(b"".join(views))]
        self._write(*views)
        self._size += record_size(length)
        if self._signing:
            whole = not self._signing[1] & SIGN_PAYLOADS
            self._signed += views[0] if whole else views[0][8 : 8 + length]
        return offset

    def append_header(self, header: Header) -> int:
        """Append the common header record."""
        return self.append(HEADER, header.encode())

    def append_subfile(self, name: str, content: Buffer, *, compress: bool = False) -> int:
        """Embed a file under a name of at most 127 bytes of UTF-8."""
        encoded = name.encode()
        if len(encoded) > 127 or b"\0" in encoded:
            raise ContainerError(f"name of an embedded file: at most 127 bytes, no NUL: {name!r}")
        return self.append(SUBFILE, encoded.ljust(128, b"\0") + content, compress=compress)

    def append_encrypted(
        self,
        tag: bytes,
        payload: Buffer,
        signing_key: bytes,
        encryption_key: bytes,
        nonce: bytes,
        associated_data: bytes | None = None,
        *,
        compress: bool = False,
    ) -> int:
        """Append a signed and encrypted record and its ENC record; return the offset of the first.

        ``signing_key`` is the 32-byte private key of the signer; ``encryption_key`` has 32 bytes
        and ``nonce`` 24, which must be used once only with one key.
        """
        flags, plain = _compress(payload) if compress else (0, payload)
        crypto = _monocypher()
        signature = crypto.signature_sign(signing_key, bytes(plain))
        mac, secret = crypto.lock(encryption_key, nonce, bytes(plain), associated_data)
        offset = self._append(tag, flags | FLAG_ENCRYPTED, secret)
        self._append(ENCRYPTION, 0, mac + signature)
        return offset

    def signature_start(self, private_key: bytes, flags: int = 0) -> None:
        """Begin the signed part; ``flags`` are SIGN_START_RECORD and SIGN_PAYLOADS."""
        if self._signing:
            raise ContainerError("a signed part is open already")
        public = _monocypher().compute_signing_public_key(private_key)
        self._signed.clear()
        if flags & SIGN_START_RECORD:
            self._signing = private_key, flags
        self.append(SIGNATURE_START, struct.pack("<BB6x", 1, flags) + public)
        self._signing = private_key, flags

    def signature_end(self) -> None:
        """End the signed part with its signature."""
        if not self._signing:
            raise ContainerError("no signed part is open")
        (key, _), self._signing = self._signing, None
        self.append(SIGNATURE_END, _monocypher().signature_sign(key, bytes(self._signed)))

    def collection_start(self, id_: int = 0, type_: int = 0, data: bytes = b"") -> Collection:
        """Open a collection inside the innermost open one."""
        collection = Collection(self._size, id_, type_, data)
        self.append(COLLECTION_START, collection.encode())
        self._open.append(collection)
        return collection

    def collection_end(self, collection: Collection | None = None, data: Buffer = b"") -> None:
        """Close the innermost collection; RuntimeError if ``collection`` is another one."""
        if not self._open:
            raise RuntimeError("no collection is open")
        if collection is not None and collection is not self._open[-1]:
            raise RuntimeError("only the innermost collection can be closed")
        innermost = self._open[-1]
        end = self.append(COLLECTION_END, data)
        self._open.pop()
        payload = Collection(innermost.start, innermost.id, innermost.type, innermost.data, end)
        self._patch(innermost.start, COLLECTION_START, payload.encode())

    def _patch(self, offset: int, tag: bytes, payload: bytes) -> None:
        """Rewrite the record at ``offset`` with a payload of the same length."""
        record = _RECORD_HEADER.pack(tag, 0, len(payload)) + payload + bytes(_padding(len(payload)))
        self._file.seek(offset)
        self._write(record + _CRC.pack(crc32(record)))
        self._file.seek(self._size)

    def finalize(self) -> None:
        """Close what is open, append END and put the file's length in its header."""
        while self._open:
            self.collection_end()
        self.append(END)
        self._file.seek(0)
        self._write(self._file_header())
        self._file.seek(self._size)


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
        magic, self.length, version, crc = _FILE_HEADER.unpack(head)
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
        return _RECORD_HEADER.unpack(head)

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
        tag, flags, length = _RECORD_HEADER.unpack_from(body)
        size = record_size(length)
        if offset + size > self.size:
            raise TruncatedError(f"record at offset {offset} goes past the end of the file")
        if size > len(body):
            body = self.read(offset, size)
        if crc32(memoryview(body)[: size - 4]) != _CRC.unpack_from(body, size - 4)[0]:
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
                if not _monocypher().signature_check(record.stored, signing[8:], bytes(signed)):
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
        if k == 0 and part[:8] != _RECORD_HEADER.pack(tag, 0, length):
            raise ChecksumError(f"no {tag.decode()} record of {length} bytes at offset {offset}")
        crc = crc32(part, crc)
    if crc != _RESIDUE:
        raise ChecksumError(f"record at offset {offset} fails its checksum")
