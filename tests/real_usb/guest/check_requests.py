"""Everything but streaming: finding an instrument, its identity, calibration, and settings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from daq_ioc.driver import DriverError, NotConnectedError
from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.driver import Driver
from daq_ioc.driver.joulescope.js110.protocol import Request
from daq_ioc.emulator import encode
from daq_ioc.emulator.js110 import JS110, Options
from tests.real_usb.guest.conftest import SERIAL, Bench

NOBODY = 65534


def test_it_is_found() -> None:
    (found,) = Driver.scan("usb")
    assert (found.model, found.serial, found.problem) == ("JS110", SERIAL, "")


def test_its_serial_number_selects_it() -> None:
    driver = Driver(serial=SERIAL, backend="usb")
    driver.open()
    driver.close()
    with pytest.raises(NotConnectedError, match=f"000416; found {SERIAL}"):
        Driver(serial="000416", backend="usb").open()


def test_identity(driver: Driver) -> None:
    assert driver.identity() == {
        "model": "JS110",
        "serial": SERIAL,
        "firmware": "1.3.2",
        "hardware": "H",
    }


def test_calibration_of_several_control_transfers(driver: Driver) -> None:
    stored = JS110(Options(calibration="long")).control(
        protocol.REQUEST_IN, Request.CALIBRATION, 1, 0, 1 << 15
    )
    assert len(stored) > 2 * protocol.CONTROL_MAX_BYTES
    assert driver.calibration_data == stored
    assert list(driver.calibration.current_gain[:7]) == list(encode.CURRENT_GAIN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("I_RANGE", 3), ("V_RANGE", 1), ("GPO0", 1), ("GPO1", 1), ("IO_VOLTAGE", 0), ("SUPPRESS", 4)],
)
def test_a_setting_reads_back(driver: Driver, name: str, value: int) -> None:
    assert driver.values()[name] != value
    driver.put(name, value)
    driver.poll()
    assert driver.values()[name] == value


def test_settings_arrive(driver: Driver) -> None:
    driver.put("I_RANGE", "18 mA")
    driver.put("V_RANGE", "5 V")
    status = driver.status()
    assert status.select == 1 << 3
    assert status.options == protocol.OPTION_VOLTAGE_RANGE
    assert status.statistics is not None
    driver.put("TARGET_POWER", "off")
    assert driver.status().select == protocol.SELECT_OFF


def test_it_opens_again_after_closing(driver: Driver) -> None:
    driver.put("I_RANGE", "18 mA")
    for _ in range(20):
        driver.close()
        with pytest.raises(NotConnectedError):
            driver.status()
        driver.open()
        assert driver.status().select == 1 << 3


def test_only_one_may_use_it(driver: Driver) -> None:
    with pytest.raises(DriverError, match="another program is using"):
        Driver(backend="usb").open()
    assert driver.status().settings_result == protocol.RESULT_OK


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("serial", [None, SERIAL])
def test_without_permission_it_says_what_helps(serial: str | None) -> None:
    """There is no udev rule in the machine: the device file is root's."""
    with an_ordinary_user():
        (found,) = Driver.scan("usb")
        with pytest.raises(DriverError, match=r"no permission.*udev rule") as caught:
            Driver(serial=serial, backend="usb").open()
    assert "permission" in found.problem
    assert not isinstance(caught.value, NotConnectedError)


def test_a_refused_request_is_an_error(driver: Driver, bench: Bench) -> None:
    bench.command("stall_request status 1")
    with pytest.raises(DriverError, match="refused") as caught:
        driver.status()
    assert not isinstance(caught.value, NotConnectedError)
    assert driver.status().settings_result == protocol.RESULT_OK


def test_a_refused_setting_changes_nothing(driver: Driver, bench: Bench) -> None:
    before = driver.values()
    bench.command("stall_request settings 1")
    with pytest.raises(DriverError, match="refused"):
        driver.put("I_RANGE", "18 mA")
    assert driver.values() == before
    driver.put("I_RANGE", "18 mA")
    assert driver.status().select == 1 << 3


def test_a_request_after_unplugging_says_so(driver: Driver, bench: Bench) -> None:
    bench.unplug_and_wait()
    with pytest.raises(NotConnectedError, match="unplugged"):
        driver.status()
    driver.close()
    with pytest.raises(NotConnectedError, match="no JS110"):
        driver.open()
    bench.plug_and_wait()
    driver.open()
