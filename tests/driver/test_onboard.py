"""The driver of this computer: what a row is, and computers that lack something."""

from __future__ import annotations

import threading
import time
from collections import namedtuple
from typing import Any

import numpy as np
import psutil
import pytest

from daq_ioc.driver import onboard

Times = namedtuple("Times", "user system idle iowait guest")
Battery = namedtuple("Battery", "percent")


def test_a_row_is_time_cpu_memory_battery() -> None:
    row = onboard.Driver().read()
    assert row.shape == (1, 4)
    assert row.dtype == np.float64
    when, cpu, memory, battery = row[0]
    assert abs(when - time.time()) < 60
    assert 0 <= cpu <= 100
    assert 0 < memory < psutil.virtual_memory().total / 1024**3
    assert np.isnan(battery) or 0 <= battery <= 100


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Times]:
    """What the system has counted: the last of these."""
    times = [Times(1000.0, 100.0, 5000.0, 10.0, 50.0)]
    monkeypatch.setattr(psutil, "cpu_times", lambda: times[-1])
    return times


def test_load_is_the_busy_share_since_the_last_reading(counted: list[Times]) -> None:
    driver = onboard.Driver()
    # 3 s user, of which 1 s is a guest's and counted there too, 1 s system, 5 s idle, 1 s waiting.
    counted.append(Times(1003.0, 101.0, 5005.0, 11.0, 51.0))
    assert driver.read()[0, 1] == pytest.approx(100 * 4 / 10)
    time.sleep(onboard.CPU_SPAN)
    counted.append(Times(1003.0, 104.0, 5006.0, 11.0, 51.0))
    assert driver.read()[0, 1] == pytest.approx(75)
    time.sleep(onboard.CPU_SPAN)
    assert driver.read()[0, 1] == pytest.approx(75), "counters that stand still say nothing new"


def test_the_first_load_is_measured_in_whatever_thread(counted: list[Times]) -> None:
    driver = onboard.Driver()
    counted.append(Times(1001.0, 100.0, 5003.0, 10.0, 50.0))
    loads: list[float] = []
    reading = threading.Thread(target=lambda: loads.append(driver.read()[0, 1]))
    reading.start()
    reading.join()
    assert loads == [25.0]


def test_readings_in_quick_succession_neither_wait_nor_show_noise(counted: list[Times]) -> None:
    driver = onboard.Driver()
    counted.append(Times(1001.0, 100.0, 5003.0, 10.0, 50.0))
    assert driver.read()[0, 1] == 25
    driver._since = time.monotonic() + 60  # so that the next are soon enough on any computer
    counted.append(Times(1001.01, 100.0, 5003.0, 10.0, 50.0))
    began = time.monotonic()
    assert [driver.read()[0, 1] for _ in range(3)] == [25, 25, 25]
    assert time.monotonic() - began < 30


def _none() -> None:
    return None


def _broken() -> None:
    raise FileNotFoundError("/sys/class/power_supply/BAT0/energy_now")


@pytest.mark.parametrize(
    ("sensor", "charge"), [(lambda: Battery(81.5), 81.5), (_none, np.nan), (_broken, np.nan)]
)
def test_battery(monkeypatch: pytest.MonkeyPatch, sensor: Any, charge: float) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", sensor)
    assert onboard.Driver().read()[0, 3] == pytest.approx(charge, nan_ok=True)


def test_a_system_without_such_a_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery")
    assert np.isnan(onboard.Driver().read()[0, 3])
