"""The systemd unit: as systemd reads it, and as it is run; nothing is installed."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daq_ioc import systemd
from daq_ioc.client import Client
from daq_ioc.device import Device
from daq_ioc.device.device import State
from daq_ioc.driver import load
from daq_ioc.jls.data_recorder import DataReader
from tests.ioc import client_environment, free_port, running, write_demo

CONFIGS = Path(__file__).parents[2] / "ioc_configs"
UNIT = CONFIGS / "systemd" / "daq-ioc@.service"
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as it would be for ``js1``, with the program that is really here."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/daq-ioc", sys.prefix)
    path = tmp_path / "daq-ioc@js1.service"
    path.write_text(text, encoding="utf-8")
    return path


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_unit(installed: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(installed)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    about = [line for line in done.stderr.splitlines() if "daq-ioc" in line]
    assert done.returncode == 0, done.stderr
    assert not about


@needs_systemd
def test_the_unit_is_exposed_to_little(installed: Path) -> None:
    worst = "25"  # of 100: network, USB devices and their groups are what is left
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", f"--threshold={worst}", str(installed)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_allows_for_what_the_ioc_may_take() -> None:
    from daq_ioc.server.ioc import STOP_TIMEOUT

    assert float(setting("TimeoutStopSec")) > 2 * STOP_TIMEOUT
    assert float(setting("WatchdogSec")) > 2 * systemd.PATIENCE
    assert setting("Type") == "notify"
    assert setting("User") != "root"


class Manager:
    """What systemd does for a service of Type=notify: a socket, and the variables that name it."""

    def __init__(self, directory: Path, watchdog: float) -> None:
        path = directory / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.messages: queue.Queue[str] = queue.Queue()
        self.environment = {
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(round(watchdog * 1e6)),
        }
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while message := self.socket.recv(4096).decode():
            self.messages.put(message)

    def heard(self, seconds: float) -> str:
        """The next message, or nothing."""
        try:
            return self.messages.get(timeout=seconds)
        except queue.Empty:
            return ""

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.environment["NOTIFY_SOCKET"])
        self._thread.join()
        self.socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path, watchdog=0.3)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def test_exec_start_stopped_while_it_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: Manager
) -> None:
    config = write_demo(tmp_path, "UNIT:")
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    line = setting("ExecStart").replace("/opt/daq-ioc", sys.prefix).replace("%i", "demo")
    command = shlex.split(line.replace("/etc/daq-ioc", str(tmp_path)))
    assert command[-1] == str(config)
    with running(command, tmp_path / "log") as ioc:
        for name, value in client_environment(ioc.port).items():
            monkeypatch.setenv(name, value)
        assert manager.heard(10) == "READY=1"
        assert manager.heard(10) == "WATCHDOG=1"
        with Client("UNIT:", timeout=20) as client:
            _until_streaming(client)
            client.dt.write(0.2)
            client.record_start.write(1)
            time.sleep(1.0)
            file = Path(client.record_file.read().text)
            assert client.record_state.read().text == "recording"
        assert ioc.stop() == 0, ioc.log_text()
    messages = []
    while message := manager.heard(0.1):
        messages.append(message)
    assert messages.count("WATCHDOG=1") >= 3
    assert messages[-1] == "STOPPING=1"
    assert list(state.iterdir()), "settings are kept where systemd says"
    with DataReader().open(str(file)) as reader:
        assert not reader.problems
        assert reader.duration > 0.5


def _until_streaming(client: Client) -> None:
    deadline = time.monotonic() + 20
    while client.state.read().text != "streaming":
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Stuck(Device):
    """A device whose state and progress the test says."""

    shown = State.STREAMING

    @property
    def state(self) -> State:
        return self.shown


def test_an_acquisition_that_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    device = Stuck(load("onboard")(), dt=2.0)
    progress = systemd.Progress(device)
    assert progress.alive()
    now += systemd.PATIENCE + 1.9
    assert progress.alive(), "the next reading is not due yet"
    now += 0.2
    assert not progress.alive()
    device.shown = State.DISCONNECTED
    for _ in range(20):
        assert progress.alive(), "an instrument that is not there is looked for"
        now += systemd.OPENING_PATIENCE - 1
        device.turns += 1
    assert progress.alive()
    now += systemd.OPENING_PATIENCE + 1
    assert not progress.alive(), "the driver has not come back from opening it"


def test_nothing_is_fed_while_a_device_hangs(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd.Progress, "alive", lambda _: False)

    async def fed() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(systemd.feed_watchdog([Stuck(load("onboard")())]), 0.5)

    asyncio.run(fed())
    assert manager.heard(0.01) == ""


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    systemd.notify("READY=1")
    assert systemd.watchdog_period() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_period() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_period() is None, "it is for another process"


def test_a_manager_that_does_not_listen_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "deaf"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        for _ in range(2000):  # more than the kernel keeps
            systemd.notify("WATCHDOG=1")
    assert "systemd cannot be told WATCHDOG=1" in caplog.text


def test_a_socket_that_is_gone_does_not_end_the_ioc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify("READY=1")
    assert "systemd cannot be told READY=1" in caplog.text


def test_the_proc_serv_example_is_a_shell_script() -> None:
    subprocess.run(["/bin/sh", "-n", str(CONFIGS / "procserv.sh")], check=True, timeout=10)
    assert os.access(CONFIGS / "procserv.sh", os.X_OK)


@pytest.mark.skipif(shutil.which("procServ") is None, reason="procServ is not here")
def test_proc_serv_takes_its_options(tmp_path: Path) -> None:
    text = (CONFIGS / "procserv.sh").read_text(encoding="utf-8")
    pid = tmp_path / "pid"
    options = re.sub(r"\\\n", "", text.split("exec procServ", 1)[1]).strip()
    options = options.replace("/opt/daq-ioc/bin/daq-ioc run", "/bin/sleep 60 #")
    for place in ("/var/lib/daq-ioc/$name", "/var/log/daq-ioc-$name.log"):
        options = options.replace(place, str(tmp_path / "log" if "log/" in place else tmp_path))
    script = f'name=js1 port={free_port()}; exec procServ --pidfile "{pid}" {options}'
    subprocess.run(["/bin/sh", "-c", script], check=True, timeout=10, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not (pid.exists() and pid.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(pid.read_text()), 15)
