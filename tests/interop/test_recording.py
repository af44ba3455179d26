"""Recordings of the device, opened by the maker's own software, against the instrument's truth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joulescope.data_recorder import DataReader as MakersReader

from daq_ioc.device import Device, State
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.emulator import get_backend
from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration

SECONDS = 3.0


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A file, the true raw words of its samples, and the snapshot after it was made."""
    # Waits for a test machine that stands still: what is recorded is to be seen, not how fast.
    backend = get_backend("js110:seed=11,queue_ms=2000")
    root = tmp_path_factory.mktemp("records")
    device = Device(Driver(backend=backend), dt=0.1, buffer_span=3, record_root=root)
    device.start()
    deadline = time.monotonic() + 30
    try:
        while device.state is not State.STREAMING or device.buffer.stop_id < 100_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        device.put("RECORD_START", 1)
        while float(device.snapshot()["RECORD_DURATION"].value) < SECONDS:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        device.put("RECORD_STOP", 1)
        snapshot = device.snapshot()
        (path,) = root.iterdir()
        with_truth = MakersReader().open(str(path))
        first = with_truth.user_data["first_sample"]
        count = with_truth.footer["size"]
        with_truth.close()
        truth = backend.instruments[0].truth(first, first + count)
    finally:
        device.stop()
    assert snapshot["RECORD_DROPPED"].value == 0
    assert snapshot["RECORD_SAMPLES"].value == count
    return path, truth, backend


def test_the_maker_reads_every_sample(recording: tuple[Path, Any, Any]) -> None:
    path, truth, _ = recording
    reader = MakersReader().open(str(path))
    assert reader.sample_id_range == [0, len(truth)]
    assert reader.sampling_frequency == 2e6
    got = reader.samples_get(fields=["raw"])["signals"]["raw"]["value"]
    assert np.array_equal(got, truth)
    reader.close()


def test_the_maker_finds_the_calibration(recording: tuple[Path, Any, Any]) -> None:
    path, truth, _ = recording
    reader = MakersReader().open(str(path))
    calibration = Calibration.from_bytes(reader.calibration.data)
    reader.raw_processor.suppress_mode = "off"
    for start in (0, 123_457, len(truth) - 50_000):
        stop = start + 50_000
        signals = reader.samples_get(start, stop, fields=["current", "voltage", "bits"])["signals"]
        current, voltage, bits = words.decode(truth[start:stop], calibration, 0)
        assert np.array_equal(signals["current"]["value"], current)
        assert np.array_equal(signals["voltage"]["value"], voltage)
        assert np.array_equal(signals["bits"]["value"], bits)
    reader.close()


def test_the_makers_statistics_are_the_truth(recording: tuple[Path, Any, Any]) -> None:
    """Over whole reductions, where its statistics are the ones we wrote (as float32)."""
    path, truth, _ = recording
    reader = MakersReader().open(str(path))
    voltage = words.decode(truth, Calibration.from_bytes(reader.calibration.data), 0)[1]
    rng = np.random.default_rng(5)
    last = len(truth) // 20_000
    for _ in range(20):
        a, b = sorted(int(k) * 20_000 for k in rng.choice(last, 2, replace=False))
        signal = reader.statistics_get(a, b)["signals"]["voltage"]
        x = voltage[a:b].astype(np.float64)
        assert signal["µ"]["value"] == pytest.approx(x.mean(), rel=2e-7)
        # The rows are stored as float32, and so their means are off by up to half a last place.
        off = 2.0**-24 * x.max()
        assert signal["σ2"]["value"] == pytest.approx(x.var(ddof=1), abs=4 * off * x.std())
        assert signal["min"]["value"] == x.min()
        assert signal["max"]["value"] == x.max()
    reader.close()


def test_charge_over_the_recording_is_the_instruments(recording: tuple[Path, Any, Any]) -> None:
    """Suppression replaces glitches, so the charge is close to the ideal one, not to the raw."""
    path, truth, backend = recording
    reader = MakersReader().open(str(path))
    first = reader.user_data["first_sample"]
    stop = len(truth) // 20_000 * 20_000
    charge = reader.statistics_get(0, stop)["signals"]["current"]["∫"]["value"]
    ideal = backend.instruments[0].ideal(first, first + stop)
    expected = float(ideal.current.sum(dtype=np.float64)) / 2e6
    assert charge == pytest.approx(expected, rel=5e-3)
    reader.close()
