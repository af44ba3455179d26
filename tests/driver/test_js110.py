"""The JS110 driver on the emulated instrument: what it delivers, and what faults do to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from daq_ioc.driver import DriverError, NotConnectedError, StreamDriver
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.driver.joulescope.js110.protocol import FRAME_SAMPLES, Request
from daq_ioc.emulator import get_backend
from daq_ioc.errors import UsageError
from daq_ioc.joulescope.suppression import RawProcessor
from daq_ioc.samples import SampleBlock
from tests.conftest import same_floats

FAST = "js110:pace=fast,serial=000123"


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Driver, Any]]]:
    """``make(spec, **parameters)``: an open driver and its emulated instrument."""
    drivers = []

    def open_driver(spec: str = FAST, **parameters: Any) -> tuple[Driver, Any]:
        backend = get_backend(spec)
        driver = Driver(backend=backend, **parameters)
        drivers.append(driver)
        driver.open()
        return driver, backend.instruments[0]

    yield open_driver
    for driver in drivers:
        driver.close()


def read(driver: Driver, count: int) -> SampleBlock:
    """At least ``count`` samples from the start of a stream, as one block."""
    blocks: list[SampleBlock] = []
    while not blocks or blocks[-1].sample_id + len(blocks[-1]) < count:
        blocks.append(driver.read())
        previous = blocks[-2] if len(blocks) > 1 else None
        expected = previous.sample_id + len(previous) if previous else 0
        assert blocks[-1].sample_id == expected
        assert blocks[-1].lost == (blocks[-1].raw == 0xFFFF).all(axis=1).sum()
        assert blocks[-1].arrival_id >= blocks[-1].sample_id + len(blocks[-1])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("raw", "current", "voltage", "bits")
    }
    last = blocks[-1]
    lost = sum(block.lost for block in blocks)
    return SampleBlock(
        0, **columns, voltage_range=0, arrival=0.0, arrival_id=last.arrival_id, lost=lost
    )


def read_until_error(driver: Driver) -> None:
    for _ in range(10_000):
        driver.read()


def test_it_is_a_driver(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, _ = make()
    assert isinstance(driver, StreamDriver)
    assert driver.identity() == {
        "model": "JS110",
        "serial": "000123",
        "firmware": "1.3.2",
        "hardware": "H",
    }


def test_every_sample_is_what_the_instrument_took(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, instrument = make()
    got = read(driver, 3_000_000)
    assert got.lost == 0
    assert np.array_equal(got.raw, instrument.truth(0, len(got)))
    expected = RawProcessor(driver.calibration).process(got.raw, 0)
    assert len(expected) == len(got)
    assert same_floats(got.current, expected.current)
    assert same_floats(got.voltage, expected.voltage)
    assert np.array_equal(got.bits, expected.bits)
    assert len(np.unique(got.bits & 15)) > 2, "the target should make the range switch"


def test_real_time(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make("js110")
    got = read(driver, 1_000_000)
    assert got.lost == 0
    assert np.array_equal(got.raw, instrument.truth(0, len(got)))


def test_streaming_starts_again_at_0(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make()
    read(driver, 500_000)
    driver.stop()
    got = read(driver, 500_000)
    assert got.lost == 0
    assert np.array_equal(got.raw, instrument.truth(0, len(got)))


@pytest.mark.parametrize("serial", [None, "000123"])
def test_an_instrument_is_found(serial: str | None) -> None:
    backend = get_backend("js110:serial=000007;" + FAST)
    driver = Driver(serial=serial, backend=backend)
    driver.open()
    assert driver.identity()["serial"] == (serial or "000007")
    driver.close()


def test_scan_lists_what_is_there() -> None:
    found = Driver.scan("emulator:js110:serial=000007;js110:serial=000008")
    assert [(i.model, i.serial, i.problem) for i in found] == [
        ("JS110", "000007", ""),
        ("JS110", "000008", ""),
    ]
    assert Driver.scan("emulator:js110:plugged=no") == []


def test_an_absent_instrument_is_named() -> None:
    with pytest.raises(NotConnectedError, match="000999; found 000123"):
        Driver(serial="000999", backend=get_backend(FAST)).open()
    with pytest.raises(NotConnectedError, match="no JS110 is plugged in"):
        Driver(backend=get_backend("js110:plugged=no")).open()


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ("usb2", r"expected 'usb' or 'emulator:\.\.\.'"),
        ("emulator:js999", "allowed: js110"),
        ("emulator:js110:colour=red", "allowed: serial, seed"),
    ],
)
def test_a_bad_backend_says_what_is_allowed(spec: str, allowed: str) -> None:
    with pytest.raises(UsageError, match=allowed):
        Driver(backend=spec)


def test_reading_before_open_is_an_error_not_a_crash() -> None:
    with pytest.raises(NotConnectedError):
        Driver(backend=get_backend(FAST)).read()


# ---- settings


def test_settings_reach_the_instrument_and_read_back(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, instrument = make(i_range="18 mA", v_range="5V", gpo0=1)
    assert instrument.settings.select == 0x08
    assert instrument.settings.options == 2
    assert instrument.extio.gpo0 == 1
    read(driver, 100_000)
    driver.put("I_RANGE", "180 uA")
    driver.put("V_RANGE", 0)
    driver.put("GPO1", "1")
    driver.put("IO_VOLTAGE", "1.8V")
    driver.put("SUPPRESS", "off")
    values = driver.values()
    assert instrument.settings.select == 0x20
    assert instrument.settings.streaming == 3
    assert instrument.extio.io_voltage == 1800
    names = {a.name: a.choices for a in driver.settings}
    shown = {name: names[name][int(value)] for name, value in values.items()}
    assert shown["I_RANGE"] == "180 uA"
    assert (shown["V_RANGE"], shown["GPO1"], shown["IO_VOLTAGE"]) == ("15 V", "1", "1.8V")
    assert shown["SUPPRESS"] == "off"
    driver.parameter_set("current_ranging", "mean_2_3_1")
    assert names["SUPPRESS"][int(driver.values()["SUPPRESS"])] == "other"
    with pytest.raises(ValueError, match="other"):
        driver.put("SUPPRESS", "other")
    while driver.read().bits[-1] & 15 != 5:
        pass
    assert driver.values()["I_RANGE_RBV"] == 5


def test_target_power_opens_the_path_and_restores_the_range(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, instrument = make(i_range="2 A")
    driver.put("TARGET_POWER", "off")
    assert instrument.settings.select == 0
    driver.put("I_RANGE", "10 A")
    assert instrument.settings.select == 0, "another range does not connect the target"
    driver.put("TARGET_POWER", "on")
    assert instrument.settings.select == 0x01


def test_settings_survive_a_replug(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make()
    read(driver, 50_000)
    driver.put("V_RANGE", "5 V")
    instrument.unplug()
    with pytest.raises(NotConnectedError):
        read_until_error(driver)
    driver.close()
    instrument.plug()
    assert instrument.settings.options == 0
    driver.open()
    assert instrument.settings.options == 2


def test_blocks_have_one_voltage_range(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make(transfer_length=64)
    instrument.faults.flip_voltage_range(at=100)
    blocks = [driver.read() for _ in range(8)]
    ranges = [(b.sample_id, b.voltage_range) for b in blocks]
    assert (100 * FRAME_SAMPLES, 1) in ranges
    assert (101 * FRAME_SAMPLES, 0) in ranges


@pytest.mark.parametrize("value", ["3 A", 12, -1, None, "nan", 1e300])
def test_a_refused_setting_changes_nothing(
    make: Callable[..., tuple[Driver, Any]], value: Any
) -> None:
    driver, instrument = make()
    before = instrument.settings
    with pytest.raises(ValueError, match="I_RANGE takes one of: auto, 10 A"):
        driver.put("I_RANGE", value)
    assert instrument.settings == before


def test_a_setting_that_the_instrument_does_not_take_is_not_kept(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, instrument = make()
    instrument.faults.result = 5
    with pytest.raises(DriverError, match="error 5"):
        driver.put("I_RANGE", "2 A")
    instrument.faults.clear()
    assert driver.parameter_get("i_range") == "auto"


def test_a_sensor_that_stays_busy_is_reported(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make()
    instrument.faults.busy = True
    with pytest.raises(DriverError, match="still busy after 3 s"):
        driver.put("V_RANGE", "5 V")
    assert driver.parameter_get("v_range") == "15V"


def test_the_suppression_mode_can_change_while_streaming(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, _ = make()
    read(driver, 100_000)
    driver.put("SUPPRESS", "nan_0_n_0")
    blocks = [driver.read() for _ in range(120)]
    assert any(np.isnan(b.current).any() for b in blocks[2:])
    assert all(b.lost == 0 for b in blocks)


def test_a_fixed_range_that_is_too_small_overflows(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, _ = make(i_range="180 uA")
    blocks = [driver.read() for _ in range(80)]
    raw = np.concatenate([b.raw for b in blocks])
    assert sum(b.overflow[0] for b in blocks) == np.count_nonzero(raw[:, 0] >> 2 == 0x3FFF) > 1000
    assert sum(b.overflow[1] for b in blocks) == 0
    assert all(b.lost == 0 for b in blocks)


def test_autoranging_does_not_overflow(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, _ = make()
    blocks = [driver.read() for _ in range(80)]
    assert [b.overflow for b in blocks] == [(0, 0)] * 80


# ---- faults of the stream


@pytest.mark.parametrize(
    ("fault", "bad"),
    [
        (lambda f: f.lose(1, at=1000), range(1000, 1001)),
        (lambda f: f.lose(5, at=1000), range(1000, 1005)),
        (lambda f: f.lose(3000, at=1000), range(1000, 4000)),
        (lambda f: f.duplicate(at=1000), range(0)),
        (lambda f: f.garbage(at=1000), range(1000, 1001)),
        (lambda f: f.frame_type(0x80, at=1000), range(1000, 1001)),
        (lambda f: f.backward(7, at=1000), range(1000, 1001)),
        (lambda f: f.backward(-7, at=1000), range(1000, 1001)),
        (lambda f: f.short(100, at=1000), range(1000, 1001)),
        (lambda f: f.missing(at=1000), range(1000, 1001)),
        (lambda f: f.flip_toggle(at=1000), range(0)),
    ],
)
def test_a_fault_costs_just_its_frames(
    make: Callable[..., tuple[Driver, Any]], fault: Callable[[Any], None], bad: range
) -> None:
    driver, instrument = make()
    fault(instrument.faults)
    got = read(driver, 700_000)
    missing = (got.raw == 0xFFFF).all(axis=1)
    expected = np.zeros(len(got), bool)
    expected[bad.start * FRAME_SAMPLES : bad.stop * FRAME_SAMPLES] = True
    assert np.array_equal(missing, expected)
    assert got.lost == len(bad) * FRAME_SAMPLES
    assert np.isnan(got.current[missing]).all()
    truth = instrument.truth(0, len(got))
    toggles = np.array([0xFFFF, 0xFFFD], np.uint16)
    assert np.array_equal(got.raw[~missing] & toggles, truth[~missing] & toggles)


@pytest.mark.parametrize("name", ["error", "overflow", "stall"])
def test_a_failed_transfer_does_not_end_the_stream(
    make: Callable[..., tuple[Driver, Any]], name: str
) -> None:
    driver, instrument = make()
    getattr(instrument.faults, name)(at=1000)
    got = read(driver, 700_000)
    present = ~(got.raw == 0xFFFF).all(axis=1)
    assert np.array_equal(got.raw[present], instrument.truth(0, len(got))[present])
    assert present.mean() > 0.9


def test_a_stream_that_only_fails_is_given_up(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make()
    for _ in range(50):
        instrument.faults.error(at=0)
    with pytest.raises(DriverError, match="stream"):
        driver.read()


def test_silence_is_noticed(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make("js110")
    driver.read()
    instrument.faults.silent = True
    with pytest.raises(DriverError, match="no samples for 1 s"):
        read_until_error(driver)


# ---- faults of the control requests


@pytest.mark.parametrize("kind", ["wrong-serial", "bad-crc", "garbage", "none"])
def test_without_its_own_calibration_an_instrument_is_not_used(kind: str) -> None:
    driver = Driver(backend=get_backend(f"{FAST},calibration={kind}"))
    with pytest.raises(DriverError, match="CALIBRATION"):
        driver.open()


def test_a_calibration_longer_than_one_request(make: Callable[..., tuple[Driver, Any]]) -> None:
    driver, instrument = make(f"{FAST},calibration=long")
    assert driver.calibration_data is not None
    assert len(driver.calibration_data) > 4096
    got = read(driver, 50_000)
    assert np.array_equal(got.raw, instrument.truth(0, len(got)))


@pytest.mark.parametrize("firmware", ["0.2.0", "0.9.0", "1.1.0", "1.3.2"])
def test_old_firmware_works(make: Callable[..., tuple[Driver, Any]], firmware: str) -> None:
    driver, _ = make(f"{FAST},firmware={firmware}")
    assert driver.identity()["firmware"] == (firmware if firmware > "0.3" else "")
    assert len(driver.read())
    assert (driver.status().statistics is not None) == (firmware >= "1.2.0")


def test_info_that_is_not_json_costs_only_the_names(
    make: Callable[..., tuple[Driver, Any]],
) -> None:
    driver, instrument = make()
    driver.close()
    instrument.faults.reply(Request.INFO, b"{not json \xff")
    driver.open()
    assert driver.identity()["firmware"] == ""
    assert len(driver.read())


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (Request.STATUS, b""),
        (Request.STATUS, bytes(24)),
        (Request.STATUS, bytes(104)),
        (Request.EXTIO, b"\x01"),
        (Request.SERIAL_NUMBER, b"short"),
        (Request.CALIBRATION, b""),
        (Request.CALIBRATION, b"\xff" * 32),
    ],
)
def test_a_wrong_reply_is_a_clear_error(request_: Request, reply: bytes) -> None:
    backend = get_backend(FAST)
    backend.instruments[0].faults.reply(request_, reply)
    driver = Driver(backend=backend)
    with pytest.raises(DriverError, match=r"reply|header|expected|ends after"):
        driver.open()
    backend.instruments[0].faults.clear()
    driver.open()
    assert len(driver.read())
    driver.close()


@pytest.mark.parametrize("request_", [Request.SETTINGS, Request.STATUS, Request.CALIBRATION])
def test_a_stalled_request_is_a_clear_error(request_: Request) -> None:
    backend = get_backend(FAST)
    backend.instruments[0].faults.stall_request(request_)
    with pytest.raises(DriverError, match="refused the request"):
        Driver(backend=backend).open()


def test_unplugged_while_opening() -> None:
    backend = get_backend(FAST)
    instrument = backend.instruments[0]
    instrument.faults.delay(0.05)
    driver = Driver(backend=backend)
    timer = threading.Timer(0.2, instrument.unplug)
    timer.start()
    with pytest.raises(NotConnectedError):
        driver.open()
    timer.join()
    instrument.faults.clear()
    instrument.plug()
    driver.open()
    driver.close()
