"""Windows, charge and energy: every sample exactly once, whatever the blocks are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daq_ioc import statistics
from daq_ioc.attributes import Severity, Status
from daq_ioc.device.stream import REDUCTION, Stream
from daq_ioc.samples import SampleBlock

RATE = 2e6


def block(first: int, count: int, seed: int = 0, lost: slice | None = None) -> SampleBlock:
    rng = np.random.default_rng(seed + first)
    current = rng.normal(1e-3, 1e-4, count).astype(np.float32)
    voltage = rng.normal(3.3, 1e-3, count).astype(np.float32)
    bits = rng.integers(0, 64, count).astype(np.uint8)
    raw = np.zeros((count, 2), np.uint16)
    if lost is not None:
        raw[lost], bits[lost] = 0xFFFF, 0x38
        current[lost] = voltage[lost] = np.nan
    missing = int((raw == 0xFFFF).all(axis=1).sum())
    return SampleBlock(
        first, raw, current, voltage, bits, 0, 100 + first / RATE, first + count, missing
    )


def feed(stream: Stream, blocks: list[SampleBlock]) -> list[dict[str, Any]]:
    stream.begin()
    readings = [r for b in blocks for r in stream.take(b)]
    return readings + stream.end()


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 70_000), min_size=1, max_size=12),
    st.sampled_from([0.01, 0.03, 0.05, 0.5]),
    st.integers(0, 1000),
)
def test_windows_tile_the_stream(sizes: list[int], dt: float, seed: int) -> None:
    stream = Stream(RATE, 0.2)
    stream.dt = dt
    blocks, first = [], 0
    for n in sizes:
        lost = slice(5, 40) if n % 3 == 0 else None
        blocks.append(block(first, n, seed, lost))
        first += n
    readings = feed(stream, blocks)
    whole = statistics.reduce(
        *(np.concatenate([getattr(b, k) for b in blocks]) for k in ("current", "voltage", "bits"))
    )
    length = int(whole["length"][0])
    charge = whole["mean"][0] * length / RATE
    energy = whole["mean"][2] * length / RATE
    assert readings[-1]["CHARGE"].value == pytest.approx(charge, rel=1e-12)
    assert readings[-1]["ENERGY"].value == pytest.approx(energy, rel=1e-12)
    assert readings[-1]["SAMPLES"].value == first
    assert readings[-1]["DROPPED"].value == sum(b.lost for b in blocks)
    full = round(dt * RATE)
    assert len(readings) == -(-first // full)
    assert (
        min(
            r["CURRENT_MIN"].value
            for r in readings
            if r["CURRENT_MIN"].value == r["CURRENT_MIN"].value
        )
        == whole["min"][0]
    )
    assert len(stream.buffer) <= stream.buffer.capacity


def test_readings_are_the_textbook() -> None:
    stream = Stream(RATE, 1)
    stream.dt = 0.02
    one = block(0, 40_000)
    (readings,) = feed(stream, [one])
    for k, (name, x) in enumerate(
        (
            ("CURRENT", one.current),
            ("VOLTAGE", one.voltage),
            ("POWER", one.current * one.voltage),
        )
    ):
        wide = x.astype(np.float64)
        expected = [wide.mean(), wide.std(ddof=1), wide.min(), wide.max(), np.ptp(wide)]
        shown = [readings[name].value] + [
            readings[f"{name}_{s}"].value for s in ("STD", "MIN", "MAX", "P2P")
        ]
        assert shown == pytest.approx(expected, rel=1e-9)
        assert readings["STATS"].value[5 * k : 5 * k + 5].tolist() == shown
    assert readings["TIME_TEXT"].value.endswith("Z")
    assert set(readings) == {a.name for a in stream.attributes if not a.writable}
    assert {r.time for r in readings.values()} == {readings["TIME"].value}


def test_a_loss_shows_in_its_window_alone() -> None:
    stream = Stream(RATE, 1)
    stream.dt = 0.01
    readings = feed(
        stream,
        [
            block(0, REDUCTION),
            block(REDUCTION, REDUCTION, lost=slice(10, 20)),
            block(2 * REDUCTION, REDUCTION, lost=slice(None)),
            block(3 * REDUCTION, 100),
        ],
    )
    assert [r["CURRENT"].severity for r in readings] == [
        Severity.NO_ALARM,
        Severity.MINOR,
        Severity.INVALID,
        Severity.NO_ALARM,
    ]
    assert readings[-1]["DROPPED"].severity is Severity.NO_ALARM
    assert np.isnan(readings[2]["CURRENT"].value)


def test_overflow_is_an_alarm_of_what_it_spoils() -> None:
    stream = Stream(RATE, 1)
    stream.dt = 0.01
    blocks = [block(k * REDUCTION, REDUCTION) for k in range(4)]
    blocks[1] = replace(blocks[1], overflow=(3, 0))
    blocks[3] = replace(blocks[3], overflow=(0, 1))
    readings = feed(stream, blocks)
    spoilt = [
        {name for name in ("CURRENT", "VOLTAGE_MAX", "POWER_STD", "STATS") if alarmed(r[name])}
        for r in readings
    ]
    current, voltage = {"CURRENT", "POWER_STD", "STATS"}, {"VOLTAGE_MAX", "POWER_STD", "STATS"}
    assert spoilt == [set(), current, set(), voltage]


def alarmed(reading: Any) -> bool:
    return (reading.severity, reading.status) == (Severity.MAJOR, Status.HWLIMIT)


def test_dt_is_a_whole_number_of_reductions_and_changes_at_once() -> None:
    stream = Stream(RATE, 1)
    stream.begin()
    stream.dt = 3600
    assert stream.take(block(0, 50_000)) == []
    stream.dt = 0.0123
    assert stream.dt == 0.01
    assert len(stream.take(block(50_000, 10_000))) == 3
    assert len(stream.take(block(60_000, 60_000))) == 3


def test_a_new_stream_goes_on_at_the_next_reduction() -> None:
    stream = Stream(RATE, 1)
    stream.dt = 0.01
    feed(stream, [block(0, 30_000)])
    readings = feed(stream, [block(0, 50_000)])
    assert stream.first_id == 40_000
    assert stream.buffer.stop_id == 90_000
    assert readings[-1]["SAMPLES"].value == 80_000
    gap = stream.buffer.read(30_000, 40_000, "raw")["raw"]
    assert (gap == 0xFFFF).all()
    rows = stream.reductions.read(0, 4)["row"]
    assert rows["length"][:, 0].tolist() == [REDUCTION, 0, REDUCTION, REDUCTION]


def test_reset_counts_from_now_on() -> None:
    stream = Stream(RATE, 1)
    stream.dt = 0.01
    stream.begin()
    stream.take(block(0, REDUCTION))
    stream.put("ACCUM_RESET", 1)
    second = block(REDUCTION, REDUCTION)
    (readings,) = stream.take(second)
    expected = second.current.sum(dtype=np.float64) / RATE
    assert readings["CHARGE"].value == pytest.approx(expected, rel=1e-12)


def test_memory_per_sample() -> None:
    assert Stream(RATE, 1).buffer.row_bytes <= 14
