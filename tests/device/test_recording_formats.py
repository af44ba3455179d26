"""Recordings in every format and at lower rates: the instrument's truth, at its true time."""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
import pytest

from daq_ioc.attributes import Attribute
from daq_ioc.device import State, paths
from daq_ioc.device.recorder import ATTRIBUTES
from daq_ioc.device.recording_formats import FORMATS, RECORD_RATES, Jls2Sink, Source
from daq_ioc.device.stream import Stream
from daq_ioc.downsample import FULL_RATE, Downsampler
from daq_ioc.errors import UserError
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.jls.writer_v2 import WriterV2
from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration
from tests.device.test_device import Bench
from tests.ioc import child

FIELDS = ("current", "voltage", "power", "current_range", "current_lsb", "voltage_lsb")


def choices(name: str) -> tuple[str, ...]:
    return next(a for a in ATTRIBUTES if a.name == name).choices


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A running device whose samples are the instrument's words, and nothing else."""
    made = Bench(tmp_path_factory.mktemp("records"), buffer_span=6.0)
    made.device.start()
    made.wait_readings()
    made.device.put("SUPPRESS", "off")
    made.device.put("RECORD_NAME", "{n}")
    made.wait(lambda: made.value("SAMPLES") > 1_500_000)
    # The clock learns all the time; times are compared with what it knows now.
    stream(made).clock.update = lambda *_: None  # type: ignore[method-assign]
    yield made
    made.device.stop()


def prepare(b: Bench, form: str, rate: str, limit: float = 0, pretrigger: float = 0) -> None:
    for name, value in (("FORMAT", form), ("RATE", rate)):
        b.device.put(f"RECORD_{name}", value)
    for name, seconds in (("LIMIT", limit), ("PRETRIGGER", pretrigger)):
        b.device.put(f"RECORD_{name}", seconds)


def record(b: Bench, *options: Any, **more: Any) -> Path:
    """Record until the limit."""
    prepare(b, *options, **more)
    b.device.put("RECORD_START", 1)
    b.wait(lambda: b.value("RECORD_STATE") == 0)
    assert b.value("RECORD_MESSAGE") == "time limit reached"
    return Path(b.value("RECORD_FILE"))


def truth(b: Bench, rate: int, first: int, count: int) -> dict[str, Any]:
    """The six fields at ``rate`` of the instrument's own words from ``first`` on."""
    sampler = Downsampler(rate)
    stop = first + count * sampler.factor + sampler.after
    raw = b.instrument.truth(first - sampler.before, stop)
    data = b.device.driver.calibration_data  # type: ignore[attr-defined]
    samples = words.decode(raw, Calibration.from_bytes(data), 0)
    return sampler.push(*samples)


def stream(b: Bench) -> Stream:
    acquisition = b.device._acquisition
    assert isinstance(acquisition, Stream)
    return acquisition


def check_times(about: Any, rate: int, b: Bench) -> None:
    """The first sample's time is that of the middle of what it stands for."""
    middle = stream(b).first_id + about["first_sample"] + (FULL_RATE // rate - 1) / 2
    assert about["start_unix"] == pytest.approx(stream(b).clock.time_of(middle), abs=1e-6)


def about_of(reader: DataReader) -> dict[str, Any]:
    about = reader.user_data
    assert isinstance(about, dict)
    return about


def samples_of(reader: DataReader, *names: str) -> list[Any]:
    got = reader.samples_get(fields=list(names))
    assert got is not None
    return [got["signals"][name]["value"] for name in names]


@pytest.mark.parametrize("rate", ["2 MHz", "1 MHz", "200 kHz", "10 kHz", "100 Hz"])
def test_float_recordings_are_what_the_instrument_took(bench: Bench, rate: str) -> None:
    path = record(bench, "JLS1 float", rate, 0.7, pretrigger=0.2)
    hertz = RECORD_RATES[choices("RECORD_RATE").index(rate)]
    reader = DataReader().open(path)
    count = round(0.7 * hertz)
    assert reader.sample_id_range == [0, count]
    assert reader.sampling_frequency == hertz
    assert bench.value("RECORD_SAMPLES") == count
    assert bench.value("RECORD_DURATION") == pytest.approx(0.7)
    assert bench.value("RECORD_DROPPED") == 0
    about = about_of(reader)
    check_times(about, hertz, bench)
    expected = truth(bench, hertz, about["first_sample"], count)
    got = dict(zip(FIELDS, samples_of(reader, *FIELDS), strict=True))
    for name in ("current", "voltage", "power"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=1e-9, err_msg=name)
    for name, scale in (("current_range", 16), ("current_lsb", 15), ("voltage_lsb", 15)):
        error = got[name] - expected[name]
        assert (np.abs(error) < 1 / scale + 1e-6).all(), name
    config = reader.config
    assert config is not None
    size = config["samples_per_reduction"]
    n = count // size
    rows = reader.get_reduction()
    means = expected["voltage"][: n * size].reshape(n, size).mean(axis=1, dtype=float)
    np.testing.assert_allclose(rows["mean"][:, 1], means, rtol=1e-6)
    reader.close()


@pytest.mark.parametrize("rate", ["2 MHz", "50 kHz", "1 kHz"])
def test_jls2_recordings_are_what_the_instrument_took(bench: Bench, rate: str) -> None:
    import pyjls

    bench.device.put("RECORD_NOTE", "µ-note")
    path = record(bench, "JLS2", rate, 1.3)
    hertz = RECORD_RATES[choices("RECORD_RATE").index(rate)]
    count = round(1.3 * hertz)
    notes: list[Any] = []
    with pyjls.Reader(str(path)) as reader:
        reader.user_data(lambda _, data: bool(notes.append(data)))  # type: ignore[func-returns-value]
        about, end = [note for note in notes if isinstance(note, dict)]
        assert about["note"] == "µ-note"
        assert end["reason"] == "time limit reached"
        check_times(about, hertz, bench)
        source = reader.sources[1]
        assert (source.vendor, source.model, source.serial_number) == (
            "Jetperch", "JS110", "000415",
        )  # fmt: skip
        expected = truth(bench, hertz, about["first_sample"], count)
        for number, (name, units) in enumerate(
            (("current", "A"), ("voltage", "V"), ("power", "W")), 1
        ):
            info = reader.signals[number]
            assert (info.name, info.units, info.length) == (name, units, count)
            assert info.sample_rate == hertz
            got = reader.fsr(number, 0, count)
            np.testing.assert_allclose(got, expected[name], rtol=1e-6, atol=1e-9)
            for k in (0, count // 2, count - 1):
                when = pyjls.jls_to_utc(reader.sample_id_to_timestamp(number, k))
                assert when == pytest.approx(about["start_unix"] + k / hertz, abs=2e-6)
    bench.device.put("RECORD_NOTE", "")


def test_a_stopped_recording_reaches_to_the_stop(bench: Bench) -> None:
    """Also at a rate whose filters need samples that come after it."""
    prepare(bench, "JLS1 float", "50 Hz")
    bench.device.put("RECORD_START", 1)
    bench.wait(lambda: bench.value("RECORD_SAMPLES") > 10)
    before = bench.device.buffer.stop_id
    bench.device.put("RECORD_STOP", 1)
    after = bench.device.buffer.stop_id
    assert bench.value("RECORD_MESSAGE") == "stopped"
    reader = DataReader().open(bench.value("RECORD_FILE"))
    about = about_of(reader)
    stop = stream(bench).first_id + about["first_sample"] + reader.sample_id_range[1] * 40_000
    assert before - 40_000 < stop < after
    count = reader.sample_id_range[1]
    (got,) = samples_of(reader, "voltage")
    expected = truth(bench, 50, about["first_sample"], count)["voltage"]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    reader.close()


@pytest.mark.parametrize("form", ["JLS1 float", "JLS2"])
def test_lost_samples_are_missing_as_far_as_the_filters_reach(bench: Bench, form: str) -> None:
    prepare(bench, form, "100 kHz")
    bench.device.put("RECORD_START", 1)
    lost = bench.value("DROPPED")
    bench.instrument.faults.lose(7)
    bench.wait(lambda: bench.value("DROPPED") > lost)
    samples = bench.value("RECORD_SAMPLES")
    bench.wait(lambda: bench.value("RECORD_SAMPLES") > samples + 60_000)
    bench.device.put("RECORD_STOP", 1)
    sampler = Downsampler(100_000)
    reach = 7 * 126 + sampler.before + sampler.after + sampler.factor
    dropped = bench.value("RECORD_DROPPED")
    assert reach / sampler.factor - 2 <= dropped <= reach / sampler.factor + 1
    if form == "JLS2":
        import pyjls

        with pyjls.Reader(bench.value("RECORD_FILE")) as reader:
            current = reader.fsr(1, 0, int(bench.value("RECORD_SAMPLES")))
    else:
        v1 = DataReader().open(bench.value("RECORD_FILE"))
        (current,) = samples_of(v1, "current")
        v1.close()
    assert np.isnan(current).sum() == dropped


@pytest.mark.parametrize("form", ["JLS1 float", "JLS2"])
def test_a_lost_instrument_finishes_the_file(bench: Bench, form: str) -> None:
    prepare(bench, form, "500 kHz")
    bench.device.put("RECORD_START", 1)
    bench.wait(lambda: bench.value("RECORD_SAMPLES") > 100_000)
    bench.instrument.unplug()
    bench.wait(lambda: bench.value("RECORD_STATE") == 0)
    assert "instrument lost" in bench.value("RECORD_MESSAGE")
    count = int(bench.value("RECORD_SAMPLES"))
    if form == "JLS2":
        import pyjls

        with pyjls.Reader(bench.value("RECORD_FILE")) as reader:
            assert reader.signals[3].length == count
    else:
        v1 = DataReader().open(bench.value("RECORD_FILE"))
        assert v1.sample_id_range == [0, count]
        v1.close()
    bench.wait_state(State.DISCONNECTED)
    bench.instrument.plug()
    bench.wait_state(State.STREAMING)
    bench.wait_readings()


def test_calibrated_recordings_may_change_the_voltage_range(bench: Bench) -> None:
    prepare(bench, "JLS1 float", "100 kHz")
    bench.device.put("RECORD_START", 1)
    bench.device.put("V_RANGE", "5 V")
    samples = bench.value("RECORD_SAMPLES")
    bench.wait(lambda: bench.value("RECORD_SAMPLES") > samples + 40_000)
    bench.device.put("V_RANGE", "15 V")
    bench.device.put("RECORD_STOP", 1)
    assert bench.value("RECORD_MESSAGE") == "stopped"
    reader = DataReader().open(bench.value("RECORD_FILE"))
    (voltage,) = samples_of(reader, "voltage")
    assert np.nanmin(voltage) > 2.5
    reader.close()


def test_a_pair_that_cannot_be_is_refused_and_creates_nothing(bench: Bench) -> None:
    prepare(bench, "JLS1 raw", "100 kHz")
    before = set(bench.device._recorder.root.iterdir())  # type: ignore[union-attr]
    with pytest.raises(UserError, match="JLS1 raw holds the instrument's own samples, 2 MHz"):
        bench.device.put("RECORD_START", 1)
    assert set(bench.device._recorder.root.iterdir()) == before  # type: ignore[union-attr]
    assert "RECORD_RATE" in bench.value("RECORD_MESSAGE")
    bench.device.put("RECORD_RATE", "2 MHz")


def test_without_pyjls_its_format_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.device.put("RECORD_FORMAT", "JLS1 float")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ValueError, match=r"RECORD_FORMAT: .*pip install 'daq-ioc\[jls2\]'"):
        bench.device.put("RECORD_FORMAT", "JLS2")
    assert bench.value("RECORD_FORMAT") == FORMATS.index("JLS1 float")


def test_the_choices() -> None:
    assert choices("RECORD_FORMAT") == ("JLS1 raw", "JLS1 float", "JLS2")
    assert choices("RECORD_RATE")[:4] == ("2 MHz", "1 MHz", "500 kHz", "200 kHz")
    assert choices("RECORD_RATE")[-3:] == ("100 Hz", "50 Hz", "10 Hz")
    assert all(isinstance(attribute, Attribute) for attribute in ATTRIBUTES)


KILLED = """
    import sys, time
    from pathlib import Path
    from daq_ioc.device import Device
    from daq_ioc.driver.joulescope.js110 import Driver
    from daq_ioc.emulator import get_backend

    driver = Driver(backend=get_backend("js110"))
    device = Device(driver, buffer_span=3, record_root=Path(sys.argv[1]))
    device.start()
    def wait(name, value):
        while device.snapshot()[name].value < value:
            time.sleep(0.01)
    wait("SAMPLES", 400_000)
    device.put("RECORD_FORMAT", sys.argv[2])
    device.put("RECORD_RATE", "10 kHz")
    device.put("RECORD_START", 1)
    wait("RECORD_SAMPLES", 25_000)
    print("recorded", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("form", ["JLS1 float", "JLS2"])
def test_a_killed_process_loses_little(tmp_path: Path, form: str) -> None:
    with child([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), form]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "recorded\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    (path,) = tmp_path.iterdir()
    if form == "JLS2":
        import pyjls

        with pyjls.Reader(str(path)) as reader:
            count = min(reader.signals[k].length for k in (1, 2, 3))
    else:
        v1 = DataReader().open(path)
        count = v1.sample_id_range[1]
        v1.close()
    assert count >= 25_000 - 2 * 10_000


def test_whatever_happens_to_the_name_nothing_else_is_written(tmp_path: Path) -> None:
    """pyjls opens by path: the path it is given is the open file itself."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    path, file = paths.create(tmp_path / "root", "", "a", "1")
    with file:
        path.unlink()
        path.symlink_to(outside)
        writer = WriterV2(file, 1000, {"model": "JS110", "serial": "1"}, {"note": ""})
        writer.append({name: np.zeros(5000, np.float32) for name in FIELDS})
        writer.close({})
        assert os.fstat(file.fileno()).st_size > 60_000
    assert outside.read_text() == "precious"
    with pytest.raises(UserError, match="exists already"):
        paths.create(tmp_path / "root", "", "a", "1")


def fill(writer: WriterV2, samples: Any) -> None:
    writer.append(dict.fromkeys(FIELDS, samples))
    writer.mark(0.0)


def test_writes_that_fail_are_no_secret(tmp_path: Path) -> None:
    """pyjls only logs them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "a.jls").open("w+b") as file:
        writer = WriterV2(file, 2_000_000, {}, {})
        noise = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(OSError, match="pyjls: "):
                fill(writer, noise)
            with pytest.raises(OSError, match="pyjls: "):
                writer.close({})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_recording_that_fails_leaves_no_thread_and_no_file_open(tmp_path: Path) -> None:
    """Its sink is closed after a write has failed, where closing writes once more."""
    stream = Stream(FULL_RATE, 1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
    process = psutil.Process()

    def used() -> tuple[int, int]:
        return process.num_fds(), process.num_threads()

    def fails(allowed: int) -> None:
        with (tmp_path / "a.jls").open("w+b") as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
            try:
                with pytest.raises(OSError, match="pyjls: "):
                    write(file)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def write(file: BinaryIO) -> None:
        sink = Jls2Sink(file, Source(stream, {}, None), Downsampler(FULL_RATE), 0, {})
        try:
            sink._append(dict.fromkeys(FIELDS, noise))
            sink.samples += len(noise)
        finally:
            sink.close({})

    fails(1 << 20)
    before = used()
    for allowed in (1 << 20, 0):  # while it is written, and at once
        fails(allowed)
    assert used() == before
    assert not logging.getLogger("pyjls.c").handlers


def test_filters_reach_no_further_than_two_seconds() -> None:
    """What a stop waits for at most, and how much later a recording may begin."""
    samplers = [Downsampler(rate) for rate in RECORD_RATES]
    assert math.ceil(max(s.before for s in samplers) / FULL_RATE) <= 2
    assert math.ceil(max(s.after for s in samplers) / FULL_RATE) <= 2
