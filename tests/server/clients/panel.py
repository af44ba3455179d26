"""A libca client (aioca) that opens many channels at once, as a panel does; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from aioca import camonitor

PREFIX, COUNT = sys.argv[1], int(sys.argv[2])


async def main() -> None:
    first: dict[int, float] = {}
    backward = 0
    last: dict[int, float] = {}

    def note(value: float, number: int) -> None:
        nonlocal backward
        first.setdefault(number, float(value))
        backward += float(value) < last.get(number, 0.0)
        last[number] = float(value)

    names = [f"{PREFIX}V{number}" for number in range(COUNT)]
    monitors = camonitor(names, note)
    for _ in range(400):
        await asyncio.sleep(0.05)
        if len(first) == COUNT:
            break
    await asyncio.sleep(0.5)
    for monitor in monitors:
        monitor.close()
    print(json.dumps({"initial": len(first), "backward": backward}))


asyncio.run(main())
