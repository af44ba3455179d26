"""How the maker's software, and so `DataReader`, structures samples and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from daq_ioc import statistics
from daq_ioc.statistics import FIELDS, Rows

Array = npt.NDArray[Any]

UNITS = {
    **dict(zip(FIELDS, statistics.UNITS, strict=True)),
    "raw": "", "raw_current": "LSBs", "raw_voltage": "LSBs", "bits": "",
}  # fmt: skip

DTYPES = {
    "current": "f4", "voltage": "f4", "power": "f4", "current_range": "u1", "current_lsb": "u1",
    "voltage_lsb": "u1", "raw": "u2", "raw_current": "u2", "raw_voltage": "u2", "bits": "u1",
}  # fmt: skip


def item(value: Any, units: str) -> dict[str, Any]:
    """A value with its units."""
    return {"value": value, "units": units}


def allocate(names: Sequence[str], count: int, *, raw: bool) -> dict[str, Array]:
    """Arrays for ``count`` samples; MemoryError if this computer has not that much free memory."""
    dtypes = {name: np.dtype(DTYPES.get(name, "f8") if raw else "f4") for name in names}
    shapes = {name: (count, 2) if name == "raw" else (count,) for name in names}
    shapes.update({name: (0,) for name in names if name not in DTYPES})
    needed = sum(dtypes[name].itemsize * int(np.prod(shapes[name])) for name in names)
    free = psutil.virtual_memory().available
    if needed > 1 << 28 and needed > free:
        raise MemoryError(
            f"{count} samples need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: ask for "
            "less at a time, for pieces(), or for windows with data_get()"
        )
    return {name: np.empty(shapes[name], dtypes[name]) for name in names}


def statistics_api(row: Rows, start: float, stop: float) -> dict[str, Any]:
    """The structure of `DataReader.statistics_get` for a row (6,) from ``start`` to ``stop`` s."""
    signals: dict[str, Any] = {}
    for k, (name, unit) in enumerate(zip(FIELDS, statistics.UNITS, strict=True)):
        length, mean, squares, low, high = row[k].item()
        variance = squares / (length - 1) if length > 1 else (0.0 if length else np.nan)
        values = {"µ": mean, "σ2": variance, "min": low, "max": high, "p2p": high - low}
        signals[name] = {key: item(float(value), unit) for key, value in values.items()}
        if name in ("current", "power"):
            total = mean * (stop - start)
            signals[name]["∫"] = item(total, {"A": "C", "W": "J"}[unit])
    return {
        "time": {
            "range": item([start, stop], "s"),
            "delta": item(stop - start, "s"),
            "samples": item(int(row[0]["length"]), "samples"),
        },
        "signals": signals,
        "source": "stream_buffer",
    }
