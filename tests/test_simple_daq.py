"""simple_daq through real clients, and that the layers it shares know no instrument."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil
import pytest

from daq_ioc import cli
from daq_ioc import config as configuration
from daq_ioc.client import Client, ClientError
from daq_ioc.driver import onboard
from daq_ioc.driver.joulescope import js110
from tests.ioc import IocProcess, running, running_ioc, write_demo
from tests.server.conftest import until

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "ioc_configs" / "simple_daq.toml"

PVS = {
    "TIME", "TIME_TEXT", "CPU", "CPU_MEAN", "WINDOW", "MEMORY", "BATTERY", "LIST", "dt", "STATE",
    "MESSAGE", "RECONNECTS",
}  # fmt: skip


@pytest.fixture(scope="module")
def ioc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IocProcess]:
    """``daq-ioc run`` of our own configuration, seen from here through a link."""
    config = tmp_path_factory.mktemp("ioc") / "simple_daq.toml"
    config.symlink_to(CONFIG)  # the log goes beside it
    with running_ioc(config) as made:
        yield made


@pytest.fixture
def client(ioc: IocProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name, value in ioc.environment.items():
        monkeypatch.setenv(name, value)
    with Client(timeout=20) as made:
        until(lambda: made.state.read().text == "streaming", "the first reading")
        made.dt.write(0.05)
        yield made


def test_what_is_served() -> None:
    ((prefix, device),) = configuration.devices(CONFIG, configuration.load(CONFIG))
    assert prefix == "simple_daq:"
    served = {attribute.name for attribute in device.attributes}
    assert served >= PVS
    assert not any(name.startswith("RECORD") for name in served)


def test_readings(client: Client) -> None:
    cpu = client.cpu.read()
    assert isinstance(cpu.data, np.ndarray)
    assert cpu.data.shape == (1,)
    assert 0 <= cpu.data[0] <= 100
    assert 0 <= client.cpu_mean.read().data[0] <= 100
    assert 0 < client.memory.read().data[0] < psutil.virtual_memory().total / 1024**3
    units = {name: client[f"{name}.EGU"].read().text for name in ("CPU", "MEMORY", "BATTERY")}
    assert units == {"CPU": "%", "MEMORY": "GB", "BATTERY": "%"}
    assert client.window.read().data == 10.0
    for name in ("cpu", "memory", "list", "time", "time_text"):
        reading = getattr(client, name).read()
        assert reading.severity == 0, name
        assert abs(reading.time - time.time()) < 60


def test_a_row_and_its_time(client: Client) -> None:
    row = client.list.read()
    assert row.data.shape == (4,)
    assert row.time == pytest.approx(row.data[0], abs=1e-5)
    when = client.time.read()
    text = datetime.fromisoformat(client.time_text.read().text)
    assert when.data[0] == pytest.approx(when.time, abs=1e-5)
    assert -1e-5 < text.timestamp() - when.data[0] < 60


def test_the_battery_is_a_charge_or_invalid(client: Client) -> None:
    battery = client.battery.read()
    if psutil.sensors_battery() is None:
        assert np.isnan(battery.data[0])
        assert (battery.severity, battery.status.name) == (3, "UDF")
    else:
        assert 0 <= battery.data[0] <= 100
        assert battery.severity == 0


def test_dt_takes_effect_at_once(client: Client) -> None:
    client.dt.write(3600.0)
    times: list[float] = []
    client.time.subscribe(lambda reading: times.append(reading.time))
    until(lambda: times, "the present time")
    client.dt.write(0.05)
    assert client.dt.read().data == 0.05
    until(lambda: len(times) >= 6, "more readings than an hour's wait would give")
    with pytest.raises(ClientError, match=r"dt takes 0\.01 to 3600\.0, not 0"):
        client.dt.write(0)


AIOCA = """
import asyncio, json, sys
from aioca import FORMAT_TIME, caget, caput

async def main():
    names = ["TIME", "CPU", "MEMORY", "BATTERY", "LIST", "dt", "WINDOW"]
    seen = {}
    for name in names:
        value = await caget("simple_daq:" + name, format=FORMAT_TIME, timeout=20)
        seen[name] = [list(value) if name == "LIST" else float(value), value.severity]
    seen["TIME_TEXT"] = [str(await caget("simple_daq:TIME_TEXT")), 0]
    await caput("simple_daq:WINDOW", 2.5, wait=True, timeout=20)
    seen["window"] = float(await caget("simple_daq:WINDOW"))
    print(json.dumps(seen))

asyncio.run(main())
"""


def test_libca_sees_the_same(ioc: IocProcess, client: Client) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AIOCA],
        env=ioc.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert 0 <= seen["CPU"][0] <= 100
    assert len(seen["LIST"][0]) == 4
    assert seen["dt"] == [0.05, 0]
    later = datetime.fromisoformat(seen["TIME_TEXT"][0]).timestamp()
    assert later >= seen["TIME"][0] - 1e-5
    assert [name for name, value in seen.items() if name != "window" and value[1]] in (
        [], ["BATTERY"],
    )  # fmt: skip
    assert seen["window"] == client.window.read().data == 2.5
    client.window.write(10.0)


def test_run_server_serves_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from daq_ioc.server import run_server; run_server(dt=0.05); print('in order')"
    with running([sys.executable, "-u", "-c", code], tmp_path / "log") as ioc:
        assert "PVs under simple_daq: on 127.0.0.1 port" in ioc.ready_line
        for name, value in ioc.environment.items():
            monkeypatch.setenv(name, value)
        with Client(timeout=20) as client:
            until(lambda: client.cpu.read().severity == 0, "a reading")
        assert ioc.stop() == 0
        assert ioc.process.stdout is not None
        assert ioc.process.stdout.read() == "in order\n"


def test_the_client_works_with_a_joulescope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_ioc(write_demo(tmp_path)) as ioc:
        for name, value in ioc.environment.items():
            monkeypatch.setenv(name, value)
        with Client("JS:", timeout=20) as client:
            until(lambda: client.current.read().severity == 0, "a reading")
            assert client.stats.read().data.shape == (15,)
            client.i_range.write("2 A")
            assert client.i_range.read().text == "2 A"
            client.i_range.write("auto")
            client.record_start.write(1, timeout=30)
            assert client.record_state.read().text == "recording"
            client.record_stop.write(1, timeout=30)
            assert Path(client.record_file.read().text).is_file()
            with pytest.raises(ClientError, match=r"JS:I_RANGE refused '7 A': .*takes one of"):
                client.i_range.write("7 A")


@pytest.mark.parametrize("command", ["check", "run"])
def test_it_records_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(CONFIG.read_text() + '[device.recording]\nroot = "records"\n')
    assert cli.main([command, str(config)]) == 2
    assert capsys.readouterr().err == (
        f"daq-ioc: {config}: device.recording: onboard has no raw samples to record; "
        "instruments that have: js110; leave this section, or --record-root, out\n"
    )
    assert cli.main(["run", str(CONFIG), "--record-root", str(tmp_path / "records")]) == 2
    assert not (tmp_path / "records").exists()


def test_its_window_is_checked_with_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(CONFIG.read_text().replace("window = 10.0", "window = -1"))
    assert cli.main(["check", str(config)]) == 2
    assert "device: window takes 0.01 s or more, not -1" in capsys.readouterr().err


SHARED = [
    *sorted((ROOT / "daq_ioc" / "device").glob("*.py")),
    *sorted(
        path
        for path in (ROOT / "daq_ioc" / "server").glob("*.py")
        if path.name != "health.py"  # which tells of the IOC's own process
    ),
    *(ROOT / "daq_ioc" / name for name in ("attributes.py", "samples.py", "client.py")),
]
INSTRUMENTS = "|".join(
    (
        "(?i:js[12][0-9]{2}|joulescope|onboard|simple_daq|psutil|cpu|battery)",
        *(rf"\b{item.name}\b" for item in (*js110.Driver.settings, *onboard.Driver.columns)),
    )
)

MENTIONS = {
    # The defaults that are promised, and examples in docstrings.
    "client.py": {'"simple_daq:"', "client.cpu", "``CPU``", "``cpu``", '"CPU.EGU"'},
    "run.py": {'name: str = "simple_daq"'},
}


def test_the_shared_layers_know_no_instrument() -> None:
    assert len(SHARED) > 10
    for path in SHARED:
        text = path.read_text()
        for mention in MENTIONS.get(path.name, ()):
            text = text.replace(mention, "")
        for number, line in enumerate(text.splitlines(), 1):
            found = re.search(INSTRUMENTS, line)
            assert not found, f"{path}:{number} knows an instrument, which drivers do: {line}"
