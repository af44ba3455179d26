"""What the instrument samples: the target, the ranges, the words, and the truth about them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import FRAME_SAMPLES, Extio, Request
from daq_ioc.emulator import encode
from daq_ioc.emulator.statistics import WINDOW
from daq_ioc.emulator.target import PERIOD_SAMPLES, Target
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.words import CODE_MAX, decode
from tests.emulator.conftest import Host, Words, words

SECOND = 2_000_000


def ranges(raw: Words) -> np.ndarray:
    return decode(raw, Calibration.default(), 0)[2] & 0x0F


def _streaming(spec: str = "js110:seed=7,pace=fast", **fields: int) -> Host:
    host = Host(spec)
    host.stream(**fields)
    return host


AUTO = _streaming()
"""Autoranging over many seconds; tests read its truth only."""


def test_the_target_is_a_low_power_one() -> None:
    target = Target(3).samples(0, PERIOD_SAMPLES)
    assert 2e-6 < np.median(target.current) < 5e-6
    assert 0.05 < target.current.max() < 0.11
    assert target.current.min() > 0
    woken = target.current > 1e-3
    assert np.count_nonzero(woken[1:] & ~woken[:-1]) >= 20
    sag = target.voltage[target.current < 1e-5].mean() - target.voltage[woken].min()
    assert 0.04 < sag < 0.1
    in_burst = target.current > 0.05
    assert (target.gpi[in_burst] & 1).all()
    assert 0 < (target.gpi & 1).mean() < 0.1
    assert 0.3 < (target.gpi >> 1).mean() < 0.7


def test_the_seed_decides_every_sample() -> None:
    again = _streaming()
    assert np.array_equal(again.instrument.truth(0, SECOND), AUTO.instrument.truth(0, SECOND))
    other = _streaming("js110:seed=8,pace=fast")
    assert not np.array_equal(other.instrument.truth(0, 1000), AUTO.instrument.truth(0, 1000))


def test_what_is_sent_is_the_truth_in_any_division() -> None:
    host = _streaming()
    sent = np.concatenate([words(host.read(count)) for count in (1, 428, 1, 2000, 33_000)])
    assert len(sent) > PERIOD_SAMPLES
    assert np.array_equal(sent, host.instrument.truth(0, len(sent)))
    assert np.array_equal(sent[1000:3001], host.instrument.truth(1000, 3001))


def test_autoranging_uses_ranges_that_fit() -> None:
    raw = AUTO.instrument.truth(0, 2 * SECOND)
    used = ranges(raw)
    assert set(np.unique(used)) == {2, 3, 4, 5, 6}
    assert 20 < np.count_nonzero(used[1:] != used[:-1]) / 2 < 500  # switches per second
    code = raw[:, 0] >> 2
    assert np.count_nonzero((code == 0) | (code == CODE_MAX)) < 5000


def test_autoranging_is_quick_to_coarser_and_slow_to_finer_ranges() -> None:
    used = ranges(AUTO.instrument.truth(0, SECOND))
    current = AUTO.instrument.ideal(0, SECOND).current
    at = np.flatnonzero(used[1:] != used[:-1]) + 1
    span = (CODE_MAX + encode.CURRENT_OFFSET) * encode.CURRENT_GAIN
    for k, index in enumerate(at):
        old, new = used[index - 1], used[index]
        if new < old:
            reason = current[index - encode.DELAY - 1 : index - encode.DELAY + 1]
            assert reason[0] < encode.HEADROOM * span[old] <= reason[1]
        else:
            assert index - at[k - 1] >= encode.DWELL // 2
            calm = current[index - encode.DWELL : index - encode.DELAY]
            assert calm.max() < encode.HEADROOM * span[new]


def test_calibrated_samples_are_the_ideal_ones_but_for_switches() -> None:
    count = SECOND
    raw, ideal = AUTO.instrument.truth(0, count), AUTO.instrument.ideal(0, count)
    current, voltage, _ = encode.calibrate(raw, 0)
    used = ranges(raw)
    error = np.abs(current - ideal.current) / np.append(encode.CURRENT_GAIN, 1)[used]
    switched = np.flatnonzero(used[1:] != used[:-1]) + 1
    near = np.zeros(count, dtype=bool)
    for lag in range(-2, 8):
        near[np.clip(switched + lag, 0, count - 1)] = True
    assert error[~near].max() <= 0.51
    assert np.abs(voltage - ideal.voltage).max() <= 0.51 * encode.VOLTAGE_GAIN[0]
    # Every switch shows at least three wrong samples; the window of its kind hides them all.
    for lag in range(3):
        hits = switched[switched + lag < count] + lag
        assert np.mean(error[hits] > 1) > 0.9


def test_toggle_alternates_and_no_sample_looks_missing() -> None:
    for select, options in ((0x80, 0), (0x40, 0), (0x01, 2), (0, 0)):
        raw = _streaming(select=select, options=options).instrument.truth(0, SECOND)
        toggle = (raw[:, 1] >> 1) & 1
        assert np.array_equal(toggle, np.arange(SECOND) & 1)
        assert not (raw == 0xFFFF).all(axis=1).any()


@pytest.mark.parametrize("index", range(7))
def test_fixed_ranges_saturate(index: int) -> None:
    instrument = _streaming(select=1 << index).instrument
    raw = instrument.truth(0, 2 * SECOND)
    assert (ranges(raw) == index).all()
    code = raw[:, 0] >> 2
    ideal = instrument.ideal(0, 2 * SECOND).current
    top = (CODE_MAX + encode.CURRENT_OFFSET[index]) * encode.CURRENT_GAIN[index]
    assert (code[ideal > 1.01 * top] == CODE_MAX).all()
    assert np.any(ideal > 1.01 * top) == (index >= 3)


def test_off_disconnects_the_target() -> None:
    host = _streaming(select=protocol.SELECT_OFF)
    raw = words(host.read(100))
    assert (ranges(raw) == 7).all()
    current, voltage, _ = encode.calibrate(raw, 0)
    assert (current == 0).all()
    assert np.abs(voltage).max() < 0.01


def test_voltage_range_is_in_every_frame() -> None:
    host = _streaming(options=protocol.OPTION_VOLTAGE_RANGE)
    frames = host.read(10)
    assert (frames[:, 1] == 0x8200).all()
    voltage = encode.calibrate(words(frames), 1)[1]
    assert np.allclose(voltage, 3.3, atol=0.01)
    assert np.array_equal(words(frames), host.instrument.truth(0, 10 * FRAME_SAMPLES))


def test_pins_on_the_least_significant_bits() -> None:
    host = Host("js110:seed=7,pace=fast")
    host.put(Request.EXTIO, Extio(current_lsb=2, voltage_lsb=3).pack())
    host.stream()
    raw = host.instrument.truth(0, 2 * SECOND)
    gpi = host.instrument.ideal(0, 2 * SECOND).gpi
    assert np.array_equal((raw[:, 0] >> 2) & 1, gpi & 1)
    assert np.array_equal((raw[:, 1] >> 2) & 1, gpi >> 1)
    plain = AUTO.instrument.truth(0, 2 * SECOND)
    assert np.array_equal(raw | 4, plain | 4)  # nothing else changed


def test_overflow_on_the_least_significant_bit() -> None:
    options = protocol.OPTION_OVERFLOW_TO_LSB
    raw = _streaming(select=0x40, options=options).instrument.truth(0, SECOND)
    over = (raw[:, 0] >> 3) == CODE_MAX >> 1
    flag = ((raw[:, 0] >> 2) & 1).astype(bool)
    assert 0 < flag.sum() < len(flag)
    assert over[flag].all()
    assert not flag[~over].any()


@given(st.integers(0, 3 * SECOND), st.integers(1, 400_000))
def test_totals_are_those_of_the_words(start: int, count: int) -> None:
    instrument = AUTO.instrument
    values = encode.calibrate(instrument.truth(start, start + count), 0)
    totals = instrument.totals(start, start + count)
    assert totals.samples == count
    assert totals.sums == pytest.approx(values.sum(axis=1, dtype=np.float64), rel=1e-12)
    assert totals.least == pytest.approx(values.min(axis=1), rel=0)
    assert totals.most == pytest.approx(values.max(axis=1), rel=0)
    charge = instrument.charge(start, start + count)
    assert charge == pytest.approx(values[0].sum(dtype=np.float64) / SECOND, rel=1e-12)


def test_power_off_and_on_shows_discharge_and_inrush() -> None:
    host = _streaming()
    host.read(100)
    host.set(select=0, streaming=protocol.STREAM_ON)
    host.read(1000)
    host.set(select=protocol.SELECT_AUTO, streaming=protocol.STREAM_ON)
    host.read(1000)
    raw = host.instrument.truth(0, 2100 * FRAME_SAMPLES)
    current, voltage, _ = encode.calibrate(raw, 0)
    used = ranges(raw)
    off, on = 100 * FRAME_SAMPLES, 1100 * FRAME_SAMPLES
    assert (used[:off] != 7).all()
    assert (used[off:on] == 7).all()
    assert (used[on:] != 7).all()
    assert voltage[off] > 3 > 0.1 > voltage[on - 1]
    assert voltage[on] < 0.1 < 3 < voltage[-1]
    assert current[on + 10 : on + 100].max() > 0.25
    assert np.median(current[-FRAME_SAMPLES:]) < 1e-3
    ideal = host.instrument.ideal(0, len(raw)).current
    assert ideal[on] == pytest.approx(0.35, abs=0.01)
    assert not ideal[off:on].any()


def test_a_planned_change_comes_at_its_frame() -> None:
    host = _streaming()
    host.instrument.plan(5, options=protocol.OPTION_VOLTAGE_RANGE)
    host.instrument.plan(9, select=0x01)
    frames = host.read(12)
    assert [int(word) >> 15 for word in frames[:, 1]] == [0] * 5 + [1] * 7
    used = ranges(words(frames)).reshape(12, -1)
    assert (used[:9] == 6).all()
    assert (used[9:] == 0).all()
    assert np.array_equal(words(frames), host.instrument.truth(0, 12 * FRAME_SAMPLES))
    assert np.abs(encode.calibrate(words(frames[5:9]), 1)[1] - 3.3).max() < 0.01
    fixed = _streaming(select=0x01, options=2).instrument.truth(
        9 * FRAME_SAMPLES, 12 * FRAME_SAMPLES
    )
    wrong = np.flatnonzero((words(frames[9:]) != fixed).any(axis=1))
    assert wrong[0] == 0  # the glitch of this switch, and nothing else
    assert 3 <= len(wrong) <= wrong[-1] + 1 <= 8


def test_on_instrument_statistics_come_once_per_window() -> None:
    host = _streaming()
    frames = 3 * WINDOW // FRAME_SAMPLES + 100
    host.read(frames // 3)
    first = host.status().statistics
    host.put(Request.EXTIO, Extio(gpo0=1).pack())  # no window is cut by it
    host.read(frames - frames // 3)
    statistics = host.status().statistics
    assert first is not None
    assert statistics is not None
    assert statistics.samples_this == WINDOW
    stop = statistics.samples_total - host.instrument.first_sample
    assert 0 <= 3 * WINDOW - stop < WINDOW
    totals = host.instrument.totals(stop - WINDOW, stop)
    means = totals.sums / WINDOW
    assert statistics.current_mean == pytest.approx(means[0] * 2**27, abs=1)
    assert statistics.voltage_mean == pytest.approx(means[1] * 2**17, abs=1)
    assert statistics.power_mean == pytest.approx(means[2] * 2**34, abs=1)
    assert statistics.current_max == pytest.approx(totals.most[0] * 2**27, abs=1)
    assert statistics.power_min == pytest.approx(totals.least[2] * 2**21, abs=1)
    assert statistics.charge - first.charge == pytest.approx(
        host.instrument.charge(stop - 2 * WINDOW, stop) * 2**27, abs=2
    )
    again = host.status().statistics
    assert again is not None
    assert (again.samples_this, again.charge) == (0, statistics.charge)


def test_a_stream_after_other_settings_is_as_repeatable_as_the_first() -> None:
    host = _streaming()
    host.read(10)
    host.set()
    host.stream(select=protocol.SELECT_OFF)
    assert np.abs(encode.calibrate(words(host.read(10)), 0)[1]).max() < 0.01  # long discharged
    host.set()
    host.stream()
    assert np.array_equal(words(host.read(1000)), AUTO.instrument.truth(0, 126_000))
