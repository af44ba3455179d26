"""The published test vectors of JLS version 1, made with the maker's software 1.5.0."""

from __future__ import annotations

import gzip
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent.parent / "vectors" / "jls_v1"

INTACT = (
    "raw_ranges_a", "raw_started_late_a", "raw_2msps_default_a", "f32_plain_a",
    "f32_downsampled_a", "insert_raw_a", "insert_f32_a", "legacy_reduction_v1_a",
)  # fmt: skip
"""Recordings that were closed properly and hold samples."""


def _bytes(name: str) -> bytes:
    path = FOLDER / name
    return (
        path.read_bytes()
        if path.exists()
        else gzip.decompress((FOLDER / f"{name}.gz").read_bytes())
    )


@cache
def recording(name: str) -> bytes:
    """The file ``name``.jls."""
    return _bytes(f"{name}.jls")


def opened(name: str) -> io.BytesIO:
    """The file ``name``.jls as a file object."""
    return io.BytesIO(recording(name))


@cache
def expected(name: str) -> Any:
    """What the maker's software answered, and what is true."""
    return json.loads(_bytes(f"{name}.expect.json"))


@cache
def arrays(name: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays that belong to it."""
    with np.load(FOLDER / f"{name}.expect.npz") as file:
        return dict(file)
