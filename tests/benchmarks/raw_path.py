"""The raw path against the maker's: frames in; raw, current, voltage, bits and statistics out.

    python -m tests.benchmarks.raw_path

Both sides get the same transfers in the same run, fill a circular buffer and reduce 20 000 samples
at a time; samples and bits must be equal bit for bit, statistics to 1e-9. Prints the ratio of
samples per second, best of several rounds on each side, taken in turn: for what comes at once to a
reader that keeps up (256 frames, 16 ms), and to one that has to catch up (1280 frames).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from joulescope.v0.stream_buffer import StreamBuffer

from daq_ioc.device.stream import Stream
from daq_ioc.driver.joulescope.js110.frames import FRAME_SECONDS, FrameParser
from daq_ioc.driver.joulescope.js110.protocol import FRAME_BYTES, FRAME_SAMPLES, SAMPLE_RATE
from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.suppression import RawProcessor
from daq_ioc.samples import SampleBlock

TRANSFERS = (256, 1280)
SECONDS = 2
ROUNDS = 15
CALIBRATION = Calibration.make(
    [-2806.7, -2822.7, -2820.9, -2822.6, -2820.5, -2820.6, -2818.7],
    [6.829e-4, 1.638e-4, 1.463e-5, 1.494e-6, 1.497e-7, 1.498e-8, 1.498e-9],
    [-1150.6, -2041.7],
    [9.468e-4, 2.934e-4],
    "00" * 16,
)


def transfers(frames_each: int, switches_per_second: int) -> list[npt.NDArray[np.uint8]]:
    """Two seconds of frames: noise on current and voltage, a range switch now and then."""
    count = SECONDS * SAMPLE_RATE // FRAME_SAMPLES // frames_each * frames_each
    n = count * FRAME_SAMPLES
    rng = np.random.default_rng(1)
    ranges = np.full(n, 3)
    if switches_per_second:
        ranges += np.arange(n) // (SAMPLE_RATE // switches_per_second) % 2
    raw = words.encode(rng.integers(2000, 15000, n), rng.integers(4000, 4100, n), ranges)
    frames = np.zeros((count, FRAME_BYTES), np.uint8)
    halves = frames.view("<u2")
    halves[:, 0] = 1
    halves[:, 1] = FRAME_BYTES
    halves[:, 2] = np.arange(count) % 65536
    halves[:, 4:] = raw.reshape(count, -1)
    return [t.reshape(-1) for t in np.split(frames, count // frames_each)]


class Ours:
    """The driver's parser and processor, and the device's stream, as they run in the IOC."""

    def __init__(self) -> None:
        self.stream = Stream(SAMPLE_RATE, SECONDS + 0.1)
        self.stream.dt = 3600

    def run(self, data: list[npt.NDArray[np.uint8]]) -> float:
        parser, processor = FrameParser(0.0), RawProcessor(CALIBRATION)
        self.stream.begin()
        first = 0
        began = time.perf_counter()
        for k, transfer in enumerate(data, 1):
            arrival = k * len(transfer) / FRAME_BYTES * FRAME_SECONDS
            for run in parser.parse(transfer, arrival):
                assert run.raw is not None
                s = processor.process(run.raw, run.voltage_range)
                block = SampleBlock(
                    first, s.raw, s.current, s.voltage, s.bits, 0, arrival, first + len(s)
                )
                first += len(s)
                self.stream.take(block)
        self.stream.end()  # reductions that wait for others to be made with
        return time.perf_counter() - began


class Theirs:
    """The maker's StreamBuffer with the same sizes."""

    def __init__(self) -> None:
        self.buffer = StreamBuffer(SECONDS + 0.1, [200, 100, 50], float(SAMPLE_RATE))
        self.buffer.calibration_set(
            CALIBRATION.current_offset,
            CALIBRATION.current_gain,
            CALIBRATION.voltage_offset,
            CALIBRATION.voltage_gain,
        )
        self.buffer.suppress_mode = "interp_1_n_1"

    def run(self, data: list[npt.NDArray[np.uint8]]) -> float:
        self.buffer.reset()
        began = time.perf_counter()
        for transfer in data:
            self.buffer.insert(transfer)
            self.buffer.process()
        return time.perf_counter() - began


def check(ours: Ours, theirs: Theirs) -> int:
    """Raise AssertionError where the two differ; the number of samples compared."""
    stream, base = ours.stream, ours.stream.first_id
    stop: int = min(stream.buffer.stop_id - base, theirs.buffer.sample_id_range[1])
    stop = stop // 20_000 * 20_000
    mine = stream.buffer.read(base, base + stop)
    fields = ["raw", "current", "voltage", "bits"]
    signals = theirs.buffer.samples_get(0, stop, fields=fields)["signals"]
    for name in fields:
        a, b = mine[name], signals[name]["value"]
        assert np.array_equal(a, b, equal_nan=name in ("current", "voltage")), name
    rows: Any = theirs.buffer.data_get(0, stop, 20_000)
    own = stream.reductions.read(base // 20_000, (base + stop) // 20_000, "row")["row"]
    assert np.array_equal(own["length"], rows["length"])
    for name in ("mean", "variance", "min", "max"):
        np.testing.assert_allclose(own[name], rows[name], rtol=1e-9, atol=1e-15)
    return stop


def main() -> None:
    print(f"{'frames':>6} {'switches/s':>10} {'ours MS/s':>10} {'theirs MS/s':>12} {'ratio':>6}")
    for frames_each in TRANSFERS:
        for switches in (0, 50, 1000):
            measure(frames_each, switches)
    # The maker's software has no output for a switch at every sample.
    data, ours = transfers(TRANSFERS[0], SAMPLE_RATE), Ours()
    speed = samples_of(data) / min(ours.run(data) for _ in range(ROUNDS)) / 1e6
    print(f"{TRANSFERS[0]:6d} {SAMPLE_RATE:10d} {speed:10.0f} {'-':>12} {'-':>6}")


def samples_of(data: list[npt.NDArray[np.uint8]]) -> int:
    return sum(map(len, data)) // FRAME_BYTES * FRAME_SAMPLES


def measure(frames_each: int, switches: int) -> None:
    data = transfers(frames_each, switches)
    n = samples_of(data)
    ours, theirs = Ours(), Theirs()
    rounds = [(ours.run(data), theirs.run(data)) for _ in range(ROUNDS)]
    check(ours, theirs)
    a, b = (n / min(column) / 1e6 for column in zip(*rounds, strict=True))
    print(f"{frames_each:6d} {switches:10d} {a:10.0f} {b:12.0f} {a / b:6.2f}")


if __name__ == "__main__":
    main()
