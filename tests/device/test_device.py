"""A device on the emulated JS110: it keeps running, tells the truth, and records it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daq_ioc.attributes import Kind, Reading, Severity, Status
from daq_ioc.device import Device, State
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.driver.joulescope.js110.protocol import Request
from daq_ioc.emulator import get_backend
from daq_ioc.errors import UserError
from daq_ioc.jls.data_recorder import DataReader

WAIT = 20.0

INSTRUMENT = "js110:queue_ms=2000"
"""Computers that run tests stand still at times; only losses that are meant shall be seen."""


class Bench:
    """A running device, its instrument, and all readings since it started."""

    def __init__(self, root: Path | None, spec: str = INSTRUMENT, **options: Any) -> None:
        options = {"dt": 0.1, "buffer_span": 3.0} | options
        backend = get_backend(spec)
        self.instrument = backend.instruments[0]
        self.device = Device(Driver(backend=backend), record_root=root, **options)
        self.seen: list[Mapping[str, Reading]] = []
        self.device.subscribe(self.seen.append)

    def value(self, name: str) -> Any:
        return self.device.snapshot()[name].value

    def wait(self, condition: Callable[[], Any], what: str = "") -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, what or self.device.snapshot()
            time.sleep(0.01)

    def wait_state(self, state: State) -> None:
        self.wait(lambda: self.value("STATE") == state)  # with what is published beside it

    def wait_readings(self) -> None:
        count = len(self.windows())
        self.wait(lambda: len(self.windows()) > count)

    def windows(self) -> list[Any]:
        """Readings of every window, in order."""
        return [
            r
            for r in list(self.seen)
            if "STATS" in r and "SAMPLES" in r and r["SAMPLES"].status is Status.NO_ALARM
        ]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches = []

    def make(*args: Any, **options: Any) -> Bench:
        made = Bench(tmp_path / "records", *args, **options)
        benches.append(made)
        made.device.start()
        return made

    yield make
    for made in benches:
        made.device.stop()
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"acquisition", "housekeeping", "recorder"}


def test_without_threads() -> None:
    device = Device(Driver(backend=get_backend("js110:pace=fast")), buffer_span=0.5, dt=0.01)
    assert device.buffer.pointer == -1
    for _ in range(3):
        device.run_once()
    assert device.buffer.pointer == 3 * 256 * 126 - 1
    assert device.snapshot()["CURRENT"].severity is Severity.NO_ALARM
    device.stop()


def test_a_buffer_too_short_to_record_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0\.5 s, not 0\.1"):
        Device(Driver(backend=get_backend("js110:pace=fast")), buffer_span=0.1)


def test_before_the_instrument_is_there(bench: Callable[..., Bench]) -> None:
    b = bench("js110:plugged=no")
    time.sleep(0.2)
    snapshot = b.device.snapshot()
    assert set(snapshot) == {a.name for a in b.device.attributes}
    for attribute in b.device.attributes:
        if attribute.live:
            assert snapshot[attribute.name].severity is Severity.INVALID, attribute.name
    assert snapshot["STATE"].value == State.DISCONNECTED
    assert "no JS110 is plugged in" in b.value("MESSAGE")
    b.instrument.plug()
    b.wait_state(State.STREAMING)
    b.wait_readings()
    snapshot = b.device.snapshot()
    assert {r.severity for r in snapshot.values()} == {Severity.NO_ALARM}
    assert snapshot["SERIAL"].value == "000415"
    assert snapshot["RECONNECTS"].value == 0


def test_readings_come_in_time_and_in_order(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait(lambda: len(b.windows()) >= 8)
    last = b.windows()[-1]
    now = time.time()
    assert last["DROPPED"].value == 0
    assert last["TIME"].value == last["CURRENT"].time
    assert 0 < now - last["TIME"].value < 2
    times = np.array([w["TIME"].value for w in b.windows()])
    assert (np.diff(times) > 0).all()
    assert np.median(np.diff(times)) == pytest.approx(0.1, abs=1e-3)


def test_unplug_and_replug(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    for k in range(3):
        b.instrument.unplug()
        b.wait_state(State.DISCONNECTED)
        b.wait(lambda: b.device.snapshot()["CURRENT"].status is Status.COMM)
        snapshot = b.device.snapshot()
        assert snapshot["VOLTAGE"].severity is Severity.INVALID
        assert snapshot["VOLTAGE"].value == pytest.approx(3.3, abs=0.3)
        assert "unplugged" in b.value("MESSAGE") or "no JS110" in b.value("MESSAGE")
        with pytest.raises(UserError, match="not connected"):
            b.device.put("I_RANGE", "2 A")
        b.instrument.plug()
        b.wait_state(State.STREAMING)
        b.wait(lambda: b.device.snapshot()["CURRENT"].severity is Severity.NO_ALARM)
        assert b.value("RECONNECTS") == k + 1
        assert b.value("MESSAGE") == ""
    assert b.value("DROPPED") == 0


def test_every_sample_counts_once_across_streams(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait(lambda: b.value("SAMPLES") > 400_000)
    b.instrument.unplug()
    b.wait_state(State.DISCONNECTED)
    stop = b.device.buffer.stop_id
    first = b.device.buffer.read(0, stop, "current")["current"]
    expected = np.nansum(first.astype(np.float64)) / 2e6
    assert b.value("CHARGE") == pytest.approx(expected, rel=1e-9)
    assert b.value("SAMPLES") == stop


def test_a_fault_is_a_fault_until_it_is_mended(bench: Callable[..., Bench]) -> None:
    b = bench("js110:plugged=no")
    b.instrument.faults.stall_request(Request.CALIBRATION)
    b.instrument.plug()
    b.wait_state(State.FAULT)
    assert "CALIBRATION" in b.value("MESSAGE")
    assert b.device.snapshot()["STATE"].severity is Severity.MAJOR
    b.instrument.faults.clear()
    b.wait_state(State.STREAMING)


def test_silence_is_a_fault_and_ends_by_itself(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    b.instrument.faults.silent = True
    b.wait_state(State.FAULT)
    b.wait(lambda: b.device.snapshot()["POWER"].status is Status.COMM)
    b.instrument.faults.silent = False
    b.wait_state(State.STREAMING)


def test_losses_are_counted_and_shown(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    b.instrument.faults.lose(10)
    b.wait(lambda: b.value("DROPPED") > 0)
    assert b.value("DROPPED") == 10 * 126
    flagged = [w for w in b.windows() if w["CURRENT"].severity is Severity.MINOR]
    assert 1 <= len(flagged) <= 2
    b.wait_readings()
    assert b.device.snapshot()["CURRENT"].severity is Severity.NO_ALARM


# ---- puts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CURRENT", 1),
        ("NOTHING", 1),
        ("dt", 0),
        ("dt", float("nan")),
        ("dt", "soon"),
        ("dt", 1e9),
        ("I_RANGE", "3 A"),
        ("I_RANGE", float("inf")),
        ("RECORD_DIR", "../.."),
        ("RECORD_NAME", "a/b"),
        ("RECORD_LIMIT", -1),
        ("ACCUM_RESET", 7),
    ],
)
def test_a_refused_put_changes_nothing(bench: Callable[..., Bench], name: str, value: Any) -> None:
    b = bench()
    b.wait_readings()
    writable = [a.name for a in b.device.attributes if a.writable]
    before = {n: b.value(n) for n in writable}
    with pytest.raises(ValueError, match=name):
        b.device.put(name, value)
    assert {n: b.value(n) for n in writable} == before


def test_puts_show_what_the_instrument_does(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    choices = {a.name: a.choices for a in b.device.attributes if a.kind is Kind.ENUM}
    b.device.put("I_RANGE", "18 mA")
    assert choices["I_RANGE"][b.value("I_RANGE")] == "18 mA"
    b.wait(lambda: choices["I_RANGE_RBV"][b.value("I_RANGE_RBV")] == "18 mA")
    b.device.put("TARGET_POWER", "off")
    assert b.value("TARGET_POWER") == 0
    b.wait(lambda: choices["I_RANGE_RBV"][b.value("I_RANGE_RBV")] == "off")
    b.wait(lambda: b.windows()[-1]["CURRENT"].value == 0)
    b.device.put("TARGET_POWER", "on")
    b.wait(lambda: choices["I_RANGE_RBV"][b.value("I_RANGE_RBV")] == "18 mA")
    b.device.put("dt", 0.05)
    assert b.value("dt") == 0.05
    b.wait(lambda: b.windows()[-1]["TIME"].value - b.windows()[-2]["TIME"].value < 0.051)


def test_accumulators_reset(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait(lambda: b.value("SAMPLES") > 1_000_000)
    before = b.value("ENERGY")
    b.device.put("ACCUM_RESET", 1)
    b.wait_readings()
    assert 0 < b.value("ENERGY") < before


# ---- recording


def recorded(b: Bench) -> Any:
    return DataReader().open(b.value("RECORD_FILE"))


def test_a_recording_is_what_the_instrument_took(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    b.device.put("RECORD_NOTE", "µ-test")
    b.device.put("RECORD_START", 1)
    assert Path(b.value("RECORD_FILE")).exists()
    assert b.value("RECORD_STATE") == 1
    b.wait(lambda: b.value("RECORD_SAMPLES") > 1_000_000)
    b.device.put("RECORD_STOP", 1)
    assert b.value("RECORD_STATE") == 0
    assert (b.value("RECORD_MESSAGE"), b.value("RECORD_DROPPED")) == ("stopped", 0)
    reader = recorded(b)
    count = int(b.value("RECORD_SAMPLES"))
    assert reader.sample_id_range == [0, count]
    assert reader.user_data["note"] == "µ-test"
    assert reader.footer_user_data["reason"] == "stopped"
    raw = reader.samples_get(fields=["raw"])["signals"]["raw"]["value"]
    first = reader.user_data["first_sample"]
    assert np.array_equal(raw, b.instrument.truth(first, first + count))
    assert Path(b.value("RECORD_FILE")).stat().st_size == b.value("RECORD_BYTES")
    reader.close()


def test_one_recording_at_a_time_and_none_without_instrument(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    b.device.put("RECORD_STOP", 1)
    b.device.put("RECORD_START", 1)
    with pytest.raises(UserError, match="running already"):
        b.device.put("RECORD_START", 1)
    with pytest.raises(UserError, match="V_RANGE cannot change within a recording"):
        b.device.put("V_RANGE", "5 V")
    b.device.put("V_RANGE", "15 V")
    b.device.put("RECORD_STOP", 1)
    b.instrument.unplug()
    b.wait_state(State.DISCONNECTED)
    turns = b.device.turns
    b.wait(lambda: b.device.turns > turns, "it is looked for")
    with pytest.raises(UserError, match="nothing to record"):
        b.device.put("RECORD_START", 1)
    assert len(list(Path(b.value("RECORD_FILE")).parent.iterdir())) == 1


def test_limit_and_pretrigger(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait(lambda: b.value("SAMPLES") > 2_000_000)
    b.device.put("RECORD_LIMIT", 1.25)
    b.device.put("RECORD_PRETRIGGER", 0.8)
    b.device.put("RECORD_START", 1)
    newest = b.device.buffer.stop_id
    b.wait(lambda: b.value("RECORD_STATE") == 0)
    assert b.value("RECORD_SAMPLES") == 2_500_000
    assert b.value("RECORD_MESSAGE") == "time limit reached"
    reader = recorded(b)
    first = reader.user_data["first_sample"]
    assert 0.75 <= (newest - first) / 2e6 <= 0.85
    raw = reader.samples_get(0, 100_000, fields=["raw"])["signals"]["raw"]["value"]
    assert np.array_equal(raw, b.instrument.truth(first, first + 100_000))
    reader.close()


def test_pretrigger_does_not_reach_over_a_change_of_voltage_range(
    bench: Callable[..., Bench],
) -> None:
    b = bench()
    b.wait_readings()
    b.device.put("V_RANGE", "5 V")
    before = len(b.windows())
    b.wait(lambda: len(b.windows()) > before + 3)
    b.device.put("RECORD_PRETRIGGER", 100)
    b.device.put("RECORD_START", 1)
    b.wait(lambda: b.value("RECORD_SAMPLES") > 0)
    b.device.put("RECORD_STOP", 1)
    reader = recorded(b)
    voltage = reader.samples_get(fields=["voltage"])["signals"]["voltage"]["value"]
    assert np.nanmin(voltage) > 2.5
    reader.close()


def test_unplugged_while_recording(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    b.device.put("RECORD_NAME", "run{n}")  # two may begin in one second
    b.device.put("RECORD_START", 1)
    b.wait(lambda: b.value("RECORD_SAMPLES") > 500_000)
    b.instrument.unplug()
    b.wait(lambda: b.value("RECORD_STATE") == 0)
    assert "instrument lost" in b.value("RECORD_MESSAGE")
    stop = b.device.buffer.stop_id
    reader = recorded(b)
    first, count = reader.user_data["first_sample"], reader.sample_id_range[1]
    assert first + count == stop, "every sample that came is in the file"
    raw = reader.samples_get(fields=["raw"])["signals"]["raw"]["value"]
    assert np.array_equal(raw, b.instrument.truth(first, first + count))
    reader.close()
    b.wait_state(State.DISCONNECTED)
    b.instrument.plug()
    b.wait_state(State.STREAMING)
    b.device.put("RECORD_START", 1)
    b.wait(lambda: b.value("RECORD_SAMPLES") > 0)


def test_losses_are_missing_in_the_recording(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.wait_readings()
    b.device.put("RECORD_START", 1)
    b.wait(lambda: b.value("RECORD_SAMPLES") > 0)
    b.instrument.faults.lose(7)
    b.wait(lambda: b.value("DROPPED") > 0)
    before = b.value("RECORD_SAMPLES")
    b.wait(lambda: b.value("RECORD_SAMPLES") > before + 400_000)
    b.device.put("RECORD_STOP", 1)
    assert b.value("RECORD_DROPPED") == 7 * 126
    reader = recorded(b)
    raw = reader.samples_get(fields=["raw"])["signals"]["raw"]["value"]
    missing = (raw == 0xFFFF).all(axis=1)
    assert missing.sum() == 7 * 126
    first = reader.user_data["first_sample"]
    truth = b.instrument.truth(first, first + len(raw))
    assert np.array_equal(raw[~missing], truth[~missing])
    reader.close()


def test_stopping_the_device_finishes_the_recording(tmp_path: Path) -> None:
    b = Bench(tmp_path)
    b.device.start()
    b.wait_readings()
    b.device.put("RECORD_START", 1)
    b.wait(lambda: b.value("RECORD_SAMPLES") > 0)
    b.device.stop()
    assert b.value("RECORD_MESSAGE") == "IOC stopped"
    reader = recorded(b)
    assert reader.sample_id_range[1] == b.value("RECORD_SAMPLES") > 200_000
    reader.close()
