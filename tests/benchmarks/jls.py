"""Speed of recordings against the maker's software: ``python -m tests.benchmarks.jls``.

Both sides do the same on the same files in the same run; what counts is the ratio, and lines that
have one wanted say so. Writing is timed without the close: ours then waits until all is on disk,
which theirs does not. Reading uses a 10-minute raw recording at 2 MSPS (4.8 GB, in a temporary
directory, removed afterwards; ``--minutes`` makes it shorter), from the page cache. "cold" is the
first query after ``open``. All other queries find the index known. Their random stretches are new
in every round and for both readers, which are opened anew; "again" are the same stretches a second
time: their checksums are verified then, which takes a good part of the first look. The file is
read once before each round, and rounds take turns in who is first, for on a virtual machine memory
that was not used for a while can be slow at first. The fastest round counts for each side.

Theirs goes from block to block up to each stretch, from the start of the file if it lies behind the
last one, and keeps no more than the data record and the reductions it read last. It computes the
checksum of every record it reads, as ours does at its first use, but only logs a wrong one.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from joulescope import data_recorder as theirs

from daq_ioc.jls import data_recorder as ours
from daq_ioc.jls.reduction import from_bits, reduce_windows
from daq_ioc.jls.writer import Writer
from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.container import crc32
from daq_ioc.statistics import FIELDS
from tests.jls.sources import Source

RATE = 2_000_000
RECORD = 400_000
RANDOM = 40
ROUNDS = 8


def samples(count: int) -> dict[str, Any]:
    """Plausible raw samples with range switches, and their six fields."""
    rng = np.random.default_rng(1)
    k = np.arange(count)
    ranges = np.where(k // 100_000 % 2, 3, 2).astype(np.uint16)
    current = (3000 + 500 * np.sin(k / 200) + rng.normal(0, 20, count)).astype(np.uint16)
    voltage = (6000 + rng.normal(0, 5, count)).astype(np.uint16)
    raw = words.encode(current, voltage, ranges)
    calibration = Calibration.make([-2800] * 7, [1e-3] * 7, [-1100] * 2, [1e-3] * 2)
    return {"raw": raw, **from_bits(*words.decode(raw, calibration, 0))}


def make(path: Path, minutes: float) -> int:
    """Write the recording to read from; return its number of samples."""
    signals = samples(RECORD)
    rows = reduce_windows({name: signals[name] for name in FIELDS}, 20_000)
    count = round(minutes * 60 * RATE / RECORD)
    writer = Writer(path)
    writer.start(RATE)
    for k in range(count):
        writer.write_record(k * RECORD, signals["raw"], rows)
    writer.close()
    return count * RECORD


def seconds(call: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Report:
    """Prints lines and remembers whether all wanted ratios were reached."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def line(self, name: str, mine: float, other: float, wanted: float | None) -> None:
        ratio = other / mine
        mark = (
            ""
            if wanted is None
            else f"  wanted {wanted:5.2f}  {'ok' if ratio >= wanted else 'MISSED'}"
        )
        if wanted is not None and ratio < wanted:
            self.missed.append(name)
        print(
            f"{name:36} {mine * 1e3:10.3f} ms {other * 1e3:10.3f} ms  x{ratio:7.2f}{mark}",
            flush=True,
        )


Stretches = list[tuple[int, ...]]


def stretches(size: int, span: int, seed: int, *more: int, count: int = RANDOM) -> Stretches:
    """Random stretches of ``span`` samples, as arguments of a query with ``more`` of them."""
    starts = np.random.default_rng((span, seed)).integers(0, max(1, size - span), count)
    return [(start, min(start + span, size), *more) for start in starts.tolist()]


def each(reader: Any, method: str, arguments: Stretches) -> float:
    """Seconds per query."""
    call = getattr(reader, method)

    def run() -> None:
        for args in arguments:
            call(*args)

    return seconds(run) / len(arguments)


def indexed(module: Any, path: Path, size: int) -> Any:
    """A reader that knows the index and has seen no samples."""
    reader = module.DataReader().open(str(path))
    reader.statistics_get(0, size)
    return reader


def cold(module: Any, path: Path, start: int, stop: int) -> float:
    """Seconds from opening the file to the statistics of a stretch."""
    return seconds(lambda: module.DataReader().open(str(path)).statistics_get(start, stop))


def touch(path: Path) -> None:
    """Have all of the file in memory."""
    buffer = bytearray(1 << 21)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def reading(path: Path, size: int, report: Report) -> None:
    print(f"\nreading {size / RATE / 60:g} minutes at 2 MSPS {'':13} ours          theirs")
    touch(path)
    for name, start, stop in (
        ("cold: open, statistics of 1 s", size // 2 + 123, size // 2 + 123 + RATE),
        ("cold: open, statistics of the whole", 0, size),
    ):
        times = [[cold(m, path, start, stop) for m in (ours, theirs)] for _ in range(ROUNDS)]
        mine, other = (min(taken) for taken in zip(*times, strict=True))
        report.line(name, mine, other, 1.0)
    cases: tuple[tuple[str, str, Callable[[int], Stretches], float], ...] = (
        ("statistics of 1 s", "statistics_get", lambda k: stretches(size, RATE, k), 20),
        ("statistics of 1 min", "statistics_get", lambda k: stretches(size, 60 * RATE, k), 20),
        ("statistics of the whole", "statistics_get", lambda _: [(0, size)] * 5, 10),
        ("1000 points of the whole", "data_get", lambda _: [(0, size, size // 1000)] * 5, 10),
        (
            "1000 points of 0.1 s",
            "data_get",
            lambda k: stretches(size, RATE // 10, k, 200, count=10),
            10,
        ),
        (
            "1000 points of 1 s",
            "data_get",
            lambda k: stretches(size, RATE, k, 2000, count=10),
            10,
        ),
    )
    for name, method, arguments, wanted in cases:
        first, again = compare(path, size, method, arguments)
        report.line(name, *first, wanted)
        report.line(f"{name}, again", *again, wanted)


def compare(
    path: Path, size: int, method: str, arguments: Callable[[int], Stretches]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds per query, ours and theirs, the first time and again."""
    best = {(turn, module): math.inf for turn in range(2) for module in (ours, theirs)}
    for k in range(ROUNDS):
        touch(path)
        readers = [(m, indexed(m, path, size)) for m in (ours, theirs)]
        for turn in range(2):
            for module, reader in readers[:: 1 - k % 2 * 2]:
                taken = each(reader, method, arguments(k))
                best[turn, module] = min(best[turn, module], taken)
        for _, reader in readers:
            reader.close()
    first, again = ((best[turn, ours], best[turn, theirs]) for turn in range(2))
    return first, again


class Ring(Source):
    """A stream buffer whose samples repeat every data record, and cost nothing to get."""

    def __init__(self, signals: dict[str, Any], *, raw: bool) -> None:
        super().__init__(RATE, signals if raw else {name: signals[name] for name in FIELDS})
        self.made = reduce_windows({name: signals[name] for name in FIELDS}, 20_000)

    def samples_get(self, start: int, stop: int, fields: Any) -> Any:
        return super().samples_get(0, stop - start, fields)

    def data_get(self, start: int, stop: int, increment: int, out: Any) -> None:
        out[:] = self.made


def record(module: Any, path: Path, source: Ring, count: int) -> float:
    """Seconds to write ``count`` data records to a file, which is closed afterwards."""
    path.unlink(missing_ok=True)
    source.filled = 0
    recorder = module.DataRecorder(str(path))
    recorder.stream_notify(source)

    def run() -> None:
        for k in range(1, count + 1):
            source.filled = k * RECORD
            recorder.stream_notify(source)

    taken = seconds(run)
    recorder.close()
    return taken


def plain(path: Path, source: Ring, count: int) -> float:
    """Seconds to write the same bytes with their CRC-32 and nothing else."""
    path.unlink(missing_ok=True)
    data = source.signals["raw"].tobytes()
    head = bytes(16)

    def run() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(count):
                crc32(data)
                file.write(head)
                file.write(data)

    return seconds(run)


def writing(folder: Path, report: Report) -> None:
    print(f"\nwriting {'':30} ours          theirs")
    signals = samples(RECORD)
    for name, raw, count, wanted in (("raw", True, 150, 1.25), ("float", False, 50, 1.5)):
        source = Ring(signals, raw=raw)
        times: dict[str, list[float]] = {"ours": [], "theirs": [], "plain": []}
        for _ in range(12):
            times["ours"].append(record(ours, folder / "a.jls", source, count))
            times["theirs"].append(record(theirs, folder / "b.jls", source, count))
            if raw:
                times["plain"].append(plain(folder / "c", source, count))
        best = {key: min(values) for key, values in times.items() if values}
        report.line(f"write {name}, {count / 5:g} s", best["ours"], best["theirs"], wanted)
        if raw:
            report.line("write raw / bytes and CRC-32 alone", best["ours"], best["plain"], 0.9)


@contextmanager
def quiet() -> Iterator[None]:
    """The maker's software logs much."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--dir", type=Path, help="where to put the files (default: temporary)")
    args = parser.parse_args()
    report = Report()
    with quiet(), tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        writing(folder, report)
        for file in folder.iterdir():
            file.unlink()
        size = make(folder / "long.jls", args.minutes)
        reading(folder / "long.jls", size, report)
    print(f"\n{'all reached' if not report.missed else 'missed: ' + ', '.join(report.missed)}")
    return bool(report.missed)


if __name__ == "__main__":
    sys.exit(main())
