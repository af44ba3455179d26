"""Specifications, and commands from outside the process."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from daq_ioc.driver.joulescope.js110.protocol import Request
from daq_ioc.emulator import get_backend, remote
from tests.emulator.conftest import Host, indices


def test_options_reach_the_instrument() -> None:
    spec = "js110:serial=000099, seed=5,pace=fast,firmware=1.0.1,queue_ms=8,calibration=long"
    options = get_backend(spec).instruments[0].options
    assert (options.serial, options.seed, options.realtime) == ("000099", 5, False)
    assert (options.firmware, options.queue_ms, options.calibration) == ((1, 0, 1), 8.0, "long")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("js220", "allowed: js110"),
        ("js110:speed=1", "'speed'; allowed: serial, seed, pace"),
        ("js110:pace=slow", "pace=slow: one of realtime, fast"),
        ("js110:calibration=x", "one of good, wrong-serial"),
        ("js110:seed=x", "seed=x"),
        ("js110:firmware=new", "firmware=new"),
        ("js110:queue_ms=0", "queue_ms=0"),
        ("js110:serial=", "needs a value"),
        ("js110:plugged=maybe", "one of yes, no"),
        ("js110:fault=explode", "unknown command 'explode'"),
    ],
)
def test_wrong_specifications_name_what_is_allowed(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|emulator option") as caught:
        get_backend(spec)
    assert says in str(caught.value)


def test_faults_of_the_specification_strike() -> None:
    host = Host("js110:pace=fast,fault=lose 2 @3,fault=duplicate @6")
    host.stream()
    assert indices(host.read(7)) == [0, 1, 2, 5, 6, 6, 7]


def test_commands() -> None:
    host = Host("js110:pace=fast")

    def do(line: str) -> str:
        return remote.execute(host.instrument, line)

    assert do("unplug") == "ok"
    assert do("plugged") == "ok False"
    assert do("plug") == "ok"
    assert do("address") == f"ok {host.instrument.address}"
    host.open()
    host.stream()
    assert do("lose 5 @2") == "ok"
    assert indices(host.read(4)) == [0, 1, 7, 8]
    assert do("frames") == "ok 9"
    assert do("silent on") == "ok"
    assert host.faults.silent
    assert do("clear") == "ok"
    assert not host.faults.silent
    assert do("reply info nonsense 1") == "ok"
    assert host.get(Request.INFO, 100) == b"nonsense"
    assert do("result 7") == "ok"
    assert host.faults.result == 7


@pytest.mark.parametrize(
    "line", ["", "explode", "lose x", "lose 1 2", "silent maybe", "silent", "delay", '"', "lose @"]
)
def test_wrong_commands_are_answered(line: str) -> None:
    answer = remote.execute(get_backend("js110").instruments[0], line)
    assert answer.startswith("error ")
    assert "\n" not in answer


def test_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "emulator"
    path_again = tmp_path / "taken"
    path_again.write_text("not a socket")
    host = Host(f"js110:pace=fast,control={path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rw") as lines:
        client.connect(str(path))
        for command, answer in (("unplug", "ok\n"), ("plugged", "ok False\n"), ("no", "error ")):
            lines.write(command + "\n")
            lines.flush()
            assert lines.readline().startswith(answer)
    assert not host.instrument.plugged
    with pytest.raises(ValueError, match="in use"):
        get_backend(f"js110:control={path}")  # another emulator answers there
    with pytest.raises(ValueError, match="in use"):
        get_backend(f"js110:control={path_again}")
    assert path_again.read_text() == "not a socket"


def test_a_specification_that_is_refused_leaves_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "emulator"
    for wrong in ("js110:control={},fault=nonsense", "js110:control={};js220"):
        with pytest.raises(ValueError, match=r"nonsense|js220"):
            get_backend(wrong.format(path))
        assert not path.exists()
