"""What clients of three makes see of a device, in processes of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import caproto
import numpy as np
import pytest

from daq_ioc.attributes import Reading, Severity, Status
from daq_ioc.server.channels import as_text
from tests.server.conftest import ServerThread, run_client, until
from tests.server.stub import StubDevice

PREFIX = "XF:07ID1-ES{JS:1}"
"""With braces, as some facilities have them; caproto's own groups fail on these."""

STAMP = 1_700_000_000.123456


@pytest.fixture
def server(epics: int, device: StubDevice) -> Iterator[ServerThread]:
    """A server whose CURRENT counts up until the test ends; the rest stays as it is."""
    running = ServerThread((PREFIX, device))
    device.show(
        at=STAMP, VOLTAGE=3.3, STATS=np.arange(15.0), COUNT=7, TIME_TEXT="2023-11-14T22:13:20Z",
        FILE="/data/" + "µ" * 50 + ".jls", STATE=2, GPI0=1, dt=0.5, POINTS=100, I_RANGE=0,
        START=0, NOTE="", FRAGILE=0.0,
    )  # fmt: skip
    done = threading.Event()

    def count() -> None:
        value = 0
        while not done.wait(0.02):
            value += 1
            device.show(at=STAMP, CURRENT=value * 1e-6)

    counting = threading.Thread(target=count)
    counting.start()
    yield running
    done.set()
    counting.join()
    running.stop()


SECONDS_AND_NS = [1_700_000_000, 123_456_001]
"""`STAMP` as the float has it."""


def test_aioca(server: ServerThread, device: StubDevice) -> None:
    seen = run_client("with_aioca.py", PREFIX)
    assert seen["CURRENT"]["units"] == "A"
    assert seen["CURRENT"]["precision"] == 9
    assert seen["CURRENT"]["raw_stamp"] == SECONDS_AND_NS
    assert seen["CURRENT"]["alarm"] == [0, 0]
    assert seen["CURRENT"]["access"] == [True, False]
    assert seen["STATS"]["value"] == list(range(15))
    assert seen["COUNT"]["value"] == 7
    assert seen["TIME_TEXT"]["value"] == "2023-11-14T22:13:20Z"
    assert seen["STATE"]["enums"] == ["Gone", "Connecting", "Streaming"]
    assert seen["STATE"]["value"] == 2
    assert seen["GPI0"]["enums"] == ["Low", "High"]
    assert (seen["dt"]["lower_ctrl_limit"], seen["dt"]["upper_ctrl_limit"]) == (0.05, 10)
    assert seen["dt"]["access"] == [True, True]
    assert seen["POINTS"]["upper_ctrl_limit"] == 10_000
    assert seen["as string"] == {"STATE": "Streaming", "COUNT": "7", "dt": "0.500"}
    assert seen["FILE"] == "/data/" + "µ" * 50 + ".jls"
    assert seen["empty"] == ""
    assert str(seen["empty array"]) == "[[nan]]"
    assert seen["empty text"] == [""]
    assert seen["long field"] == "mean current over dt"
    assert seen["fields"] == {
        "CURRENT.NAME": PREFIX + "CURRENT", "CURRENT.RTYP": "ai",
        "CURRENT.DESC": "mean current over dt", "CURRENT.EGU": "A", "CURRENT.PREC": "9",
        "CURRENT.SEVR": "NO_ALARM", "CURRENT.STAT": "NO_ALARM", "CURRENT.UDF": "0",
        "CURRENT.SCAN": "I/O Intr", "CURRENT.MDEL": "-1.0", "dt.DRVH": "10.0", "STATS.NORD": "15",
        "STATS.NELM": "15", "STATS.FTVL": "DOUBLE", "FILE.FTVL": "CHAR", "I_RANGE.ONST": "10 A",
        "GPI0.ONAM": "High", "dt.RTYP": "ao", "POINTS.RTYP": "longout", "I_RANGE.RTYP": "mbbo",
        "START.RTYP": "bo", "TIME_TEXT.RTYP": "stringin",
    }  # fmt: skip
    assert seen["puts"] == {
        "dt": {"ok": True, "now": 0.25},
        "range by word": {"ok": True, "now": 2},
        "range by index": {"ok": True, "now": 3},
        "text": {"ok": True, "now": "größer " * 20},
        "momentary": {"ok": True, "now": 0},
        "beyond limits": {"ok": False, "now": 0.25},
        "no such word": {"ok": False, "now": 3},
        "fails in the device": {"ok": False, "now": 0.0},
        "read only": {"ok": False, "now": pytest.approx(0, abs=1)},
        "field": {"ok": False, "now": "mean current over dt"},
    }
    assert device.puts == [
        ("dt", 0.25), ("I_RANGE", 2), ("I_RANGE", 3), ("NOTE", "größer " * 20), ("START", 1),
    ]  # fmt: skip
    steps = np.diff(seen["updates"])
    assert len(steps) >= 4
    assert (steps > 0).all()


def test_pyepics(server: ServerThread, device: StubDevice) -> None:
    seen = run_client("with_pyepics.py", PREFIX)
    assert seen["CURRENT"]["units"] == "A"
    assert seen["CURRENT"]["precision"] == 9
    assert not seen["CURRENT"]["write"]
    assert seen["STATS"]["value"] == list(range(15))
    assert seen["TIME_TEXT"]["value"] == "2023-11-14T22:13:20Z"
    assert seen["STATE"]["enums"] == ["Gone", "Connecting", "Streaming"]
    assert seen["STATE"]["text"] == "Streaming"
    assert seen["dt"]["limits"] == [0.05, 10]
    assert seen["dt"]["write"]
    assert seen["stamp"] == SECONDS_AND_NS
    assert seen["FILE"].encode("latin-1").decode() == "/data/" + "µ" * 50 + ".jls"
    assert seen["empty"] == ""
    assert seen["put"] == [1, 0.125]
    assert seen["after refused put"] == 0.125
    assert seen["enum put"] == "10 A"
    assert seen["text put"] == "a note of more than forty characters, as long as it takes"
    assert seen["values"] >= 5
    assert seen["properties"] <= 1, "who asked for properties gets the first value and no more"


@pytest.mark.parametrize(
    ("value", "precision", "text"),
    [
        (1.5, 3, "1.500"), (-1.5, 0, "-2"), (1.5e-7, 9, "1.500000000e-07"),
        (123456789.5, 6, "123456789.500"), (1e17, 3, "1.000e+17"), (float("nan"), 2, "nan"),
    ],
)  # fmt: skip
def test_doubles_as_text_are_those_of_epics_base(value: float, precision: int, text: str) -> None:
    assert as_text(value, precision) == text


def test_alarms_come_and_go_as_the_device_says(
    server: ServerThread, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    voltage, other = pv(PREFIX + "VOLTAGE"), pv(PREFIX + "COUNT")
    seen = []
    subscription = voltage.subscribe(data_type="time")

    def note(_: Any, response: Any) -> None:
        seen.append((response.data[0], response.metadata.severity, response.metadata.status))

    subscription.add_callback(note)
    until(lambda: len(seen) == 1, "the first value")
    # Twice the same: caproto alternates between the alarm and none.
    for count in (2, 3):
        device.show(VOLTAGE=3.3, severity=Severity.INVALID, status=Status.COMM)
        until(lambda: len(seen) >= count, "an update")  # noqa: B023 - done before the next turn
    device.show(VOLTAGE=float("nan"), severity=Severity.MINOR, status=Status.READ)
    until(lambda: len(seen) == 4, "a NaN with an alarm")
    device.show(VOLTAGE=3.4)
    until(lambda: len(seen) == 5, "a good value")
    alarms = [(severity, status) for _, severity, status in seen]
    assert alarms == [(0, 0), (3, 9), (3, 9), (1, 1), (0, 0)]
    assert [value for value, _, _ in seen] == pytest.approx(
        [3.3, 3.3, 3.3, np.nan, 3.4], nan_ok=True
    )
    assert other.read(data_type="time").metadata.severity == 0, "another PV's alarm is its own"


def test_every_client_gets_the_events_it_asked_for(
    server: ServerThread, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    masks = {
        name: caproto.SubscriptionType[f"DBE_{name}"] for name in ("VALUE", "ALARM", "PROPERTY")
    }
    voltage = pv(PREFIX + "VOLTAGE")
    seen: dict[str, list[float]] = {}
    notes = []
    for name, mask in masks.items():
        values = seen[name] = []

        def note(_: Any, response: Any, values: list[float] = values) -> None:
            values.append(float(response.data[0]))

        notes.append(note)  # subscriptions hold them weakly
        voltage.subscribe(mask=mask).add_callback(note)
        until(lambda: seen[name], "the first value")  # noqa: B023 - done before the next turn
    device.show(VOLTAGE=1.0)
    until(lambda: seen["VALUE"][-1] == 1.0, "the second value")
    device.show(VOLTAGE=2.0, severity=Severity.MAJOR, status=Status.READ)
    until(lambda: seen["VALUE"][-1] == seen["ALARM"][-1] == 2.0, "the alarm")
    device.show(VOLTAGE=3.0, severity=Severity.MAJOR, status=Status.READ)
    until(lambda: seen["VALUE"][-1] == 3.0, "the last value")
    assert seen == {"VALUE": [3.3, 1, 2, 3], "ALARM": [3.3, 2], "PROPERTY": [3.3]}


def test_until_its_first_reading_a_pv_is_undefined(
    epics: int, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    running = ServerThread(("U:", device))
    try:
        before = pv("U:CURRENT").read(data_type="time").metadata
        assert (before.severity, before.status) == (3, 17)
        assert pv("U:CURRENT.UDF").read().data[0] == 1
        device.show(CURRENT=1.0)
        until(lambda: pv("U:CURRENT.UDF").read().data[0] == 0, "UDF to be cleared")
        assert pv("U:CURRENT").read(data_type="time").metadata.severity == 0
    finally:
        running.stop()
    assert device.started
    assert device.stopped


def test_refused_puts_are_logged_with_who_and_change_nothing(
    server: ServerThread, device: StubDevice, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="daq_ioc.server"):
        run_client("with_aioca.py", PREFIX)
    lines = [record.getMessage() for record in caplog.records]
    refused = [line for line in lines if line.startswith(f"refused {PREFIX}dt = 99")]
    assert len(refused) == 1
    assert "127.0.0.1" in refused[0]
    assert "takes 0.05 to 10" in refused[0]
    assert any(line.startswith(f"put {PREFIX}dt = 0.25") and "was 0.5" in line for line in lines)
    assert not any(record.exc_info for record in caplog.records), "no tracebacks for refusals"


def test_puts_of_several_clients_are_done_one_after_the_other(
    server: ServerThread, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    device.delay = 0.05
    period, points = pv(PREFIX + "dt"), pv(PREFIX + "POINTS")
    began = time.monotonic()
    for value in range(1, 6):
        period.write(value, wait=False, notify=True)
        points.write(value * 10, wait=False, notify=True)
    period.write(7.0, wait=True, timeout=10)
    assert time.monotonic() - began >= 0.5, "completion comes when the device has done it"
    assert device.most_at_once == 1
    assert [value for name, value in device.puts if name == "dt"] == [1, 2, 3, 4, 5, 7]
    assert period.read().data[0] == 7
    assert points.read().data[0] == 50


def test_puts_beyond_reason_are_refused_without_filling_the_memory(
    server: ServerThread, device: StubDevice, pv: Callable[[str], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device.delay = 0.01
    points = pv(PREFIX + "POINTS")
    for value in range(2, 402):
        points.write(value, wait=False, notify=False)
    with caplog.at_level("WARNING", logger="daq_ioc.server"):
        until(
            lambda: len(device.puts) + len(caplog.records) >= 400, "every put to be done or refused"
        )
    assert len(device.puts) >= 100
    assert any("100 puts are waiting" in record.getMessage() for record in caplog.records)
    until(lambda: device.puts[-1][1] == points.read().data[0], "the last of them to be shown")


def test_after_a_put_the_pv_shows_what_the_device_made_of_it(
    server: ServerThread, device: StubDevice, pv: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def nearest(name: str, value: Any) -> None:
        with device._lock:  # shown nowhere: only the snapshot knows
            device._readings[name] = Reading(round(float(value), 1), time.time())

    monkeypatch.setattr(device, "put", nearest)
    period = pv(PREFIX + "dt")
    period.write(0.123, wait=True, timeout=10)
    assert period.read().data[0] == 0.1


def test_a_late_loop_shows_the_newest_and_keeps_nothing_else(
    server: ServerThread, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    voltage = pv(PREFIX + "VOLTAGE")
    values: list[float] = []

    def note(_: Any, response: Any) -> None:
        values.append(float(response.data[0]))

    subscription = voltage.subscribe()
    subscription.add_callback(note)
    until(lambda: values, "the first value")
    asyncio.run_coroutine_threadsafe(_block(1.0), server.loop)
    time.sleep(0.2)
    for number in range(1, 501):
        device.show(VOLTAGE=number)
    until(lambda: values[-1] == 500, "the newest value")
    assert len(values) < 10


async def _block(seconds: float) -> None:
    time.sleep(seconds)
