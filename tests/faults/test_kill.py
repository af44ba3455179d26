"""The IOC is killed while it records: what was recorded is on disk, and right."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.bench import FRAME, RATE, Bench, recorded
from tests.faults.conftest import Figure

LOST_MAX = 0.25
"""s, as the README promises."""


def test_killed_while_recording(tmp_path: Path, long: bool, figure: Figure) -> None:
    """The loss is counted from the last sample that the instrument took before the kill."""
    rng = random.Random(4)
    losses, total = [], 0
    for k in range(50 if long else 5):
        place = tmp_path / str(k)
        place.mkdir()
        with Bench.running(place) as bench:
            client = bench.streaming()
            assert client.put("RECORD_START", 1)
            path = Path(client.get("RECORD_FILE"))
            time.sleep(rng.uniform(0.3, 2.5))
            taken = int(bench.instrument("frames")) * FRAME
            bench.kill()
        found = recorded(path)
        assert found.wrong == 0
        assert len(found.missing) == 0
        losses.append((taken - found.first - found.samples) / RATE)
        total += found.samples
        path.unlink()
    figure(
        f"{len(losses)} kills: every file opens, {total} samples, 0 wrong; lost at the end at most "
        f"{max(losses):.3f} s, on average {sum(losses) / len(losses):.3f} s"
    )
    assert max(losses) <= LOST_MAX


def test_the_comparison_finds_a_wrong_sample(bench: Callable[..., Bench], figure: Figure) -> None:
    """The truth used here is good for something: one flipped bit in a frame is found."""
    running = bench()
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    running.instrument("flip_toggle")
    client.wait_more("RECORD_SAMPLES", 800_000)
    assert client.put("RECORD_STOP", 1)
    found = recorded(Path(client.get("RECORD_FILE")))
    assert found.wrong == FRAME
