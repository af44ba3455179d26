"""Any cut and any flipped byte: an error or right data, never a crash, a hang or wrong samples."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.jls.reduction import from_bits
from daq_ioc.jls.writer import FLOAT, RAW, Sizes, Writer
from daq_ioc.joulescope import container, container_reader, words
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.statistics import FIELDS

SIZES = Sizes(20, 40, 120)
SAMPLES = 3 * SIZES.block + 2 * SIZES.record + 7
CALIBRATION = Calibration.make([-2000] * 7, [1e-3] * 7, [-1000] * 2, [1e-3, 2e-3])


@cache
def recording(data_format: str) -> bytes:
    """A small recording with everything in it."""
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 1 << 14, (SAMPLES, 2)).astype(np.uint16)
    raw *= np.uint16(4)
    raw[:, 0] |= np.uint16(3)
    raw[70:80] = 0xFFFF
    decoded = [
        words.decode(raw[k : k + SIZES.block], CALIBRATION, k // SIZES.block % 2)
        for k in range(0, SAMPLES, SIZES.block)
    ]
    signals = from_bits(*(np.concatenate(parts) for parts in zip(*decoded, strict=True)))
    file = io.BytesIO()
    writer = Writer(file, calibration=CALIBRATION.data, user_data={"note": "x" * 20})
    writer.start(1000, data_format, SIZES)
    for block in range(0, SAMPLES, SIZES.block):
        part = slice(block, min(block + SIZES.block, SAMPLES))
        chunk = {"raw": raw[part], **{name: signals[name][part] for name in FIELDS}}
        writer.write(block, chunk, block // SIZES.block % 2)
    writer.close({"footer": True})
    return file.getvalue()


def read(data: bytes) -> tuple[DataReader, dict[str, npt.NDArray[Any]]]:
    reader = DataReader().open(io.BytesIO(data))
    reader.raw_processor.suppress_mode = "off"  # else samples depend on their neighbours
    got = reader.samples_get()
    assert got is not None
    return reader, {name: signal["value"] for name, signal in got["signals"].items()}


@cache
def truth(data_format: str) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    reader, samples = read(recording(data_format))
    assert reader.problems == []
    return samples, reader.get_reduction()


def check(data: bytes, data_format: str) -> DataReader | None:
    """Everything read from damaged ``data`` is right or missing; None if it cannot be opened."""
    right, rows = truth(data_format)
    try:
        reader, samples = read(data)
    except (ValueError, OSError):
        return None
    count = reader.sample_id_range[1]
    assert count <= SAMPLES
    for name, values in samples.items():
        want = right[name][:count]
        same = values == want
        if values.dtype.kind == "f":
            same |= np.isnan(values)
        elif name == "raw":
            same |= (values == 0xFFFF).all(axis=1)[:, np.newaxis]
        else:
            same |= (samples["raw"] == 0xFFFF).all(axis=1)
        assert same.all(), name
    got = reader.get_reduction()
    for member in ("mean", "min", "max"):
        a, b = got[member], rows[member][: len(got)]
        assert (np.isnan(a) | np.isclose(a, b, rtol=1e-5) | _lossy(got, rows)).all()
    reader.statistics_get() if count else None
    return reader


def _lossy(got: Any, want: Any) -> npt.NDArray[np.bool_]:
    """Rows computed from fewer samples than the lost rows were."""
    return np.asarray(got["length"] < want["length"][: len(got)])


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
@given(cut=st.integers(0, 40_000))
def test_any_cut(data_format: str, cut: int) -> None:
    data = recording(data_format)
    cut = cut % len(data)
    reader = check(data[:cut], data_format)
    whole = [r for r in _data_records(data_format) if r.end <= cut]
    if whole:
        assert reader is not None
        assert reader.problems
        assert reader.sample_id_range[1] == min(len(whole) * SIZES.record, SAMPLES)


@cache
def _data_records(data_format: str) -> list[container.Record]:
    records = container_reader.Reader(io.BytesIO(recording(data_format))).records()
    return [r for r in records if r.tag == container.DATA_BINARY]


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
@given(where=st.integers(0, 40_000), flip=st.integers(1, 255))
@example(where=1300, flip=255)  # lengths of the outer collection's start,
@example(where=1326, flip=1)  # and of the first block's
def test_any_flipped_byte(data_format: str, where: int, flip: int) -> None:
    data = bytearray(recording(data_format))
    where %= len(data)
    data[where] ^= flip
    reader = check(bytes(data), data_format)
    first = _data_records(data_format)[0].offset
    if reader is None:
        assert where < first, "one byte of the data must not make all of it unreadable"
        return
    assert reader.problems
    _, samples = read(bytes(data))
    lost = np.isnan(samples["current"]).sum() - 10
    if where > first - 56:  # where the start of the first block is
        assert lost <= SIZES.record


@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for head in (b"", recording(RAW)[:32], recording(RAW)[:1500]):
        with contextlib.suppress(ValueError, OSError, KeyError, AttributeError):
            DataReader().open(io.BytesIO(head + data)).samples_get()
