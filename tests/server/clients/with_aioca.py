"""A libca client (aioca): looks at a stub device under a prefix, prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aioca import (
    DBR_CHAR_STR,
    DBR_STRING,
    FORMAT_CTRL,
    FORMAT_TIME,
    caget,
    cainfo,
    camonitor,
    caput,
)

PREFIX = sys.argv[1]


async def metadata(name: str) -> dict[str, Any]:
    control = await caget(PREFIX + name, format=FORMAT_CTRL)
    seen = {"value": control.tolist() if hasattr(control, "tolist") else control}
    for key in ("units", "precision", "enums", "lower_ctrl_limit", "upper_ctrl_limit"):
        if hasattr(control, key):
            seen[key] = getattr(control, key)
    timed = await caget(PREFIX + name, format=FORMAT_TIME)
    seen["raw_stamp"] = list(timed.raw_stamp)
    seen["alarm"] = [timed.severity, timed.status]
    info = await cainfo(PREFIX + name)
    seen["access"] = [info.read, info.write]
    return seen


async def put(name: str, value: Any, **options: Any) -> dict[str, Any]:
    """Put with completion; whether it worked, and the value after it."""
    done = await caput(PREFIX + name, value, wait=True, throw=False, **options)
    reading = {"datatype": options["datatype"]} if "datatype" in options else {}
    return {"ok": bool(done), "now": await caget(PREFIX + name, **reading)}


async def main() -> None:
    seen: dict[str, Any] = {}
    for name in ("CURRENT", "STATS", "COUNT", "TIME_TEXT", "STATE", "GPI0", "dt", "POINTS"):
        seen[name] = await metadata(name)
    seen["as string"] = {
        name: str(await caget(PREFIX + name, datatype=DBR_STRING))
        for name in ("STATE", "COUNT", "dt")
    }
    seen["FILE"] = await caget(PREFIX + "FILE", datatype=DBR_CHAR_STR)
    seen["empty"] = await caget(PREFIX + "NOTE", datatype=DBR_CHAR_STR)
    seen["fields"] = {
        name: await caget(PREFIX + name, datatype=DBR_STRING)
        for name in (
            "CURRENT.NAME", "CURRENT.RTYP", "CURRENT.DESC", "CURRENT.EGU", "CURRENT.PREC",
            "CURRENT.SEVR", "CURRENT.STAT", "CURRENT.UDF", "CURRENT.SCAN", "CURRENT.MDEL",
            "dt.DRVH", "STATS.NORD", "STATS.NELM", "STATS.FTVL", "FILE.FTVL", "I_RANGE.ONST",
            "GPI0.ONAM", "dt.RTYP", "POINTS.RTYP", "I_RANGE.RTYP", "START.RTYP", "TIME_TEXT.RTYP",
        )
    }  # fmt: skip
    seen["long field"] = await caget(PREFIX + "CURRENT.DESC$", datatype=DBR_CHAR_STR)
    seen["puts"] = {
        "dt": await put("dt", 0.25),
        "range by word": await put("I_RANGE", "2 A"),
        "range by index": await put("I_RANGE", 3),
        "text": await put("NOTE", "größer " * 20, datatype=DBR_CHAR_STR),
        "momentary": await put("START", 1),
        "beyond limits": await put("dt", 99),
        "no such word": await put("I_RANGE", "7 A"),
        "fails in the device": await put("FRAGILE", 1.0),
        "read only": await put("CURRENT", 1.0),
        "field": await put("CURRENT.DESC", "x"),
    }
    empty: list[Any] = []
    watch = camonitor(PREFIX + "NOTHING", lambda value: empty.append(value.tolist()))
    texts: list[Any] = []
    watch_text = camonitor(PREFIX + "FILE2", texts.append, datatype=DBR_CHAR_STR)
    updates: list[float] = []
    monitor = camonitor(PREFIX + "CURRENT", updates.append)
    for _ in range(500):
        await asyncio.sleep(0.02)
        if len(updates) >= 5:
            break
    for each in (monitor, watch, watch_text):
        each.close()
    seen["empty array"], seen["empty text"] = empty, texts
    seen["updates"] = [float(value) for value in updates]
    print(json.dumps(seen, default=str))


asyncio.run(main())
