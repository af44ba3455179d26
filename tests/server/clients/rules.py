"""A libca client (aioca) of an IOC that serves by rules; does what it is told and prints JSON.

rules.py PREFIX [NAME=VALUE ...]    puts each with completion; prints what every PV is after it
rules.py PREFIX --alarms CONTROL    unplugs and replugs the instrument by its control socket
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

from aioca import DBR_STRING, FORMAT_CTRL, FORMAT_TIME, caget, cainfo, camonitor, caput

PREFIX = sys.argv[1]


async def text(name: str) -> str:
    return str(await caget(PREFIX + name, datatype=DBR_STRING))


async def streaming() -> None:
    for _ in range(600):
        if await text("STATE") == "streaming" and (await caget(PREFIX + "SAMPLES")) > 0:
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the instrument does not stream")


async def puts() -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for argument in sys.argv[2:]:
        name, _, value = argument.partition("=")
        info = await cainfo(PREFIX + name)
        done = True
        if value:
            done = bool(await caput(PREFIX + name, value, wait=True, throw=False, timeout=20))
        seen[name] = [info.write, done, await text(name)]
    return seen


async def alarms() -> dict[str, Any]:
    control = await caget(PREFIX + "VOLTAGE", format=FORMAT_CTRL)
    seen: dict[str, Any] = {"limits": [control.upper_alarm_limit, control.upper_warning_limit]}
    fields = ("HIHI", "HIGH", "HHSV", "HSV", "LSV", "HYST", "MDEL", "ADEL")
    seen["fields"] = {name: await text(f"VOLTAGE.{name}") for name in fields}
    history: list[list[int]] = []

    def note(value: Any) -> None:
        alarm = [value.severity, value.status]
        if not history or history[-1] != alarm:
            history.append(alarm)

    monitor = camonitor(PREFIX + "VOLTAGE", note, format=FORMAT_TIME)
    slow: list[float] = []
    banded = camonitor(PREFIX + "POWER", slow.append)
    await asyncio.sleep(0.5)
    with socket.socket(socket.AF_UNIX) as instrument:
        instrument.connect(sys.argv[3])
        for command, ends in (("unplug", 3), ("plug", 2)):
            instrument.sendall(command.encode() + b"\n")
            assert instrument.recv(100).startswith(b"ok")
            for _ in range(400):
                await asyncio.sleep(0.05)
                if history and history[-1][0] == ends:
                    break
    monitor.close()
    banded.close()
    seen["history"], seen["updates in dead band"] = history, len(slow)
    seen["reconnects"] = await caget(PREFIX + "RECONNECTS")
    return seen


async def main() -> None:
    await streaming()
    seen = await (alarms() if sys.argv[2:3] == ["--alarms"] else puts())
    print(json.dumps(seen, default=float))


asyncio.run(main())
