"""Traces: mean and exact envelope of the last seconds, whatever the span and the blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daq_ioc.attributes import Severity
from daq_ioc.device.stream import REDUCTION, Stream
from daq_ioc.samples import MISSING_BITS, SampleBlock

RATE = 2e6
TRACES = {
    f"{signal}_TRACE{kind}"
    for signal in ("CURRENT", "VOLTAGE", "POWER")
    for kind in ("", "_MIN", "_MAX")
}


class Fed:
    """A stream, what it was fed with and the traces it gave, with the sample they end before."""

    def __init__(self, span: float = 3.0, **options: float) -> None:
        self.stream = Stream(RATE, span)
        self.stream.dt = 0.01
        for name, value in options.items():
            self.stream.put(name, value)
        self.stream.begin()
        self.current = np.empty(0, np.float32)
        self.voltage = np.empty(0, np.float32)
        self.traces: list[tuple[int, dict[str, Any]]] = []

    def feed(self, count: int, lost: slice | None = None) -> None:
        first = len(self.current)
        rng = np.random.default_rng(first + count)
        current, voltage = rng.normal(size=(2, count)).astype(np.float32)
        bits = np.zeros(count, np.uint8)
        if lost is not None:
            current[lost] = voltage[lost] = np.nan
            bits[lost] = MISSING_BITS
        self.current = np.concatenate((self.current, current))
        self.voltage = np.concatenate((self.voltage, voltage))
        done = first // REDUCTION * REDUCTION
        block = SampleBlock(
            first, np.zeros((count, 2), np.uint16), current, voltage, bits, 0,
            first / RATE, first + count, int(np.isnan(current).sum()),
        )  # fmt: skip
        for readings in self.stream.take(block):
            done += REDUCTION
            if "TIME_TRACE" in readings:
                assert {name for name in readings if "_TRACE" in name} == TRACES | {"TIME_TRACE"}
                self.traces.append((done, {k: r.value for k, r in readings.items()}))

    def option(self, name: str) -> Any:
        return self.stream.values()[name]


def expected(signal: Any, first: int, samples: int, points: int) -> Any:
    """Mean, least, most (3, points) of finite samples; NaN where there are none, or before 0."""
    out = np.full((3, points), np.nan)
    for k in range(points):
        a = first + k * samples
        part = signal[max(a, 0) : max(a + samples, 0)].astype(np.float64)
        part = part[np.isfinite(part)] if a >= 0 else part[:0]
        if len(part):
            out[:, k] = part.mean(), part.min(), part.max()
    return out


def check(fed: Fed, stop: int, trace: dict[str, Any]) -> None:
    points = fed.option("TRACE_POINTS")
    samples = round(fed.option("TRACE_SPAN") * RATE / points)
    first = (stop // samples - points) * samples
    power = fed.current * fed.voltage
    for name, signal in (("CURRENT", fed.current), ("VOLTAGE", fed.voltage), ("POWER", power)):
        mean, low, high = expected(signal, first, samples, points)
        np.testing.assert_allclose(trace[f"{name}_TRACE"], mean, rtol=1e-6, atol=1e-9)
        assert np.array_equal(trace[f"{name}_TRACE_MIN"], low, equal_nan=True)
        assert np.array_equal(trace[f"{name}_TRACE_MAX"], high, equal_nan=True)
    before = (stop - first - (np.arange(points) + 0.5) * samples) / RATE
    np.testing.assert_allclose(trace["TIME_TRACE"], before, atol=1e-9)
    assert (trace["TIME_TRACE"] > 0).all()
    assert 0 <= trace["TIME_TRACE"][-1] - samples / 2 / RATE < samples / RATE


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 300_000), min_size=1, max_size=6),
    st.sampled_from([0.001, 0.01, 0.0437, 0.3, 1.0, 1.3, 2.5]),
    st.sampled_from([10, 64, 1000, 10_000]),
    st.booleans(),
)
def test_every_trace_is_of_the_samples(
    sizes: list[int], span: float, points: int, lossy: bool
) -> None:
    fed = Fed(TRACE_SPAN=span, TRACE_POINTS=points)
    for size in sizes:
        fed.feed(size, slice(7, 7 + size // 2) if lossy else None)
    for stop, trace in fed.traces[-2:]:
        check(fed, stop, trace)


@pytest.mark.parametrize(
    ("span", "points", "shown"),
    [
        (10.0, 1000, (10.0, 1000)),
        (20.0, 1000, (20.0, 1000)),
        (1.0, 1000, (1.0, 1000)),
        (1.0, 10, (1.0, 10)),
        (0.5, 10_000, (0.5, 10_000)),
        (5.0, 1000, (5.0, 500)),  # as fine as reductions are
        (25.0, 1000, (24.99, 833)),
        (0.001, 10_000, (0.001, 2000)),  # there are no more samples
    ],
)
def test_options_read_back_what_is_done(span: float, points: int, shown: tuple[float, int]) -> None:
    fed = Fed(span=30, TRACE_SPAN=span, TRACE_POINTS=points)
    assert (fed.option("TRACE_SPAN"), fed.option("TRACE_POINTS")) == pytest.approx(shown)


def test_the_span_is_at_most_the_buffers() -> None:
    assert Fed(span=3).option("TRACE_SPAN") == 3
    limits = {a.name: (a.low, a.high) for a in Fed(span=30).stream.attributes}
    assert limits["TRACE_SPAN"] == (0.001, 30)
    assert limits["TRACE_POINTS"] == (10, 10_000)
    longest = {a.length for a in Fed().stream.attributes if "_TRACE" in a.name}
    assert longest == {10_000}


def test_at_most_ten_a_second() -> None:
    fed = Fed()
    for _ in range(10):
        fed.feed(110_000)
    stops = [stop for stop, _ in fed.traces]
    assert stops[0] == REDUCTION
    assert set(np.diff(stops)) == {200_000}


def test_nothing_of_an_earlier_stream() -> None:
    fed = Fed(TRACE_SPAN=1.0, TRACE_POINTS=100)
    fed.feed(500_000)
    fed.stream.end()
    fed.stream.begin()
    block = SampleBlock(
        0, np.zeros((60_000, 2), np.uint16), np.ones(60_000, np.float32),
        np.ones(60_000, np.float32), np.zeros(60_000, np.uint8), 0, 1.0, 60_000,
    )  # fmt: skip
    trace = fed.stream.take(block)[0]["CURRENT_TRACE"]
    assert trace.severity is Severity.NO_ALARM
    assert isinstance(trace.value, np.ndarray)
    assert np.isnan(trace.value[:-1]).all()
    assert trace.value[-1] == 1


def test_a_changed_option_shows_the_past_at_once() -> None:
    fed = Fed()
    for _ in range(5):
        fed.feed(400_000)
    for name, value in (("TRACE_SPAN", 0.5), ("TRACE_POINTS", 50), ("TRACE_SPAN", 1.2)):
        fed.stream.put(name, value)
        fed.feed(400_000)
        assert np.isfinite(fed.traces[-1][1]["CURRENT_TRACE"]).all()
        check(fed, *fed.traces[-1])
