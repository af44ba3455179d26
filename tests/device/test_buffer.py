"""The circular buffer: right rows by id, and no silent loss for a reader that is late."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daq_ioc.device.buffer import Column, OverrunError, RingBuffer


def make(capacity: int) -> RingBuffer:
    return RingBuffer({"a": Column(np.int64, -1), "b": Column(np.float32, np.nan, (2,))}, capacity)


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    a = np.arange(start, stop)
    return {"a": a, "b": np.stack([a, a / 2], axis=1).astype(np.float32)}


def test_pointer() -> None:
    buffer = make(4)
    assert buffer.pointer == -1
    for k in range(10):
        buffer.append(k, rows(k, k + 1))
        assert buffer.pointer == k % 4
    assert len(buffer) == 4
    assert buffer.row_bytes == 16


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=12),
)
def test_rows_are_found_by_id(capacity: int, steps: list[tuple[int, int]]) -> None:
    """Any blocks, any gaps: what is there is right, gaps are filled, the rest is refused."""
    buffer = make(capacity)
    truth: dict[int, int] = {}
    position = 0
    for gap, count in steps:
        begin = position + gap
        if truth:
            truth.update(dict.fromkeys(range(position, begin), -1))
        buffer.append(begin, rows(begin, begin + count))
        truth.update({k: k for k in range(begin, begin + count)})
        position = begin + count
        assert buffer.stop_id == position
        assert len(buffer) <= capacity
        got = buffer.read(buffer.start_id, buffer.stop_id)
        expected = [truth.get(k, -1) for k in range(buffer.start_id, position)]
        assert got["a"].tolist() == expected
        assert np.array_equal(np.isnan(got["b"][:, 0]), got["a"] == -1)
        view = buffer.view(buffer.start_id, buffer.stop_id, "a")
        assert view.tolist() == expected
        if buffer.start_id > 0:
            with pytest.raises(OverrunError) as error:
                buffer.read(buffer.start_id - 1, position)
            assert error.value.start_id == buffer.start_id
        with pytest.raises(IndexError):
            buffer.read(position, position + 1)
        newest = buffer.last(3, "a")["a"].tolist()
        assert newest == expected[-3:]


def test_ids_only_grow_and_a_refused_block_changes_nothing() -> None:
    buffer = make(8)
    buffer.append(5, rows(5, 9))
    with pytest.raises(ValueError, match="only grow"):
        buffer.append(8, rows(8, 9))
    assert (buffer.start_id, buffer.stop_id) == (5, 9)


def test_waiting_ends_when_rows_come_or_somebody_wakes() -> None:
    buffer = make(8)
    assert not buffer.wait(1, 0.01)
    timer = threading.Timer(0.05, lambda: buffer.append(0, rows(0, 3)))
    timer.start()
    assert buffer.wait(3, 10)
    timer.join()
    timer = threading.Timer(0.05, buffer.wake)
    timer.start()
    began = time.monotonic()
    assert not buffer.wait(4, 10)
    assert time.monotonic() - began < 9
    timer.join()


def test_a_reader_beside_a_fast_writer_sees_no_mixed_rows() -> None:
    """Either the rows asked for, or OverrunError: never rows from two times."""
    buffer = make(4096)
    stop = threading.Event()

    def write() -> None:
        position = 0
        while not stop.is_set():
            buffer.append(position, rows(position, position + 1000))
            position += 1000

    writer = threading.Thread(target=write)
    writer.start()
    good = late = 0
    deadline = time.monotonic() + 20.0
    try:
        while (good < 1000 or not late) and time.monotonic() < deadline:
            start = buffer.start_id
            end = min(start + 3000, buffer.stop_id)
            try:
                got = buffer.read(start, end)["a"]
            except OverrunError:
                late += 1
                continue
            good += 1
            assert np.array_equal(got, np.arange(start, end))
    finally:
        stop.set()
        writer.join()
    assert good
    assert late, "the writer should have overtaken the reader at times"
