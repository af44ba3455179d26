"""The instrument misbehaves, below the driver: the IOC tells so, goes on, and leaks nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.bench import FRAME, STREAMING, Bench, recorded
from tests.faults.ca import Client
from tests.faults.conftest import Figure

RECONNECTED_WITHIN = 2.0
"""s from plugging in, as the README promises."""

DISCONNECTED, FAULT = 0, 3
NO_ALARM, INVALID = 0, 3


def reconnected(client: Client) -> float:
    """Wait until readings are valid again; s since the call."""
    began = time.monotonic()
    client.wait("STATE", STREAMING)
    while client.read("CURRENT").severity == INVALID:
        assert time.monotonic() < began + 20
        time.sleep(0.005)
    return time.monotonic() - began


def test_replugged_at_random_moments(
    bench: Callable[..., Bench], long: bool, figure: Figure
) -> None:
    """Also while it is opened, during puts, and while recording; no leak from cycle to cycle."""
    rng = random.Random(5)
    running = bench()
    client = running.streaming()
    took: list[float] = []
    files: list[Path] = []
    stop = threading.Event()
    puts = 0

    def putting() -> None:
        """Puts all the time, so that some meet the unplugging; some are refused meanwhile."""
        nonlocal puts
        with Client(running.ioc.port) as other:
            while not stop.is_set():
                other.put("GPO0", puts % 2)
                puts += 1
                stop.wait(0.02)

    thread = threading.Thread(target=putting)
    thread.start()
    try:
        cycles = 100 if long else 12
        for k in range(cycles):
            if k % 3 == 0:
                assert client.put("RECORD_START", 1)
                files.append(Path(client.get("RECORD_FILE")))
                time.sleep(1.1)  # file names differ by the second
            time.sleep(rng.uniform(0, 0.5))
            running.instrument("unplug")
            client.wait("STATE", DISCONNECTED)
            assert client.read("CURRENT").severity == INVALID
            assert "plugged" in client.get("MESSAGE")
            if k % 3 == 1:  # pulled again while it is being opened
                running.instrument("plug")
                time.sleep(rng.uniform(0, 0.6))
                running.instrument("unplug")
            time.sleep(rng.uniform(0, 0.3))
            running.instrument("plug")
            took.append(reconnected(client))
            assert client.get("MESSAGE") == ""
            if k == 3:
                before = running.footprint()
        after = running.footprint()
    finally:
        stop.set()
        thread.join(60)
    assert client.get("RECORD_STATE") == 0
    checked = [recorded(path) for path in files]
    assert [found.wrong for found in checked] == [0] * len(files)
    assert client.get("DROPPED") == 0
    figure(
        f"{cycles} replugs, {puts} puts, {len(files)} recordings cut off and right: reconnected in "
        f"at most {max(took):.2f} s; threads {before[0]} -> {after[0]}, handles {before[1]} -> "
        f"{after[1]}, memory {before[2]:.0f} -> {after[2]:.0f} MB"
    )
    assert max(took) <= RECONNECTED_WITHIN
    assert after[0] <= before[0] + 2  # a put or the end of a recording may be under way
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] + 30
    running.no_traceback()


# What is sent wrong, and how many samples are lost by it.
FRAMES = {
    "lose 5": 5 * FRAME,
    "lose 10000": 10000 * FRAME,
    "duplicate": 0,
    "backward 3": FRAME,
    "garbage": FRAME,
    "frame_type 2": FRAME,
    "frame_length 100": 0,
    "short 100": FRAME,
    "short 0": FRAME,
    "stall": 0,
    "error": 0,
    "missing 50": 50,
    "flip_toggle": 0,
    "frame_status 1": 0,
}


def test_frames_that_are_wrong(bench: Callable[..., Bench], figure: Figure) -> None:
    """Each loses what it must and no more, DROPPED and RECORD_DROPPED say so, and it streams on."""
    running = bench()
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    expected = 0
    for command, lost in FRAMES.items():
        running.instrument(command)
        expected += lost
        samples = client.get("SAMPLES")
        client.wait_more("SAMPLES", samples + lost + 600_000)
        assert client.get("DROPPED") == expected, command
        assert client.get("STATE") == STREAMING, command
    assert client.put("RECORD_STOP", 1)
    dropped = client.get("RECORD_DROPPED")
    found = recorded(Path(client.get("RECORD_FILE")))
    figure(
        f"{len(FRAMES)} kinds: {expected} samples lost, DROPPED {client.get('DROPPED'):.0f}, "
        f"RECORD_DROPPED {dropped:.0f}, missing in the file {len(found.missing)}"
    )
    assert dropped == len(found.missing) == expected
    assert found.wrong == FRAME  # the frame whose toggle bits were inverted, on purpose
    assert client.get("RECONNECTS") == 0
    running.no_traceback()


# What is answered wrong, and what the message then names.
REQUESTS = {
    "reply CALIBRATION rubbish": "CALIBRATION",
    "reply CALIBRATION ''": "CALIBRATION",
    "reply SERIAL_NUMBER 0123456789abcdef": "CALIBRATION",
    "reply STATUS rubbish": "STATUS",
    "stall_request SETTINGS": "SETTINGS",
    "busy on": "SETTINGS",
    "result 3": "SETTINGS",
    "delay 30 CALIBRATION": "CALIBRATION",
}


def test_requests_that_are_answered_wrong(bench: Callable[..., Bench], figure: Figure) -> None:
    """A fault that says which request it was, for as long as it is so, and not longer."""
    running = bench()
    client = running.streaming()
    for fault, says in REQUESTS.items():
        running.instrument("unplug")
        client.wait("STATE", DISCONNECTED)
        running.instrument(fault)
        running.instrument("plug")
        client.wait("STATE", FAULT)
        assert says in client.get("MESSAGE"), fault
        assert client.read("CURRENT").severity == INVALID
        running.instrument("clear")
        reconnected(client)
        assert client.get("MESSAGE") == ""
        assert client.read("STATE").severity == NO_ALARM
    figure(f"{len(REQUESTS)} requests answered wrong: told, and over when they are")
    running.no_traceback()


def test_what_it_can_do_without(bench: Callable[..., Bench]) -> None:
    """INFO that is not JSON, or not a table, and answers that come late, keep nobody from it."""
    running = bench()
    client = running.streaming()
    for fault in ("reply INFO 'no JSON'", "reply INFO [1]", "stall_request INFO", "delay 0.05"):
        running.instrument("unplug")
        client.wait("STATE", DISCONNECTED)
        running.instrument(fault)
        running.instrument("plug")
        reconnected(client)
        assert client.get("FIRMWARE") == ("1.3.2" if "delay" in fault else "")
        running.instrument("clear")
    running.no_traceback()


def test_silence(bench: Callable[..., Bench], figure: Figure) -> None:
    """A stream that brings nothing is a fault; when it flows again, so do readings."""
    running = bench()
    client = running.streaming()
    running.instrument("silent on")
    client.wait("STATE", FAULT)
    assert "no samples" in client.get("MESSAGE")
    assert client.read("VOLTAGE").severity == INVALID
    running.instrument("silent off")
    figure(f"streams again {reconnected(client):.2f} s after the silence")
    running.no_traceback()


@pytest.mark.parametrize("kind", ["wrong-serial", "bad-crc"])
def test_wrong_calibration(bench: Callable[..., Bench], kind: str) -> None:
    """No reading is better than a wrong one."""
    running = bench(emulator=f"calibration={kind}")
    client = running.client()
    client.wait("STATE", FAULT)
    assert "CALIBRATION" in client.get("MESSAGE")
    assert client.read("CURRENT").severity == INVALID
    assert not client.put("RECORD_START", 1)
    running.no_traceback()


def test_frames_of_random_faults(bench: Callable[..., Bench], long: bool, figure: Figure) -> None:
    """Any mixture, faster than it can recover from: it lives, and is well once they end."""
    rng = random.Random(6)
    running = bench()
    client = running.streaming()
    commands = [*FRAMES, "flip_voltage_range", "overflow"]
    count = 2000 if long else 200
    for _ in range(count):
        running.instrument(rng.choice(commands[2:]))
        time.sleep(rng.choice((0, 0, 0.01, 0.05)))
        with suppress(TimeoutError):
            client.get("STATE")
    running.instrument("clear")
    reconnected(client)
    before = client.get("DROPPED")
    client.wait_more("SAMPLES", client.get("SAMPLES") + 1_000_000)
    assert client.get("DROPPED") - before <= FRAME * count
    threads, handles, memory = running.footprint()
    figure(f"{count} faults: {threads} threads, {handles} handles, {memory:.0f} MB after them")
    running.no_traceback()
