"""What several tests share: the reference vectors and a calibration made from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from daq_ioc.joulescope.calibration import Calibration
from tests.ioc import client_environment, free_port

VECTORS = Path(__file__).parent / "vectors"

# The machines this runs on stop at times; a slow example is no failure.
settings.register_profile("daq_ioc", deadline=None)
settings.load_profile("daq_ioc")


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], dict[str, Any]]:
    """Load ``NAME.npz`` of the reference vectors as a dict of arrays."""

    def load(name: str) -> dict[str, Any]:
        with np.load(VECTORS / f"{name}.npz") as data:
            return dict(data)

    return load


@pytest.fixture
def epics(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that servers and clients of this test meet on."""
    port = free_port()
    for name, value in client_environment(port).items():
        monkeypatch.setenv(name, value)
    return port


def calibration_of(vector: dict[str, Any]) -> Calibration:
    return Calibration.make(
        vector["current_offset"][:7].tolist(),
        vector["current_gain"][:7].tolist(),
        vector["voltage_offset"].tolist(),
        vector["voltage_gain"].tolist(),
        "00112233445566778899aabbccddeeff",
    )


def same_floats(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Equal bit for bit, whatever the payload of a NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b))) and a[~nan].tobytes() == b[~nan].tobytes()
