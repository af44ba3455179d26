"""An instrument of somebody else's: found by entry point, served without a change to daq_ioc."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from daq_ioc.client import Client, ClientError
from tests.ioc import running_ioc
from tests.server.conftest import until

HERE = Path(__file__).parent
USER_FILES = [HERE / name for name in ("thermometer.py", "thermometer.toml", "pyproject.toml")]


def test_it_takes_less_than_60_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in USER_FILES) < 60


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a distribution with this entry point, as pip does, for the commands of this test."""
    site = tmp_path / "site"

    def make(point: str) -> None:
        info = site / "thermometer-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "thermometer.py").write_text((HERE / "thermometer.py").read_text())
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thermometer\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[daq_ioc.driver]\nthermometer = {point}\n")
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path.rstrip(os.pathsep))

    return make


@pytest.fixture
def port(tmp_path: Path) -> Path:
    return tmp_path / "tty"


@pytest.fixture
def config(tmp_path: Path, port: Path) -> Path:
    made = tmp_path / "thermometer.toml"
    text = (HERE / "thermometer.toml").read_text()
    made.write_text(text.replace("/dev/ttyUSB0", str(port)).replace("dt = 0.5", "dt = 0.02"))
    return made


def daq_ioc(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daq_ioc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def show(port: Path, celsius: float) -> None:
    new = port.with_suffix(".new")
    new.write_text(f"{celsius}\n")
    new.replace(port)


def test_it_is_served(
    install: Callable[[str], None], config: Path, port: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    install(project["entry-points"]["daq_ioc.driver"]["thermometer"])
    show(port, 21.5)
    with running_ioc(config) as ioc:
        for name, value in ioc.environment.items():
            monkeypatch.setenv(name, value)
        with Client("LAB:T1:", timeout=20) as client:
            until(lambda: client.temperature.read().data == 21.5, "the temperature")
            assert client["TEMPERATURE.EGU"].read().text == "degC"
            assert client.list.read().data[1] == 21.5
            client.offset.write(0.5)
            assert client.offset.read().data == 0.5
            until(lambda: client.temperature.read().data == 22, "the corrected temperature")
            with pytest.raises(ClientError, match=r"OFFSET takes -5\.0 to 5\.0, not 9"):
                client.offset.write(9.0)
            port.unlink()
            until(lambda: client.temperature.read().severity == 3, "the cable to be missed")
            gone = client.temperature.read()
            assert gone.data == 22.0
            assert gone.status.name == "COMM"
            assert client.message.read().text == f"no thermometer at {port}"
            assert 21.5 <= client.temperature_mean.read().data[0] <= 22
            show(port, -3.5)
            until(lambda: client.temperature.read().data == -3, "the thermometer to come back")
            with pytest.raises(ClientError, match="no server has LAB:T1:RECORD_START"):
                client.record_start.read(timeout=0.3)
    assert "Traceback" not in ioc.log_text()


def test_recording_is_refused_and_says_which_instruments_can(
    install: Callable[[str], None], config: Path, tmp_path: Path
) -> None:
    install("thermometer:Thermometer")
    with config.open("a") as file:
        file.write('[device.recording]\nroot = "records"\n')
    for command in ("check", "run"):
        done = daq_ioc(command, str(config))
        assert done.returncode == 2
        assert done.stderr == (
            f"daq-ioc: {config}: device.recording: thermometer has no raw samples to record; "
            "instruments that have: js110; leave this section, or --record-root, out\n"
        )
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("thermometre:Thermometer", "thermometre:Thermometer cannot be loaded: No module named"),
        ("thermometer:Barometer", "thermometer:Barometer cannot be loaded: module 'thermometer'"),
        ("thermometer:time", "neither a RowDriver nor a StreamDriver"),
        ("thermometer:RowDriver", "cannot be made: TypeError(\"Can't instantiate abstract"),
    ],
)
def test_a_driver_that_cannot_be_loaded(
    install: Callable[[str], None], config: Path, point: str, message: str
) -> None:
    install(point)
    config.write_text(config.read_text().partition("options")[0])
    done = daq_ioc("check", str(config))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"daq-ioc: {config}: device.driver: ")
    assert message in line


def test_not_installed(config: Path) -> None:
    done = daq_ioc("check", str(config))
    assert done.returncode == 2
    assert "there is no driver 'thermometer'; drivers are: js110, onboard" in done.stderr


def test_an_option_it_does_not_have(install: Callable[[str], None], config: Path) -> None:
    install("thermometer:Thermometer")
    config.write_text(config.read_text().replace("port", "plug"))
    (line,) = daq_ioc("check", str(config)).stderr.splitlines()
    assert "device.options: " in line
    assert line.endswith("options of this driver are: port")


@pytest.mark.parametrize("path", USER_FILES, ids=lambda path: path.name)
def test_the_readme_shows_these_very_files(path: Path) -> None:
    shown = textwrap.indent(path.read_text(), "    ")
    assert shown in (HERE.parents[1] / "README.md").read_text()
