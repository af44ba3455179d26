"""The sample clock: UTC of samples, in spite of latency and of crystals that differ."""

from __future__ import annotations

import time

import numpy as np
import pytest

from daq_ioc.device.clock import STEP, Forward, SampleClock, utc_offset

RATE = 2e6


@pytest.mark.parametrize("ppm", [-100, 0, 35, 100])
def test_it_follows_the_crystal_through_latency(ppm: float) -> None:
    """Ten minutes of blocks every 16 ms that come up to 50 ms late: 1 ms right after a minute."""
    rng = np.random.default_rng(1)
    clock = SampleClock(RATE)
    began, offset = time.monotonic(), utc_offset()
    worst = 0.0
    before = 0.0
    for k in range(1, 600 * 62):
        stop_id = k * 32256
        true = began + stop_id / (RATE * (1 + ppm * 1e-6))
        late = rng.exponential(2e-3) if k % 100 else 50e-3
        clock.update(stop_id, true + late)
        if k % 31 == 0:
            stamp = clock.time_of(stop_id - 1)
            assert stamp > before
            before = stamp
            if k > 60 * 62:
                worst = max(worst, abs(stamp - true - offset))
    assert worst < 1e-3


def test_a_stream_may_begin_at_any_id() -> None:
    clock = SampleClock(RATE, first_id=60_000)
    now = time.monotonic()
    clock.update(60_000 + 2_000_000, now)
    assert clock.time_of(60_000) == pytest.approx(now - 1 + utc_offset(), abs=1e-4)


def test_utc_offset() -> None:
    before = time.time() - time.monotonic()
    offset = utc_offset()
    after = time.time() - time.monotonic()
    assert min(before, after) - 1e-3 < offset < max(before, after) + 1e-3


def test_time_only_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """The clock set an hour forward, then two minutes back; right again after two minutes."""
    forward = Forward()
    true = [1e9 + k for k in range(100)]
    true += [t + 3600 for t in true[-1:]]
    assert [forward(t) for t in true] == true
    back = [true[-1] - 120 + k for k in range(200)]
    seen = [forward(t) for t in back]
    assert (np.diff([true[-1], *seen]) > 0).all()
    assert seen[119] - true[-1] == pytest.approx(
        120 * STEP, rel=0.2
    )  # to the bits that a float has
    assert seen[122:] == back[122:]
    assert [record.getMessage() for record in caplog.records] == [
        "the clock was set back 120 s; time stamps wait for it"
    ]
