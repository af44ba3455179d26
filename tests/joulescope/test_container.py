"""The container: published bytes both ways, signatures, encryption, and every kind of damage."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc.joulescope import container, container_reader
from daq_ioc.joulescope.container import Collection, Header
from daq_ioc.joulescope.container_reader import Reader
from daq_ioc.joulescope.container_writer import Writer
from tests.jls import vectors

MAGIC = "d3746167666d74200d0a200a20201a1c"
PLAIN = bytes.fromhex(
    f"{MAGIC} 4800000000000000 00000001 2f3c0b52 54414700 0a000000 00010203040506070809 0000"
    "b7e96425 454e4400 00000000 00000000 bc937ac0"
)
NESTED = bytes.fromhex(
    f"{MAGIC} a800000000000000 00000001 c73f9e1a"
    "434c5300 0c000000 8800000000000000 0000 00 00 d2b10487"
    "434c5300 13000000 7000000000000000 0100 00 00 7b2261223a317d 00 84a463f0"
    "41424e00 08000000 3132333435363738 00000000 d23e6637"
    "434c4500 07000000 454e4444415441 0000000000 2ab2b355"
    "434c4500 00000000 00000000 a3e4e998"
    "454e4400 00000000 00000000 bc937ac0"
)


def written(*records: tuple[bytes, bytes]) -> bytes:
    writer = Writer(file := io.BytesIO())
    for tag, payload in records:
        writer.append(tag, payload)
    writer.finalize()
    return file.getvalue()


def test_published_bytes() -> None:
    assert written((b"TAG", bytes(range(10)))) == PLAIN
    writer = Writer(file := io.BytesIO())
    outer = writer.collection_start(0)
    inner = writer.collection_start(1, data=b'{"a":1}')
    writer.append(container.DATA_BINARY, b"12345678")
    writer.collection_end(inner, b"ENDDATA")
    writer.collection_end(outer)
    writer.finalize()
    assert file.getvalue() == NESTED
    assert writer.size == len(NESTED)


def test_finalize_closes_collections() -> None:
    writer = Writer(file := io.BytesIO())
    writer.collection_start(0)
    writer.collection_start(1, data=b"x")
    writer.finalize()
    reader = Reader(file)
    first = reader.record(32)
    assert reader.peek(reader.skip(first))[0] == container.END
    assert writer.collections == ()


def test_collections_end_innermost_first() -> None:
    writer = Writer(io.BytesIO())
    outer = writer.collection_start(0)
    writer.collection_start(1)
    with pytest.raises(RuntimeError, match="innermost"):
        writer.collection_end(outer)
    writer.collection_end()
    writer.collection_end(outer)
    with pytest.raises(RuntimeError, match="no collection"):
        writer.collection_end()


def test_everything_in_the_published_container() -> None:
    """Read every record, decrypt, and write the same again: the bytes are the same."""
    data, want = vectors.recording("container_a"), vectors.expected("container_a")["container"]
    keys: Any = {k: bytes.fromhex(want[k]) for k in ("signing_key", "public_key")}
    key, nonce = bytes.fromhex(want["encryption_key"]), bytes.fromhex(want["nonce"])
    records = list(Reader(io.BytesIO(data)).records())
    for record, expected in zip(records, want["values"], strict=False):
        assert (record.offset, record.tag.decode()) == (expected["offset"], expected["tag"])
        assert (record.flags, len(record.stored)) == (expected["flags"], expected["length"])
        if expected["decompressed_sha256"]:
            assert hashlib.sha256(record.payload).hexdigest() == expected["decompressed_sha256"]
    plain = [bytes.fromhex(text) for text in want["encrypted_plaintexts"]]
    extra = [text and bytes.fromhex(text) for text in want["encrypted_associated_data"]]
    writer = Writer(file := io.BytesIO())
    writer.signature_start(keys["signing_key"])
    found = 0
    for record, after in zip(records[1:], [*records[2:], records[0]], strict=True):
        if record.tag == container.SIGNATURE_END:
            writer.signature_end()
        elif record.tag == container.COLLECTION_START:
            collection = Collection.decode(record.offset, record.payload)
            writer.collection_start(collection.id, collection.type, collection.data)
        elif record.tag == container.COLLECTION_END:
            writer.collection_end(data=record.payload)
        elif record.flags & container.FLAG_ENCRYPTED:
            compress = bool(record.flags & container.FLAG_COMPRESSED)
            got = record.decrypt(after, keys["public_key"], key, nonce, extra[found])
            assert got == plain[found]
            with pytest.raises(container.ChecksumError):
                record.decrypt(after, keys["public_key"], bytes(32), nonce, extra[found])
            with pytest.raises(container.ChecksumError):
                record.decrypt(after, bytes(32), key, nonce, extra[found])
            with pytest.raises(container.ContainerError, match="encrypted"):
                _ = record.payload
            writer.append_encrypted(
                record.tag, got, keys["signing_key"], key, nonce, extra[found], compress=compress
            )
            found += 1
        elif record.tag != container.ENCRYPTION:
            compress = bool(record.flags & container.FLAG_COMPRESSED)
            writer.append(record.tag, record.payload, compress=compress)
    writer.finalize()
    assert found == len(plain)
    assert file.getvalue() == data


@pytest.mark.parametrize("flags", range(4))
def test_signatures(flags: int) -> None:
    writer = Writer(file := io.BytesIO())
    writer.signature_start(bytes(range(32)), flags)
    writer.append(b"AJS", b"signed" * 3)
    writer.append(b"ABN", b"too")
    writer.signature_end()
    writer.append(b"ABN", b"not signed")
    writer.finalize()
    assert len(list(Reader(file).records())) == 5
    forged = written(
        *((r.tag, r.stored.replace(b"too", b"two")) for r in Reader(file).records(verify=False))
    )
    assert len(list(Reader(io.BytesIO(forged)).records(verify=False))) == 5
    with pytest.raises(container.ChecksumError, match="signature"):
        list(Reader(io.BytesIO(forged)).records())


def test_header() -> None:
    raw = bytes.fromhex(
        "0807060504030201 03000201 14131211 2221 3231 44434241 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    )
    header = Header.decode(raw)
    assert header.time == 0x0102030405060708
    assert header.version == (1, 2, 3)
    ids = header.product_id, header.vendor_id, header.subtype_id, header.hardware_compatibility
    assert ids == (0x11121314, 0x2122, 0x3132, 0x41424344)
    assert header.encode() == raw
    with pytest.raises(container.ContainerError):
        Header.decode(raw[:-1])
    with pytest.raises(container.ContainerError):
        Header(vendor_id=65536).encode()
    with pytest.raises(container.ContainerError):
        Header(serial_number=b"short").encode()


def test_compression() -> None:
    writer = Writer(file := io.BytesIO())
    writer.append(b"ABN", bytes(100), compress=True)
    writer.append(b"ABN", b"\1\2\3", compress=True)
    writer.append(b"ABN", b"", compress=True)
    writer.finalize()
    published = bytes.fromhex("41424e80 0c000000 78016360a03d00000064 0001 a4f6a306")
    assert file.getvalue()[32:56] == published
    records = list(Reader(file).records())
    assert [r.payload for r in records] == [bytes(100), b"\1\2\3", b""]
    assert [r.flags for r in records] == [0x80, 0, 0]


def test_subfiles() -> None:
    writer = Writer(file := io.BytesIO())
    writer.append_subfile("ä" * 63, PLAIN)
    writer.finalize()
    name, content = container.split_subfile(next(Reader(file).records()).payload)
    assert (name, content) == ("ä" * 63, PLAIN)
    for bad in ("x" * 128, "a\0b"):
        with pytest.raises(ValueError, match="127"):
            writer.append_subfile(bad, b"")
    with pytest.raises(container.ContainerError):
        container.split_subfile(b"short")


@given(st.lists(st.tuples(st.sampled_from([b"ABN", b"UBN", b"XYZ"]), st.binary(max_size=60))))
def test_any_records(records: list[tuple[bytes, bytes]]) -> None:
    data = written(*records)
    assert len(data) % 8 == 0
    reader = Reader(io.BytesIO(data))
    assert [(r.tag, r.payload) for r in reader.records()] == records
    assert reader.length == reader.file_size == len(data)


def read_all(data: bytes) -> None:
    """Read every record, END included, which is not among `records`."""
    reader = Reader(io.BytesIO(data))
    last = list(reader.records())[-1]
    reader.record(last.end)


@given(where=st.integers(0, len(NESTED) - 1), flip=st.integers(1, 255))
def test_any_flipped_byte_is_an_error(where: int, flip: int) -> None:
    data = bytearray(NESTED)
    data[where] ^= flip
    with pytest.raises((container.ContainerError, OSError)):
        read_all(bytes(data))


@pytest.mark.parametrize("opened", [io.FileIO, lambda path: io.BytesIO(path.read_bytes())])
def test_records_are_verified_in_parts(
    opened: Callable[[Path], BinaryIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no flipped byte escapes, in whichever part it is."""
    monkeypatch.setattr(container_reader, "_AT_ONCE", 64)
    start, length = container.HEADER_SIZE, 250
    path = tmp_path / "file"
    path.write_bytes(data := written((b"ABN", bytes(length))))
    with opened(path) as file:
        reader = Reader(file)
        reader.verify(start, b"ABN", length)
        assert reader.payload(start, b"ABN", length) == bytes(length)
        for look in (reader.verify, reader.payload):
            with pytest.raises(container.ChecksumError, match="no ABN record"):
                look(start, b"ABN", length - 8)
    for where in range(start, start + container.record_size(length)):
        path.write_bytes(data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])
        with opened(path) as file, pytest.raises(container.ChecksumError):
            Reader(file).verify(start, b"ABN", length)


def test_a_file_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(written((b"ABN", bytes(250))))
    with io.FileIO(path) as file:
        reader = Reader(file)
        os.truncate(path, 100)
        for look in (reader.verify, reader.payload):
            with pytest.raises(container.TruncatedError):
                look(container.HEADER_SIZE, b"ABN", 250)


@given(size=st.integers(0, len(NESTED) - 17))
def test_any_cut(size: int) -> None:
    try:
        reader = Reader(io.BytesIO(NESTED[:size]))
    except container.NotAContainerError:
        assert size < 32
        return
    whole = list(Reader(io.BytesIO(NESTED)).records())
    offset = 32
    for record in whole:
        if record.end > size:
            with pytest.raises(container.TruncatedError):
                reader.record(offset)
            break
        assert reader.record(offset) == record
        offset = record.end


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"", OSError, "too short"),
        (PLAIN[:31], OSError, "too short"),
        (b"x" + PLAIN[1:], OSError, "magic"),
        (PLAIN[:20] + b"x" + PLAIN[21:], ValueError, "checksum"),
    ],
)
def test_files_that_are_no_containers(data: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Reader(io.BytesIO(data))


def test_skip_follows_no_end_that_is_not_there() -> None:
    writer = Writer(file := io.BytesIO())
    writer.collection_start(0)
    reader = Reader(io.BytesIO(file.getvalue()))
    with pytest.raises(container.ContainerError, match="no end"):
        reader.skip(reader.record(32))
    with pytest.raises(RuntimeError):
        reader.collection(Reader(io.BytesIO(PLAIN)).record(32))


class Full(io.BytesIO):
    """A disk that takes so many bytes; it may take a part of a write."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        free = self.room - self.tell()
        if free <= 0:
            raise OSError(28, "No space left on device")
        return super().write(bytes(data)[:free])


def fill(writer: Writer) -> None:
    for _ in range(20):
        writer.append(b"ABN", bytes(13))


@given(room=st.integers(40, 200))
def test_a_failed_write_leaves_whole_records(room: int) -> None:
    file = Full(room)
    writer = Writer(file)
    with pytest.raises(OSError, match="space"):
        fill(writer)
    assert writer.size == len(file.getvalue())
    records = list(Reader(io.BytesIO(file.getvalue())).records())
    assert len(records) == (room - 32) // 32
    file.room += 1000
    writer.finalize()
    assert Reader(io.BytesIO(file.getvalue())).length == len(file.getvalue())
