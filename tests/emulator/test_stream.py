"""How frames leave: indices, pace, patterns, loss, and every fault of the stream."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import usb.core

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import FRAME_SAMPLES
from daq_ioc.emulator import encode
from daq_ioc.emulator.faults import Faults
from daq_ioc.emulator.stream import FRAME_TIME, Stream
from tests.emulator.conftest import Host, Words, indices, words


def test_frames_count_from_zero_after_every_start(fast: Host) -> None:
    fast.stream()
    frames = fast.read(66_000)
    assert np.array_equal(frames[:, 2], np.arange(66_000) & 0xFFFF)
    assert (frames[:, :2] == [1, 512]).all()
    fast.set(streaming=protocol.STREAM_OFF)
    with pytest.raises(usb.core.USBTimeoutError):
        fast.read(1, timeout=1)
    fast.set(streaming=protocol.STREAM_ON)
    again = fast.read(2)
    assert indices(again) == [0, 1]
    assert np.array_equal(again, frames[:2])


def test_nothing_flows_without_power_or_source(fast: Host) -> None:
    for fields in ({"sensor_power": 0}, {"source": protocol.SOURCE_OFF}):
        fast.stream(**fields)
        with pytest.raises(usb.core.USBTimeoutError):
            fast.read(1, timeout=1)


@pytest.mark.parametrize(
    ("source", "streaming"),
    [(0x09, 0x03), (0x0A, 0x03), (0xAF, 0x03), (0x09, 0x81), (0xC0, 0x82), (0xC0, 0x83)],
)
def test_patterns(fast: Host, source: int, streaming: int) -> None:
    fast.set(source=source)
    fast.set(source=source, streaming=streaming)
    frames = np.concatenate([fast.read(600), fast.read(601)])
    assert (frames[:, 0] == 0x80).all()
    assert np.array_equal(frames[:, 2:4].copy().view("<u4").ravel(), np.arange(1201))
    payload = frames[:, 4:].copy().view("<u4").ravel()
    counter, shift = payload[::2], payload[1::2]
    assert np.array_equal(counter & 0xFFFF, np.arange(len(counter)) & 0xFFFF)
    assert np.array_equal(counter >> 16, ~counter & 0xFFFF)
    cycle = [0, *(1 << bit for bit in range(32))]
    assert shift.tolist() == [cycle[k % 33] for k in range(len(shift))]


# ---- faults

GOOD = 20
"""Frames that the tests of faults read."""


def _with(host: Host, frames: int = GOOD) -> Words:
    host.stream()
    return host.read(frames)


@pytest.mark.parametrize("lost", [1, 5, 65535])
def test_lost_frames_leave_a_gap(fast: Host, lost: int) -> None:
    fast.faults.lose(lost, at=4)
    frames = _with(fast)
    numbers = np.array([*range(4), *range(4 + lost, GOOD + lost)])
    assert indices(frames) == (numbers & 0xFFFF).tolist()
    first = (4 + lost) * FRAME_SAMPLES
    truth = fast.instrument.truth(first, first + FRAME_SAMPLES)
    assert np.array_equal(words(frames[4:5]), truth)


def test_a_fault_without_a_frame_strikes_the_next(fast: Host) -> None:
    _with(fast)
    fast.faults.lose(3)
    assert indices(fast.read(2)) == [GOOD + 3, GOOD + 4]


def test_repeated_and_backward_indices(fast: Host) -> None:
    fast.faults.duplicate(at=2)
    fast.faults.backward(3, at=5)
    frames = _with(fast)
    assert indices(frames)[:8] == [0, 1, 2, 2, 3, 4, 2, 6]
    assert np.array_equal(frames[2], frames[3])


def test_wrong_headers(fast: Host) -> None:
    fast.faults.frame_type(0x02, at=1)
    fast.faults.frame_status(9, at=2)
    fast.faults.frame_length(256, at=3)
    fast.faults.flip_voltage_range(at=4)
    frames = _with(fast)
    assert frames[:6, 0].tolist() == [1, 2, 0x0901, 1, 1, 1]
    assert frames[:6, 1].tolist() == [512, 512, 512, 256, 0x8200, 512]
    assert indices(frames) == list(range(GOOD))


def test_wrong_payloads(fast: Host) -> None:
    fast.faults.missing(10, at=1)
    fast.faults.flip_toggle(at=2)
    fast.faults.garbage(at=3)
    frames = _with(fast)
    truth = fast.instrument.truth(0, GOOD * FRAME_SAMPLES).reshape(GOOD, -1, 2)
    sent = words(frames).reshape(GOOD, -1, 2)
    assert (sent[1, :10] == 0xFFFF).all()
    assert np.array_equal(sent[1, 10:], truth[1, 10:])
    assert np.array_equal(sent[2] ^ truth[2], np.tile([0, 2], (FRAME_SAMPLES, 1)))
    assert not np.array_equal(sent[3], truth[3])
    assert np.array_equal(sent[4:], truth[4:])


def test_a_short_packet_ends_a_transfer(fast: Host) -> None:
    fast.stream()
    fast.faults.short(100, at=2)
    assert len(fast.device.read(0x82, 8 * 512, 100)) == 2 * 512 + 100
    assert indices(fast.read(1)) == [3]


def test_silence_ends_in_a_gap(live: Host) -> None:
    live.stream()
    live.faults.silent = True
    live.instrument.pause(0.002)
    live.faults.silent = False
    assert indices(live.read(60))[-1] > 60 + 20  # 2 ms are 31 frames
    live.faults.silent = True
    with pytest.raises(usb.core.USBTimeoutError):
        live.read(1, timeout=1)


def test_faults_from_another_thread_end_a_wait(live: Host) -> None:
    live.stream()
    codes: list[object] = []
    thread = threading.Thread(
        target=lambda: codes.append(live.error(lambda: live.read(100_000, timeout=0))),
        daemon=True,
    )
    thread.start()
    live.faults.stall()
    thread.join(timeout=10)
    assert codes == [(32, -9)]


# ---- pace and loss, on a clock of the test's own


def _stream(depth: int, faults: Faults | None = None) -> Stream:
    def source(start: int, stop: int) -> Words:
        frames = encode.Block.empty(stop - start).frames
        frames[:, 4] = np.arange(start, stop)
        return frames

    faults = faults or Faults(threading.Condition())
    return Stream(source, faults, start=100.0, depth=depth, realtime=True)


def _taken(stream: Stream, frames: int, now: float) -> list[int]:
    data = stream.take(frames * 512, now) or b""
    return indices(np.frombuffer(data, dtype="<u2").reshape(-1, 256))


def test_frames_come_when_they_are_sampled() -> None:
    stream = _stream(depth=1000)
    assert stream.take(512, 100.0) is None
    assert stream.ready_at(512, 100.0) == pytest.approx(100 + FRAME_TIME)
    assert stream.ready_at(16 * 512, 100.0) == pytest.approx(100 + 16 * FRAME_TIME)
    assert _taken(stream, 100, 100 + 2.5 * FRAME_TIME) == [0, 1]
    assert _taken(stream, 100, 100 + 2.9 * FRAME_TIME) == []
    due = stream.ready_at(4 * 512, 100 + 3.5 * FRAME_TIME)
    assert due == pytest.approx(100 + 6 * FRAME_TIME)
    assert due is not None
    assert _taken(stream, 4, due) == [2, 3, 4, 5]


def test_a_second_is_two_million_samples() -> None:
    stream = _stream(depth=10**6)
    stream.advance(100.0 + 63.0)
    assert stream.produced * FRAME_SAMPLES == 63 * protocol.SAMPLE_RATE


def test_a_late_host_gets_the_oldest_and_then_a_gap() -> None:
    stream = _stream(depth=10)
    assert _taken(stream, 2, 100 + 5 * FRAME_TIME) == [0, 1]
    late = 100 + 50.5 * FRAME_TIME
    assert _taken(stream, 5, late) == [2, 3, 4, 5, 6]
    assert stream.discarded == 50 - 12
    later = 100 + 52.5 * FRAME_TIME
    assert _taken(stream, 100, later) == [7, 8, 9, 10, 11, 50, 51]
    assert stream.discarded == 50 - 12
    assert stream.produced == 52


def test_a_wait_ends_with_the_frame_that_a_fault_strikes() -> None:
    faults = Faults(threading.Condition())
    stream = _stream(1000, faults)
    faults.stall(at=3)
    assert stream.ready_at(100 * 512, 100.0) == pytest.approx(100 + 4 * FRAME_TIME)


def test_silence_loses_what_is_sampled_meanwhile() -> None:
    faults = Faults(threading.Condition(), lambda: stream.advance(now))
    stream = _stream(1000, faults)
    now = 100 + 5.5 * FRAME_TIME
    faults.silent = True
    assert stream.take(512, now) is None
    assert stream.ready_at(512, now) is None
    now = 100 + 20.5 * FRAME_TIME
    faults.silent = False
    later = 100 + 22.5 * FRAME_TIME
    assert _taken(stream, 100, later) == [0, 1, 2, 3, 4, 20, 21]
    assert stream.discarded == 0


def test_loss_is_counted_by_the_instrument() -> None:
    host = Host("js110:queue_ms=0.2")
    host.stream()
    host.instrument.pause(0.005)
    frames = np.concatenate([host.read(1) for _ in range(5)])
    gap = indices(frames)[3] - indices(frames)[2] - 1
    assert gap > 0
    assert host.status().fpga_discard_counter >= gap
