"""Raw words to A and V: the maker's results, whatever the division of the stream into blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.suppression import HELD_MAX, RawProcessor, Samples, SuppressMode
from tests.conftest import calibration_of, same_floats

MODES = [
    "off",
    "interp_1_n_1",
    "interp_1_m_1",
    "interp_1_7_1",
    "mean_1_n_1",
    "mean_2_3_1",
    "mean_0_3_1",
    "mean_3_5_4",
    "nan_0_n_0",
    "nan_0_6_0",
]

CALIBRATION = Calibration.make(
    [-2800, -2810, -2820, -2830, -2840, -2850, -2860],
    [6.8e-4, 1.6e-4, 1.5e-5, 1.5e-6, 1.5e-7, 1.5e-8, 1.5e-9],
    [-1150, -2040],
    [9.5e-4, 2.9e-4],
    "00" * 16,
)


def process(
    processor: RawProcessor, blocks: Iterable[npt.NDArray[np.uint16]], voltage_range: int = 0
) -> Samples:
    out = processor.process(np.empty((0, 2), np.uint16), voltage_range)
    for block in blocks:
        scratch = block.copy()  # a driver uses the memory of a block again
        part = processor.process(scratch, voltage_range).copy()
        scratch[:] = 0
        out = out.followed_by(part)
    return out


def divide(raw: npt.NDArray[np.uint16], cuts: Iterable[int]) -> list[npt.NDArray[np.uint16]]:
    return np.split(raw, sorted(c % (len(raw) + 1) for c in cuts))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [16384, 126, 7, 1])
def test_equals_the_maker(vectors: Callable[[str], dict[str, Any]], mode: str, block: int) -> None:
    vector = vectors(f"js110_raw_suppress_{mode}")
    raw = vector["raw"]
    processor = RawProcessor(calibration_of(vector), mode)
    cuts = range(block, len(raw), block)
    out = process(processor, np.split(raw, list(cuts)), int(vector["voltage_range"]))
    assert len(out) == vector["n_out"]
    assert same_floats(out.current, vector["current"])
    assert same_floats(out.voltage, vector["voltage"])
    assert np.array_equal(out.bits, vector["bits"])
    assert np.array_equal(out.raw, raw[: len(out)])
    counters = processor.counters
    assert [
        counters.missing,
        counters.skips,
        counters.toggle_errors,
        counters.contiguous,
    ] == vector["counters"].tolist()
    held = processor.flush()
    assert len(out) + len(held) == len(raw)
    assert np.isnan(held.current).all()


def one_by_one(raw: npt.NDArray[np.uint16], mode: SuppressMode) -> Samples:
    """The state machine as the reference tells it, a sample at a time, in float32.

    A group of 64 and more samples gives up all but its last 63, as this project decided.
    """
    f4 = np.float32
    current, voltage, bits = words.decode(raw, CALIBRATION, 0)
    truth = current.copy()
    remaining = count = start = released = 0
    before = 7
    pre = f4(np.nan)

    def earlier(k: int) -> np.float32:
        return truth[k] if k >= 0 else f4(np.nan)

    for k in range(len(raw)):
        kind = int(bits[k] & 15)
        window = int(mode.window[kind, before]) if kind != before and mode.kind != "off" else 0
        before = kind
        if window:
            remaining = max(remaining, window + mode.post)
            if count == 0:
                start = k
                pre = f4(0)
                if mode.kind == "mean":
                    for j in range(k - mode.pre, k):
                        pre = pre + earlier(j)
                else:
                    pre = earlier(k - 1)
        if remaining == 0:
            released = k + 1
            continue
        count += 1
        if remaining == 1:
            if count > HELD_MAX:
                lost = slice(start, k - HELD_MAX + 1)
                current[lost] = voltage[lost] = np.nan
                bits[lost] = 0xFF
                start, count, pre = k - HELD_MAX + 1, HELD_MAX, f4(np.nan)
            group = range(start, start + count)
            if mode.kind == "nan":
                current[group.start : group.stop] = np.nan
                voltage[group.start : group.stop] = np.nan
            elif mode.kind == "interp":
                value = pre if np.isfinite(pre) else truth[k]
                step = f4(truth[k] - value) / f4(count)
                for j in group[:-1]:
                    value = value + step
                    current[j] = value
            else:
                n = mode.pre if np.isfinite(pre) else 0
                value = pre if np.isfinite(pre) else f4(0)
                for j in range(mode.post):
                    value = value + truth[k - j]
                value = value / f4(n + mode.post) if n + mode.post else f4(np.nan)
                for j in group[: count - mode.post]:
                    current[j] = value
            count = 0
            released = k + 1
        remaining -= 1
    released = max(released, start + count - HELD_MAX) if count else released
    if count > HELD_MAX:
        lost = slice(start, released)
        current[lost] = voltage[lost] = np.nan
        bits[lost] = 0xFF
    return Samples(raw, current, voltage, bits)[:released]


@st.composite
def streams(draw: st.DrawFn) -> npt.NDArray[np.uint16]:
    """Samples that dwell in ranges for a while, missing runs (range 8) among them."""
    runs = draw(
        st.lists(
            st.tuples(st.integers(0, 8), st.one_of(st.integers(1, 12), st.integers(1, 150))),
            min_size=1,
            max_size=40,
        )
    )
    seed = draw(st.integers(0, 2**32 - 1))
    kinds = np.repeat([r for r, _ in runs], [n for _, n in runs])
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 0x4000, (2, len(kinds)))
    raw = words.encode(codes[0], codes[1], np.minimum(kinds, 7))
    raw[kinds == 8] = 0xFFFF
    return raw


@given(
    raw=streams(),
    mode=st.sampled_from([*MODES, "mean_2_4_0", "mean_8_12_8", "interp_1_12_1", "nan_0_12_0"]),
    cuts=st.lists(st.integers(0, 100_000), max_size=12),
)
def test_any_division_gives_what_one_sample_at_a_time_gives(
    raw: npt.NDArray[np.uint16], mode: str, cuts: list[int]
) -> None:
    expected = one_by_one(raw, SuppressMode.parse(mode))
    out = process(RawProcessor(CALIBRATION, mode), divide(raw, cuts))
    assert len(out) == len(expected)
    assert np.array_equal(out.bits, expected.bits)
    assert same_floats(out.current, expected.current)
    assert same_floats(out.voltage, expected.voltage)


def test_a_switch_at_every_sample_comes_out_once_and_promptly() -> None:
    kinds = np.arange(30_000) % 2 + 3
    codes = np.full(len(kinds), 5000)
    processor = RawProcessor(CALIBRATION)
    out = process(processor, np.split(words.encode(codes, codes, kinds), 30))
    assert len(out) == len(kinds) - HELD_MAX
    assert np.isnan(out.current).all()
    assert len(processor.flush()) == HELD_MAX


@pytest.mark.parametrize(
    ("text", "kind", "pre", "post"),
    [
        ("normal", "interp", 1, 1),
        ("interpolate_3_n_5", "interp", 1, 1),
        ("INTERP_1_M_1", "interp", 1, 1),
        ("mean_0_n_0", "mean", 1, 1),
        ("mean_-2_n_3", "mean", 0, 3),
        ("nan_4_4_4", "nan", 0, 0),
        ("off_1_2_3", "off", 0, 0),
        ("", "off", 0, 0),
        (None, "off", 0, 0),
    ],
)
def test_mode_names(text: str | None, kind: str, pre: int, post: int) -> None:
    mode = SuppressMode.parse(text)
    assert (mode.kind, mode.pre, mode.post) == (kind, pre, post)


@pytest.mark.parametrize(
    "text", ["bad", "interp_1_n", "mean_9_n_1", "mean_1_13_1", "mean_1_x_1", "median_1_n_1"]
)
def test_bad_mode_names_say_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|0\.\."):
        SuppressMode.parse(text)
