"""A libca client (pyepics): looks at a stub device under a prefix, prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import epics

PREFIX = sys.argv[1]


def connected(name: str, **options: Any) -> Any:
    pv = epics.PV(PREFIX + name, **options)
    assert pv.wait_for_connection(timeout=10), f"{name} does not connect"
    return pv


def seen_of(name: str) -> dict[str, Any]:
    pv = connected(name, form="ctrl")
    value = pv.get(timeout=10)
    return {
        "value": value.tolist() if hasattr(value, "tolist") else value,
        "text": pv.get(as_string=True),
        "type": pv.type,
        "units": pv.units,
        "precision": pv.precision,
        "enums": pv.enum_strs,
        "limits": [pv.lower_ctrl_limit, pv.upper_ctrl_limit],
        "alarm": [pv.severity, pv.status],
        "write": bool(pv.write_access),
    }


def main() -> None:
    seen: dict[str, Any] = {
        name: seen_of(name) for name in ("CURRENT", "STATS", "COUNT", "TIME_TEXT", "STATE", "dt")
    }
    stamped = connected("CURRENT", form="time")
    stamped.get(timeout=10)
    seen["stamp"] = [stamped.posixseconds, stamped.nanoseconds]
    seen["FILE"] = connected("FILE").get(as_string=True)
    seen["empty"] = connected("NOTE").get(as_string=True)

    # A client that watches values and, as displays do, properties too.
    values: list[float] = []
    watched = connected("CURRENT", callback=lambda value, **_: values.append(value))
    properties: list[float] = []
    mask = epics.dbr.DBE_PROPERTY
    connected("CURRENT", form="ctrl", auto_monitor=mask,
              callback=lambda value, **_: properties.append(value))  # fmt: skip

    dt = connected("dt")
    seen["put"] = [dt.put(0.125, wait=True, timeout=10), dt.get(use_monitor=False)]
    dt.put(99, wait=True, timeout=10)
    seen["after refused put"] = dt.get(use_monitor=False)
    choice = connected("I_RANGE")
    choice.put("10 A", wait=True, timeout=10)
    seen["enum put"] = choice.get(as_string=True, use_monitor=False)
    note = connected("NOTE")
    note.put("a note of more than forty characters, as long as it takes", wait=True, timeout=10)
    # A PV object may still cut the text to the length of its last monitor event; a new one cannot.
    note.disconnect()
    seen["text put"] = connected("NOTE").get(as_string=True)

    end = time.monotonic() + 10
    while len(values) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    seen["values"], seen["properties"] = len(values), len(properties)
    watched.disconnect()
    print(json.dumps(seen))


main()
