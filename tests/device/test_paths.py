"""Recordings stay below their root, whatever names are put, and overwrite nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daq_ioc.device import paths
from daq_ioc.errors import UserError


def create(root: Path, directory: str = "", name: str = paths.DEFAULT_NAME) -> Path:
    path, file = paths.create(root, directory, name, "000415")
    file.close()
    return path


def test_names() -> None:
    now = datetime(2026, 11, 21, 3, 4, 5, tzinfo=UTC)
    assert paths._filename(paths.DEFAULT_NAME, "000415", now, 1) == "20261121_030405_000415.jls"
    assert paths._filename("run{n}.jls", "", now, 7) == "run7.jls"
    assert paths._filename("a%%b_{serial}", "../x", now, 1) == "a%b____x.jls"


def test_directories_are_made(tmp_path: Path) -> None:
    path = create(tmp_path / "new", "2026/beam time", "x")
    assert path == tmp_path / "new/2026/beam time/x.jls"
    assert path.exists()


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    create(tmp_path, name="x")
    with pytest.raises(UserError, match=r"exists already.*\{n\}"):
        create(tmp_path, name="x")
    assert [create(tmp_path, name="y{n}").name for _ in range(3)] == ["y1.jls", "y2.jls", "y3.jls"]


@pytest.mark.parametrize(
    "directory", ["..", "a/../..", "/etc", "a/..", "x\0y", "é" * 200, "a/" * 800, "a\nb", "\x7f"]
)
def test_bad_directories_are_refused(directory: str) -> None:
    with pytest.raises(ValueError, match="directory"):
        paths.checked_directory(directory)


@pytest.mark.parametrize(
    "name",
    ["a/b", "../x", "%D", "%Q", "{host}", "{n", "n}", "{{n}}", ".hidden", "x\0", "%", "é" * 200],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        paths.checked_name(name)


def test_links_below_the_root_lead_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "x.jls").symlink_to(outside / "target")
    (root / "file").write_text("")
    for directory in ("link", "link/deeper", "file"):
        with pytest.raises(UserError, match="cannot record in"):
            create(root, directory)
    with pytest.raises(UserError, match="exists already"):
        create(root, name="x")
    assert list(outside.iterdir()) == []


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot record in .*file"):
        create(tmp_path / "file")


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


PUT = st.text(max_size=60) | st.lists(
    st.sampled_from(["..", ".", "/", "a", "%", "%H", "%/", "{n}", "{serial}", "{", "\0", "é", "~"]),
    max_size=12,
).map("".join)


@given(PUT, PUT)
@example("a/../../b", "x")
@example("", "../x")
def test_whatever_is_put_nothing_appears_outside(
    tmp_path_factory: pytest.TempPathFactory, directory: str, name: str
) -> None:
    base = tmp_path_factory.mktemp("paths")
    root = base / "root"
    root.mkdir()
    handles = open_files()
    try:
        path = create(root, paths.checked_directory(directory), paths.checked_name(name))
        assert path.resolve().is_relative_to(root.resolve())
        assert path.is_file()
    except (ValueError, UserError):
        pass
    assert [p.name for p in base.iterdir()] == ["root"]
    assert open_files() == handles
