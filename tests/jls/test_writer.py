"""The writer that scripts and the IOC share: chunks, whole records on disk, full disks."""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc.jls import arrays
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.jls.reduction import from_bits
from daq_ioc.jls.writer import FLOAT, RAW, Sizes, Writer
from daq_ioc.statistics import FIELDS
from tests.jls.test_damage import CALIBRATION
from tests.joulescope.test_container import Full

SIZES = Sizes(10, 50, 200)
COUNT = 777


def signals(count: int = COUNT) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 1 << 16, (count, 2)).astype(np.uint16)
    current, voltage = rng.normal(0, 1, (2, count)).astype(np.float32)
    current[100:130] = np.nan
    bits = rng.integers(0, 64, count).astype(np.uint8)
    return {"raw": raw, **from_bits(current, voltage, bits), "bits": bits}


def _part(start: int, stop: int) -> dict[str, Any]:
    return {name: values[start:stop] for name, values in signals().items()}


def _write(cuts: list[int], data_format: str) -> bytes:
    writer = Writer(file := io.BytesIO(), calibration=CALIBRATION.data)
    writer.start(1000, data_format, SIZES)
    edges = [0, *sorted(cuts), COUNT]
    for start, stop in itertools.pairwise(edges):
        writer.write(start + 9, _part(start, stop))
    writer.close()
    assert writer.samples == COUNT
    assert writer.bytes == len(file.getvalue())
    return file.getvalue()


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
@given(cuts=st.lists(st.integers(0, COUNT), max_size=30))
def test_chunks_of_any_length_make_the_same_file(data_format: str, cuts: list[int]) -> None:
    assert _write(cuts, data_format) == _write([], data_format)


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
def test_what_is_written_is_read(data_format: str) -> None:
    reader = DataReader().open(io.BytesIO(_write([], data_format)))
    want = signals()
    if data_format == RAW:
        got = reader.samples_get(fields="raw")
        assert got is not None
        np.testing.assert_array_equal(got["signals"]["raw"]["value"], want["raw"])
        return
    got = reader.samples_get()
    assert got is not None
    for name in FIELDS:
        np.testing.assert_allclose(got["signals"][name]["value"], want[name], rtol=1e-7)
    rows = reader.get_reduction()
    for k, row in enumerate(rows):
        part = slice(k * 10, k * 10 + 10)
        used = np.isfinite(want["current"][part])
        assert row[0]["length"] == used.sum()
        if not used.any():
            assert np.isnan(row["mean"]).all()
            continue
        for j, name in enumerate(FIELDS):
            values = want[name][part][used].astype(np.float64)
            expected = (values.mean(), values.var() * len(values), values.min(), values.max())
            np.testing.assert_allclose(row[j].item()[1:], expected, rtol=1e-6, atol=1e-7)


def test_refusals_write_nothing() -> None:
    writer = Writer(file := io.BytesIO())
    with pytest.raises(RuntimeError, match="not started"):
        writer.write(0, _part(0, 10))
    for args in ((0, RAW), (-1, RAW), (float("nan"), RAW), (1000, "float64")):
        with pytest.raises(ValueError, match=r"frequency|format"):
            writer.start(*args)
    with pytest.raises(ValueError, match="float record"):
        writer.start(1000, FLOAT, Sizes(1 << 23, 1 << 23, 1 << 23))
    writer.start(1000, RAW, SIZES)
    with pytest.raises(RuntimeError, match="started"):
        writer.start(1000)
    writer.write(5, _part(0, 60))
    before, size = file.getvalue(), writer.bytes
    for sample_id, chunk, voltage_range, text in (
        (64, _part(0, 10), 0, "expected 65"),
        (66, _part(0, 10), 0, "expected 65"),
        (65, _part(0, 10), 1, "inside a block"),
        (65, _part(0, 10), 2, "0 or 1"),
        (65, {**_part(0, 10), "bits": np.zeros(9, np.uint8)}, 0, "length"),
    ):
        with pytest.raises(ValueError, match=text):
            writer.write(sample_id, chunk, voltage_range)
    with pytest.raises(KeyError, match="raw"):
        writer.write(65, {"current": np.zeros(3)})
    assert (file.getvalue(), writer.bytes) == (before, size)
    writer.write(65, _part(60, 70))
    writer.close()
    assert DataReader().open(file).sample_id_range == [0, 70]


@pytest.mark.parametrize("sizes", [(10, 15, 30), (10, 20, 30), (0, 0, 0), (20, 10, 40), (-1, 1, 1)])
def test_sizes_must_nest(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="Sizes"):
        Sizes(*sizes)


@given(rate=st.floats(0.01, 1e8))
def test_sizes_for_any_rate(rate: float) -> None:
    sizes = Sizes.for_rate(rate)
    assert sizes.record / rate <= max(0.14, 10 / rate)
    assert 10 <= sizes.reduction <= 20000
    assert 4 * sizes.record <= arrays.MAX_BYTES
    assert Sizes.for_rate(2_000_000) == Sizes(20_000, 200_000, 2_000_000)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.jls"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        Writer(path)
    assert path.read_bytes() == b"mine"
    Writer(path, overwrite=True).close()
    assert DataReader().open(path).samples_get() is None


KILLED = """
import os, signal, sys
from tests.jls.test_writer import SIZES, Writer, signals
writer = Writer(sys.argv[1])
writer.start(1000, sizes=SIZES)
writer.write(0, signals())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_less_than_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jls"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    reader = DataReader().open(path)
    assert reader.sample_id_range == [0, COUNT - COUNT % SIZES.record]
    got = reader.samples_get(fields="raw")
    assert got is not None
    np.testing.assert_array_equal(got["signals"]["raw"]["value"], signals()["raw"][:750])


@given(room=st.integers(500, 6000))
def test_a_full_disk_leaves_every_whole_record(room: int) -> None:
    file = Full(room)
    writer = Writer(file)
    writer.start(1000, sizes=SIZES)
    failed = False
    try:
        for k in range(0, COUNT, 37):
            writer.write(k, _part(k, min(k + 37, COUNT)))
    except OSError:
        failed = True
        with pytest.raises(ValueError, match="failed"):
            writer.write(writer.next_id or 0, _part(0, 10))
    written = writer.samples
    try:
        writer.close()
    except OSError:
        failed = True
    if failed:
        assert len(file.getvalue()) <= room
    reader = DataReader().open(io.BytesIO(file.getvalue()))
    assert reader.sample_id_range[1] in (written, writer.samples)
    got = reader.samples_get(fields="raw")
    if got is not None and reader.sample_id_range[1]:
        size = reader.sample_id_range[1]
        np.testing.assert_array_equal(got["signals"]["raw"]["value"], signals()["raw"][:size])


def test_a_disk_that_recovers_gets_a_proper_end() -> None:
    file = Full(2000)
    writer = Writer(file)
    writer.start(1000, sizes=SIZES)
    with pytest.raises(OSError, match="space"):
        writer.write(0, signals())
    file.room = 1 << 20
    writer.close()
    reader = DataReader().open(io.BytesIO(file.getvalue()))
    assert reader.problems == []
    assert 0 < reader.sample_id_range[1] == writer.samples


def test_closing_twice_and_empty(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.jls")
    writer.start(1000, FLOAT, SIZES)
    writer.close()
    size = (tmp_path / "a.jls").stat().st_size
    writer.close("again")
    assert (tmp_path / "a.jls").stat().st_size == size
    assert DataReader().open(tmp_path / "a.jls").problems == []


@given(
    st.dictionaries(
        st.integers(0, 255),
        st.tuples(st.sampled_from(["f4", "f8", "u1", ">u2", "i4", "i8"]), st.integers(0, 9)),
        max_size=6,
    ),
    st.integers(0, 2**24 - 1),
)
def test_array_storage(layout: dict[int, tuple[str, int]], count: int) -> None:
    stored = {id_: np.arange(n, dtype=dtype) for id_, (dtype, n) in layout.items()}
    data = arrays.pack(stored, count)
    got, stated = arrays.unpack(data)
    assert stated == count
    assert list(got) == list(stored)
    for id_, values in stored.items():
        np.testing.assert_array_equal(got[id_], values)
        assert got[id_].dtype == values.dtype.newbyteorder("<")
    for cut in range(len(data)):
        with pytest.raises(arrays.ArrayStorageError):
            arrays.unpack(data[:cut])


def test_array_storage_limits() -> None:
    for stored, count in (
        ({k: np.zeros(1) for k in range(256)}, 0),
        ({256: np.zeros(1)}, 0),
        ({-1: np.zeros(1)}, 0),
        ({0: np.zeros(1)}, 1 << 24),
        ({0: np.zeros(1, np.float16)}, 0),
        ({0: np.zeros(1, bool)}, 0),
        ({0: np.zeros((2, 2))}, 0),
        ({0: np.zeros(1 << 24, np.uint8)}, 0),
    ):
        with pytest.raises(arrays.ArrayStorageError):
            arrays.pack(stored, count)
