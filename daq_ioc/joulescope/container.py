"""The tagged-record container that holds Joulescope calibrations and JLS version 1 recordings.

A 32-byte file header, then records of tag, length, payload and CRC-32, up to an ``END`` record.
Records can nest in collections, be zlib-compressed, encrypted and signed. This module knows records
and bytes only; what a tag means for a calibration or a recording is told elsewhere. Files of them
are read by `container_reader` and written by `container_writer`.

Signatures (EdDSA on Curve25519 with BLAKE2b) and encryption (XChaCha20-Poly1305) need the package
pymonocypher, the extra ``daq-ioc[crypto]``; everything else works without it.

`crc32` is zlib's function of that name, computed by zlib-ng: a recording is bytes and checksums,
and with the standard library's the checksums would take most of the time.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

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
EPOCH = 1514764800
"""2018-01-01T00:00:00Z in Unix seconds, where container times begin; their unit is 2**-30 s."""

FILE_HEADER = struct.Struct("<16sQ3xBI")
RECORD_HEADER = struct.Struct("<3sBI")
_COLLECTION = struct.Struct("<QHBx")
_COMMON_HEADER = struct.Struct("<qIIHHI16s")
CRC = struct.Struct("<I")

Buffer = bytes | bytearray | memoryview


class ContainerError(ValueError):
    """The bytes are not what the container format says; the text says where and what."""


class NotAContainerError(ContainerError, OSError):
    """The file is too short for a header, or does not begin with the container's magic bytes."""


class TruncatedError(ContainerError):
    """A record goes on past the end of the file."""


class ChecksumError(ContainerError):
    """A checksum or a signature does not match."""


def padding(length: int) -> int:
    """Zero bytes after a payload, so that its CRC ends on a multiple of 8."""
    return -(length + 4) % 8


def record_size(length: int) -> int:
    """Bytes of a whole record with a stored payload of ``length`` bytes."""
    return 12 + length + padding(length)


def timestamp(unix_seconds: float) -> int:
    """A Unix time in container units: 2**-30 s since 2018."""
    return round((unix_seconds - EPOCH) * 2**30)


def monocypher() -> Any:
    """The library for signatures and encryption; ContainerError if it is not installed."""
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
        crypto = monocypher()
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
