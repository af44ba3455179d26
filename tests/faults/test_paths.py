"""A client that may record tries to write elsewhere: nothing outside the record root changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.conftest import Figure

DIRECTORIES = (
    "..", "../..", "../outside", "a/../../outside", "./..", "/tmp", "/", "//", "link", "link/x",  # noqa: S108
    "a/link2", "dangling", "loop", "~", "~root", "$HOME", "a\0/../..", "x" * 10_000, "y/" * 5000,
    "fifo", "file.jls", "/proc/self/cwd", "/dev", "..\\..", "a//../..", "\n", "\x1b[2J", "%n%s",
    "é" * 300, "con", "a/./..", "...", "../recordings/../outside", "-rf",
)  # fmt: skip
NAMES = (
    "../escaped", "/tmp/escaped", "..", ".", "", "a/b", "link.jls", "hard", "fifo", "dangling.jls",  # noqa: S108
    "/dev/null", "victim", "x" * 10_000, "a\0b", "%", "%s", "%n", "{", "{0}", "{serial.__class__}",
    "{serial!r}", "{n:>999999999}", "%Y/%m", "\\", "\n", "-rf", ".hidden", "é" * 200, "{serial}{n}",
)  # fmt: skip


def snapshot(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """All below ``place`` but the record root and the IOC's own log: what it is and has in it."""
    found = {}
    for path in sorted(place.rglob("*")):
        below = path.relative_to(place)
        if below.parts[0] == "recordings" or below.name == "faults.log":
            continue
        about = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(below)] = (about.st_mode, about.st_size, about.st_ino, data)
    return found


def test_no_way_out(tmp_path: Path, bench: Callable[..., Bench], figure: Figure) -> None:
    """Every directory with a plain name, and every name in a plain directory, is recorded to."""
    root, outside = tmp_path / "recordings", tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "a").mkdir()
    victim = outside / "victim.jls"
    victim.write_bytes(b"precious")
    (root / "link").symlink_to(outside)
    (root / "a" / "link2").symlink_to("../../outside")
    (root / "link.jls").symlink_to(victim)
    (root / "dangling").symlink_to(outside / "new")
    (root / "dangling.jls").symlink_to(outside / "new.jls")
    (root / "loop").symlink_to("loop")
    (root / "hard.jls").hardlink_to(victim)
    (root / "file.jls").write_bytes(b"a recording")
    os.mkfifo(root / "fifo.jls")
    os.mkfifo(root / "fifo")
    running = bench()
    client = running.streaming()
    before = snapshot(tmp_path)
    temporary = set(os.listdir("/tmp"))  # noqa: PTH208, S108
    refused = recorded = 0
    attacks = [(where, f"plain{k}") for k, where in enumerate(DIRECTORIES)]
    attacks += [("sub", name) for name in NAMES] + [("", name) for name in NAMES]
    for where, name in attacks:
        assert client.put("RECORD_DIR", "")
        assert client.put("RECORD_NAME", "unused")
        wanted = client.put("RECORD_DIR", where) and client.put("RECORD_NAME", name)
        if not (wanted and client.put("RECORD_START", 1)):
            refused += 1
            continue
        recorded += 1
        made = Path(client.get("RECORD_FILE"))
        assert made.resolve().is_relative_to(root.resolve()), (where, name)
        assert made.is_file()
        assert not made.is_symlink()
        assert client.put("RECORD_STOP", 1)
    assert snapshot(tmp_path) == before
    assert (root / "file.jls").read_bytes() == b"a recording"
    assert not [n for n in set(os.listdir("/tmp")) - temporary if "escaped" in n or "plain" in n]  # noqa: PTH208, S108
    figure(
        f"{len(attacks)} attacks: {refused} refused, {recorded} recorded below the root, "
        f"nothing outside it created or changed"
    )
    running.no_traceback()


def test_nothing_is_writable_for_the_world(
    tmp_path: Path, bench: Callable[..., Bench], figure: Figure
) -> None:
    """Not even where the umask would allow it, as that of many a service does."""
    running = bench(before=["sh", "-c", 'umask 0; exec "$@"', "sh"])
    client = running.streaming()
    assert client.put("RECORD_DIR", "one/two")
    assert client.put("RECORD_START", 1)
    assert client.put("RECORD_STOP", 1)
    made = [*(tmp_path / "recordings").rglob("*"), tmp_path / "recordings", running.control]
    made += [p for p in tmp_path.iterdir() if p.suffix not in (".toml", ".log")]
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in made}
    figure(f"{len(modes)} files, directories and sockets, none writable for others")
    assert not {path: mode for path, mode in modes.items() if int(mode, 8) & 0o002}
