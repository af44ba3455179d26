"""Queries give what plain arithmetic over the samples gives, however they are put together."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc.jls import api, decode
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.jls.reduction import from_bits
from daq_ioc.jls.writer import FLOAT, RAW, Sizes, Writer
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.words import decode as decode_raw
from daq_ioc.joulescope.words import encode
from daq_ioc.statistics import FIELDS

SIZES = Sizes(4, 8, 24)
SIZE = 24 * 1000 + 13  # blocks enough for several levels of the pyramid
RATE = 1000
CALIBRATION = Calibration.make([-2000] * 7, [1e-3] * 7, [-1000] * 2, [1e-3, 2e-3])


@cache
def signals() -> dict[str, Any]:
    rng = np.random.default_rng(9)
    ranges = np.repeat(rng.integers(0, 7, SIZE // 100 + 1), 100)[:SIZE].astype(np.uint16)
    current_code, voltage_code = rng.integers(0, 1 << 14, (2, SIZE)).astype(np.uint16)
    raw = encode(current_code, voltage_code, ranges)
    raw[5000:5100] = 0xFFFF
    current, voltage, bits = decode_raw(raw, CALIBRATION, 0)
    return {
        "raw": raw,
        "current": current,
        "voltage": voltage,
        "power": current * voltage,
        "current_range": bits & np.uint8(15),
        "current_lsb": bits >> np.uint8(4) & np.uint8(1),
        "voltage_lsb": bits >> np.uint8(5) & np.uint8(1),
    }


@cache
def reader(data_format: str) -> DataReader:
    writer = Writer(file := io.BytesIO(), calibration=CALIBRATION.data)
    writer.start(RATE, data_format, SIZES)
    writer.write(0, signals())
    writer.close()
    opened = DataReader().open(file)
    opened.raw_processor.suppress_mode = "off"
    return opened


def plain(start: int, stop: int) -> Any:
    """Length, and mean, squares, min, max of each field, in float64."""
    used = np.isfinite(signals()["current"][start:stop])
    table = []
    for name in FIELDS:
        values = signals()[name][start:stop][used].astype(np.float64)
        if not len(values):
            return 0, np.full((6, 4), np.nan)
        mean = values.mean()
        table.append((mean, ((values - mean) ** 2).sum(), values.min(), values.max()))
    return int(used.sum()), np.array(table)


def equal(row: Any, start: int, stop: int) -> None:
    length, table = plain(start, stop)
    assert (row["length"] == length).all()
    got = np.stack([row[member] for member in ("mean", "variance", "min", "max")], axis=1)
    # Stored reductions are float32.
    scale = np.array([15, 15 * 15 * max(1, stop - start), 1, 1]) * np.array([[1]] * 2 + [[15]] * 4)
    np.testing.assert_allclose(got, table, rtol=1e-6, atol=float(1e-7 * scale.max()))


RANGES = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda pair: (pair[0], min(SIZE, pair[0] + pair[1]))
)


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
@given(stretch=RANGES)
def test_statistics_of_any_stretch(data_format: str, stretch: tuple[int, int]) -> None:
    equal(reader(data_format).rows.statistics(*stretch), *stretch)


@pytest.mark.parametrize("data_format", [RAW, FLOAT])
@given(start=st.integers(0, SIZE - 1), increment=st.integers(2, 6000), count=st.integers(1, 9))
def test_windows_are_exactly_those_asked_for(
    data_format: str, start: int, increment: int, count: int
) -> None:
    stop = min(SIZE, start + increment * count + increment // 2)
    rows = reader(data_format).data_get(start, stop, increment)
    assert len(rows) == (stop - start) // increment
    for k, row in enumerate(rows):
        equal(row, start + k * increment, start + (k + 1) * increment)


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 12, 96, 384])
def test_windows_of_whole_reductions(rows: int) -> None:
    """Every level of the pyramid serves as a unit of windows."""
    increment = rows * SIZES.reduction
    for start in (0, increment, SIZES.reduction, 3 * SIZES.block):
        got = reader(RAW).data_get(start, None, increment)
        for k in (0, len(got) // 2, len(got) - 1):
            equal(got[k], start + k * increment, start + (k + 1) * increment)


SWITCHING = Sizes(100, 500, 1000)


@cache
def _switching() -> bytes:
    """A recording whose range changes after 1 to 300 samples, some missing, one record damaged."""
    rng = np.random.default_rng(4)
    runs = np.concatenate([rng.integers(1, 300, 20), rng.integers(1, 12, 30)] * 3)
    runs = np.append(runs, rng.integers(60, 200, 20))
    ranges = np.repeat(rng.integers(0, 7, len(runs)), runs).astype(np.uint16)
    codes = rng.integers(0, 1 << 14, (2, len(ranges))).astype(np.uint16)
    raw = encode(codes[0], codes[1], ranges)
    raw[1490:1530] = 0xFFFF
    current, voltage, bits = decode_raw(raw, CALIBRATION, 0)
    writer = Writer(file := io.BytesIO(), calibration=CALIBRATION.data)
    writer.start(RATE, RAW, SWITCHING)
    for first in range(0, len(raw), SWITCHING.block):
        part = slice(first, first + SWITCHING.block)
        chunk = {"raw": raw[part], **from_bits(current[part], voltage[part], bits[part])}
        writer.write(first, chunk, first // SWITCHING.block % 2)
    writer.close()
    data = bytearray(file.getvalue())
    data[data.index(raw[4100:4110].tobytes())] ^= 1
    return bytes(data)


@given(start=st.integers(0, 11_000), length=st.integers(1, 4000), piece=st.integers(64, 700))
def test_steady_stretches_equal_the_general_way(start: int, length: int, piece: int) -> None:
    r = DataReader().open(io.BytesIO(_switching()))
    assert isinstance(r._decoder, decode.RawDecoder)
    stop = min(r.sample_id_range[1], start + length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "PIECE", piece)
        got = list(r._decoder.pieces(start, stop))
        edges = r._decoder.together([(start, stop), (stop - length // 2, stop)])
        patch.setattr(decode, "steady_range", lambda _: None)
        want = list(r._decoder.pieces(start, stop))
        wanted = [*want, *r._decoder.pieces(stop - length // 2, stop)]
    for name in ("raw", "current", "voltage", "bits"):
        for some, right in ((got, want), (edges, wanted)):
            a, b = (np.concatenate([piece[name] for piece in pieces]) for pieces in (some, right))
            np.testing.assert_array_equal(a, b)


def test_single_samples() -> None:
    rows = reader(RAW).data_get(4990, 5010, 1)
    want = signals()
    for k, name in enumerate(FIELDS):
        for member in ("mean", "min", "max"):
            np.testing.assert_array_equal(rows[member][:, k], want[name][4990:5010])
    assert (rows["variance"] == 0).all()
    assert rows["length"][:, 0].tolist() == [1] * 10 + [0] * 10


@pytest.mark.parametrize(
    ("increment", "rows"), [(0.4, 20), (1.5, 10), (2.5, 10), (3.5, 5), (-3, 20)]
)
def test_increment_is_rounded(increment: float, rows: int) -> None:
    assert len(reader(RAW).data_get(0, 20, increment)) == rows


def test_out() -> None:
    r = reader(RAW)
    methods: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (r.data_get, (0, 80, 8)),
        (r.get_reduction, (0, 40)),
    )
    for method, args in methods:
        want = method(*args)
        out = np.zeros((12, 6), want.dtype)
        got = method(*args, out=out)
        assert got.base is out or got is out
        np.testing.assert_array_equal(out[:10], want)
        assert (out[10:]["length"] == 0).all()
        with pytest.raises(ValueError, match="out has 9 rows"):
            method(*args, out=out[:9])


def test_seconds_and_samples() -> None:
    r = reader(RAW)
    for k in range(0, SIZE, 7):
        assert r.time_to_sample_id(k / RATE) == k
    assert r.time_to_sample_id(-0.01) is None
    assert r.time_to_sample_id(1e9) is None
    assert r.time_to_sample_id(None) is r.sample_id_to_time(None) is None
    assert r.normalize_time_arguments(0.5, 1.5, "seconds") == (500, 1500)
    assert r.normalize_time_arguments(-10, -1) == (SIZE - 10, SIZE - 1)
    assert r.normalize_time_arguments(int(np.int32(3)), 10.0) == (3, 10)
    for start, stop in ((1e9, None), (-1.0, None), (0, 1e9)):
        with pytest.raises(ValueError, match="out of range"):
            r.statistics_get(start, stop, "seconds")
    for bad in (0.5, "1", [1]):
        with pytest.raises(TypeError, match="integer"):
            r.samples_get(bad, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="before"):
        r.statistics_get(20, 10)
    got = r.samples_get(20, 10)
    assert got is not None
    assert len(got["signals"]["current"]["value"]) == 0


def test_fields() -> None:
    got = reader(RAW).samples_get(10, 30, fields="raw_current")
    assert got is not None
    np.testing.assert_array_equal(
        got["signals"]["raw_current"]["value"], signals()["raw"][10:30, 0] >> 2
    )
    got = reader(RAW).samples_get(10, 30, fields=["speed", "bits"])
    assert got is not None
    assert len(got["signals"]["speed"]["value"]) == 0
    assert got["signals"]["bits"]["value"].dtype == np.uint8
    with pytest.raises(ValueError, match="raw"):
        reader(FLOAT).samples_get(10, 30, fields="raw")
    got = reader(FLOAT).samples_get(0, 10, fields=[])
    assert got is not None
    assert got["signals"] == {}


def test_memory_is_asked_for_first() -> None:
    samples = psutil.virtual_memory().total // 4
    with pytest.raises(MemoryError, match=f"need {8 * samples / 1e9:.1f} GB"):
        api.allocate(("current", "raw"), samples, raw=True)


def test_closed() -> None:
    r = DataReader()
    for _ in range(2):
        assert r.sample_id_range == [0, 0]
        assert r.sampling_frequency == r.reduction_frequency == 1.0
        assert r.duration == 0.0
        assert str(r) == "DataReader closed"
        for call in (
            r.samples_get, r.statistics_get, r.get_reduction, r.summary_string,
            lambda: r.data_get(0, 0), lambda: list(r.pieces()),
        ):  # fmt: skip
            with pytest.raises(OSError, match="no recording is open"):
                call()
        r.open(io.BytesIO(_switching()))
        assert r.user_data is None
        r.close()
    with pytest.raises(FileNotFoundError):
        r.open("/nonexistent/file.jls")


def test_suppress_mode_is_checked() -> None:
    with pytest.raises(ValueError, match="suppression"):
        DataReader().raw_processor.suppress_mode = "nonsense"
