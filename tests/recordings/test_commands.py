"""The commands on recordings, run as a user runs them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from daq_ioc.errors import UsageError, UserError
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.jls.writer import Sizes, Writer
from daq_ioc.recordings import export, info, plot, repair, stats
from tests.jls import vectors
from tests.jls.test_damage import recording

Run = Any


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command line; names of vectors become files."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for module in (info, stats, export, plot, repair):
        module.add_parser(commands)

    def command(*words: Any) -> int:
        args = parser.parse_args([str(word) for word in words])
        status: int = args.func(args)
        return status

    return command


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write a vector to a file."""

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.jls"
        path.write_bytes(vectors.recording(name))
        return path

    return write


def test_info(run: Run, file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", file("raw_ranges_a"), "--check") == 0
    text = capsys.readouterr().out
    for fact in ("21377", "JLS 1 raw", "2e+06 Hz", "published set", "nothing missing", "53e69f9"):
        assert fact in text


def test_info_json(run: Run, file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", file("f32_plain_a"), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == 5232
    assert facts["problems"] == []
    assert facts["calibration"] is None


def test_info_tells_damage(run: Run, file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = file("corrupt_data_a")
    assert run("info", path) == 0  # not looked at
    assert run("info", path, "--check", "--json") == 1
    out = capsys.readouterr().out
    assert "samples 6000 to 8000 are lost" in out
    assert run("info", file("trunc_unclosed_f32_a")) == 1


@pytest.mark.parametrize("name", ["raw_ranges_a", "f32_plain_a"])
def test_stats(run: Run, file: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(name)
    reader = DataReader().open(path)
    rate = reader.sampling_frequency
    assert run("stats", path, "--json", "--start", 1000 / rate, "--stop", 3000 / rate) == 0
    facts = json.loads(capsys.readouterr().out)
    got = reader.samples_get(1000, 3000)
    assert got is not None
    current = got["signals"]["current"]["value"].astype(np.float64)
    used = current[np.isfinite(current)]
    assert facts["samples"] == len(used)
    assert facts["missing"] == 2000 - len(used)
    assert facts["current"]["mean"] == pytest.approx(used.mean(), rel=1e-5)
    assert facts["current"]["std"] == pytest.approx(used.std(ddof=1), rel=1e-5)
    assert facts["charge"] == pytest.approx(used.mean() * 2000 / rate, rel=1e-5)
    assert run("stats", path) == 0
    assert "energy" in capsys.readouterr().out


def test_negative_times_count_from_the_end(
    run: Run, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("stats", file("f32_plain_a"), "--start=-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["start"] == 4.232


def _table(path: Path) -> dict[str, Any]:
    if path.suffix == ".csv":
        lines = path.read_text().splitlines()
        columns = np.loadtxt(lines[1:], delimiter=",", unpack=True, ndmin=2)
        names = [head.split("_")[0] for head in lines[0].split(",")]
        return dict(zip(names, columns, strict=True))
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            assert file["voltage"].attrs["units"] == "V"
            assert file["voltage"].compression == "gzip"
            return {name: file[name][:] for name in file}
    loaded: Any = np.load(path)
    names = loaded.dtype.names if path.suffix == ".npy" else loaded.files
    return {name: loaded[name] for name in names}


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".h5"])
@pytest.mark.parametrize("name", ["raw_ranges_a", "f32_plain_a"])
def test_export(run: Run, file: Any, tmp_path: Path, name: str, suffix: str) -> None:
    path, out = file(name), tmp_path / f"out{suffix}"
    reader = DataReader().open(path)
    assert run("export", path, out, "--start", 100 / reader.sampling_frequency) == 0
    table, got = _table(out), reader.samples_get(100, None)
    assert got is not None
    for field in ("current", "voltage", "power"):
        np.testing.assert_allclose(table[field], got["signals"][field]["value"], rtol=1e-7)
    times = np.arange(100, reader.sample_id_range[1]) / reader.sampling_frequency
    np.testing.assert_allclose(table["time"], times, atol=5e-10)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, out.name])


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".h5"])
def test_export_at_a_lower_rate(run: Run, file: Any, tmp_path: Path, suffix: str) -> None:
    path, out = file("f32_plain_a"), tmp_path / f"out{suffix}"
    assert run("export", path, out, "--rate", 10, "--fields", "voltage,current_range") == 0
    rows = DataReader().open(path).data_get(0, None, 100)
    table = _table(out)
    np.testing.assert_allclose(table["voltage"], rows["mean"][:, 1], rtol=1e-8)
    assert len(table["time"]) == 52


def test_export_refuses(run: Run, file: Any, tmp_path: Path) -> None:
    path, out = file("f32_plain_a"), tmp_path / "out.csv"
    for words in (
        [tmp_path / "out.xls"], [out, "--rate", "0"], [out, "--rate", "nan"],
        [out, "--rate", "1e9"],
        [out, "--fields", "current,speed"], [out, "--fields", "current,current"],
        [out, "--start", "99"], [out, "--start", "2", "--stop", "1"],
        [tmp_path / "no" / "out.csv"],
    ):  # fmt: skip
        with pytest.raises(UsageError):
            run("export", path, *words)
    assert list(tmp_path.iterdir()) == [path]
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        run("export", path, out)
    assert out.read_text() == "mine"
    assert run("export", path, out, "--force") == 0


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot(run: Run, file: Any, tmp_path: Path, suffix: str, magic: bytes) -> None:
    out = tmp_path / f"out{suffix}"
    assert run("plot", file("raw_ranges_a"), out, "--log") == 0
    assert out.read_bytes().startswith(magic)


@pytest.mark.parametrize(("points", "count"), [(10, 10), (1000, 1017), (30000, 21377)])
def test_envelope(file: Any, points: int, count: int) -> None:
    reader = DataReader().open(file("raw_ranges_a"))
    times, rows = plot.envelope(reader, 0, 21377, points)
    assert len(times) == len(rows) == count
    assert (np.diff(times) > 0).all()
    assert 0 <= times[0] < times[-1] <= reader.duration


@pytest.mark.parametrize(
    "name", ["trunc_unclosed_raw_a", "trunc_unclosed_f32_a", "trunc_copied_raw_a", "corrupt_data_a"]
)
def test_repair(run: Run, file: Any, tmp_path: Path, name: str) -> None:
    path, out = file(name), tmp_path / "whole.jls"
    assert run("repair", path, out) == 0
    assert path.read_bytes() == vectors.recording(name)
    broken, whole = DataReader().open(path), DataReader().open(out)
    assert whole.problems == []
    assert whole.user_data == broken.user_data
    assert whole.sample_id_range == broken.sample_id_range
    a, b = broken.samples_get(), whole.samples_get()
    assert a is not None
    assert b is not None
    for field, signal in a["signals"].items():
        np.testing.assert_array_equal(b["signals"][field]["value"], signal["value"])
    for member in ("length", "mean", "min", "max"):
        got, want = whole.get_reduction()[member], broken.get_reduction()[member]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_repair_of_a_lost_block_start(run: Run, tmp_path: Path) -> None:
    """Raw words stay, and the voltage range is that of the blocks beside it, if they agree."""
    sizes = Sizes(10, 20, 40)
    for ranges, lost in (((1, 1, 1), False), ((0, 1, 1), True)):
        path, out = tmp_path / f"{lost}.jls", tmp_path / f"{lost}_out.jls"
        writer = Writer(path)
        writer.start(100, sizes=sizes)
        for k, voltage_range in enumerate(ranges):
            values = np.ones(40, np.float32)
            signals: dict[str, Any] = {"current": values, "voltage": values}
            signals["bits"] = np.zeros(40, np.uint8)
            signals["raw"] = np.full((40, 2), 4 * k, np.uint16)
            writer.write(k * 40, signals, voltage_range)
        writer.close()
        data = bytearray(path.read_bytes())
        where = [k for k in range(len(data)) if data.startswith(b'{"v_range"', k)][1]
        data[where + 11] ^= 1
        path.write_bytes(data)
        assert run("repair", path, out) == 0
        got = DataReader().open(out).samples_get(fields="raw")
        assert got is not None
        middle = got["signals"]["raw"]["value"][40:80]
        assert (middle == (0xFFFF if lost else 4)).all()


def test_repair_refuses(run: Run, file: Any, tmp_path: Path) -> None:
    path = file("raw_ranges_a")
    with pytest.raises(UsageError, match="never modified"):
        run("repair", path, path, "--force")
    with pytest.raises(UserError, match="no samples"):
        run("repair", file("zero_samples_a"), tmp_path / "out.jls")
    with pytest.raises(UserError, match="no such file"):
        run("repair", tmp_path / "nothing.jls", path, "--force")
    assert path.read_bytes() == vectors.recording("raw_ranges_a")


def test_files_that_are_no_recordings(run: Run, tmp_path: Path) -> None:
    for name, content in (
        ("a", b""),
        ("b", b"x" * 100),
        ("c", b"jlsfmt\r\n \n \x1a  \xb2\x1c" * 5),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            run("info", path)
    with pytest.raises(UserError, match="no such file"):
        run("info", tmp_path / "nothing.jls")
    path.write_bytes(recording("raw")[:900])
    with pytest.raises(UserError):
        run("stats", path)
