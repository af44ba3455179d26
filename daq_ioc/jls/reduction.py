"""Statistics of six signals over consecutive windows of equal length, all windows at once.

One rule holds everywhere: a sample counts if its current is finite. A field that is not finite
itself there (a float file may hold that) does not enter the statistics of that field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.samples import INPUT_BITS, RANGE_MASK
from daq_ioc.statistics import FIELDS, Rows

Signal = npt.NDArray[Any]
Signals = Mapping[str, Signal]
"""Arrays (n,) by name: the six fields, or ``current``, ``voltage`` (float32) and ``bits``."""

_CHUNK = 65536  # samples whose float64 copy stays in the second-level cache
_DOT_LENGTH = 10000  # longer vectors make the BLAS library start threads, which costs more
_BUFFER = 1024  # elements; numpy copies what it broadcasts if several windows fit into its buffer
_INPUTS = np.array(INPUT_BITS).reshape(2, 1, 1)  # the last two fields
_ONES = np.ones(_DOT_LENGTH)


def power_of(current: Signal, voltage: Signal) -> Signal:
    """Their float32 product; infinite where it overflows."""
    with np.errstate(over="ignore"):
        return current * voltage


def from_bits(current: Signal, voltage: Signal, bits: Signal) -> dict[str, Signal]:
    """The six signals of samples given as current (A), voltage (V) and the bits byte, each (n,)."""
    return {
        "current": current,
        "voltage": voltage,
        "power": power_of(current, voltage),
        **_integers(bits),
    }


def _integers(bits: Signal) -> dict[str, Signal]:
    return {
        "current_range": bits & RANGE_MASK,
        "current_lsb": bits >> np.uint8(4) & np.uint8(1),
        "voltage_lsb": bits >> np.uint8(5) & np.uint8(1),
    }


def reduce_windows(signals: Signals, window: int, out: Rows | None = None) -> Rows:
    """Rows (n // window, 6) of `Signals` (n,)."""
    current = signals["current"]
    count = len(current) // window
    rows = np.empty((count, len(FIELDS)), statistics.ROW) if out is None else out[:count]
    step = max(1, _CHUNK // window)
    for k in range(0, count, step):
        part = slice(k * window, min(k + step, count) * window)
        chunk = {name: values[part].reshape(-1, window) for name, values in signals.items()}
        chunk.setdefault("power", power_of(chunk["current"], chunk["voltage"]))
        _reduce(chunk, rows[k : k + step])
    return rows


def _reduce(chunk: dict[str, Signal], rows: Rows) -> None:
    """Rows (m, 6) of signals (m, window)."""
    m, n = chunk["current"].shape
    table = np.empty((4, len(FIELDS), m))  # mean, variance, min, max; faster to fill than rows
    if "bits" in chunk:
        _values([chunk[name] for name in FIELDS[:3]], table[:, :3])
        _flags(chunk["bits"], table)
    else:
        _values([chunk[name] for name in FIELDS], table)
    rows["length"] = n
    rows["mean"], rows["variance"], rows["min"], rows["max"] = table.transpose(0, 2, 1)
    # A value that is not finite shows in its mean; only then is every sample looked at.
    finite = np.isfinite(table[0, :3])
    if not finite.all():
        partial = np.flatnonzero(~finite.all(axis=0))
        rows[partial] = _masked({name: values[partial] for name, values in chunk.items()})


def _values(fields: list[Signal], table: Signal) -> None:
    """Statistics (4, k, m) of k arrays (m, window), every sample counted."""
    m, n = fields[0].shape
    wide = np.empty((len(fields), m, n))
    for k, values in enumerate(fields):
        wide[k] = values
        table[2, k] = np.minimum.reduce(values, axis=-1)
        table[3, k] = np.maximum.reduce(values, axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is seen to later
        np.setbufsize(_BUFFER)  # until the end of errstate
        mean = _sums(wide, squared=False) / n
        wide -= mean[..., np.newaxis]
        table[0], table[1] = mean, _sums(wide, squared=True)


def _sums(a: Signal, *, squared: bool) -> Signal:
    """Sums along the last axis of ``a``, or of its squares."""
    total = np.zeros(a.shape[:-1])
    for k in range(0, a.shape[-1], _DOT_LENGTH):
        part = a[..., k : k + _DOT_LENGTH]
        total += np.vecdot(part, part if squared else _ONES[: part.shape[-1]])
    return total


def _flags(bits: Signal, table: Signal) -> None:
    """Statistics of the last three of six fields, ``table`` (4, 6, m), from the bits byte."""
    n = bits.shape[1]
    ranges = bits & RANGE_MASK
    low, high = np.minimum.reduce(ranges, axis=1), np.maximum.reduce(ranges, axis=1)
    table[0, 3] = table[2, 3] = low
    table[1, 3], table[3, 3] = 0.0, high
    mixed = np.flatnonzero(low != high)
    if len(mixed):
        part = np.empty((4, 1, len(mixed)))
        _values([ranges[mixed]], part)
        table[:, 3, mixed] = part[:, 0]
    flags = bits & _INPUTS  # one bit set or none, so that any way to pack them counts them
    packed = np.packbits(flags, axis=-1) if n % 8 else flags.view(np.uint64)
    ones = np.add.reduce(np.bitwise_count(packed), axis=-1, dtype=np.int64)
    table[0, 4:] = ones / n
    table[1, 4:] = ones * (n - ones) / n
    table[2, 4:], table[3, 4:] = ones == n, ones > 0


def _masked(chunk: dict[str, Signal]) -> Rows:
    """Rows (m, 6) of signals (m, window), of the samples that count."""
    counted = np.isfinite(chunk["current"])
    if "bits" in chunk:
        chunk.update(_integers(chunk["bits"]))
    rows = statistics.empty((len(counted),))
    for k, name in enumerate(FIELDS):
        used = counted & np.isfinite(chunk[name])
        n = np.count_nonzero(used, axis=1)
        some = n > 0
        wide = np.where(used, chunk[name], 0).astype(np.float64)
        mean = wide.sum(axis=1) / np.maximum(n, 1)
        wide -= mean[:, np.newaxis]
        wide[~used] = 0.0
        low = np.where(used, chunk[name], np.inf).min(axis=1)
        high = np.where(used, chunk[name], -np.inf).max(axis=1)
        found = (mean, np.einsum("ij,ij->i", wide, wide), low, high)
        for member, values in zip(("mean", "variance", "min", "max"), found, strict=True):
            rows[member][some, k] = values[some]
        rows["length"][:, k] = n
    rows["length"] = rows["length"][:, :1]  # the format has one length for all fields
    return rows
