"""The reductions of a block as its last record holds them: packing and unpacking of rows.

Format v2 is array storage: the lengths, then mean, sum of squared deviations, minimum and maximum
of each field, as float32. Format v1, of the maker's releases before 0.8, is bare float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from daq_ioc import statistics
from daq_ioc.jls import arrays
from daq_ioc.statistics import FIELDS, Rows

MEMBERS = ("mean", "variance", "min", "max")
IDS = tuple(k << 4 | j for k in range(len(FIELDS)) for j in range(1, 1 + len(MEMBERS)))
"""Array ids of the values; the lengths have id 0."""

_MAX_ROWS = 1 << 16


@cache
def _layout(rows: int) -> tuple[bytes, np.dtype[Any]]:
    """Header of so many rows as every known writer packs them, and the type of the whole."""
    value = np.zeros(rows, np.float32)
    packed = arrays.pack({0: np.zeros(rows, np.uint64), **dict.fromkeys(IDS, value)}, rows)
    padded = rows + rows % 2
    start = len(packed) - 8 * rows - 4 * len(IDS) * padded
    shape = (len(FIELDS), len(MEMBERS), padded)
    layout = [("header", f"V{start}"), ("length", "<u8", (rows,)), ("values", "<f4", shape)]
    return packed[:start], np.dtype(layout)


def pack_v2(rows: Rows) -> bytes:
    """Payload of rows (n, 6); lengths are the current's, values beyond float32 are infinite."""
    count = len(rows)
    header, layout = _layout(count)
    stored = np.zeros((), layout)
    stored["length"] = rows["length"][:, 0]
    with np.errstate(over="ignore"):
        for j, name in enumerate(MEMBERS):
            stored["values"][:, j, :count] = rows[name].T
    return header + stored.tobytes()[len(header) :]


def unpack_v2(payload: bytes) -> Rows:
    """Rows (n, 6) of a payload in format v2. ValueError if it is not."""
    count = int.from_bytes(payload[12:15], "little")
    header, layout = _layout(min(count, _MAX_ROWS))
    if len(payload) == layout.itemsize and payload.startswith(header):
        stored = np.frombuffer(payload, layout)[0]
        lengths, values = stored["length"], stored["values"][:, :, :count]
    else:
        lengths, values = _unpack_any(payload)
    rows = np.empty((count, len(FIELDS)), statistics.ROW)
    rows["length"] = lengths[:, np.newaxis]
    for j, name in enumerate(MEMBERS):
        rows[name] = values[:, j].T
    _blank(rows)
    return rows


def _unpack_any(payload: bytes) -> tuple[Any, Any]:
    """Lengths (n,) and values (field, member, n) of reductions packed in another order."""
    stored, count = arrays.unpack(payload)
    if any(len(stored.get(id_, ())) != count for id_ in (0, *IDS)):
        raise ValueError("arrays are missing, or of other lengths than stated")
    values = np.stack([stored[id_] for id_ in IDS])
    return stored[0], values.reshape(len(FIELDS), len(MEMBERS), count)


def unpack_v1(payload: bytes, fields: int, samples: int) -> Rows:
    """Rows (n, 6) of the reductions of old recordings: mean, population variance, min, max.

    Their fields are the first 3, or all 6; lengths were not stored and are ``samples``. ValueError
    when the payload has another size.
    """
    values = np.frombuffer(payload, "<f4").reshape(-1, fields, len(MEMBERS))
    rows = statistics.empty((len(values),))
    rows["length"][:, :fields] = samples
    for j, name in enumerate(MEMBERS):
        rows[name][:, :fields] = values[:, :, j]
    rows["variance"] *= rows["length"]
    rows["length"][:, :fields][np.isnan(rows["mean"][:, :fields])] = 0
    _blank(rows)
    return rows


def _blank(rows: Rows) -> None:
    """Give rows of no samples the values they should have, which not every writer gave them."""
    none = rows["length"] == 0
    if none.any():
        rows[none] = statistics.empty()[0]
