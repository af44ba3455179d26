"""The daq-ioc command: arguments, output, exit status."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import daq_ioc
from daq_ioc import cli
from daq_ioc import driver as drivers
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.errors import UserError
from tests.ioc import write_demo


def test_the_installed_command_and_the_module_are_the_same() -> None:
    for command in (["daq-ioc"], [sys.executable, "-m", "daq_ioc"]):
        program = str(Path(sys.executable).with_name(command[0])) if len(command) == 1 else None
        done = subprocess.run(
            [program or command[0], *command[1:], "--version"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout == f"daq-ioc {daq_ioc.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["run"], ["check"], ["run", "x.toml", "--log-level", "loud"], ["scan", "--spam"]],
)
def test_bad_usage_has_status_2_and_says_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert "daq-ioc" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "pvs", "scan", "check"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main([command, "--help"])
    assert raised.value.code == 0
    assert f"daq-ioc {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_pvs_lists_the_same_as_run_and_suggests_what_to_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_demo(tmp_path, "LAB:"))
    for form in ("text", "csv"):
        assert cli.main(["pvs", config, "--format", form]) == 0
        listed = capsys.readouterr().out
        assert cli.main(["run", config, "--list-pvs", "--format", form]) == 0
        assert capsys.readouterr().out == listed
        assert "LAB:CURRENT" in listed
        assert "LAB:HEARTBEAT" in listed
    assert cli.main(["pvs", config, "--format", "archiver", "--prefix", "OTHER:"]) == 0
    suggested = {each.pop("pv"): each for each in json.loads(capsys.readouterr().out)}
    assert suggested["OTHER:CURRENT"] == {"samplingmethod": "SCAN", "samplingperiod": "1"}
    assert suggested["OTHER:STATE"]["samplingmethod"] == "MONITOR"
    assert "OTHER:STATS" in suggested
    assert not {"OTHER:RECORD_START", "OTHER:ACCUM_RESET", "OTHER:CURRENT_TRACE"} & set(suggested)


def test_check_summarises_a_good_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_demo(tmp_path, "LAB:")
    assert cli.main(["check", str(config)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{config}: ok, to be served on 127.0.0.1\n  LAB: js110 (backend = ")
    assert f"recordings below {tmp_path / 'recordings'} (will be made)" in out
    assert not (tmp_path / "recordings").exists()
    (tmp_path / "recordings").mkdir()
    assert cli.main(["check", str(config)]) == 0
    assert "will be made" not in capsys.readouterr().out


def test_check_and_run_report_problems_in_a_line_each_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.toml"
    config.write_text('[device]\nprefix = 1\ndriver = "js110"\ndt = -1\n')
    for command in ("check", "run"):
        assert cli.main([command, str(config)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == [
            f"daq-ioc: {config}: device.prefix: 1 is not allowed: it should be a valid string",
            f"daq-ioc: {config}: device.dt: -1 is not allowed: it should be greater than 0",
        ]


def test_list_pvs_prints_the_table_and_serves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_demo(tmp_path))
    assert cli.main(["run", config, "--list-pvs", "--prefix", "LAB:"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].split()[:3] == ["name", "type", "access"]
    assert cli.main(["run", config, "--list-pvs", "--prefix", "LAB:", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [line.split()[0] for line in text[1:]]
    assert {"LAB:CURRENT", "LAB:STATS", "LAB:RECORD_START", "LAB:dt"} <= {r["name"] for r in rows}
    assert not (tmp_path / "recordings").exists()


def test_a_prefix_too_long_for_epics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(write_demo(tmp_path)), "--prefix", "P" * 59, "--list-pvs"]) == 2
    assert "of at most 60" in capsys.readouterr().err


def test_scan_lists_instruments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scan", "--backend", "emulator:js110"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["DRIVER", "MODEL", "SERIAL", "LOCATION", "STATE"]
    assert line.split()[:3] == ["js110", "JS110", "000415"]
    assert line.split()[-1] == "ready"


def test_a_driver_that_cannot_be_loaded_hides_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = drivers.names()
    monkeypatch.setattr(drivers, "names", lambda: ["broken", *names])
    assert cli.main(["scan", "--backend", "emulator:js110"]) == 0
    assert "000415" in capsys.readouterr().out


def test_scan_without_instruments_says_what_to_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "scan", staticmethod(lambda **_: []))
    assert cli.main(["scan"]) == 0
    assert "udev rule" in capsys.readouterr().out


def test_scan_of_an_unknown_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scan", "--backend", "spam"]) == 2
    assert capsys.readouterr().err == "daq-ioc: backend 'spam': expected 'usb' or 'emulator:...'\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the disk is full"), "daq-ioc: the disk is full"),
        (KeyError("x"), "daq-ioc: internal error: KeyError('x')"),
    ],
)
def test_failures_have_status_1_and_a_traceback_only_when_debugging(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(cls: type, backend: str = "usb") -> None:
        raise error

    monkeypatch.setattr(Driver, "scan", classmethod(fail))
    assert cli.main(["scan"]) == 1
    assert capfd.readouterr().err == line + "\n"
    command = f"""
import sys
from daq_ioc import cli
from daq_ioc.driver.joulescope.js110 import Driver
def fail(cls, backend="usb"): raise {type(error).__name__}("it broke")
from daq_ioc.errors import UserError
Driver.scan = classmethod(fail)
sys.exit(cli.main(["scan", "--log-level", "debug"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_record_root_that_cannot_be_made_is_said_before_serving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    options = ["--record-root", str(tmp_path / "file")]
    assert cli.main(["run", str(write_demo(tmp_path)), *options]) == 2
    assert capsys.readouterr().err.startswith("daq-ioc: --record-root: ")
