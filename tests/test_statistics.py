"""Statistics of samples: the maker's numbers, and numbers that do not depend on how one adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc import statistics
from daq_ioc.joulescope import words
from tests.conftest import calibration_of


@pytest.mark.parametrize("chain", ["a", "b"])
def test_equals_the_maker(vectors: Callable[[str], dict[str, Any]], chain: str) -> None:
    vector = vectors("js110_raw_statistics")
    current, voltage, bits = words.decode(vector["raw"], calibration_of(vector), 0)
    per_row = int(np.prod(vector[f"reductions_{chain}"]))
    rows = statistics.reduce_rows(current, voltage, bits, per_row)
    expected = vector[f"stats_{chain}"]
    assert len(rows) == len(expected)
    assert np.array_equal(rows["length"][:, 0], vector[f"samples_{chain}"])
    some = rows["length"][:, 0] > 0
    assert some.any()
    assert np.isnan(expected[~some]).all()
    length = rows["length"][some].astype(float)
    np.testing.assert_allclose(rows["mean"][some], expected[some, :, 0], rtol=1e-9)
    np.testing.assert_allclose(
        rows["variance"][some] / (length - 1), expected[some, :, 1], rtol=1e-9, atol=1e-30
    )
    assert np.array_equal(rows["min"][some], expected[some, :, 2])
    assert np.array_equal(rows["max"][some], expected[some, :, 3])
    assert np.isnan(rows["mean"][~some]).all()


@st.composite
def samples(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    n = draw(st.integers(0, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    current = (draw(st.floats(-1, 1, width=32)) + rng.normal(size=n)).astype(np.float32)
    voltage = (3.3 + 1e-3 * rng.normal(size=n)).astype(np.float32)
    bits = rng.integers(0, 64, n).astype(np.uint8)
    lost = rng.random(n) < draw(st.sampled_from([0, 0.01, 0.5, 1]))
    current[lost] = voltage[lost] = np.nan
    bits[lost] = 0x38
    return current, voltage, bits


def expected_row(current: Any, voltage: Any, bits: Any) -> Any:
    used = np.isfinite(current) & np.isfinite(voltage)
    bits = bits[used]
    fields = [
        current[used],
        voltage[used],
        (current * voltage)[used],
        bits & 15,
        bits >> 4 & 1,
        bits >> 5 & 1,
    ]
    row = statistics.empty()
    if used.any():
        for k, field in enumerate(fields):
            x = field.astype(np.float64)
            row[k] = (len(x), x.mean(), ((x - x.mean()) ** 2).sum(), x.min(), x.max())
    return row


def assert_rows_close(a: Any, b: Any) -> None:
    assert np.array_equal(a["length"], b["length"])
    for name in ("mean", "variance"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12)
    for name in ("min", "max"):
        assert np.array_equal(a[name], b[name], equal_nan=True)


@given(samples())
def test_one_row_is_the_textbook(block: tuple[Any, Any, Any]) -> None:
    assert_rows_close(statistics.reduce(*block), expected_row(*block))


@given(samples(), st.integers(1, 60))
def test_rows_combine_to_the_whole(block: tuple[Any, Any, Any], per_row: int) -> None:
    rows = statistics.reduce_rows(*block, per_row)
    whole = len(block[0]) // per_row * per_row
    assert len(rows) == whole // per_row
    expected = expected_row(*(column[:whole] for column in block))
    assert_rows_close(statistics.combine(rows), expected)


def test_a_lost_voltage_does_not_count_even_if_its_current_is_known() -> None:
    """Fixed suppression windows interpolate current across a gap; power is unknown there."""
    current = np.ones(4, np.float32)
    voltage = np.array([1, np.nan, 1, 1], np.float32)
    row = statistics.reduce(current, voltage, np.zeros(4, np.uint8))
    assert row["length"].tolist() == [3] * 6
    assert row["mean"][:3].tolist() == [1, 1, 1]
