"""Exact statistics of samples: one row per stretch of samples, and the combination of rows.

The row is that of the JLS file format, so that what the instrument panel shows, what a recording
holds and what a reader returns are the same numbers. All sums are float64.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from daq_ioc.samples import INPUT_BITS, RANGE_MASK

FIELDS: Final = ("current", "voltage", "power", "current_range", "current_lsb", "voltage_lsb")
UNITS: Final = ("A", "V", "W", "", "", "")

ROW: Final = np.dtype(
    [("length", "<u8"), ("mean", "<f8"), ("variance", "<f8"), ("min", "<f8"), ("max", "<f8")]
)
"""One field over one stretch. ``length`` counts the samples used. ``variance`` holds the sum of
squared deviations from the mean: divide it by ``length - 1``. With length 0 the rest is NaN."""

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
"""Array of ROW; the last axis is the field, in the order of FIELDS."""

# OpenBLAS wakes its other threads for vectors longer than 10 000, which then spin on a core that is
# not ours; parts as short as this, and their ones, stay in the innermost cache besides.
_PART: Final = 1000
_ONES: Final = np.ones(_PART)


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
    current, voltage, bits = current[:n], voltage[:n], bits[:n].reshape(count, -1)
    signals = [values.reshape(count, -1) for values in (current, voltage, current * voltage)]
    sums = np.empty((2, len(FIELDS), count))  # of values less their pivot, of the squares of these
    ends = np.empty((2, len(FIELDS), count))  # min, max
    pivots = _sum_signals(signals, sums[:, :3], ends[:, :3])
    _sum_bits(bits, sums[:, 3:], ends[:, 3:])
    total, squares = sums
    mean = total / samples_per_row
    squares -= mean * total
    mean[:3] += pivots
    rows = np.empty((count, len(FIELDS)), ROW)
    rows["length"] = samples_per_row
    rows["mean"], rows["variance"] = mean.T, squares.T
    rows["min"], rows["max"] = ends.transpose(0, 2, 1)
    # A value that is not finite shows in its mean; only then is every sample looked at.
    finite = np.isfinite(total[:3])
    if not finite.all():
        for k in np.flatnonzero(~finite.all(axis=0)):
            part = slice(k * samples_per_row, (k + 1) * samples_per_row)
            used = np.isfinite(current[part]) & np.isfinite(voltage[part])
            if not used.all():
                rows[k] = reduce(current[part][used], voltage[part][used], bits[k][used])
    return rows


Table = npt.NDArray[np.float64]


def _sum_signals(
    signals: list[npt.NDArray[np.float32]], sums: Table, ends: Table
) -> npt.NDArray[np.float32]:
    """Fill ``sums`` and ``ends``, (2, signals, rows); the pivots (signals, rows)."""
    count, length = signals[0].shape
    lows, highs = np.empty((2, len(signals), count), np.float32)
    for values, low, high in zip(signals, lows, highs, strict=True):
        np.minimum.reduce(values, axis=1, out=low)
        np.maximum.reduce(values, axis=1, out=high)
    ends[0], ends[1] = lows, highs
    # Values within a factor of two of each other may differ so little that their squares would not
    # tell: their lowest is subtracted, which float32 does without rounding there (Sterbenz). With
    # others, even if only one differs among n, squares lose no more than a factor of 8 n.
    near = highs - lows <= np.minimum(np.abs(lows), np.abs(highs))
    pivots = np.where(near, lows, np.float32(0))
    wide = np.empty((count, -(-length // _PART) * _PART))
    wide[:, length:] = 0  # adds nothing
    parts = wide.reshape(count, -1, _PART)
    partial = np.empty((2, len(signals), *parts.shape[:2]))
    for k in reversed(range(len(signals))):
        values = signals[k]
        if pivots[k].any():
            # Power comes first and leaves its memory to the others: more would be slow to get.
            values = np.subtract(values, pivots[k, :, np.newaxis], out=signals[-1])
        wide[:, :length] = values
        np.vecdot(parts, _ONES, out=partial[0, k])
        np.vecdot(parts, parts, out=partial[1, k])
    np.add.reduce(partial, axis=-1, out=sums)
    return pivots


def _sum_bits(bits: npt.NDArray[np.uint8], sums: Table, ends: Table) -> None:
    """The same for the range and the two inputs in ``bits``, (2, 3, rows)."""
    length = bits.shape[1]
    common, some = np.bitwise_and.reduce(bits, axis=1), np.bitwise_or.reduce(bits, axis=1)
    ends[:, 0] = kinds = common & RANGE_MASK
    sums[:, 0] = kinds * float(length)
    sums[1, 0] *= kinds
    for k in np.flatnonzero(some & RANGE_MASK != kinds):
        ranges = bits[k] & RANGE_MASK
        low, high = int(np.minimum.reduce(ranges)), int(np.maximum.reduce(ranges))
        ends[:, 0, k] = low, high
        counts = {kind: int(np.count_nonzero(ranges == kind)) for kind in range(low, high)}
        counts[high] = length - sum(counts.values())
        sums[0, 0, k] = sum(n * kind for kind, n in counts.items())
        sums[1, 0, k] = sum(n * kind**2 for kind, n in counts.items())
    for field, flag in enumerate(INPUT_BITS, 1):
        sums[:, field] = [np.count_nonzero(row) for row in bits & flag]
    np.equal(sums[0, 1:], length, out=ends[0, 1:])
    np.greater(sums[0, 1:], 0, out=ends[1, 1:])


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
