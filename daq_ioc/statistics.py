"""Exact statistics of samples: one row per stretch of samples, and the combination of rows.

The row is that of the JLS file format, so that what the instrument panel shows, what a recording
holds and what a reader returns are the same numbers. All sums are float64.
"""

from __future__ import annotations

import operator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

FIELDS: Final = ("current", "voltage", "power", "current_range", "current_lsb", "voltage_lsb")
UNITS: Final = ("A", "V", "W", "", "", "")

ROW: Final = np.dtype(
    [("length", "<u8"), ("mean", "<f8"), ("variance", "<f8"), ("min", "<f8"), ("max", "<f8")]
)
"""One field over one stretch. ``length`` counts the samples used. ``variance`` holds the sum of
squared deviations from the mean: divide it by ``length - 1``. With length 0 the rest is NaN."""

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
"""Array of ROW; the last axis is the field, in the order of FIELDS."""

# OpenBLAS wakes its other threads for longer vectors, which then spin on a core that is not ours.
# 20 000 samples, the reduction of a recording, are two such lengths.
_DOT_LENGTH: Final = 10_000
_ONES: Final = np.ones(_DOT_LENGTH)


def empty(shape: tuple[int, ...] = ()) -> Rows:
    """Rows (..., 6) of no samples."""
    rows = np.empty((*shape, len(FIELDS)), ROW)
    rows[...] = (0, np.nan, np.nan, np.nan, np.nan)
    return rows


def reduce(
    current: npt.NDArray[np.float32],
    voltage: npt.NDArray[np.float32],
    bits: npt.NDArray[np.uint8],
) -> Rows:
    """The row (6,) of samples given as float32 A, float32 V and uint8 bits, each (n,).

    A sample counts if both its current and its voltage are finite; power is their float32 product.
    """
    if len(current) == 0:
        return empty()
    row: Rows = reduce_rows(current, voltage, bits, len(current))[0]
    return row


def reduce_rows(
    current: npt.NDArray[np.float32],
    voltage: npt.NDArray[np.float32],
    bits: npt.NDArray[np.uint8],
    samples_per_row: int,
) -> Rows:
    """Rows (n // samples_per_row, 6), as `reduce` makes them of each whole stretch of samples."""
    count = len(current) // samples_per_row
    if count == 0:
        return empty((0,))
    n = count * samples_per_row
    shape = count, samples_per_row
    table = np.empty((4, count, len(FIELDS)))  # mean, squares, min, max
    for field, values in enumerate((current[:n], voltage[:n], current[:n] * voltage[:n])):
        _reduce_values(values.reshape(shape), table[:, :, field])
    bits = bits[:n].reshape(shape)
    _reduce_ranges(bits & np.uint8(0x0F), table[:, :, 3])
    _reduce_flags((bits & np.uint8(0x10), bits & np.uint8(0x20)), table[:, :, 4:6])
    rows = np.empty((count, len(FIELDS)), ROW)
    rows["length"] = samples_per_row
    rows["mean"], rows["variance"], rows["min"], rows["max"] = table
    # A value that is not finite shows in its mean; only then is every sample looked at.
    finite = np.isfinite(table[0, :, :3])
    if not finite.all():
        for k in np.flatnonzero(~finite.all(axis=1)):
            part = slice(k * samples_per_row, (k + 1) * samples_per_row)
            used = np.isfinite(current[part]) & np.isfinite(voltage[part])
            if not used.all():
                rows[k] = reduce(current[part][used], voltage[part][used], bits[k][used])
    return rows


Table = npt.NDArray[np.float64]


def _reduce_values(values: npt.NDArray[np.float32], out: Table) -> None:
    """Mean, squares, min and max of each row of ``values`` into ``out`` (4, rows)."""
    wide = values.astype(np.float64)
    length = wide.shape[1]
    part = _DOT_LENGTH if length % _DOT_LENGTH == 0 else length
    ones = _ONES if part == _DOT_LENGTH else np.ones(part)
    parts = wide.reshape(len(wide), -1, part)
    mean = np.add.reduce(np.vecdot(parts, ones), axis=1) / length
    wide -= mean[:, np.newaxis]
    out[0] = mean
    out[1] = np.add.reduce(np.vecdot(parts, parts), axis=1)
    out[2] = np.minimum.reduce(values, axis=1)
    out[3] = np.maximum.reduce(values, axis=1)


def _reduce_ranges(ranges: npt.NDArray[np.uint8], out: Table) -> None:
    low, high = np.minimum.reduce(ranges, axis=1), np.maximum.reduce(ranges, axis=1)
    out[0] = out[2] = low
    out[1] = 0
    out[3] = high
    for k in np.flatnonzero(low != high):
        kinds = range(int(low[k]), int(high[k]) + 1)
        counts = [int(np.count_nonzero(ranges[k] == kind)) for kind in kinds[:-1]]
        counts.append(ranges.shape[1] - sum(counts))
        mean = sum(map(operator.mul, counts, kinds)) / ranges.shape[1]
        out[0, k] = mean
        out[1, k] = sum(n * (kind - mean) ** 2 for n, kind in zip(counts, kinds, strict=True))


def _reduce_flags(flags: tuple[npt.NDArray[np.uint8], ...], out: Table) -> None:
    """The same of inputs, each (rows, n) and not 0 where set, into ``out`` (4, rows, inputs)."""
    length = flags[0].shape[1]
    ones = np.empty(out.shape[1:])
    for k, flag in enumerate(flags):
        ones[:, k] = [np.count_nonzero(row) for row in flag]
    out[0] = ones / length
    out[1] = ones * (length - ones) / length
    out[2] = ones == length
    out[3] = ones > 0


def combine(rows: Rows, axis: int = 0) -> Rows:
    """One row of several: as if their samples had been reduced together.

    ``rows`` (..., n, ..., 6); rows of length 0 add nothing, all of length 0 give length 0.
    """
    if rows["length"].all() and rows.shape[axis]:
        return _combine_all(rows, axis)
    length = rows["length"].sum(axis=axis)
    some = length > 0
    used = rows["length"] > 0
    weight = np.where(used, rows["length"], 0).astype(np.float64)
    value = np.where(used, rows["mean"], 0.0)
    out = np.empty(length.shape, ROW)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weight * value).sum(axis=axis) / length
        spread = weight * (value - np.expand_dims(np.where(some, mean, 0.0), axis)) ** 2
        inner = np.where(used, rows["variance"], 0.0)
        out["length"] = length
        out["mean"] = np.where(some, mean, np.nan)
        out["variance"] = np.where(some, (inner + spread).sum(axis=axis), np.nan)
    low = np.where(used, rows["min"], np.inf).min(axis=axis, initial=np.inf)
    high = np.where(used, rows["max"], -np.inf).max(axis=axis, initial=-np.inf)
    out["min"] = np.where(some, low, np.nan)
    out["max"] = np.where(some, high, np.nan)
    return out


def _combine_all(rows: Rows, axis: int) -> Rows:
    """`combine` of rows, at least one, none of which is empty: the usual case, found cheaply."""
    lengths, means = rows["length"], rows["mean"]
    length = np.add.reduce(lengths, axis=axis)
    out = np.empty(length.shape, ROW)
    with np.errstate(invalid="ignore"):
        weights = lengths.astype(np.float64)
        mean = np.add.reduce(weights * means, axis=axis) / length
        spread = means - np.expand_dims(mean, axis)
        spread *= spread
        spread *= weights
        spread += rows["variance"]
        out["variance"] = np.add.reduce(spread, axis=axis)
    out["length"], out["mean"] = length, mean
    out["min"] = np.minimum.reduce(rows["min"], axis=axis)
    out["max"] = np.maximum.reduce(rows["max"], axis=axis)
    return out
