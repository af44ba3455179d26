"""Frames: the maker's samples from the maker's frames, and nothing ever out of place."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daq_ioc.driver.joulescope.js110.frames import FRAME_SECONDS, FrameParser, Run
from daq_ioc.driver.joulescope.js110.protocol import FRAME_BYTES, FRAME_SAMPLES
from daq_ioc.joulescope.suppression import RawProcessor
from tests.conftest import calibration_of, same_floats

Raw = npt.NDArray[np.uint16]


def frames(indices: Any, voltage_range: int = 0) -> npt.NDArray[np.uint8]:
    """Good frames uint8 (n, 512) of these indices; both words of sample k of frame i are i * 4."""
    numbers = np.asarray(indices, np.int64)
    out = np.zeros((len(numbers), FRAME_BYTES), np.uint8)
    halves = out.view("<u2")
    halves[:, 0] = 1
    halves[:, 1] = FRAME_BYTES | voltage_range << 15
    halves[:, 2] = numbers % 65536
    halves[:, 4:] = (numbers % 10000 * 4)[:, np.newaxis]
    return out


def samples(runs: list[Run]) -> Raw:
    """All raw words, missing ones included."""
    parts = [
        r.raw if r.raw is not None else np.full((r.missing, 2), 0xFFFF, np.uint16) for r in runs
    ]
    return np.concatenate([np.empty((0, 2), np.uint16), *parts])


def numbers(runs: list[Run]) -> list[int | None]:
    """Which frame each frame's worth of samples is from, None if it is missing."""
    words = samples(runs)[::FRAME_SAMPLES, 0]
    return [None if word == 0xFFFF else int(word) // 4 for word in words]


class Wire:
    """Frames that arrive at the pace of the instrument, some of them lost on the way."""

    def __init__(self) -> None:
        self.parser = FrameParser(1000)
        self.taken = 0
        self.runs: list[Run] = []

    def send(self, count: int) -> None:
        for begin in range(0, count, 256):
            n = min(256, count - begin)
            data = frames(range(self.taken, self.taken + n))
            self.taken += n
            self.deliver(data)

    def lose(self, count: int) -> None:
        self.taken += count

    def deliver(self, data: npt.NDArray[np.uint8], *, prompt: bool = True) -> list[Run]:
        runs = self.parser.parse(data, 1000 + self.taken * FRAME_SECONDS, prompt=prompt)
        self.runs += runs
        return runs


@pytest.mark.parametrize("chunk", [1, 7, 64, 220])
def test_equals_the_maker(vectors: Callable[[str], dict[str, Any]], chunk: int) -> None:
    vector = vectors("js110_raw_usb_frames")
    data = vector["frames"].reshape(-1, FRAME_BYTES)
    parser, processor = FrameParser(0), RawProcessor(calibration_of(vector))
    runs, out = [], []
    for begin in range(0, len(data), chunk):
        for run in parser.parse(data[begin : begin + chunk].tobytes(), begin * FRAME_SECONDS):
            runs.append(run)
            out.append(processor.process(samples([run]), run.voltage_range))
    assert np.array_equal(samples(runs), vector["raw"])
    assert sum(map(len, out)) == vector["n_out"]
    assert same_floats(np.concatenate([o.current for o in out]), vector["current"])
    assert same_floats(np.concatenate([o.voltage for o in out]), vector["voltage"])
    assert np.array_equal(np.concatenate([o.bits for o in out]), vector["bits"])
    assert parser.counters.foreign == 2
    assert parser.counters.marked == 2


@pytest.mark.parametrize("lost", [1, 5, 32767, 32768, 60000, 65530, 65535, 65536, 65537, 200000])
def test_lost_frames_become_missing_samples_however_many(lost: int) -> None:
    wire = Wire()
    wire.send(1000)
    wire.lose(lost)
    wire.send(1000)
    assert wire.parser.counters.lost == lost
    got = samples(wire.runs)
    assert len(got) == wire.taken * FRAME_SAMPLES
    assert wire.parser.counters.good == 2000
    assert (got[1000 * FRAME_SAMPLES : (1000 + lost) * FRAME_SAMPLES] == 0xFFFF).all()
    assert numbers(wire.runs)[-1] == (wire.taken - 1) % 10000


def test_a_loss_at_the_start_counts_from_index_0() -> None:
    wire = Wire()
    wire.lose(3)
    wire.send(2)
    assert numbers(wire.runs) == [None, None, None, 3, 4]


def test_the_index_wraps_without_loss() -> None:
    wire = Wire()
    wire.send(65536 + 500)
    assert wire.parser.counters.lost == 0
    assert len(samples(wire.runs)) == (65536 + 500) * FRAME_SAMPLES


def test_a_late_host_does_not_take_queued_frames_for_a_loss() -> None:
    """Stopped for 5 s: what was queued comes late but whole, then 75 000 frames are missing."""
    wire = Wire()
    wire.send(1000)
    queued = frames(range(1000, 1000 + 4 * 256))
    wire.taken += 80_000
    for part in np.split(queued, 4):
        wire.deliver(part, prompt=False)
    assert wire.parser.counters.lost == 0
    wire.deliver(frames(range(wire.taken, wire.taken + 256)))
    assert wire.parser.counters.lost == 80_000 - 4 * 256


def test_a_repeated_frame_is_used_once() -> None:
    wire = Wire()
    wire.send(100)
    wire.deliver(frames([98, 99, 100, 101]))
    assert numbers(wire.runs) == [*range(100), 100, 101]
    assert wire.parser.counters.repeated == 2
    assert wire.parser.counters.lost == 0


def test_a_restarted_count_goes_on_after_one_frame() -> None:
    wire = Wire()
    wire.send(10_000)
    wire.deliver(frames([0]))
    wire.deliver(frames([1, 2]))
    assert numbers(wire.runs)[-2:] == [1, 2]
    assert wire.parser.counters.lost == 0


@pytest.mark.parametrize("wrong", [0, 99, 103, 150, 30_000, 50_000, 65_535])
def test_one_wrong_index_costs_one_frame(wrong: int) -> None:
    wire = Wire()
    wire.send(100)
    data = frames([100, 101, 102, 103])
    data[1] = frames([wrong])[0]
    wire.deliver(data)
    assert numbers(wire.runs)[100:] == [100, None, 102, 103]
    assert wire.parser.counters.lost == 1


def test_a_jump_into_the_future_is_not_believed() -> None:
    wire = Wire()
    wire.send(1000)
    assert wire.deliver(frames([21_000])) == []
    wire.send(100)
    assert wire.parser.counters.lost == 0
    assert len(samples(wire.runs)) == 1100 * FRAME_SAMPLES


def test_each_frame_has_its_own_voltage_range() -> None:
    data = np.concatenate([frames([0, 1], 0), frames([2, 3, 4], 1), frames([5], 0)])
    runs = FrameParser(0).parse(data, 0.0)
    assert [(r.voltage_range, len(samples([r]))) for r in runs] == [
        (0, 2 * FRAME_SAMPLES),
        (1, 3 * FRAME_SAMPLES),
        (0, 1 * FRAME_SAMPLES),
    ]


def test_foreign_frames_and_cut_ones_are_ignored_and_counted() -> None:
    data = frames(range(6))
    data[2, 0] = 0x80
    parser = FrameParser(0)
    runs = parser.parse(data.tobytes() + b"\x01\x00", 0.0)
    assert numbers(runs) == [0, 1, None, 3, 4, 5]
    assert (parser.counters.foreign, parser.counters.partial) == (1, 1)


def test_the_memory_of_a_transfer_may_be_used_again() -> None:
    data = frames(range(4))
    runs = FrameParser(0).parse(data, 0.0)
    data[:] = 0
    assert numbers(runs) == [0, 1, 2, 3]


FRAME = st.tuples(  # its header: mostly right, in any order
    st.sampled_from([1, 1, 1, 2, 0, 255]),
    st.sampled_from([0, 0, 0, 1, 255]),
    st.sampled_from([FRAME_BYTES, FRAME_BYTES, FRAME_BYTES | 0x8000, 0, 511]),
    st.integers(0, 12) | st.integers(0, 65535),
)


@given(st.lists(FRAME, max_size=8), st.binary(max_size=600), st.integers(0, 7), st.booleans())
@example([(1, 0, FRAME_BYTES, 3), (2, 0, FRAME_BYTES, 4)], b"x", 3, True)
def test_no_bytes_break_it(
    headers: list[tuple[int, int, int, int]], rest: bytes, at: int, prompt: bool
) -> None:
    """Whatever comes: no exception, whole frames of samples, and good frames go on afterwards."""
    noise = b"".join(struct.pack("<BBHH", *header).ljust(FRAME_BYTES, b"x") for header in headers)
    wire = Wire()
    wire.send(at)
    wire.deliver(np.frombuffer(noise + rest, np.uint8), prompt=prompt)
    wire.send(20)
    wire.send(20)
    got = samples(wire.runs)
    assert len(got) % FRAME_SAMPLES == 0
    assert numbers(wire.runs)[-20:] == list(range(at + 20, at + 40))


@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(0, 20_000)), min_size=1, max_size=6),
    st.data(),
)
def test_what_arrives_stays_in_its_place(
    pieces: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Any losses, any division into transfers: sample ids tell the instant of every sample.

    Losses of more than a second do not come here: the driver gives up such a stream.
    """
    kept = []
    taken = 0
    for sent, lost in pieces:
        kept.append(np.arange(taken, taken + sent))
        taken += sent + lost
    sequence = np.concatenate(kept)
    parser, runs, begin = FrameParser(5), [], 0
    while begin < len(sequence):
        count = data.draw(st.integers(1, 400))
        part = sequence[begin : begin + count]
        runs += parser.parse(frames(part), 5 + (int(part[-1]) + 1) * FRAME_SECONDS)
        begin += count
    expected = np.full(int(sequence[-1]) + 1, -1)
    expected[sequence] = sequence % 10000
    assert [-1 if n is None else n for n in numbers(runs)] == expected.tolist()
