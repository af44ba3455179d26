"""Filters against the maker's, for any division into blocks; and where their output belongs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daq_ioc import statistics
from daq_ioc.downsample import (
    FULL_RATE,
    RATES,
    Decimator,
    Downsampler,
    Means,
    design,
    factors,
)
from daq_ioc.joulescope import words
from tests.conftest import calibration_of

DELAYS = {
    1_000_000: 32.5, 500_000: 64.5, 200_000: 160.5, 100_000: 378.5, 50_000: 685.5,
    20_000: 1640.5, 10_000: 3818.5, 5_000: 6888.5, 2_000: 16437.5, 1_000: 38217.5,
    500: 68917.5, 200: 164407.5, 100: 382207.5, 50: 689207.5, 20: 1644107.5, 10: 3822107.5,
    5: 6892107.5,
}  # fmt: skip
"""Of the maker's filters, in input samples."""

VECTOR_RATES = [rate for rate in RATES if 1_000 <= rate < FULL_RATE]


@pytest.fixture(scope="module")
def decoded(vectors: Callable[[str], dict[str, Any]]) -> tuple[dict[str, Any], Any, Any]:
    """The vectors, with samples float64 (3, n) and bits (n,) of their raw words."""
    data = vectors("js110_raw_downsample")
    current, voltage, bits = words.decode(data["raw"], calibration_of(data), 0)
    samples = np.array([current, voltage, current.astype(np.float64) * voltage], np.float64)
    return data, samples, bits


def cut(n: int, cuts: list[int]) -> list[slice]:
    edges = [0, *sorted(c % (n + 1) for c in cuts), n]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def decimated(rate: int, samples: Any, cuts: list[int]) -> Any:
    decimator = Decimator(rate)
    parts = [decimator.push(samples[:, part]) for part in cut(samples.shape[1], cuts)]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("rate", VECTOR_RATES)
def test_filtered_as_the_maker_does(decoded: tuple[dict[str, Any], Any, Any], rate: int) -> None:
    data, samples, bits = decoded
    output = decimated(rate, samples, [])
    assert output.shape[1] == data[f"n_{rate}"]
    first = int(data.get(f"offset_{rate}", 0))
    for k, name in enumerate(("current", "voltage", "power")):
        expected = data.get(f"{name}_{rate}")
        if expected is None:
            continue
        got = output[k, first : first + len(expected)]
        assert np.array_equal(np.isnan(got), np.isnan(expected))
        full_scale = np.nanmax(np.abs(samples[k]))
        assert np.nanmax(np.abs(got - expected)) <= 1e-7 * full_scale, name
    means = Means(FULL_RATE // rate).push(bits)
    for k, (name, scale) in enumerate(
        (("current_range", 16), ("current_lsb", 255), ("voltage_lsb", 255))
    ):
        expected = data[f"{name}_{rate}"]
        got = np.floor(means[k] * scale + 1e-9)[first : first + len(expected)]
        assert np.array_equal(got, expected), name


@settings(max_examples=25)
@given(
    st.sampled_from([1_000_000, 500_000, 200_000, 100_000, 50_000, 20_000, 2_000, 1_000]),
    st.lists(st.integers(0, 1 << 30), max_size=8),
    st.lists(st.integers(0, 59_999), max_size=3),
)
def test_any_division_into_blocks_gives_the_same(
    rate: int, cuts: list[int], missing: list[int]
) -> None:
    rng = np.random.default_rng(1)
    current, voltage = rng.normal(size=(2, 60_000)).astype(np.float32)
    bits = rng.integers(0, 64, 60_000).astype(np.uint8)
    current[missing] = np.nan
    whole = Downsampler(rate).push(current, voltage, bits)
    pieces = Downsampler(rate)
    parts = [pieces.push(current[p], voltage[p], bits[p]) for p in cut(60_000, cuts)]
    for name in statistics.FIELDS:
        joined = np.concatenate([p[name] for p in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_maker_s_delays_and_taps() -> None:
    assert {rate: Decimator(rate).delay for rate in DELAYS} == DELAYS
    taps = [len(design(10, total)) for total in (10_000, 200, 100, 40, 20, 10)]
    assert taps == [66, 68, 72, 82, 108, 322]
    assert factors(FULL_RATE) == ()
    with pytest.raises(ValueError, match="not one of"):
        factors(3_000)


def response(taps: npt.NDArray[np.float64], frequency: float) -> float:
    """Gain at a frequency given in fractions of the input rate."""
    phases = np.exp(-2j * np.pi * frequency * np.arange(len(taps)))
    return float(abs(taps @ phases))


@pytest.mark.parametrize("factor", [2, 4, 10])
def test_passes_what_fits_and_stops_what_would_fold(factor: int) -> None:
    taps = design(factor, factor)
    nyquist = 0.5 / factor
    passed = [response(taps, f) for f in np.linspace(0, 0.8 * nyquist, 50)]
    assert max(abs(20 * math.log10(g)) for g in passed) < 0.05
    assert max(response(taps, f) for f in np.linspace(nyquist, 0.5, 500)) < 10 ** (-52 / 20)


@pytest.mark.parametrize("rate", [1_000_000, 200_000, 100_000, 5_000, 1_000, 100])
def test_a_sample_is_the_middle_of_the_inputs_it_stands_for(rate: int) -> None:
    """A ramp comes out as the ramp at the centres: no delay is left, to 1e-6 of a period."""
    sampler = Downsampler(rate)
    n = 12
    wanted = n * sampler.factor
    ramp = np.arange(-sampler.before, wanted + sampler.after, dtype=np.float64) / wanted
    out = sampler.push(
        ramp.astype(np.float32), np.ones(len(ramp), np.float32), np.zeros(len(ramp), np.uint8)
    )
    centres = (np.arange(n) + 0.5 - 0.5 / sampler.factor) / n
    assert len(out["current"]) == n
    np.testing.assert_allclose(out["current"], centres, atol=1e-6)
    np.testing.assert_allclose(out["power"], centres, atol=1e-6)


@pytest.mark.parametrize("rate", [FULL_RATE, 500_000, 100_000, 10_000])
def test_range_and_inputs_are_of_the_same_samples_as_the_values(rate: int) -> None:
    sampler = Downsampler(rate)
    n = 10
    wanted = n * sampler.factor
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 64, sampler.before + wanted + sampler.after).astype(np.uint8)
    zero = np.zeros(len(bits), np.float32)
    out = sampler.push(zero, zero, bits)
    groups = bits[sampler.before : sampler.before + wanted].reshape(n, -1)
    np.testing.assert_allclose(out["current_range"], (groups & 15).mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose(out["current_lsb"], (groups >> 4 & 1).mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose(out["voltage_lsb"], (groups >> 5 & 1).mean(axis=1), rtol=1e-7)


def test_at_the_full_rate_samples_pass() -> None:
    rng = np.random.default_rng(3)
    current, voltage = rng.normal(size=(2, 100_000)).astype(np.float32)
    current[77] = np.nan
    out = Downsampler(FULL_RATE).push(current, voltage, np.zeros(100_000, np.uint8))
    assert np.array_equal(out["current"], current, equal_nan=True)
    assert np.array_equal(out["voltage"], voltage)
    power = (current.astype(np.float64) * voltage).astype(np.float32)
    assert np.array_equal(out["power"], power, equal_nan=True)


def test_long_means_do_not_overflow() -> None:
    bits = np.full(100_000, 0x38, np.uint8)
    means = Means(400_000)
    parts = [means.push(bits) for _ in range(9)]
    assert np.concatenate(parts, axis=1).tolist() == [[8.0, 8.0], [1.0, 1.0], [1.0, 1.0]]
