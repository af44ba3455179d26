"""Alarm limits, access rules, kept settings and health of ``daq-ioc run``, through libca."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import caproto
import pytest

from daq_ioc.server.access import Access, Rule
from daq_ioc.server.alarms import Limits
from daq_ioc.server.health import ATTRIBUTES, PERIOD, Health
from daq_ioc.server.ioc import Publication
from tests.ioc import STOP, running_ioc, write_demo
from tests.server.conftest import ServerThread, run_client, until
from tests.server.stub import StubDevice


def configured(directory: Path, more: str = "", *replacements: tuple[str, str]) -> Path:
    """The demo configuration, whose instrument has a control socket, and more of it."""
    config = write_demo(directory)
    text = config.read_text()
    for old, new in (*replacements, ("seed=1", f"seed=1,control={directory / 'control'}")):
        assert old in text
        text = text.replace(old, new, 1)
    config.write_text(text + more)
    return config


def test_limits_and_unplugging_show_as_alarms(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        "[device.limits.VOLTAGE]\nhihi = 3.0\nhigh = 2.5\nhysteresis = 0.1\nadel = 0.5\n"
        "[device.limits.POWER]\nmdel = 1e9\n",
    )
    with running_ioc(config) as ioc:
        seen = run_client(
            "rules.py", "JS:", "--alarms", str(tmp_path / "control"), environment=ioc.environment
        )
    assert seen["limits"] == [3.0, 2.5]
    assert {name: seen["fields"][name] for name in ("HHSV", "HSV", "LSV")} == {
        "HHSV": "MAJOR", "HSV": "MINOR", "LSV": "NO_ALARM",
    }  # fmt: skip
    numbers = {name: float(seen["fields"][name]) for name in ("HIHI", "HYST", "MDEL", "ADEL")}
    assert numbers == {"HIHI": 3.0, "HYST": 0.1, "MDEL": -1.0, "ADEL": 0.5}
    hihi, comm = [2, 3], [3, 9]
    assert seen["history"] == [hihi, comm, hihi]
    assert seen["reconnects"] == 1
    # The first value, and those whose alarm changed: aioca asks for both kinds of events.
    assert 1 <= seen["updates in dead band"] <= 5


def test_who_may_write_is_told_as_access_rights_and_refusals_are_logged(tmp_path: Path) -> None:
    rules = (
        '[[access]]\nwrite = ["setting"]\nnetworks = ["127.0.0.0/8"]\n'
        '[[access]]\nwrite = ["target"]\nnetworks = ["10.0.0.0/8"]\n'
        '[[access]]\nwrite = ["recording"]\nusers = ["nobody at all"]\n'
    )
    config = configured(
        tmp_path, rules, ("buffer_span = 3.0", 'buffer_span = 3.0\nlocked = ["I_RANGE"]')
    )
    with running_ioc(config) as ioc:
        seen = run_client(
            "rules.py", "JS:", "dt=0.2", "V_RANGE=5 V", "I_RANGE=2 A", "TARGET_POWER=off",
            "RECORD_NOTE=", "HEARTBEAT=", environment=ioc.environment,
        )  # fmt: skip
    assert seen["dt"][:2] == [True, True]
    assert seen["V_RANGE"] == [True, True, "5 V"]
    assert seen["I_RANGE"] == [False, False, "auto"]
    assert seen["TARGET_POWER"] == [False, False, "on"]
    assert not seen["RECORD_NOTE"][0]
    assert not seen["HEARTBEAT"][0]


def test_a_put_without_the_right_is_refused_and_logged_with_all_there_is_to_know(
    epics: int, caplog: pytest.LogCaptureFixture
) -> None:
    from caproto.sync.client import write

    device = StubDevice()
    device.show(dt=0.5, I_RANGE=1)
    access = Access([Rule(write=("setting",), networks=("10.0.0.0/8",))], ("I_RANGE",))
    server = ServerThread(Publication("T:", device, access=access))
    try:
        for name, value in (("dt", 1.0), ("I_RANGE", 2)):
            with caplog.at_level("WARNING", logger="daq_ioc.server"), pytest.raises(Exception):  # noqa: B017, PT011
                write(f"T:{name}", value, notify=True, repeater=False, timeout=5)
    finally:
        server.stop()
    first, second = (record.getMessage() for record in caplog.records[:2])
    assert first.startswith("refused T:dt = 1.0 from ")
    assert "(127.0.0.1); is 0.5: no access rule lets " in first
    assert second.endswith("; is 1: I_RANGE is locked by the configuration")
    assert device.puts == []


def test_dead_bands_are_those_of_monitors_and_archivers(
    epics: int, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    limits = {"VOLTAGE": Limits(mdel=1, adel=2, high=10)}
    server = ServerThread(Publication("T:", device, limits))
    try:
        device.show(VOLTAGE=0.0)
        voltage = pv("T:VOLTAGE")
        seen: dict[str, list[float]] = {}
        notes = []
        for name in ("VALUE", "LOG", "ALARM"):
            values = seen[name] = []

            def note(_: Any, response: Any, values: list[float] = values) -> None:
                values.append(float(response.data[0]))

            notes.append(note)  # subscriptions hold them weakly
            voltage.subscribe(mask=caproto.SubscriptionType[f"DBE_{name}"]).add_callback(note)
            until(lambda: seen[name], "the first value")  # noqa: B023 - done before the next turn
        for value in (1.0, 1.5, 2.2, 2.5, 10.0):
            device.show(VOLTAGE=value)
            until(lambda: voltage.read().data[0] == value, "the value")  # noqa: B023
        until(lambda: 10.0 in seen["ALARM"] and 10.0 in seen["LOG"], "the last")
        until(lambda: 10.0 in seen["VALUE"], "the last")
    finally:
        server.stop()
    assert seen == {"VALUE": [0, 1.5, 10], "LOG": [0, 2.2, 10], "ALARM": [0, 10]}


def test_settings_survive_a_kill(tmp_path: Path) -> None:
    config = configured(
        tmp_path, "",
        ("[server]", '[server]\nstate = "state"'), ("seed=1\"", 'seed=1"\nv_range = "15V"'),
        ("dt = 0.1\n", ""),
    )  # fmt: skip
    kept = tmp_path / "state" / "JS%3Asettings.json"
    puts = ["dt=0.25", "I_RANGE=18 mA", "V_RANGE=5 V", "GPO0=1", "TARGET_POWER=off",
            "RECORD_LIMIT=7", "ACCUM_RESET=1"]  # fmt: skip
    with running_ioc(config) as ioc:
        seen = run_client("rules.py", "JS:", *puts, environment=ioc.environment)
        assert all(done for _, done, _ in seen.values()), seen
        until(lambda: kept.exists() and "RECORD_LIMIT" in kept.read_text(), "the file")
        assert ioc.stop(signal.SIGKILL) == -signal.SIGKILL
    names = [put.partition("=")[0] + "=" for put in puts]
    with running_ioc(config) as ioc:
        after = run_client("rules.py", "JS:", *names, environment=ioc.environment)
        run_client("rules.py", "JS:", "GPO0=0", environment=ioc.environment)
        ioc.process.send_signal(signal.SIGTERM)  # sooner than the file is written by itself
        assert ioc.process.wait(STOP) == 0
    assert after.pop("V_RANGE")[2] == "15 V", "the configuration sets it"
    assert after.pop("ACCUM_RESET")[2] == "0"
    assert {name: now for name, (_, _, now) in after.items()} == {
        name: now for name, (_, _, now) in seen.items() if name in after
    }
    assert '"GPO0": "0"' in kept.read_text()
    assert "ACCUM_RESET" not in kept.read_text()


def test_health_goes_on_after_there_was_no_file_to_open() -> None:
    heartbeats: list[float] = []
    health = Health(lambda: (0, 0), 0)
    health.subscribe(lambda readings: heartbeats.append(float(readings["HEARTBEAT"].value)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as last:
        health.start()
        last.callback(health.stop)
        until(lambda: heartbeats, "a heartbeat")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        last.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        before = len(heartbeats)
        time.sleep(2.2 * PERIOD)
        assert len(heartbeats) <= before + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: len(heartbeats) > before + 1, "it to go on")


def test_health_by_the_names_of_iocstats(
    epics: int, device: StubDevice, pv: Callable[[str], Any]
) -> None:
    server = ServerThread(("T:", device), health="IOC:")
    try:
        values = {
            name: pv(f"IOC:{name}").read().data[0]
            for name in ("CA_CLNT_CNT", "PROCESS_ID", "MEM_USED", "FD_MAX", "FD_FREE", "CPU_CNT",
                         "RECORD_CNT", "UPTIME", "HOSTNAME", "EPICS_VERS")
        }  # fmt: skip
        assert values["PROCESS_ID"] == os.getpid()
        assert 1e7 < values["MEM_USED"] < 1e11
        assert 0 < values["FD_FREE"] < values["FD_MAX"]
        assert values["RECORD_CNT"] == len(device.attributes) + len(ATTRIBUTES)
        assert values["UPTIME"].startswith(b"00:")
        assert values["EPICS_VERS"].startswith(b"caproto ")
        assert pv("IOC:CA_CLNT_CNT.HIHI").read().data[0] == 175
        beat = pv("IOC:HEARTBEAT")
        first = beat.read().data[0]
        until(lambda: beat.read().data[0] > first, "the next heartbeat")
        until(lambda: pv("IOC:CA_CLNT_CNT").read().data[0] == 1, "this client to be counted")
        assert pv("IOC:CA_CONN_CNT").read().data[0] >= 10
    finally:
        server.stop()
