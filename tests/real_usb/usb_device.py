"""The emulated JS110 as a device of the USB machine, which loads this file by its path."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Final

from daq_ioc.emulator import faults, remote
from daq_ioc.emulator.js110 import JS110, Options

usb_bridge: Any = importlib.import_module("usb_bridge")  # has no type hints

FIFO_MS: Final = 4.0
"""What the instrument itself keeps for a late host, ms: 32 KiB. That of a real one is not known."""


@contextlib.contextmanager
def _bus_errors() -> Iterator[None]:
    try:
        yield
    except faults.Stall as error:
        raise usb_bridge.Stall from error
    except (faults.BusError, faults.Unplugged) as error:
        raise usb_bridge.BusError from error


class Instrument(usb_bridge.UsbDevice):  # type: ignore[misc]
    """``options`` are those of `Options`."""

    def __init__(self, **options: Any) -> None:
        self._js110 = JS110(Options(queue_ms=FIFO_MS, **options))

    def descriptors(self) -> dict[str, Any]:
        return self._js110.descriptors()

    def control(self, *setup: Any) -> bytes:
        with _bus_errors():
            return self._js110.control(*setup)

    def bulk_in(self, ep: int, length: int) -> bytes | None:
        with _bus_errors():
            return self._js110.bulk_in(ep, length)

    def reset(self) -> None:
        self._js110.reset()

    def plugged(self, is_plugged: bool) -> None:
        if is_plugged:
            self._js110.plug()
        else:
            self._js110.unplug()

    def command(self, line: str) -> str:
        """Do a command of `daq_ioc.emulator.remote`, as the programs in the machine ask for."""
        return remote.execute(self._js110, line)
