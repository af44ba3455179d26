"""The IOC's own health, as PVs of the names and default alarms of EPICS' iocStats.

Served like a device, so that the server needs nothing for it.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

from daq_ioc.attributes import Attribute, Kind, Reading, Value
from daq_ioc.errors import UserError
from daq_ioc.server.alarms import Limits

log = logging.getLogger(__name__)

PERIOD: Final = 1.0
"""s between two heartbeats."""

Counts = Callable[[], tuple[int, int]]
"""How many clients are connected, and to how many channels."""


def _number(name: str, doc: str, units: str = "") -> Attribute:
    return Attribute(name, Kind.DOUBLE, doc, units=units, precision=1 if units == "%" else 0)


def _text(name: str, doc: str) -> Attribute:
    return Attribute(name, Kind.STRING, doc)


ATTRIBUTES: Final = (
    _number("HEARTBEAT", "Counts up every second"),
    _text("UPTIME", "Time since the IOC started"),
    _text("STARTTOD", "When the IOC started, UTC"),
    _text("TOD", "Time of day, UTC"),
    _number("CA_CLNT_CNT", "Channel Access clients"),
    _number("CA_CONN_CNT", "Channel Access channels"),
    _number("RECORD_CNT", "PVs served"),
    _number("SYS_CPU_LOAD", "CPU load of this computer", "%"),
    _number("IOC_CPU_LOAD", "CPU load of the IOC, of one core", "%"),
    _number("CPU_CNT", "CPU cores"),
    _number("MEM_USED", "Memory used by the IOC", "byte"),
    _number("MEM_FREE", "Memory free on this computer", "byte"),
    _number("MEM_MAX", "Memory of this computer", "byte"),
    _number("FD_CNT", "Open files and sockets"),
    _number("FD_MAX", "Most files and sockets"),
    _number("FD_FREE", "Files and sockets left"),
    _number("PROCESS_ID", "Process number of the IOC"),
    _number("PARENT_ID", "Process number of what started it"),
    _text("HOSTNAME", "This computer"),
    _text("KERNEL_VERS", "Operating system"),
    _text("EPICS_VERS", "Software that serves"),
    _text("ENGINEER", "Who looks after it ($ENGINEER)"),
    _text("LOCATION", "Where it is ($LOCATION)"),
    Attribute("APP_DIR", Kind.TEXT, "Directory the IOC runs in"),
)

LIMITS: Final[Mapping[str, Limits]] = {
    "CA_CLNT_CNT": Limits(high=100, hihi=175),
    "CA_CONN_CNT": Limits(high=4000, hihi=4500),
    "FD_FREE": Limits(low=20, lolo=5),
    "SYS_CPU_LOAD": Limits(high=70, hihi=80, hysteresis=2),
    "IOC_CPU_LOAD": Limits(high=70, hihi=80, hysteresis=2),
}
"""Those of iocStats."""


class Health:
    """Health of this process; ``records`` is the number of PVs it serves."""

    attributes: Sequence[Attribute] = ATTRIBUTES

    def __init__(self, counts: Counts, records: int) -> None:
        self._counts = counts
        self._process = psutil.Process()
        self._began = time.time()
        self._beats = 0
        self._subscribers: list[Callable[[Mapping[str, Reading]], None]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # The first call of each only begins to count.
        psutil.cpu_percent()
        self._process.cpu_percent()
        self._readings: dict[str, Reading] = {}
        self._show(self._constants(records) | self._moment())

    def snapshot(self) -> Mapping[str, Reading]:
        return dict(self._readings)

    def subscribe(self, callback: Callable[[Mapping[str, Reading]], None]) -> None:
        self._subscribers.append(callback)

    def put(self, name: str, value: Value) -> None:
        """Raises UserError: nothing here can be written."""
        raise UserError(f"{name} cannot be set to {value!r}")

    restore = put

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        told = False
        while not self._stopping.wait(PERIOD):
            self._beats += 1
            try:
                self._show(self._moment())
                told = False
            except OSError as error:  # no file can be opened, not even those that tell of it
                if not told:
                    log.warning("the IOC's health cannot be told: %s", error.strerror)
                told = True

    def _show(self, values: Mapping[str, Value]) -> None:
        now = time.time()
        readings = {name: Reading(value, now) for name, value in values.items()}
        self._readings = self._readings | readings
        for callback in self._subscribers:
            callback(readings)

    def _constants(self, records: int) -> dict[str, Value]:
        return {
            "STARTTOD": _clock(self._began),
            "RECORD_CNT": float(records),
            "CPU_CNT": float(os.cpu_count() or 1),
            "MEM_MAX": float(psutil.virtual_memory().total),
            "PROCESS_ID": float(os.getpid()),
            "PARENT_ID": float(os.getppid()),
            "HOSTNAME": platform.node(),
            "KERNEL_VERS": f"{platform.system()} {platform.release()}",
            "EPICS_VERS": f"caproto {version('caproto')}",
            "ENGINEER": os.environ.get("ENGINEER", ""),
            "LOCATION": os.environ.get("LOCATION", ""),
            "APP_DIR": str(Path.cwd()),
        }

    def _moment(self) -> dict[str, Value]:
        """What changes."""
        now = time.time()
        clients, channels = self._counts()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = self._process.num_fds()
        return {
            "HEARTBEAT": float(self._beats),
            "UPTIME": _duration(now - self._began),
            "TOD": _clock(now),
            "CA_CLNT_CNT": float(clients),
            "CA_CONN_CNT": float(channels),
            "SYS_CPU_LOAD": psutil.cpu_percent(),
            "IOC_CPU_LOAD": self._process.cpu_percent(),
            "MEM_USED": float(self._process.memory_info().rss),
            "MEM_FREE": float(psutil.virtual_memory().available),
            "FD_CNT": float(used),
            "FD_MAX": float(most),
            "FD_FREE": float(most - used),
        }


def _clock(unix: float) -> str:
    return time.strftime("%m/%d/%Y %H:%M:%S", time.gmtime(unix))


def _duration(seconds: float) -> str:
    """As iocStats has it: ``3 days, 01:02:03`` or ``01:02:03``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return clock if not days else f"{days} day{'s' if days > 1 else ''}, {clock}"
