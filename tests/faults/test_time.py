"""The clock of the computer is set while the IOC runs, and the instrument's crystal is off.

The clock is set for the IOC alone, by a library that is loaded before it and adds to CLOCK_REALTIME
the seconds that a file holds; the monotonic clock goes on, as it does when a clock is really set.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.bench import RATE, Bench, recorded
from tests.faults.conftest import Figure

LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    static volatile double *ahead;
    if (!real) {
        ahead = mmap(0, 8, PROT_READ, MAP_SHARED, open(getenv("AHEAD"), O_RDONLY), 0);
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = real(id, now);
    if (id == CLOCK_REALTIME)
        now->tv_sec += (time_t)*ahead;
    return result;
}
"""

PPM = 100
HOUR = 3600


def test_the_clock_is_set_and_the_crystal_is_off(
    tmp_path: Path, bench: Callable[..., Bench], long: bool, figure: Figure
) -> None:
    """An hour forward; a leap second and half a minute back. Stamps go on, and come back to UTC."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to set the clock of one process")
    source, library, ahead = (tmp_path / name for name in ("ahead.c", "ahead.so", "ahead"))
    source.write_text(LIBRARY)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60
    )
    ahead.write_bytes(struct.pack("d", 0.0))
    env = shutil.which("env")
    assert env
    running = bench(before=[env, f"LD_PRELOAD={library}", f"AHEAD={ahead}"], emulator=f"ppm={PPM}")
    client = running.streaming()
    assert client.put("RECORD_START", 1)
    path = Path(client.get("RECORD_FILE"))
    stamps: list[float] = []
    now = 0.0

    def set_clock(by: float) -> None:
        nonlocal now
        now += by
        with ahead.open("r+b") as file:
            file.write(struct.pack("d", now))

    def watch(seconds: float) -> float:
        """Read stamps for a while; how far the last one was from UTC, s."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stamps.append(client.read("CURRENT").time)
            stamps.append(client.get("TIME"))
            time.sleep(0.05)
        return abs(time.time() + now - float(client.get("TIME")))

    def settled(limit: float) -> float:
        """How long it takes until stamps are UTC again, s."""
        began = time.monotonic()
        while watch(0.5) > 0.5:
            assert time.monotonic() < began + limit
        return time.monotonic() - began

    assert watch(3) < 0.5
    results = []
    for step in (HOUR, -1, -50 if long else -8, 2 * HOUR):
        set_clock(step)
        time.sleep(1.5)  # the clock is asked once a second
        results.append((step, settled(60)))
    error = watch(40 if long else 1)
    assert client.put("RECORD_STOP", 1)
    found = recorded(path)
    assert (found.wrong, len(found.missing)) == (0, 0)
    assert found.samples == client.get("RECORD_SAMPLES")
    assert client.get("DROPPED") == 0
    back = sum(after < before for before, after in zip(stamps[::2], stamps[2::2], strict=False))
    back += sum(after < before for before, after in zip(stamps[1::2], stamps[3::2], strict=False))
    figure(
        f"{PPM} ppm; clock set by (s), at UTC again after (s): "
        + ", ".join(f"{step:+g}: {took + 1.5:.0f}" for step, took in results)
        + f"; {back} of {len(stamps)} stamps went back, at the end {error * 1e3:.0f} ms off; "
        f"{found.samples / RATE:.1f} s recorded, 0 samples wrong"
    )
    assert back == 0
    running.no_traceback()
