"""The window against a real IOC over Channel Access, on a screen that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daq_ioc import cli
from tests.ioc import running_ioc, write_demo

SHOWN = [
    "streams", "has units", "has no alarm", "values move", "traces are drawn", "a put goes through",
    "target power is switched when confirmed", "and back", "records", "shows the file",
    "recording ends",
]  # fmt: skip


def need_qt() -> None:
    """Skip where the extra, or what Qt needs of the operating system, is not installed."""
    tried = subprocess.run(
        [sys.executable, "-c", "import pydm, pyqtgraph, PySide6.QtWidgets"],
        capture_output=True, text=True, timeout=60,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "QT_API": "pyside6"},
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"no Qt here: {tried.stderr.strip().splitlines()[-1]}")


def test_a_window_on_an_ioc_that_then_goes(tmp_path: Path) -> None:
    need_qt()
    driver = Path(__file__).with_name("drive.py")
    with running_ioc(write_demo(tmp_path, "GUI:")) as ioc:
        window = subprocess.Popen(
            [sys.executable, str(driver), "GUI:"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ioc.environment | {"QT_QPA_PLATFORM": "offscreen"},
        )  # fmt: skip
        assert window.stdout is not None
        try:
            done = []
            for line in window.stdout:
                if line.startswith("ready for"):
                    break
                done.append(line.strip())
            if done == SHOWN:
                assert ioc.stop() == 0
            out, err = window.communicate("\n", timeout=60)
        finally:
            window.kill()
    assert done == SHOWN, err
    assert "lost IOC shows disconnected" in out, err
    assert window.returncode == 0, err
    assert "Traceback" not in err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "daq_ioc.gui.window", None)
    assert cli.main(["gui", "JS:"]) == 1
    assert "pip install 'daq-ioc[gui]'" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["gui", "--help"])
    assert raised.value.code == 0
    assert "daq-ioc gui" in capsys.readouterr().out.partition("examples:")[2]
