"""The computer this runs on, as an instrument: load of its processors, memory in use, battery.

The smallest complete driver: what each number is, and how to read them.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np
import numpy.typing as npt
import psutil

from daq_ioc.attributes import Attribute, Kind
from daq_ioc.driver import RowDriver

GB: Final = 1024**3
"""Bytes in what memory is counted in."""

CPU_SPAN: Final = 0.1
"""Shortest time the load is taken over, s: systems count in ticks of 10 ms."""


class Driver(RowDriver):
    """Reads this computer. ``window``: the time CPU_MEAN is taken over at first, s."""

    name = "onboard"
    columns = (
        Attribute("CPU", Kind.DOUBLE, "Load of all processors", "%", precision=1),
        Attribute("MEMORY", Kind.DOUBLE, "Memory in use", "GB", precision=3),
        Attribute("BATTERY", Kind.DOUBLE, "Charge of the battery", "%", precision=1),
    )
    averaged = ("CPU",)

    def __init__(self, window: float = 10.0) -> None:
        self.window = window
        self._cpu = np.nan
        self._since = time.monotonic()
        self._counted = _cpu_times()

    def read(self) -> npt.NDArray[np.float64]:
        """One row, float64 (1, 4): Unix time in s, CPU in %, memory in use in GB, battery in %.

        CPU is the mean since the last reading, at least `CPU_SPAN` s; the first reading waits for
        so long. The battery is NaN where there is none.
        """
        cpu = self._load()
        memory = psutil.virtual_memory().used / GB
        return np.array([[time.time(), cpu, memory, _battery()]])

    def _load(self) -> float:
        """Busy share of all processors' time, %.

        Counted here, since psutil's own count since the last call is one for all its users, and
        begins with a 0 in every thread.
        """
        age = time.monotonic() - self._since
        if age < CPU_SPAN:
            if not np.isnan(self._cpu):
                return float(self._cpu)
            time.sleep(CPU_SPAN - age)
        self._since = time.monotonic()
        before, self._counted = self._counted, _cpu_times()
        busy, total = (
            max(0.0, now - then) for now, then in zip(self._counted, before, strict=True)
        )
        # Counters that stand still (a suspended machine) say nothing new.
        if total > 0:
            self._cpu = min(100.0, 100 * busy / total)
        return float(self._cpu)


def _cpu_times() -> tuple[float, float]:
    """Seconds that all processors together were busy, and in total, since the computer started."""
    times = psutil.cpu_times()
    # The time of guests is in that of the user, too; waiting for a disk is not being busy.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    total = sum(times) - guests
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _battery() -> float:
    """Charge in %; NaN if there is no battery, or it does not tell."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, NotImplementedError, OSError):  # no such thing on this system
        return np.nan
    return np.nan if battery is None else float(battery.percent)
