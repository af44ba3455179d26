"""Array storage: several 1-D arrays packed into one buffer, as JLS version 1 records hold them.

A 16-byte header with a free sample count, one tag and length per array, then the values, each array
zero padded to 8 bytes. There is no checksum here; that of the record around it protects the values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"ARRY"
MAX_ARRAYS = 255
MAX_BYTES = 2**24 - 1
"""Limits of the format: the count of arrays has 8 bits, the length of each 24."""

_HEADER = struct.Struct("<4sIII")
_ENTRY = struct.Struct("<II")
_CODES: dict[str, int] = {
    "<f4": 0x02, "<f8": 0x03, "|u1": 0x08, "<u2": 0x09, "<u4": 0x0A, "<u8": 0x0B,
    "|i1": 0x0C, "<i2": 0x0D, "<i4": 0x0E, "<i8": 0x0F,
}  # fmt: skip
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}

Arrays = dict[int, npt.NDArray[Any]]


class ArrayStorageError(ValueError):
    """Arrays that do not fit the format, or bytes that are not in it."""


def pack_parts(arrays: Mapping[int, npt.NDArray[Any]], count: int) -> list[bytes | memoryview]:
    """The bytes of 1-D arrays by their ids, with the sample ``count`` that the reader is told.

    They come as buffers to be joined, the arrays themselves among them. Ids are 0 to 255; dtypes
    float32, float64 and the integers of 8 to 64 bits, in any byte order. ArrayStorageError for
    anything else, and for what exceeds the format's limits.
    """
    if not 0 <= count < 2**24 or len(arrays) > MAX_ARRAYS:
        raise ArrayStorageError(f"{len(arrays)} arrays, count {count}: too many for array storage")
    offset = _HEADER.size + _ENTRY.size * len(arrays)
    head: list[bytes] = []
    values: list[bytes | memoryview] = []
    total = offset
    for id_, array in arrays.items():
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        code = _CODES.get(plain.dtype.str)
        if code is None or not 0 <= id_ <= 255 or array.ndim != 1 or array.nbytes > MAX_BYTES:
            raise ArrayStorageError(
                f"array {id_} of {array.dtype}, shape {array.shape}: not storable"
            )
        head.append(_ENTRY.pack(id_ << 8 | code, plain.nbytes))
        if len(plain):  # an empty array has no bytes to view
            padding = bytes(-plain.nbytes % 8)
            values += [plain.view(np.uint8).data, padding]
            total += plain.nbytes + len(padding)
    header = _HEADER.pack(MAGIC, total, offset, len(arrays) << 24 | count)
    return [b"".join((header, *head)), *values]


def pack(arrays: Mapping[int, npt.NDArray[Any]], count: int) -> bytes:
    """`pack_parts`, joined."""
    return b"".join(pack_parts(arrays, count))


def unpack(buffer: bytes | bytearray | memoryview) -> tuple[Arrays, int]:
    """Arrays by id, as views of ``buffer``, and the stored sample count.

    ArrayStorageError when the bytes are not array storage, or end too early.
    """
    size = len(buffer)
    if size < _HEADER.size:
        raise ArrayStorageError("array storage is shorter than its header")
    magic, total, offset, counts = _HEADER.unpack_from(buffer)
    number = counts >> 24
    if magic != MAGIC or total > size or offset > total or _HEADER.size + 8 * number > offset:
        raise ArrayStorageError("not array storage, or cut short")
    arrays: Arrays = {}
    for k in range(number):
        tag, length = _ENTRY.unpack_from(buffer, _HEADER.size + _ENTRY.size * k)
        dtype = _DTYPES.get(tag & 0xFF)
        if dtype is None or length > total - offset or length % dtype.itemsize:
            raise ArrayStorageError(f"array {tag >> 8 & 0xFF} has a wrong type or length")
        arrays[tag >> 8 & 0xFF] = np.frombuffer(buffer, dtype, length // dtype.itemsize, offset)
        offset += length + -length % 8
    return arrays, counts & 0xFFFFFF
