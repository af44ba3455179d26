"""Everything at once for a while: recording, twenty clients, and a fault now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.faults.bench import FRAME, RATE, Bench, recorded, truth
from tests.faults.ca import Client
from tests.faults.conftest import Figure

CLIENTS = 20
DISCONNECTED = 0
LOST_FRAMES = 25
SLOPE_MAX = 0.2
"""MB/s that memory may grow in the short run, where it has hardly settled; 0.01 in the long."""


def _subscriber(running: Bench, stop: threading.Event, updates: list[int]) -> None:
    """A client that subscribes to all a panel shows, and takes what comes."""
    names = ["CURRENT", "VOLTAGE", "POWER", "STATS", "CHARGE", "TIME", "CURRENT_TRACE", "STATE"]
    count = 0
    with Client(running.ioc.port) as client:
        for name in names:
            client.monitor(name)
        while not stop.is_set():
            client.receive()
            count += 1
    updates.append(count)


def test_soak(bench: Callable[..., Bench], long: bool, figure: Figure) -> None:
    """Frames are lost at known places; charge and recording are those of all other samples."""
    seconds, period = (1800, 60) if long else (36, 9)
    running = bench(options='current_ranging = "off"')
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    path = Path(client.get("RECORD_FILE"))
    client.wait_more("BUFFER_SPAN", 2.9)
    stop, updates = threading.Event(), list[int]()
    lost: list[int] = []
    memory: list[tuple[float, float]] = []
    with ExitStack() as stack:
        stack.callback(stop.set)
        threads = [
            threading.Thread(target=_subscriber, args=(running, stop, updates))
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(3)
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            if now - began > len(lost) * period:
                lost.append(int(running.instrument("frames")) + 10_000)
                running.instrument(f"lose {LOST_FRAMES} @{lost[-1]}")
            memory.append((now - began, running.footprint()[2]))
            time.sleep(0.5)
        time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join(60)
    assert client.put("RECORD_STOP", 1)
    dropped, expected = client.get("DROPPED"), len(lost) * LOST_FRAMES * FRAME
    running.instrument("unplug")  # so that CHARGE and SAMPLES are of the same samples
    client.wait("STATE", DISCONNECTED)
    taken = int(client.get("SAMPLES"))
    sums = truth().totals(0, taken).sums.copy()
    for frame in lost:
        sums -= truth().totals(frame * FRAME, (frame + LOST_FRAMES) * FRAME).sums
    charge, energy = sums[0] / RATE, sums[2] / RATE
    off = max(abs(client.get("CHARGE") / charge - 1), abs(client.get("ENERGY") / energy - 1))
    half = np.array(memory[len(memory) // 3 :])
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0])
    found = recorded(path)
    figure(
        f"{seconds} s, {CLIENTS} clients, {sum(updates)} updates, {len(lost)} faults: DROPPED "
        f"{dropped:.0f} of {expected} meant; recorded {found.samples}, wrong {found.wrong}, "
        f"missing {len(found.missing)}; charge and energy off by {off:.1e}; "
        f"memory {slope * 3600:+.1f} MB/h"
    )
    assert len(updates) == CLIENTS
    assert dropped == client.get("DROPPED") == expected
    assert found.wrong == 0
    assert client.get("RECORD_DROPPED") == len(found.missing) == expected
    assert off == pytest.approx(0, abs=1e-9)
    assert slope < (0.01 if long else SLOPE_MAX)
    running.no_traceback()
