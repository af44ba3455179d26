"""Float recordings of the device at lower rates, opened by the maker's own software."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joulescope.data_recorder import DataReader as MakersReader

from daq_ioc.device import Device, State
from daq_ioc.downsample import FULL_RATE, Downsampler
from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.emulator import get_backend
from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration

RATES = {"2 MHz": 2_000_000, "100 kHz": 100_000, "1 kHz": 1_000}
SECONDS = 1.1


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """By rate, a file and the true fields of its samples."""
    backend = get_backend("js110:seed=12")
    root = tmp_path_factory.mktemp("records")
    driver = Driver(backend=backend)
    device = Device(driver, dt=0.1, buffer_span=4, record_root=root)
    device.start()
    deadline = time.monotonic() + 60
    made = {}
    try:
        while device.state is not State.STREAMING or device.buffer.stop_id < 100_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        device.put("SUPPRESS", "off")
        start = device.buffer.stop_id
        while device.buffer.stop_id < start + 1_000_000:
            time.sleep(0.01)
        device.put("RECORD_FORMAT", "JLS1 float")
        device.put("RECORD_LIMIT", SECONDS)
        for name, rate in RATES.items():
            device.put("RECORD_NAME", name.replace(" ", ""))
            device.put("RECORD_RATE", name)
            device.put("RECORD_START", 1)
            while device.snapshot()["RECORD_STATE"].value:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            path = Path(str(device.snapshot()["RECORD_FILE"].value))
            made[name] = path, true_fields(backend, driver, path, rate)
    finally:
        device.stop()
    return made


def true_fields(backend: Any, driver: Driver, path: Path, rate: int) -> Any:
    reader = MakersReader().open(str(path))
    first, count = reader.user_data["first_sample"], reader.footer["size"]
    reader.close()
    sampler = Downsampler(rate)
    stop = first + count * sampler.factor + sampler.after
    raw = backend.instruments[0].truth(first - sampler.before, stop)
    assert driver.calibration_data is not None
    calibration = Calibration.from_bytes(driver.calibration_data)
    return sampler.push(*words.decode(raw, calibration, 0))


@pytest.mark.parametrize("rate", RATES)
def test_the_maker_reads_every_sample(recordings: dict[str, tuple[Path, Any]], rate: str) -> None:
    path, truth = recordings[rate]
    reader = MakersReader().open(str(path))
    count = round(SECONDS * RATES[rate])
    assert reader.sample_id_range == [0, count]
    assert reader.sampling_frequency == RATES[rate]
    assert reader.calibration.serial_number
    got = reader.samples_get(0, count, fields=list(truth))["signals"]
    for name in ("current", "voltage", "power"):
        np.testing.assert_allclose(got[name]["value"], truth[name], rtol=1e-6, atol=1e-9)
    for name, scale in (("current_range", 16), ("current_lsb", 15), ("voltage_lsb", 15)):
        error = np.abs(got[name]["value"] - truth[name])
        assert (error < 1 / scale + 1e-6).all(), name
    reader.close()


@pytest.mark.parametrize("rate", RATES)
def test_its_statistics_are_the_truth(recordings: dict[str, tuple[Path, Any]], rate: str) -> None:
    """Over whole reductions, ranges included: samples and reductions do not disagree."""
    path, truth = recordings[rate]
    reader = MakersReader().open(str(path))
    size = reader.config["samples_per_reduction"]
    assert size == min(20_000, max(10, RATES[rate] // 100))
    stop = len(truth["voltage"]) // size * size
    for a, b in ((0, stop), (size, stop - size), (3 * size, 4 * size)):
        signals = reader.statistics_get(a, b)["signals"]
        for name in ("current", "voltage", "power", "current_range"):
            x = truth[name][a:b].astype(np.float64)
            error = 1 / 16 if name == "current_range" else 1e-6 * np.abs(x).max()
            assert signals[name]["µ"]["value"] == pytest.approx(x.mean(), abs=error)
            assert signals[name]["max"]["value"] == pytest.approx(x.max(), abs=error)
    reader.close()


def test_the_full_rate_is_the_instruments(recordings: dict[str, tuple[Path, Any]]) -> None:
    assert Downsampler(FULL_RATE).factor == 1
    path, truth = recordings["2 MHz"]
    reader = MakersReader().open(str(path))
    got = reader.samples_get(0, 50_000, fields=["current"])["signals"]["current"]["value"]
    assert np.array_equal(got, truth["current"][:50_000])
    reader.close()
