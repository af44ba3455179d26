"""Instruments that are read now and then: rows, their buffer, their readings, their clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daq_ioc.attributes import Attribute, Kind, Severity, Status
from daq_ioc.device import Device, NotRecordableError, State, rows
from daq_ioc.device.rows import DT_MIN, RowBuffer, Rows
from daq_ioc.driver import DriverError, NotConnectedError, RowDriver
from daq_ioc.driver.onboard import Driver as Onboard

NAN = np.nan
EPOCH = 1_700_000_000.0

COLUMNS = (
    Attribute("LEVEL", Kind.DOUBLE, "level of the tank", "m", 3),
    Attribute("FLOW", Kind.DOUBLE, "flow into the tank", "l/s", 2),
)


class Fake(RowDriver):
    """Gives the rows it is told, else a row of the present time and a count."""

    name = "fake"
    columns: Sequence[Attribute] = COLUMNS
    averaged: Sequence[str] = ("FLOW",)

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.reads: list[float] = []
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def read(self) -> npt.NDArray[np.float64]:
        self.reads.append(time.monotonic())
        answer = self.answers.pop(0) if self.answers else [time.time(), len(self.reads), 1.0]
        if isinstance(answer, Exception):
            raise answer
        return np.array([answer])


class Rude(Fake):
    """Breaks what is said of drivers: these two never raise, or only DriverErrors."""

    polled = 0

    def close(self) -> None:
        super().close()
        raise KeyError("close")

    def poll(self) -> None:
        self.polled += 1
        raise KeyError("poll")


def severity(device: Device, name: str) -> tuple[Severity, Status]:
    reading = device.snapshot()[name]
    return reading.severity, reading.status


GOOD = (Severity.NO_ALARM, Status.NO_ALARM)
UNDEFINED = (Severity.INVALID, Status.UDF)
GONE = (Severity.INVALID, Status.COMM)


def test_as_in_the_example() -> None:
    driver = Onboard()
    device = Device(driver=driver)
    device.driver.read()
    assert device.buffer.pointer == -1
    device.run_once()
    assert device.buffer.pointer == 0
    device.stop()


def test_every_row_becomes_readings_with_its_own_time() -> None:
    driver = Fake()
    device = Device(driver)
    assert severity(device, "LEVEL") == UNDEFINED
    assert severity(device, "WINDOW") == GOOD
    driver.answers = [[EPOCH + 0.25, 2.5, 4.0], [EPOCH + 1.25, 2.6, 6.0]]
    device.run_once()
    device.run_once()
    snapshot = device.snapshot()
    assert snapshot["LEVEL"].value == 2.6
    assert snapshot["FLOW"].value == 6.0
    assert snapshot["FLOW_MEAN"].value == 5.0
    assert snapshot["TIME_TEXT"].value == "2023-11-14T22:13:21.250000Z"
    assert np.array_equal(snapshot["LIST"].value, [EPOCH + 1.25, 2.6, 6.0])
    for name in ("TIME", "TIME_TEXT", "LIST", "LEVEL", "FLOW", "FLOW_MEAN"):
        assert snapshot[name].time == EPOCH + 1.25, name
    assert snapshot["STATE"].value == State.STREAMING
    units = {attribute.name: attribute.units for attribute in device.attributes}
    assert units["FLOW_MEAN"] == "l/s"
    assert "MODEL" not in units, "an instrument without identity shows none"


def test_what_is_not_a_number_is_undefined_until_it_is() -> None:
    driver = Fake()
    device = Device(driver)
    driver.answers = [[EPOCH, 1.0, NAN], [EPOCH + 1, 1.0, 3.0], [EPOCH + 2, 1.0, NAN]]
    device.run_once()
    assert severity(device, "LEVEL") == GOOD
    assert severity(device, "FLOW") == UNDEFINED
    assert severity(device, "FLOW_MEAN") == UNDEFINED
    device.run_once()
    assert severity(device, "FLOW") == severity(device, "FLOW_MEAN") == GOOD
    device.run_once()
    assert severity(device, "FLOW") == UNDEFINED
    assert device.snapshot()["FLOW_MEAN"].value == 3.0, "the mean is of what there is"


def test_no_battery_is_invalid_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.sensors_battery", lambda: None)
    device = Device(Onboard())
    device.run_once()
    assert severity(device, "BATTERY") == UNDEFINED
    assert severity(device, "CPU") == severity(device, "MEMORY") == GOOD
    device.stop()


def test_window() -> None:
    driver = Fake()
    device = Device(driver, buffer_span=100.0)
    assert device.snapshot()["WINDOW"].value == 10.0
    driver.answers = [[EPOCH + k, 0.0, float(k)] for k in range(300)]
    for _ in range(200):
        device.run_once()
    assert device.snapshot()["FLOW_MEAN"].value == np.mean(np.arange(190, 200))
    device.put("WINDOW", 100.0)
    device.run_once()
    assert device.snapshot()["FLOW_MEAN"].value == np.mean(np.arange(101, 201))
    device.put("WINDOW", 0.5)
    device.run_once()
    assert device.snapshot()["FLOW_MEAN"].value == 201.0
    assert device.snapshot()["WINDOW"].value == 0.5
    for wrong in (101.0, 0.0, NAN):
        with pytest.raises(ValueError, match=r"^WINDOW takes 0\.01 to 100"):
            device.put("WINDOW", wrong)
    assert device.snapshot()["WINDOW"].value == 0.5


def test_a_driver_may_choose_its_window_within_the_buffer() -> None:
    driver = Fake()
    driver.window = 60.0
    assert Device(driver, buffer_span=100.0).snapshot()["WINDOW"].value == 60.0
    assert Device(driver, buffer_span=30.0).snapshot()["WINDOW"].value == 30.0


def test_without_means_there_is_no_window() -> None:
    driver = Fake()
    driver.averaged = ()
    assert "WINDOW" not in Device(driver).snapshot()


def test_the_buffer_holds_the_span_at_the_shortest_period() -> None:
    made = Rows(COLUMNS, (), dt=100.0, span=1.0, window=1.0)
    for k in range(300):
        made.take(np.array([[EPOCH + k * DT_MIN, k, 0]]))
    assert len(made.buffer.recent(0.995)["TIME"]) == 100
    assert made.buffer.last(3, "LEVEL")["LEVEL"].tolist() == [297, 298, 299]
    assert made.buffer.read(250, 252)["LEVEL"].tolist() == [250, 251]


# ---- what the buffer answers


@pytest.fixture
def buffer() -> RowBuffer:
    made = RowBuffer(["A", "B"], 1000)
    assert made.recent(10)["A"].tolist() == []
    assert made.statistics(10)["A"].count == 0
    times = EPOCH + np.arange(500) / 10
    made.append(0, {"TIME": times, "A": np.arange(500.0), "B": np.full(500, NAN)})
    return made


@pytest.mark.parametrize("seconds", [0.05, 1.0, 6.3, 6.4, 6.5, 25.6, 30.0, 1e6])
def test_recent_rows_are_chosen_by_time(buffer: RowBuffer, seconds: float) -> None:
    everything = buffer.last(1000)
    expected = everything["TIME"] > everything["TIME"][-1] - seconds
    recent = buffer.recent(seconds)
    assert list(recent) == ["TIME", "A", "B"]
    assert np.array_equal(recent["A"], everything["A"][expected])
    assert np.array_equal(buffer.recent(seconds, "A")["A"], recent["A"])
    assert list(buffer.recent(seconds, "A")) == ["A"]


def test_statistics_leave_out_what_is_no_number(buffer: RowBuffer) -> None:
    buffer.append(
        500,
        {"TIME": EPOCH + 60 + np.arange(4), "A": np.array([1, NAN, 4, 7]), "B": np.full(4, NAN)},
    )
    statistics = buffer.statistics(10)
    assert list(statistics) == ["A", "B"]
    assert statistics["A"] == rows.Statistics(3, 4.0, 3.0, 1.0, 7.0)
    assert statistics["B"].count == 0
    assert np.isnan([statistics["B"].mean, statistics["B"].std, statistics["B"].max]).all()
    assert buffer.statistics(0.5)["A"] == rows.Statistics(1, 7.0, 0.0, 7.0, 7.0)


# ---- what drivers do wrong


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([EPOCH, 1.0], r"shape \(1, 2\); it declares rows of a time and 2 columns"),
        ([[EPOCH, 1.0, 2.0]], r"shape \(1, 1, 3\)"),
        ([NAN, 1.0, 2.0], "Unix s"),
        ([EPOCH * 1000, 1.0, 2.0], "Unix s"),
    ],
)
def test_rows_that_were_not_declared(answer: Any, message: str) -> None:
    driver = Fake()
    device = Device(driver)
    driver.answers = [answer]
    with pytest.raises(DriverError, match=message):
        device.run_once()
    assert device.snapshot()["STATE"].value == State.FAULT
    assert device.buffer.pointer == -1
    device.run_once()
    assert device.snapshot()["STATE"].value == State.STREAMING


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Attribute("A", Kind.LONG, ""), "A: a column is a single double"),
        (Attribute("A", Kind.DOUBLE, "", length=2), "A: a column is a single double"),
        (Attribute("A", Kind.DOUBLE, "", writable=True), "and read only"),
        (Attribute("TIME", Kind.DOUBLE, ""), "declares a name twice"),
        (Attribute("dt", Kind.DOUBLE, ""), "declares a name twice"),
    ],
)
def test_columns_that_cannot_be(column: Attribute, message: str) -> None:
    driver = Fake()
    driver.columns, driver.averaged = (column,), ()
    with pytest.raises(ValueError, match=message):
        Device(driver)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_span": 0.0}, r"^buffer_span takes 0\.01 to 10000 s, not 0"),
        ({"buffer_span": 1e9}, r"^buffer_span takes"),
    ],
)
def test_times_that_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Device(Fake(), **options)  # type: ignore[arg-type]


def test_a_window_and_a_mean_that_cannot_be() -> None:
    driver = Fake()
    driver.window = 0.0
    with pytest.raises(ValueError, match=r"^window takes 0\.01 s or more, not 0"):
        Device(driver)
    driver.window, driver.averaged = 1.0, ("HEAT",)
    with pytest.raises(ValueError, match="HEAT is to be averaged, and is not among the columns"):
        Device(driver)


def test_no_raw_samples_no_recordings(tmp_path: Any) -> None:
    with pytest.raises(NotRecordableError, match=r"no raw samples to record; .* have: .*js110"):
        Device(Fake(), record_root=tmp_path)
    assert not any(a.name.startswith("RECORD_") for a in Device(Fake()).attributes)


# ---- running


@pytest.fixture
def run() -> Iterator[Callable[..., tuple[Fake, Device]]]:
    devices = []

    def start(**options: Any) -> tuple[Fake, Device]:
        driver = Fake()
        device = Device(driver, **options)
        devices.append(device)
        device.start()
        return driver, device

    yield start
    for device in devices:
        device.stop()


def until(condition: Callable[[], Any], timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def test_dt_takes_effect_at_once(run: Callable[..., tuple[Fake, Device]]) -> None:
    driver, device = run(dt=3600.0)
    until(lambda: len(driver.reads) == 1)
    device.put("dt", 0.01)
    until(lambda: len(driver.reads) >= 5)
    device.put("dt", 3600.0)
    assert device.snapshot()["dt"].value == device.dt == 3600.0
    count = len(driver.reads)
    time.sleep(0.2)
    assert len(driver.reads) <= count + 1
    device.put("dt", 0.01)
    until(lambda: len(driver.reads) >= count + 5)


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_periods_are_counted_from_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(rows, "time", clock)
    made = Rows(COLUMNS, (), dt=0.1, span=1.0, window=1.0)
    made.begin()
    row = np.array([[EPOCH, 0, 0]])
    for k in range(1, 2001):
        made.take(row)
        assert 0 < made.pause <= 0.1 + 1e-9
        due = (clock.now + made.pause - 1000) / 0.1
        assert due == pytest.approx(k, abs=1e-6)
        # Always a little late, by up to a third of a period.
        clock.now += made.pause + 0.03 * (k % 2)
    assert clock.now == pytest.approx(1000 + 200.0, abs=0.04)
    made.take(row)
    clock.now += 12.34  # a computer that slept
    assert made.pause == 0
    made.take(row)
    assert made.pause == pytest.approx(0.06, abs=1e-6), "what was missed is not made up for"
    made.dt = 5.0
    assert made.pause == pytest.approx(4.96, abs=1e-6)
    made.dt = 0.01
    assert made.pause == 0
    made.dt = 0
    assert made.dt == DT_MIN


def test_an_instrument_that_goes_and_comes_back(
    run: Callable[..., tuple[Fake, Device]],
) -> None:
    driver, device = run(dt=0.01)
    until(lambda: device.state is State.STREAMING)
    driver.answers = [NotConnectedError("the cable is out")]
    until(lambda: device.state is State.DISCONNECTED)
    assert severity(device, "LEVEL") == severity(device, "LIST") == GONE
    assert device.snapshot()["MESSAGE"].value == "the cable is out"
    until(lambda: device.state is State.STREAMING)
    until(lambda: severity(device, "LEVEL") == GOOD)
    assert device.snapshot()["RECONNECTS"].value == 1
    assert (driver.opened, driver.closed) == (2, 1)


def test_a_driver_that_breaks_its_promises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    driver = Rude()
    driver.answers = [[EPOCH, 1.0, 1.0], DriverError("for once")]
    device = Device(driver, dt=0.01)
    device.start()
    try:
        until(lambda: driver.closed and driver.opened > 1 and driver.polled > 1)
    finally:
        device.stop()
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("fake: housekeeping failed") == 1, "told once, not every time"
    assert "fake cannot be closed" in messages
