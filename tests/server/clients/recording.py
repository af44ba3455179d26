"""A libca client (aioca) of an IOC with an emulated JS110: measures, sets, records; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import pairwise
from typing import Any

from aioca import DBR_CHAR_STR, DBR_STRING, FORMAT_TIME, caget, camonitor, caput

PREFIX, STOP_RECORDING = sys.argv[1], sys.argv[2] == "stop"


async def text(name: str) -> str:
    return str(await caget(PREFIX + name, datatype=DBR_STRING))


async def streaming() -> None:
    for _ in range(600):
        if await text("STATE") == "streaming" and (await caget(PREFIX + "SAMPLES")) > 0:
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the instrument does not stream")


async def put(name: str, value: Any) -> bool:
    return bool(await caput(PREFIX + name, value, wait=True, throw=False, timeout=20))


async def main() -> None:
    await streaming()
    seen: dict[str, Any] = {"serial": await text("SERIAL"), "model": await text("MODEL")}
    stamps: list[float] = []
    monitor = camonitor(
        PREFIX + "CURRENT", lambda value: stamps.append(value.timestamp), format=FORMAT_TIME
    )
    for _ in range(500):
        await asyncio.sleep(0.02)
        if len(stamps) > 10:
            break
    monitor.close()
    seen["steps"] = [later - earlier for earlier, later in pairwise(stamps)]
    reading = await caget(PREFIX + "VOLTAGE", format=FORMAT_TIME)
    seen["voltage"], seen["age"] = float(reading), time.time() - reading.timestamp
    seen["severity"] = reading.severity
    seen["stats"] = len(await caget(PREFIX + "STATS"))
    seen["range put"] = [await put("I_RANGE", "2 A"), await text("I_RANGE")]
    seen["range back"] = [await put("I_RANGE", "auto"), await text("I_RANGE")]
    seen["dt put"] = [await put("dt", 0.2), await caget(PREFIX + "dt")]
    seen["dt refused"] = [await put("dt", -1), await caget(PREFIX + "dt")]
    seen["directory refused"] = await put("RECORD_DIR", 5)
    seen["start"] = [await put("RECORD_START", 1), await text("RECORD_STATE")]
    seen["file"] = str(await caget(PREFIX + "RECORD_FILE", datatype=DBR_CHAR_STR))
    for _ in range(200):
        await asyncio.sleep(0.05)
        if await caget(PREFIX + "RECORD_SAMPLES") > 500_000:
            break
    if STOP_RECORDING:
        seen["stop"] = [await put("RECORD_STOP", 1), await text("RECORD_STATE")]
    seen["samples"] = await caget(PREFIX + "RECORD_SAMPLES")
    seen["dropped"] = await caget(PREFIX + "DROPPED")
    print(json.dumps(seen, default=str))


asyncio.run(main())
