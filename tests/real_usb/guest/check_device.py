"""A device in threads of its own, while the cable is pulled and put in again."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

import pytest

from daq_ioc.attributes import Severity, Status
from daq_ioc.device.device import Device, State
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.driver.joulescope.js110.protocol import SAMPLE_RATE
from tests.real_usb.guest.conftest import SERIAL, Bench, files
from tests.real_usb.guest.stream import stopped_now_and_then

READINGS = ("CURRENT", "VOLTAGE", "POWER", "STATS", "CHARGE")


def seconds_until(condition: Callable[[], bool], limit: float = 10.0) -> float:
    """How long it takes until ``condition``, s."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit, "never"
        time.sleep(0.01)
    return time.monotonic() - began


def is_invalid(device: Device) -> bool:
    readings = device.snapshot()
    states = {(readings[name].severity, readings[name].status) for name in READINGS}
    return states == {(Severity.INVALID, Status.COMM)}


def measures(device: Device) -> bool:
    return device.snapshot()["CURRENT"].severity is Severity.NO_ALARM


def samples(device: Device) -> float:
    """How many have come since the start, lost ones included."""
    value = device.snapshot()["SAMPLES"].value
    assert isinstance(value, float)
    return value


@contextlib.contextmanager
def running() -> Iterator[Device]:
    # A short buffer: fresh memory is slow in this machine.
    device = Device(Driver(serial=SERIAL, backend="usb"), dt=0.1, buffer_span=0.5)
    device.start()
    try:
        yield device
    finally:
        device.stop()


@pytest.fixture
def device() -> Iterator[Device]:
    with running() as started:
        seconds_until(lambda: measures(started))
        yield started


def test_unplug_and_replug(device: Device, bench: Bench) -> None:
    open_files = files()
    for count in range(1, 6):
        bench.unplug()
        noticed = seconds_until(lambda: is_invalid(device))
        assert device.state is State.DISCONNECTED
        assert "unplugged" in str(device.snapshot()["MESSAGE"].value)
        time.sleep(1.3)
        assert device.state is State.DISCONNECTED
        bench.plug()
        resumed = seconds_until(lambda: measures(device))
        print(f"noticed after {noticed:.3f} s, measures again after {resumed:.3f} s")
        assert noticed < 1.0
        assert resumed < 2.0
        assert device.snapshot()["RECONNECTS"].value == count
        assert files() == open_files


def test_a_loose_plug(device: Device, bench: Bench) -> None:
    """Contact is lost and found at any moment of searching, opening and streaming."""
    open_files = files()
    chance = random.Random(0)
    for _ in range(20):
        bench.unplug()
        time.sleep(chance.choice((0.02, 0.2, 0.6)))
        bench.plug()
        time.sleep(chance.uniform(0.0, 1.5))
    assert seconds_until(lambda: measures(device)) < 6.0
    assert files() == open_files


def test_a_late_process_drops_nothing(device: Device, bench: Bench) -> None:
    """10 s, stopped for 100 ms once a second, after a replug, which is not counted as a loss."""
    bench.unplug()
    seconds_until(lambda: is_invalid(device))
    bench.plug()
    seconds_until(lambda: measures(device))
    before = samples(device)
    with stopped_now_and_then(10):
        time.sleep(10.1)
    assert samples(device) - before == pytest.approx(10.1 * SAMPLE_RATE, rel=0.03)
    assert device.snapshot()["DROPPED"].value == 0


def test_a_silent_instrument_is_a_fault_and_comes_back(device: Device, bench: Bench) -> None:
    bench.command("silent on")
    assert seconds_until(lambda: device.state is State.FAULT) < 1.5
    bench.command("silent off")
    assert seconds_until(lambda: measures(device)) < 3.0


def test_it_waits_for_an_instrument(bench: Bench) -> None:
    bench.unplug()
    with running() as device:
        time.sleep(1.2)
        assert device.state is State.DISCONNECTED
        bench.plug()
        assert seconds_until(lambda: measures(device)) < 2.0
    assert device.state is State.DISCONNECTED
    assert is_invalid(device)
