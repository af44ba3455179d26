"""What the programs in the machine share: the instrument's cable, and the shipped driver on it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daq_ioc.driver import usb as usb_io
from daq_ioc.driver.joulescope.js110.driver import Driver

SERIAL = "000415"


class Bench:
    """The emulated instrument from outside: its cable, and what shall go wrong."""

    def __init__(self) -> None:
        self._usbctl: Any = importlib.import_module("usbctl")  # has no type hints
        self.command("plugged")  # connects, so that no test seems to leave a file open

    def plug(self) -> None:
        self._usbctl.plug()

    def plug_and_wait(self) -> None:
        """Plug in, and wait until the kernel and libusb know the instrument."""
        self.plug()
        while not is_there():
            time.sleep(0.05)

    def unplug(self) -> None:
        self._usbctl.unplug()

    def unplug_and_wait(self) -> None:
        """Unplug, and wait until the kernel and libusb have seen it."""
        self.unplug()
        while is_there():
            time.sleep(0.05)

    def command(self, line: str) -> str:
        """Do a command of `daq_ioc.emulator.remote`; what it answers after ``ok``."""
        answer: str = self._usbctl.call("command", line)
        assert answer.startswith("ok"), answer
        return answer.removeprefix("ok").strip()


def is_there() -> bool:
    return any(found.serial == SERIAL for found in Driver.scan("usb"))


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture
def driver() -> Iterator[Driver]:
    """The driver as it ships, open: not streaming yet."""
    shipped = Driver(serial=SERIAL, backend="usb")
    shipped.open()
    yield shipped
    shipped.close()


@pytest.fixture(autouse=True)
def nothing_left_behind(bench: Bench) -> Iterator[None]:
    """No fault, handle or transfer of one test remains for the next."""
    open_files = files()
    yield
    bench.command("clear")
    assert usb_io._abandoned == []
    assert files() == open_files


def files() -> int:
    """How many files this process has open, not counting what libusb opens once for all."""
    usb_io.find(usb_io.get_backend("usb"), 0, 0)
    return len(list(Path("/proc/self/fd").iterdir()))
