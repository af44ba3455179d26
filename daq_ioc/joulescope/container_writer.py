"""Write the tagged-record container: records, collections, and signed and encrypted parts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

from daq_ioc.joulescope.container import (
    COLLECTION_END,
    COLLECTION_START,
    CRC,
    ENCRYPTION,
    END,
    FILE_HEADER,
    FLAG_COMPRESSED,
    FLAG_ENCRYPTED,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    RECORD_HEADER,
    SIGN_PAYLOADS,
    SIGN_START_RECORD,
    SIGNATURE_END,
    SIGNATURE_START,
    SUBFILE,
    VERSION,
    Buffer,
    Collection,
    ContainerError,
    Header,
    crc32,
    monocypher,
    padding,
    record_size,
)

_JOIN = 4096  # bytes; shorter records are written at once


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
        header = FILE_HEADER.pack(MAGIC, self._size, VERSION, 0)[:-4]
        return header + CRC.pack(crc32(header))

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
        views.insert(0, memoryview(RECORD_HEADER.pack(tag, flags, length)))
        views.append(memoryview(bytes(padding(length))))
        crc = 0
        for view in views:
            crc = crc32(view, crc)
        views.append(memoryview(CRC.pack(crc)))
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
        crypto = monocypher()
        signature = crypto.signature_sign(signing_key, bytes(plain))
        mac, secret = crypto.lock(encryption_key, nonce, bytes(plain), associated_data)
        offset = self._append(tag, flags | FLAG_ENCRYPTED, secret)
        self._append(ENCRYPTION, 0, mac + signature)
        return offset

    def signature_start(self, private_key: bytes, flags: int = 0) -> None:
        """Begin the signed part; ``flags`` are SIGN_START_RECORD and SIGN_PAYLOADS."""
        if self._signing:
            raise ContainerError("a signed part is open already")
        public = monocypher().compute_signing_public_key(private_key)
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
        self.append(SIGNATURE_END, monocypher().signature_sign(key, bytes(self._signed)))

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
        record = RECORD_HEADER.pack(tag, 0, len(payload)) + payload + bytes(padding(len(payload)))
        self._file.seek(offset)
        self._write(record + CRC.pack(crc32(record)))
        self._file.seek(self._size)

    def finalize(self) -> None:
        """Close what is open, append END and put the file's length in its header."""
        while self._open:
            self.collection_end()
        self.append(END)
        self._file.seek(0)
        self._write(self._file_header())
        self._file.seek(self._size)


def _compress(payload: Buffer) -> tuple[int, Buffer]:
    """Flags and payload: compressed if that makes it shorter."""
    squeezed = zlib.compress(payload, 1)
    return (FLAG_COMPRESSED, squeezed) if len(squeezed) < len(payload) else (0, payload)
