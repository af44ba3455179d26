"""Disks that fill up, vanish, cannot be written, or stall: the reason is told, nothing else stops.

The disks are file systems of their own, in a mount namespace that ends with the IOC: a tmpfs that
is filled, and an ext4 in a file that is frozen, as a stalled disk is, and shut down, as a lost one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.bench import RATE, STREAMING, Bench, recorded
from tests.faults.ca import Client
from tests.faults.conftest import Figure

ERROR = 3
FREEZE, THAW, SHUTDOWN = 0xC0045877, 0xC0045878, 0x8004587D
"""ioctls of Linux file systems: FIFREEZE, FITHAW, EXT4_IOC_SHUTDOWN."""

root_needed = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an ext4 takes root")


def on_disk(place: Path, mount: str) -> list[str]:
    """The command that runs another with ``recordings`` on a file system of its own."""
    (place / "recordings").mkdir()
    unshare = shutil.which("unshare")
    assert unshare, "util-linux is needed for this test"
    options = "-m" if os.geteuid() == 0 else "-rm"
    return [unshare, options, "sh", "-c", f'{mount} "{place}/recordings" && exec "$@"', "sh"]


def inside(running: Bench, path: Path) -> Path:
    """A path as the IOC sees it, for us."""
    return Path(f"/proc/{running.ioc.process.pid}/root{path}")


def copied(running: Bench, client: Client, place: Path) -> Path:
    """The last recording, copied out of the file system that ends with the IOC."""
    copy = place / "copy.jls"
    shutil.copyfile(inside(running, Path(client.get("RECORD_FILE"))), copy)
    return copy


def goes_on(client: Client) -> None:
    """Acquisition has lost nothing and does not stop."""
    client.wait_more("SAMPLES", client.get("SAMPLES") + 1_000_000)
    assert client.get("DROPPED") == 0
    assert client.get("STATE") == STREAMING
    assert client.read("CURRENT").severity == 0


def test_full(tmp_path: Path, bench: Callable[..., Bench], figure: Figure) -> None:
    """Somebody fills the disk at once, so that a write fails in the middle."""
    running = bench(before=on_disk(tmp_path, "mount -t tmpfs -o size=128m none"))
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    client.wait_more("RECORD_SAMPLES", 1_000_000)
    with inside(running, tmp_path / "recordings" / "filler").open("wb", buffering=0) as filler:
        for _ in range(200):
            try:
                filler.write(bytes(1 << 20))
            except OSError:
                break
        client.wait("RECORD_STATE", ERROR)
    assert "full" in client.get("RECORD_MESSAGE")
    goes_on(client)
    samples = client.get("RECORD_SAMPLES")
    found = recorded(copied(running, client, tmp_path))
    assert not client.put("RECORD_START", 1)  # refused, for the same reason
    inside(running, tmp_path / "recordings" / "filler").unlink()
    assert (found.wrong, len(found.missing)) == (0, 0)
    assert found.samples == samples > 1_000_000
    assert client.put("RECORD_START", 1)  # and once there is space again, it records again
    client.wait_more("RECORD_SAMPLES", 400_000)
    assert client.put("RECORD_STOP", 1)
    figure(f"{found.samples} samples before the disk was full are readable, 0 wrong, DROPPED 0")
    running.no_traceback()


@root_needed
def test_read_only(tmp_path: Path, bench: Callable[..., Bench]) -> None:
    """Made so while the IOC runs: RECORD_START is refused and says why."""
    running = bench(before=on_disk(tmp_path, "mount -t tmpfs -o size=64m none"))
    client = running.streaming()
    remount = ["nsenter", "-t", str(running.ioc.process.pid), "-m", "mount", "-o", "remount,ro"]
    subprocess.run([*remount, str(tmp_path / "recordings")], check=True, timeout=20)
    assert not client.put("RECORD_START", 1)
    assert client.get("RECORD_STATE") == ERROR
    assert "Read-only" in client.get("RECORD_MESSAGE")
    goes_on(client)
    running.no_traceback()


def ext4(place: Path) -> list[str]:
    """As `on_disk`, with an ext4 in a file of this test's directory."""
    image = place / "disk.img"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=60)  # noqa: S607
    return on_disk(place, f'mount -o loop "{image}"')


def ioctl(running: Bench, place: Path, number: int, argument: bytes = bytes(4)) -> None:
    handle = os.open(inside(running, place / "recordings"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(handle, number, argument)
    finally:
        os.close(handle)


@root_needed
def test_gone(tmp_path: Path, bench: Callable[..., Bench], figure: Figure) -> None:
    """The file system is shut down while it is written: every later access fails."""
    running = bench(before=ext4(tmp_path))
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    client.wait_more("RECORD_SAMPLES", 1_000_000)
    ioctl(running, tmp_path, SHUTDOWN, (2).to_bytes(4, "little"))
    client.wait("RECORD_STATE", ERROR)
    said = client.get("RECORD_MESSAGE")
    assert "cannot write" in said
    goes_on(client)
    assert not client.put("RECORD_START", 1)
    figure(f"acquisition goes on; RECORD_MESSAGE: {said.split(': ')[-1]}")
    running.no_traceback()


@root_needed
@pytest.mark.parametrize(("stall", "loses"), [(2.0, False), (6.0, True)])
def test_stalled(
    tmp_path: Path, bench: Callable[..., Bench], figure: Figure, stall: float, loses: bool
) -> None:
    """The disk stands still, shorter and longer than ``buffer_span`` (3 s) lasts.

    A shorter stall loses nothing. A longer one loses samples of the recording only, and as many as
    RECORD_DROPPED says; the IOC answers meanwhile.
    """
    running = bench(before=ext4(tmp_path))
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    client.wait_more("RECORD_SAMPLES", 1_000_000)
    ioctl(running, tmp_path, FREEZE)
    slowest = 0.0
    try:
        end = time.monotonic() + stall
        while (now := time.monotonic()) < end:
            client.get("CURRENT")
            slowest = max(slowest, time.monotonic() - now)
            time.sleep(0.02)
    finally:
        ioctl(running, tmp_path, THAW)
    client.wait_more("RECORD_SAMPLES", client.get("RECORD_SAMPLES") + stall * RATE)
    client.wait_more("RECORD_SAMPLES", client.get("SAMPLES") - RATE)
    assert client.put("RECORD_STOP", 1)
    dropped = client.get("RECORD_DROPPED")
    goes_on(client)
    found = recorded(copied(running, client, tmp_path))
    figure(
        f"{stall:g} s: RECORD_DROPPED {dropped:.0f}, missing in the file {len(found.missing)}, "
        f"wrong {found.wrong}, DROPPED 0; slowest answer meanwhile {slowest * 1e3:.0f} ms"
    )
    assert found.wrong == 0
    assert found.samples == client.get("RECORD_SAMPLES")
    assert dropped == len(found.missing)
    assert (dropped > 0) == loses
    running.no_traceback()
