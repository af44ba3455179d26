"""Disks that fail while the IOC records: the reason is told, the file is readable, the IOC goes on.

The faults come from the operating system: a small file system, and a limit on the size of files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from joulescope.data_recorder import DataReader as MakersReader

from daq_ioc.jls.data_recorder import DataReader
from tests.ioc import IocProcess, running, write_demo

SCRIPT = """
import asyncio, json, sys, aioca

async def until(name, accept, seconds=30):
    for _ in range(int(seconds * 20)):
        text = name.endswith(("MESSAGE", "FILE"))
        value = await aioca.caget(name, datatype=aioca.DBR_CHAR_STR if text else None)
        if accept(value):
            return value
        await asyncio.sleep(0.05)
    raise SystemExit(f"{name} stays {value!r}")

async def main():
    await until("JS:STATE", lambda v: v == 2)
    await aioca.caput("JS:RECORD_START", 1, wait=True)
    await until("JS:RECORD_STATE", lambda v: v == 3)
    dropped = await aioca.caget("JS:DROPPED")
    samples = float(await aioca.caget("JS:SAMPLES"))
    await until("JS:SAMPLES", lambda v: v > samples + 1e6)
    print(json.dumps({
        "message": await until("JS:RECORD_MESSAGE", len),
        "file": await until("JS:RECORD_FILE", len),
        "recorded": float(await aioca.caget("JS:RECORD_SAMPLES")),
        "dropped": float(await aioca.caget("JS:DROPPED")),
        "state": int(await aioca.caget("JS:STATE")),
    }))

asyncio.run(main())
"""


def record_until_it_fails(ioc: IocProcess) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=ioc.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + ioc.log_text()
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["state"] == 2
    assert seen["dropped"] == 0
    return seen


def test_a_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 24 MB, three seconds of samples, in a mount namespace of the IOC's own."""
    unshare = shutil.which("unshare")
    assert unshare, "util-linux is needed for this test"
    config = write_demo(tmp_path)
    root = tmp_path / "recordings"
    root.mkdir()
    inside = f'mount -t tmpfs -o size=24m none "{root}" && exec "$@"'
    command = [unshare, "-rm", "sh", "-c", inside, "sh"]
    command += [sys.executable, "-m", "daq_ioc", "run", str(config)]
    with running(command, tmp_path / "log") as ioc:
        seen = record_until_it_fails(ioc)
        file = Path(f"/proc/{ioc.process.pid}/root{seen['file']}")
        copy = tmp_path / "copy.jls"
        shutil.copyfile(file, copy)
    assert "disk" in seen["message"]
    assert "full" in seen["message"]
    reader = MakersReader().open(str(copy))
    assert reader.footer["size"] == seen["recorded"] > 2_000_000
    raw = reader.samples_get(0, 1000, fields=["raw"])["signals"]["raw"]["value"]
    assert not (raw == 0xFFFF).all(axis=1).any()
    reader.close()


def test_a_write_that_fails(tmp_path: Path) -> None:
    """No file may grow beyond 9 MB: a write is cut short in the middle of a record."""
    config = write_demo(tmp_path)
    limited = (
        "import resource, runpy, sys;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({9 << 20}, resource.RLIM_INFINITY));"
        "sys.argv = ['daq-ioc', 'run', sys.argv[1]];"
        "runpy.run_module('daq_ioc', run_name='__main__')"
    )
    with running([sys.executable, "-c", limited, str(config)], tmp_path / "log") as ioc:
        seen = record_until_it_fails(ioc)
    assert "cannot write" in seen["message"]
    reader = DataReader().open(seen["file"])
    first, stop = reader.sample_id_range
    assert (first, stop) == (0, seen["recorded"])
    assert stop >= 2_000_000
    data: Any = reader.samples_get(fields=["raw"])
    assert data["signals"]["raw"]["value"].shape == (stop, 2)
    reader.close()
