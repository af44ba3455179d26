"""``daq-ioc run`` as users run it: a process, an emulated instrument, libca clients, signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from daq_ioc.errors import UsageError, UserError
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.server import StuckError
from tests.ioc import STOP, child, client_environment, free_port, running, running_ioc, write_demo
from tests.server.conftest import ServerThread, run_client
from tests.server.stub import StubDevice

STUB = [sys.executable, "-m", "tests.server.stub_ioc"]


def samples_in(recording: Path) -> int:
    reader = DataReader().open(str(recording))
    try:
        start, stop = reader.sample_id_range
        return int(stop - start)
    finally:
        reader.close()


def test_measure_set_and_record(tmp_path: Path) -> None:
    config = write_demo(tmp_path, "XF:07ID1-ES{JS:1}")
    with running_ioc(config) as ioc:
        assert ioc.ready_line.endswith(
            f"PVs under XF:07ID1-ES{{JS:1}} on 127.0.0.1 port {ioc.port}"
        )
        seen = run_client("recording.py", "XF:07ID1-ES{JS:1}", "stop", environment=ioc.environment)
    assert seen["model"] == "JS110"
    assert seen["serial"] == "000415"
    assert len(seen["steps"]) >= 10
    assert seen["steps"] == pytest.approx([0.1] * len(seen["steps"]), abs=0.002)
    assert seen["voltage"] == pytest.approx(3.3, abs=0.2)
    assert 0 <= seen["age"] < 5
    assert seen["severity"] == 0
    assert seen["stats"] == 15
    assert seen["range put"] == [True, "2 A"]
    assert seen["range back"] == [True, "auto"]
    assert seen["dt put"] == [True, pytest.approx(0.2)]
    assert seen["dt refused"] == [False, pytest.approx(0.2)]
    assert seen["directory refused"] is False
    assert seen["start"] == [True, "recording"]
    assert seen["stop"] == [True, "idle"]
    assert Path(seen["file"]).parent == tmp_path / "recordings"
    assert samples_in(Path(seen["file"])) == seen["samples"] > 500_000
    log = ioc.log_text()
    assert "refused XF:07ID1-ES{JS:1}dt = -1" in log
    assert "put XF:07ID1-ES{JS:1}RECORD_START = 1 from" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finalises_the_recording(tmp_path: Path, number: signal.Signals) -> None:
    with running_ioc(write_demo(tmp_path)) as ioc:
        seen = run_client("recording.py", "JS:", "go on", environment=ioc.environment)
        assert ioc.stop(number) == 0, ioc.log_text()
    assert samples_in(Path(seen["file"])) >= seen["samples"] > 500_000
    assert "Traceback" not in ioc.log_text()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with running([*STUB, "300", "0"], tmp_path / "log") as ioc:
        ioc.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            ioc.process.wait(0.5)
        assert ioc.stop(signal.SIGINT) == 128 + signal.SIGINT


def test_stopping_does_not_wait_for_clients_that_do_not_read(tmp_path: Path) -> None:
    with (
        running([*STUB, "0", "0"], tmp_path / "log") as ioc,
        socket.create_connection(("127.0.0.1", ioc.port)),
    ):
        began = time.monotonic()
        assert ioc.stop() == 0
        assert time.monotonic() - began < 10


def test_a_put_that_never_ends_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with running([*STUB, "0", "300"], tmp_path / "log") as ioc:
        put = "import aioca,asyncio;asyncio.run(aioca.caput('T:dt', 1, wait=False))"
        subprocess.run([sys.executable, "-c", put], env=ioc.environment, check=True, timeout=30)
        assert ioc.stop() == 0


def test_a_device_that_does_not_stop_is_given_up(epics: int) -> None:
    server = ServerThread(("T:", StubDevice(stop_delay=2.0)))
    server.ioc.stop_timeout = 0.2
    with pytest.raises(StuckError, match=r"did not stop within 0\.2 s"):
        server.stop()


def test_puts_are_refused_while_it_stops(epics: int) -> None:
    device, stopped = StubDevice(), threading.Event()
    device.stop = stopped.wait  # type: ignore[assignment]
    server = ServerThread(("T:", device))
    server.ioc.stop_timeout = 60
    try:
        server.loop.call_soon_threadsafe(server.ioc.stop)
        seen = subprocess.run(
            [sys.executable, "-c", "import aioca,asyncio;print(repr(asyncio.run("
             "aioca.caput('T:dt', 1, wait=True, throw=False))))"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    finally:
        stopped.set()
        server.stop()
    put_failed = 160  # ECA_PUTFAIL, and not that there is no answer
    assert f"CANothing('T:dt', {put_failed})" in seen.stdout
    assert device.puts == []


def test_a_second_ioc_on_the_same_port_says_which_one_it_got(tmp_path: Path) -> None:
    with running([*STUB, "0", "0"], tmp_path / "first") as first:
        options = {"env": first.environment, "cwd": Path(__file__).parents[2]}
        with child([*STUB, "0", "0"], stderr=subprocess.DEVNULL, **options) as second:
            assert second.stdout is not None
            line = second.stdout.readline()
            second.send_signal(signal.SIGTERM)
            assert second.wait(STOP) == 0
    assert f"port {first.port} (TCP " in line


def test_several_devices_in_one_server(epics: int) -> None:
    first, second = StubDevice(), StubDevice()
    server = ServerThread(("A:", first), ("B:", second))
    try:
        run_client_put = "import aioca,asyncio;asyncio.run(aioca.caput('B:dt', 2.0, wait=True))"
        subprocess.run([sys.executable, "-c", run_client_put], check=True, timeout=30)
    finally:
        server.stop()
    assert first.puts == []
    assert second.puts == [("dt", 2.0)]
    assert first.stopped
    assert second.stopped


def test_two_devices_of_one_prefix_are_refused(epics: int) -> None:
    with pytest.raises(RuntimeError) as raised:
        ServerThread(("A:", StubDevice()), ("A:", StubDevice()))
    assert isinstance(raised.value.__cause__, UsageError)


def test_an_address_of_another_computer_is_one_clear_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daq_ioc", "run", str(write_demo(tmp_path)), "--interfaces",
         "192.0.2.1"],
        capture_output=True, text=True, check=False, timeout=STOP,
        env=client_environment(free_port()),
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("daq-ioc:")]
    assert "cannot serve on 192.0.2.1 port" in line
    assert issubclass(StuckError, UserError)
