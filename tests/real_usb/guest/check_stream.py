"""Streaming at 2 MSPS: late processes, failing transfers, ends and beginnings."""

from __future__ import annotations

import threading
import time

import pytest

from daq_ioc.driver import NotConnectedError
from daq_ioc.driver import usb as usb_io
from daq_ioc.driver.joulescope.js110.driver import Driver
from daq_ioc.driver.joulescope.js110.frames import FRAME_SECONDS
from daq_ioc.driver.joulescope.js110.protocol import SAMPLE_RATE
from tests.real_usb.guest.conftest import SERIAL, Bench
from tests.real_usb.guest.stream import PAUSE, Took, stopped_now_and_then, take
from tests.real_usb.usb_device import FIFO_MS

OTHER_SERIAL = "000416"

MOST_LOST = {"stall": 0, "error": 300, "overflow": 32}
"""Frames. A halted endpoint sends nothing that could be lost. After an error the machine does not
tell what had come; and what has come into a transfer that is then cancelled is lost."""


def test_a_late_process_loses_nothing(driver: Driver) -> None:
    """10 s, stopped for 100 ms once a second, while another thread makes requests."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.05):
            driver.poll()

    asking = threading.Thread(target=ask)
    asking.start()
    with stopped_now_and_then(10):
        took = take(driver, 10.1)
    done.set()
    asking.join()
    print(took, driver.frame_counters)
    assert took.pauses == 10
    assert (took.lost, took.wrong) == (0, 0)
    counters = driver.frame_counters
    assert counters.good * 126 >= took.samples
    assert (counters.lost, counters.repeated, counters.foreign, counters.partial) == (0, 0, 0, 0)


@pytest.mark.parametrize("queued", ["1", "2", "synchronous"])
def test_without_a_queue_a_late_process_loses(
    driver: Driver, queued: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the queue that saves the samples; those that come have the right ids all the same."""
    covered = 0
    if queued == "synchronous":
        monkeypatch.setattr(
            usb_io, "open_bulk_in", lambda d, e, size, _: usb_io._PlainBulkIn(d, e, size)
        )
    else:
        covered = int(queued)
        driver.parameter_set("transfer_outstanding", queued)
    with stopped_now_and_then(1):
        took = take(driver, 1.1)
    print(queued, took, driver.frame_counters)
    assert took.pauses == 1
    # One more than is queued: the one that is being worked on when the process is stopped.
    least = (PAUSE - FIFO_MS * 1e-3) / FRAME_SECONDS - (covered + 1) * 256
    assert driver.frame_counters.lost > least
    assert took.lost == driver.frame_counters.lost * 126
    assert took.wrong == 0


@pytest.mark.parametrize("pause", [0.4, 2.5, 5.0])
@pytest.mark.parametrize("run", [0.0, 0.5])
def test_sample_ids_after_a_long_pause(driver: Driver, run: float, pause: float) -> None:
    """More than is queued is lost, at once after the start or later; the ids count all of it."""
    driver.start()
    with stopped_now_and_then(1, run, pause):
        took = take(driver, run + pause + 0.2)
    print(run, pause, took, driver.frame_counters)
    assert took.pauses == (run > 0.1)
    assert took.lost > (pause - 0.3) * SAMPLE_RATE
    assert took.wrong == 0


@pytest.mark.parametrize("fault", ["stall", "error", "overflow"])
def test_a_failing_transfer_is_recovered_from(driver: Driver, bench: Bench, fault: str) -> None:
    """What came before the failure is used, and little is lost until the next transfers wait."""
    bench.command(f"{fault} @3000")
    took = take(driver, 0.5)
    print(fault, took, driver.frame_counters)
    assert driver.frame_counters.lost <= MOST_LOST[fault]
    assert took.lost == driver.frame_counters.lost * 126
    assert took.wrong == 0


def test_short_packets_in_the_stream(driver: Driver, bench: Bench) -> None:
    """They end a transfer early; only the frame that is cut is lost."""
    for frame in range(1000, 2000, 100):
        bench.command(f"short {frame % 512} @{frame}")
    took = take(driver, 0.5)
    assert driver.frame_counters.lost == 10
    assert took.lost == 10 * 126
    assert took.wrong == 0


def test_stop_and_start_again(driver: Driver) -> None:
    """Each stream begins with sample 0. 12 queues are more than usbfs lends (16 MB) together."""
    for _ in range(12):
        took = take(driver, 0.1)
        assert (took.lost, took.wrong) == (0, 0)
        driver.stop()


def test_close_with_transfers_under_way() -> None:
    driver = Driver(serial=SERIAL, backend="usb")
    for _ in range(5):
        driver.open()
        took = take(driver, 0.1)
        assert (took.lost, took.wrong) == (0, 0)
        stream = driver._stream
        assert isinstance(stream, usb_io._QueuedBulkIn)
        assert stream._pending > 10
        driver.close()
        assert stream._pending == 0
        assert stream._transfers == []


def test_settings_change_while_streaming(driver: Driver) -> None:
    driver.read()
    for value in ("5 V", "15 V", "5 V"):
        driver.put("V_RANGE", value)
        for _ in range(20):
            block = driver.read()
        assert block.voltage_range == (value == "5 V")
    assert driver.frame_counters.lost == 0


def test_unplugging_is_noticed(driver: Driver, bench: Bench) -> None:
    driver.start()
    bench.unplug()
    began = time.monotonic()
    with pytest.raises(NotConnectedError, match="unplugged"):
        take(driver, 1.0)
    assert time.monotonic() - began < 0.5
    driver.close()
    bench.plug_and_wait()
    driver.open()
    took = take(driver, 0.2)
    assert (took.lost, took.wrong) == (0, 0)


def test_two_instruments_at_once() -> None:
    """Both streams' transfers complete in whichever thread handles libusb's events."""
    drivers = [Driver(serial=serial, backend="usb") for serial in (SERIAL, OTHER_SERIAL)]
    took: list[Took] = []

    def run(driver: Driver) -> None:
        driver.open()
        took.append(take(driver, 2.0))
        driver.close()

    threads = [threading.Thread(target=run, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(t.lost, t.wrong) for t in took] == [(0, 0)] * 2
