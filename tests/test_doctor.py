"""The doctor: what it finds wrong on a computer where that is really so, and what it says of it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import libusb_package
import pytest

from daq_ioc import cli, doctor
from daq_ioc import config as configuration
from daq_ioc.doctor import NOTE, OK, PROBLEM, Finding
from daq_ioc.driver import usb
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.driver.joulescope.js110.connection import Instrument
from tests.ioc import client_environment, free_port, running_ioc, write_demo

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions are then as they are for a user who is not root."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def root() -> Iterator[Path]:
    """A file system with a JS110 in it, that everybody may look at."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    device = path / "sys/bus/usb/devices/1-4"
    interface = device / "1-4:1.0"
    interface.mkdir(parents=True)
    for name, text in (("busnum", "1"), ("devnum", "5"), ("speed", "480")):
        (device / name).write_text(text + "\n")
    node = path / "dev/bus/usb/001/005"
    node.parent.mkdir(parents=True)
    node.touch(mode=0o600)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Instrument("JS110", "000415", "bus 1 address 5")]
    monkeypatch.setattr(Driver, "scan", staticmethod(lambda **_: found))


@pytest.fixture
def epics(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(doctor, "ANSWER_TIMEOUT", 0.1)  # nobody will
    port = free_port()
    for name, value in client_environment(port).items():
        monkeypatch.setenv(name, value)
    return port


def demo(directory: Path, **replaced: str) -> configuration.Config:
    path = write_demo(directory)
    text = path.read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return configuration.load(path)


def only(findings: Iterator[Finding], level: str = PROBLEM) -> Finding:
    (found,) = [each for each in findings if each.level == level]
    return found


# ---- instruments


@pytest.mark.usefixtures("plugged_in")
def test_an_instrument_that_this_user_may_not_use(root: Path) -> None:
    with as_nobody():
        found = only(doctor.instruments(None, root))
    assert "JS110 000415 at bus 1 address 5: this user may not use it" in found.text
    assert "72-joulescope.rules" in found.remedy
    (root / "dev/bus/usb/001/005").chmod(0o666)
    with as_nobody():
        levels = [each.level for each in doctor.instruments(None, root)]
    assert levels == [OK, NOTE], "it may be used, though no rule is installed"


@pytest.mark.usefixtures("plugged_in")
def test_an_instrument_that_another_program_uses(root: Path) -> None:
    usbfs = root / "sys/bus/usb/drivers/usbfs"
    usbfs.mkdir(parents=True)
    (root / "sys/bus/usb/devices/1-4/1-4:1.0/driver").symlink_to(usbfs)
    assert "another program is using it" in only(doctor.instruments(None, root)).text
    process = root / "proc/4711"
    (process / "fd").mkdir(parents=True)
    (process / "comm").write_text("joulescope_ui\n")
    (process / "fd/7").symlink_to(root / "dev/bus/usb/001/005")
    assert "joulescope_ui (process 4711) is using it" in only(doctor.instruments(None, root)).text


@pytest.mark.usefixtures("plugged_in")
def test_a_port_that_is_too_slow(root: Path) -> None:
    (root / "sys/bus/usb/devices/1-4/speed").write_text("12\n")
    assert "12 Mbit/s, needs 480" in only(doctor.instruments(None, root)).text


@pytest.mark.usefixtures("plugged_in")
def test_the_udev_rule_is_found_where_it_is(root: Path) -> None:
    assert "not installed" in only(doctor.instruments(None, root), NOTE).text
    place = root / "etc/udev/rules.d"
    place.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "ioc_configs/udev/72-joulescope.rules", place)
    assert all(each.level == OK for each in doctor.instruments(None, root))


def test_no_instrument_and_no_usb(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "scan", staticmethod(lambda **_: []))
    assert "no instrument is plugged in" in only(doctor.instruments(None, root)).text
    shutil.rmtree(root / "dev")
    assert "shows no USB" in only(doctor.instruments(None, root)).text


def test_libusb_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    usb.get_backend.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(libusb_package, "get_libusb1_backend", lambda: None)
        problems = [each.text for each in doctor.instruments(None, root) if each.level == PROBLEM]
    usb.get_backend.cache_clear()
    assert "libusb cannot be loaded" in problems[0]


def test_emulated_instruments(tmp_path: Path) -> None:
    (found,) = doctor.instruments(demo(tmp_path))
    assert (found.level, "000415" in found.text) == (OK, True)
    away = demo(tmp_path, **{"seed=1": "seed=1,plugged=no"})
    assert only(doctor.instruments(away)).level == PROBLEM
    other = demo(tmp_path, **{'seed=1"': 'seed=1"\nserial = "000999"'})
    assert "000999 is not there; found: 000415" in only(doctor.instruments(other)).text


# ---- network


def test_a_port_that_is_in_use(tmp_path: Path, epics: int) -> None:
    config = demo(tmp_path)
    assert any(f"port {epics} is free" in each.text for each in doctor.network(config))
    with socket.socket() as server:
        server.bind(("127.0.0.1", epics))
        server.listen()
        found = only(doctor.network(config))
    assert f"127.0.0.1 port {epics} (TCP) is used" in found.text
    assert f"process {os.getpid()}" in found.text
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", epics))
        assert "(UDP) is used" in only(doctor.network(config)).text


def test_the_ioc_itself_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = demo(tmp_path)
    with running_ioc(tmp_path / "demo.toml") as ioc:
        for name, value in client_environment(ioc.port).items():
            monkeypatch.setenv(name, value)
        findings = list(doctor.network(config))
    assert not [each for each in findings if each.level == PROBLEM]
    assert any("a client of this computer finds its PVs" in each.text for each in findings)


@pytest.mark.usefixtures("epics")
@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"EPICS_CA_ADDR_LIST": ""}, "clients here ask nobody"),
        ({"EPICS_CA_ADDR_LIST": "127.0.0.1 no.such.host.invalid"}, "no host no.such.host.invalid"),
        ({"EPICS_CAS_SERVER_PORT": "1"}, "IOCs here serve on port 1, clients ask"),
        ({"EPICS_CA_MAX_ARRAY_BYTES": "16384"}, "clients here cannot have the longest traces"),
    ],
)
def test_variables_that_keep_clients_from_pvs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    problems = [each for each in doctor.network(demo(tmp_path)) if each.level == PROBLEM]
    assert any(text in each.text for each in problems), problems


@pytest.mark.usefixtures("epics")
def test_interfaces(tmp_path: Path) -> None:
    elsewhere = demo(tmp_path, **{'["127.0.0.1"]': '["192.0.2.1"]'})
    assert "192.0.2.1 is no address of this computer" in only(doctor.network(elsewhere)).text
    assert "only this computer can connect" in only(doctor.network(demo(tmp_path)), NOTE).text
    everywhere = demo(tmp_path, **{'["127.0.0.1"]': '["0.0.0.0"]'})
    assert all(each.level == OK for each in doctor.network(everywhere))


# ---- disk and clock


def test_a_disk_that_is_fit(tmp_path: Path) -> None:
    space, speed = doctor.disks(demo(tmp_path))
    assert "GB free" in space.text
    assert "MB/s" in speed.text
    assert not (tmp_path / "recordings").exists(), "nothing is made"
    assert list(tmp_path.glob("*")) == [tmp_path / "demo.toml"], "and nothing is left"


def test_disks_that_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = demo(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "LEAST_SPACE", 1e12)
        assert only(doctor.disks(config)).remedy == "make room, or record elsewhere"
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "SPARE_SPEED", 1e12)
        assert "use a faster disk" in only(doctor.disks(config)).remedy


def test_a_directory_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with as_nobody():
        assert "cannot be written: Permission denied" in only(doctor.disks(None)).text


@pytest.mark.parametrize(("kept", "level"), [(True, OK), (False, PROBLEM)])
def test_the_clock(monkeypatch: pytest.MonkeyPatch, kept: bool, level: str) -> None:
    kernel = SimpleNamespace(adjtimex=lambda _: 0 if kept else 5)
    assert 0 <= ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) <= 5, "as it is asked"
    monkeypatch.setattr(ctypes, "CDLL", lambda _: kernel)
    (found,) = doctor.clock()
    assert found.level == level


# ---- the command


@pytest.mark.usefixtures("epics")
def test_the_exit_status_says_whether_anything_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "kernel_clock_synchronised", lambda: True)
    demo(tmp_path)
    config = str(tmp_path / "demo.toml")
    assert cli.main(["doctor", config]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    monkeypatch.setenv("EPICS_CA_ADDR_LIST", "")
    assert cli.main(["doctor", config]) == 1
    out = capsys.readouterr().out
    assert "  PROBLEM clients here ask nobody" in out
    assert "          -> set EPICS_CA_ADDR_LIST to the address of the IOC" in out
    assert out.endswith("1 problem found\n")
    assert cli.main(["doctor", config, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {each["about"] for each in findings} == {"instruments", "network", "disk", "clock"}
    assert cli.main(["doctor", str(tmp_path / "absent.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["doctor", "--help"])
    assert raised.value.code == 0
    assert "daq-ioc doctor" in capsys.readouterr().out.partition("examples:")[2]
