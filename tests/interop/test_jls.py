"""Recordings go both ways between this package and the maker's."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joulescope import data_recorder as theirs
from joulescope.v0.stream_buffer import DownsamplingStreamBuffer, StreamBuffer

from daq_ioc.jls import data_recorder as ours
from daq_ioc.jls.writer import FLOAT, RAW, Sizes, Writer
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.words import decode, encode
from daq_ioc.statistics import FIELDS

CALIBRATION = Calibration.make(
    [-2800, -2810, -2820, -2830, -2840, -2850, -2860],
    [7e-4, 1.6e-4, 1.5e-5, 1.5e-6, 1.5e-7, 1.5e-8, 1.5e-9],
    [-1150, -2040],
    [9.5e-4, 2.9e-4],
)


def raw_samples(count: int, seed: int = 0) -> Any:
    """Raw words with range switches and lost samples."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 400, count)
    ranges = np.repeat(rng.integers(0, 8, count), lengths)[:count].astype(np.uint16)
    current, voltage = rng.integers(0, 1 << 14, (2, count)).astype(np.uint16)
    raw = encode(current, voltage, ranges)
    for k in range(500, count, 3000):
        raw[k : k + int(rng.integers(1, 200))] = 0xFFFF
    return raw


@pytest.fixture(params=[(100, 5, 3), (1000, 2, 5)])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (ours, theirs):
        for name, value in zip(
            ("SAMPLES_PER_REDUCTION", "REDUCTIONS_PER_TLV", "TLVS_PER_BLOCK"), request.param,
            strict=True,
        ):  # fmt: skip
            monkeypatch.setattr(module, name, value)
    return request.param


def _fill(buffer: Any, raw: Any, notify: Any, chunk: int) -> None:
    notify(buffer)
    for k in range(0, len(raw), chunk):
        buffer.insert_raw(raw[k : k + chunk].reshape(-1))
        buffer.process()
        notify(buffer)


@pytest.mark.parametrize("count", [1, 999, 12345])
@pytest.mark.usefixtures("sizes")
def test_same_stream_same_bytes(count: int) -> None:
    """Both recorders on one stream buffer of the maker's write the same file."""
    files = io.BytesIO(), io.BytesIO()
    recorders = [
        module.DataRecorder(file, calibration=CALIBRATION.data, user_data={"a": "é"})
        for module, file in zip((ours, theirs), files, strict=True)
    ]
    buffer = StreamBuffer(30.0, [10], 1000.0)
    c = CALIBRATION
    buffer.calibration_set(c.current_offset, c.current_gain, c.voltage_offset, c.voltage_gain)
    _fill(buffer, raw_samples(count), lambda b: [r.stream_notify(b) for r in recorders], 777)
    for recorder in recorders:
        recorder.close(footer_user_data=[1, None])
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.usefixtures("sizes")
def test_downsampled_stream() -> None:
    """Of the downsampling buffer ours stores ranges and inputs right, all else being the same."""
    files = io.BytesIO(), io.BytesIO()
    recorders = [m.DataRecorder(f) for m, f in zip((ours, theirs), files, strict=True)]
    buffer = DownsamplingStreamBuffer(2.0, [100], 2000000, 100000)
    raw = np.repeat(raw_samples(200), 1000, axis=0)
    raw[:, 0] = raw[:, 0] & ~np.uint16(3) | np.uint16(3)  # always range 3 or 7
    raw[:, 1] &= ~np.uint16(1)
    _fill(buffer, raw, lambda b: [r.stream_notify(b) for r in recorders], 100_000)
    for recorder in recorders:
        recorder.close()
    reader, other = (theirs.DataReader().open(io.BytesIO(f.getvalue())) for f in files)
    got, want = reader.samples_get(), other.samples_get()
    for field in ("current", "voltage", "power"):
        np.testing.assert_array_equal(
            got["signals"][field]["value"], want["signals"][field]["value"]
        )
    assert (got["signals"]["current_range"]["value"][10:] == 3).all()
    np.testing.assert_array_equal(reader.get_reduction(), other.get_reduction())


def _write(data_format: str, count: int) -> bytes:
    raw = raw_samples(count)
    current, voltage, bits = decode(raw, CALIBRATION, 1)
    signals: dict[str, Any] = {"raw": raw, "current": current, "voltage": voltage, "bits": bits}
    if data_format == FLOAT:
        signals = {
            "current": current,
            "voltage": voltage,
            "power": current * voltage,
            "current_range": bits & np.uint8(15),
            "current_lsb": bits >> np.uint8(4) & np.uint8(1),
            "voltage_lsb": bits >> np.uint8(5) & np.uint8(1),
        }
    file = io.BytesIO()
    writer = Writer(file, calibration=CALIBRATION.data)
    writer.start(2_000_000, data_format, Sizes(100, 500, 2000))
    writer.write(12_345, signals, 1)
    writer.close()
    return file.getvalue()


FILES = {data_format: _write(data_format, 9_876) for data_format in (RAW, FLOAT)}


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
@settings(max_examples=60)
@given(start=st.integers(0, 9_874), length=st.integers(1, 5_000))
@example(start=510, length=80)  # only missing samples
def test_they_read_ours_as_we_do(data_format: str, start: int, length: int) -> None:
    """Samples are equal bit for bit over any range, statistics to float32 accuracy."""
    stop = min(start + length, 9_876)
    a = ours.DataReader().open(io.BytesIO(FILES[data_format]))
    b = theirs.DataReader().open(io.BytesIO(FILES[data_format]))
    got, want = a.samples_get(start, stop), b.samples_get(start, stop)
    assert got is not None
    assert got["time"] == want["time"]
    for field, signal in want["signals"].items():
        np.testing.assert_array_equal(got["signals"][field]["value"], signal["value"])
    rows, other = a.get_reduction(start, stop), b.get_reduction(start, stop)
    for member in ("length", "mean", "variance", "min", "max"):
        np.testing.assert_array_equal(rows[member], other[member])
    mine, yours = a.statistics_get(start, stop), b.statistics_get(start, stop)
    assert mine["time"] == yours["time"]
    for field in FIELDS[:3]:  # the others count missing samples in theirs
        size = max(abs(yours["signals"][field][k]["value"]) for k in ("min", "max"))
        size = 0.0 if np.isnan(size) else size  # of no samples: NaN, and only NaN equals it
        for key, power in (("µ", 1), ("σ2", 2), ("min", 1), ("max", 1)):
            x, y = (s["signals"][field][key]["value"] for s in (mine, yours))
            assert np.isclose(x, y, rtol=0, atol=1e-6 * size**power, equal_nan=True)


def test_calibration_both_ways() -> None:
    from joulescope.v0.calibration import Calibration as Theirs

    read = Theirs().load(CALIBRATION.data)
    for name in ("current_offset", "current_gain", "voltage_offset", "voltage_gain"):
        np.testing.assert_array_equal(getattr(read, name), getattr(CALIBRATION, name))
    again = Calibration.from_bytes(read.save(bytes(32)), keys=())
    np.testing.assert_array_equal(again.current_gain, CALIBRATION.current_gain)
    assert not again.signed
