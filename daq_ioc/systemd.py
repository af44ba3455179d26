"""Tells systemd that the IOC serves and is alive; silent where systemd did not start it.

The protocol is that of sd_notify(3): datagrams of text to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from daq_ioc.device import Device
from daq_ioc.device.device import State

log = logging.getLogger(__name__)

PATIENCE: Final = 10.0
"""How long a streaming instrument may bring nothing, beyond its publish period, s."""

OPENING_PATIENCE: Final = 60.0
"""How long looking for an instrument, opening it and waiting to try again may take, s."""


def notify(text: str) -> None:
    """Send an assignment such as ``READY=1``."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name that is in no file system
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)  # a manager that does not listen must not hold up the IOC
            to.connect(address)
            to.sendall(text.encode())
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", text, error)


def watchdog_period() -> float | None:
    """s within which systemd wants to hear WATCHDOG=1; None if it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


class Progress:
    """Whether the acquisition of a device does what its state says.

    An instrument that is not there is no failure of the IOC, which goes on looking for it; one
    that streams must bring samples.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._seen: tuple[State, int] | None = None
        self._since = time.monotonic()

    def alive(self) -> bool:
        """False when a streaming instrument has brought nothing for PATIENCE and its period, or
        one that is not streaming has held up the search for it for OPENING_PATIENCE."""
        device, now = self._device, time.monotonic()
        streaming = device.state is State.STREAMING
        seen = (device.state, device.buffer.stop_id if streaming else device.turns)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since <= (PATIENCE + device.dt if streaming else OPENING_PATIENCE)


async def feed_watchdog(devices: Sequence[Device]) -> None:
    """Feed systemd's watchdog for as long as all devices are alive; for ever.

    Run as a task of the server's event loop, so that a loop which hangs does not feed it either.
    """
    period = watchdog_period()
    if period is None:
        return
    progress = [Progress(device) for device in devices]
    while True:
        stuck = [each for each in progress if not each.alive()]
        if not stuck:
            notify("WATCHDOG=1")
        await asyncio.sleep(period / 3)
