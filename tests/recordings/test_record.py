"""``daq-ioc record``: a file without an IOC, whole whatever ends it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from daq_ioc import cli
from daq_ioc.jls.data_recorder import DataReader
from tests.ioc import child

EMULATOR = ["--backend", "emulator:js110"]


def seconds_in(path: Path) -> float:
    with DataReader().open(path) as reader:
        assert not reader.problems
        return reader.duration


def test_for_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "100%.jls"
    assert cli.main(["record", "-o", str(path), "--duration", "0.75", *EMULATOR]) == 0
    assert seconds_in(path) == 0.75
    assert "1500000 samples, 0.75 s, 0 missing" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "x.jls"
    command = [sys.executable, "-m", "daq_ioc", "record", "-o", str(path), "--note", "a note"]
    with child([*command, *EMULATOR]) as process:
        while not path.exists() or path.stat().st_size < 2_000_000:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "0 missing" in output
    assert seconds_in(path) > 0.2
    with DataReader().open(path) as reader:
        assert reader.user_data is not None
        assert reader.user_data["note"] == "a note"


def test_no_instrument_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daq_ioc.recordings.record.CONNECT_TIMEOUT", 0.2)
    path = tmp_path / "x.jls"
    absent = ["--backend", "emulator:js110:plugged=no"]
    assert cli.main(["record", "-o", str(path), "--duration", "1", *absent]) == 1
    assert "no JS110 is plugged in; see 'daq-ioc scan'" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "there.jls"], "never overwritten"),
        (["-o", "x.dat"], "ends with .jls"),
        (["-o", "{x}.jls"], "without braces"),
        (["-o", "no/x.jls"], "no such directory"),
        (["-o", "x.jls", "--driver", "nope"], "there is no driver 'nope'"),
        (["-o", "x.jls", "--driver", "onboard"], "onboard"),
        (["-o", "x.jls", "--backend", "emulator:js999"], "js999"),
    ],
)
def test_wrong_arguments_change_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jls").write_text("precious")
    assert cli.main(["record", *options]) == 2
    assert says in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["there.jls"]
    assert (tmp_path / "there.jls").read_text() == "precious"


@pytest.mark.parametrize("duration", ["0", "-1", "nan", "inf", "soon"])
def test_a_duration_is_a_positive_time(duration: str) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["record", "-o", "x.jls", "--duration", duration])
    assert error.value.code == 2
