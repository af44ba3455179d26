"""Windows reduced all at once equal windows reduced one by one, whatever is in them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc import statistics
from daq_ioc.jls.reduction import from_bits, reduce_windows
from daq_ioc.statistics import FIELDS


@given(
    window=st.sampled_from([1, 2, 3, 7, 100, 9_999, 10_001, 25_000]),
    seed=st.integers(0, 1000),
    missing=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
)
def test_windows(window: int, seed: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    n = min(3 * window + 5, 40_000)
    current, voltage = (rng.normal(5, 1, (2, n)) * [[1e-6], [1]]).astype(np.float32)
    lost = rng.random(n) < missing
    current[lost] = voltage[lost] = np.nan
    bits = rng.integers(0, 64, n).astype(np.uint8)
    bits[: n // 2] = 0x13
    got = reduce_windows({"current": current, "voltage": voltage, "bits": bits}, window)
    six = reduce_windows(from_bits(current, voltage, bits), window)
    assert len(got) == len(six) == n // window
    for k, row in enumerate(got):
        part = slice(k * window, (k + 1) * window)
        want = statistics.reduce(current[part], voltage[part], bits[part])
        for rows in (row, six[k]):
            assert (rows["length"] == want["length"]).all()
            for member in ("mean", "variance", "min", "max"):
                np.testing.assert_allclose(rows[member], want[member], rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_does_not_count(bad: float) -> None:
    """A field that is not finite where the current is leaves the other fields alone."""
    fields: dict[str, Any] = {name: np.arange(10, dtype=np.float32) for name in FIELDS}
    fields["voltage"] = fields["voltage"].copy()
    fields["voltage"][3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = reduce_windows(fields, 10)[0]
    used = np.delete(np.arange(10), 3)
    assert row[1]["mean"] == used.mean()
    assert (row[1]["min"], row[1]["max"]) == (0, 9)
    assert row[0].item() == (10, 4.5, 82.5, 0, 9)


def test_constant_values_have_no_variance() -> None:
    values = np.full(30_000, 9.47e-4, np.float32)
    row = reduce_windows(from_bits(values, values, np.zeros(30_000, np.uint8)), 30_000)[0]
    assert (row["variance"] <= 1e-30).all()
    assert row[0]["mean"] == pytest.approx(float(values[0]), rel=1e-15)
