"""The whole IOC on its emulator: what it loses, whether its numbers agree, what it costs.

    python -m tests.benchmarks.demo [--seconds 60] [--subscriptions 20]

Runs `daq-ioc run ioc_configs/demo.toml` in a process of its own while recording and with so many
subscriptions of a real libca client. Afterwards that process compares the recording with what the
instrument took, and tells its processor time; that of the emulator is measured inside it, around
every USB call, and taken off. The target is at most 15 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.ioc import client_environment, free_port

SPEC = "emulator:js110:seed=1"
SIGNALS = ("CURRENT", "VOLTAGE", "POWER")
NAMES = [
    *(f"{signal}{kind}" for signal in SIGNALS for kind in ("", "_STD", "_MIN", "_MAX")),
    *("STATS", "CHARGE", "ENERGY", "TIME", "TIME_TEXT", "DROPPED", "LAG", "RECORD_SAMPLES"),
]


def serve(root: str) -> None:
    """The IOC; on SIGTERM it ends, then this prints what it cost and whether the file is right."""
    from daq_ioc import cli
    from daq_ioc.driver import usb

    config = Path(__file__).parents[2] / "ioc_configs" / "demo.toml"
    status = cli.main(["run", str(config), "--record-root", root])
    backend = usb.get_backend(SPEC)
    found: dict[str, Any] = {"status": status, "emulator": backend.cpu_seconds}
    for path in Path(root).glob("*.jls"):
        found |= compare(path, backend.instruments[0])
    print(json.dumps(found), flush=True)


def compare(path: Path, instrument: Any) -> dict[str, Any]:
    """How many samples a recording has, and how many are not what the instrument took."""
    from daq_ioc.jls.data_recorder import DataReader

    reader = DataReader().open(str(path))
    assert reader.user_data is not None
    first, (_, count) = reader.user_data["first_sample"], reader.sample_id_range
    wrong = 0
    for begin in range(0, count, 4_000_000):
        end = min(count, begin + 4_000_000)
        data: Any = reader.samples_get(begin, end, fields=["raw"])
        raw = data["signals"]["raw"]["value"]
        wrong += int((raw != instrument.truth(first + begin, first + end)).any(axis=1).sum())
    reader.close()
    return {"samples": count, "wrong": wrong}


async def watch(seconds: float, subscriptions: int) -> dict[str, Any]:
    """Record and subscribe for a while, as a client would; what came."""
    import aioca

    seen: dict[str, list[Any]] = {name: [] for name in NAMES}
    while await aioca.caget("JS:STATE") != 2:
        await asyncio.sleep(0.1)
    monitors = []
    for k in range(subscriptions):
        name = NAMES[k % len(NAMES)]
        keep = seen[name].append if k < len(NAMES) else (lambda _: None)
        monitors.append(
            aioca.camonitor(f"JS:{name}", keep, format=aioca.FORMAT_TIME, all_updates=True)
        )
    await aioca.caput("JS:RECORD_START", 1, wait=True)
    await asyncio.sleep(seconds)
    await aioca.caput("JS:RECORD_STOP", 1, wait=True)
    for monitor in monitors:
        monitor.close()
    charges = {c.timestamp: float(c) for c in seen["CHARGE"] if c.severity == 0}
    means = [(c.timestamp, float(c)) for c in seen["CURRENT"] if c.severity == 0]
    dt = float(await aioca.caget("JS:dt"))
    inside = [mean for stamp, mean in means[1:] if stamp in charges]
    whole = charges[means[-1][0]] - charges[means[0][0]]
    found = {
        "updates": sum(map(len, seen.values())),
        "windows": len(inside),
        "sum of windows": sum(inside) * dt,
        "charge": whole,
        "dropped": float(await aioca.caget("JS:DROPPED")),
        "record_dropped": float(await aioca.caget("JS:RECORD_DROPPED")),
    }
    aioca.purge_channel_caches()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--subscriptions", type=int, default=20)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    os.environ |= client_environment(free_port())
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "tests.benchmarks.demo", "--serve", root]
        ioc = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        guard = threading.Timer(options.seconds + 120, ioc.kill)
        guard.start()
        try:
            assert ioc.stdout is not None
            print(ioc.stdout.readline().strip())
            times = psutil.Process(ioc.pid).cpu_times
            began, before = time.monotonic(), sum(times()[:2])
            seen = asyncio.run(watch(options.seconds, options.subscriptions))
            seen["cpu"], took = sum(times()[:2]) - before, time.monotonic() - began
            ioc.terminate()
            report(seen | json.loads(ioc.stdout.read().splitlines()[-1]), took)
        finally:
            guard.cancel()
            ioc.kill()


def report(seen: dict[str, Any], seconds: float) -> None:
    own = (seen["cpu"] - seen["emulator"]) / seconds
    off = abs(seen["sum of windows"] / seen["charge"] - 1)
    print(f"{seconds:.1f} s, {seen['updates']} updates received, exit status {seen['status']}")
    print(f"DROPPED {seen['dropped']:.0f}, RECORD_DROPPED {seen['record_dropped']:.0f}")
    print(f"recording: {seen['samples']} samples, {seen['wrong']} not as the instrument took them")
    print(f"sum of {seen['windows']} windows against CHARGE: {off:.1e} apart")
    beside = seen["emulator"] / seconds
    print(f"processor, once it serves: {own:.1%} of a core; the emulator {beside:.1%} beside it")


if __name__ == "__main__":
    main()
