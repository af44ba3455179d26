"""What is written equals, byte for byte, what the maker's software writes of the same input."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daq_ioc.jls import arrays as storage
from daq_ioc.jls import data_recorder
from daq_ioc.jls.data_recorder import DataReader, DataRecorder
from daq_ioc.jls.reductions import unpack_v2
from daq_ioc.joulescope import container, container_reader
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.statistics import FIELDS
from tests.jls import vectors
from tests.jls.sources import Source


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the module's constants to the sizes of a recording."""

    def apply(config: dict[str, Any]) -> None:
        spr, tlv = config["samples_per_reduction"], config["samples_per_tlv"]
        monkeypatch.setattr(data_recorder, "SAMPLES_PER_REDUCTION", spr)
        monkeypatch.setattr(data_recorder, "REDUCTIONS_PER_TLV", tlv // spr)
        monkeypatch.setattr(data_recorder, "TLVS_PER_BLOCK", config["samples_per_block"] // tlv)

    return apply


def _records(name: str) -> list[container.Record]:
    return list(container_reader.Reader(vectors.opened(name)).records())


def _recorder(name: str, file: io.BytesIO) -> DataRecorder:
    want = vectors.expected(name)["open"]
    subfiles = [r.payload for r in _records(name) if r.tag == container.SUBFILE]
    calibration = container.split_subfile(subfiles[0])[1] if subfiles else None
    return DataRecorder(file, calibration=calibration, user_data=want["user_data"])


def _samples(name: str) -> dict[str, Any]:
    arrays = vectors.arrays(name)
    prefix = "samples_all__"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", ["raw_ranges_a", "raw_started_late_a", "f32_plain_a"])
def test_stream(name: str, sizes: Any) -> None:
    config = vectors.expected(name)["open"]["config"]
    sizes(config)
    starts = [r.payload[12:] for r in _records(name) if r.tag == container.COLLECTION_START]
    block = json.loads(starts[1])
    rows = vectors.arrays(name)["get_reduction_all"]
    source = Source(
        config["sampling_frequency"],
        _samples(name),
        first=block["sample_id"],
        voltage_range=block["v_range"],
        rows=rows,
    )
    file = io.BytesIO()
    recorder = _recorder(name, file)
    size = len(source.signals["current"])
    for filled in (0, 1, 777, size // 2, size):
        source.filled = filled
        recorder.stream_notify(source)
    recorder.close(vectors.expected(name)["open"]["footer_user_data"])
    assert file.getvalue() == vectors.recording(name)


@pytest.mark.parametrize("chunk", [1, 333, 100000])
@pytest.mark.parametrize("name", ["insert_raw_a", "insert_f32_a"])
def test_insert(name: str, chunk: int, sizes: Any) -> None:
    """The same records; only the last rows and the last sample count are ours, being right."""
    config = vectors.expected(name)["open"]["config"]
    sizes(config)
    arrays = vectors.arrays(name)
    fields = {name: arrays[f"in_{name}"] for name in FIELDS}
    if "in_raw" in arrays:
        fields["raw"] = arrays["in_raw"]
    first, size = int(arrays["in_first_sample_id"]), len(fields["current"])
    file = io.BytesIO()
    recorder = _recorder(name, file)
    for k in range(0, size, chunk):
        stop = min(k + chunk, size)
        signals: dict[str, Any] = {n: {"value": v[k:stop]} for n, v in fields.items()}
        if "raw" in signals:
            signals["raw"]["voltage_range"] = 0
        time = {
            "sampling_frequency": {"value": float(arrays["in_sampling_frequency"])},
            "sample_id_range": {"value": [first + k, first + stop]},
            "samples": {"value": stop - k},
        }
        recorder.insert({"time": time, "signals": signals})
    recorder.close(vectors.expected(name)["open"]["footer_user_data"])

    ours = list(container_reader.Reader(file).records())
    theirs = _records(name)
    assert [r.tag for r in ours] == [r.tag for r in theirs]
    last = max(k for k, r in enumerate(theirs) if r.tag == container.DATA_BINARY)
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.tag == container.COLLECTION_END and a.stored:
            mine, rows = unpack_v2(a.stored), unpack_v2(b.stored)[: len(unpack_v2(a.stored))]
            used = rows["length"] == config["samples_per_reduction"]
            assert (mine["length"][:, 0] == rows["length"][:, 0]).all()
            for member in ("mean", "variance", "min", "max"):
                np.testing.assert_allclose(mine[member][used], rows[member][used], rtol=3e-7)
        elif a.tag == container.COLLECTION_START:
            assert a.stored[12:] == b.stored[12:]
        elif k == last and "raw" not in fields:
            values, count = storage.unpack(a.stored)
            assert count == len(values[1]) == size % config["samples_per_tlv"]
            assert a.stored[16:] == b.stored[16:]
        else:
            assert a.stored == b.stored, (k, a.tag)


def _chunk(first: int, count: int, **changes: Any) -> dict[str, Any]:
    signals: dict[str, Any] = {n: {"value": np.zeros(count, np.float32)} for n in FIELDS}
    signals.update(changes)
    return {
        "time": {
            "sampling_frequency": {"value": 1000},
            "sample_id_range": {"value": [first, first + count]},
            "samples": {"value": count},
        },
        "signals": signals,
    }


def test_insert_refuses_what_does_not_follow() -> None:
    recorder = DataRecorder(file := io.BytesIO())
    recorder.insert(_chunk(100, 50))
    before = file.getvalue()
    for first in (149, 151, 0):
        with pytest.raises(ValueError, match="expected 150"):
            recorder.insert(_chunk(first, 10))
    recorder.insert(_chunk(150, 10))
    assert file.getvalue() == before
    recorder.close()
    assert DataReader().open(file).sample_id_range == [0, 60]
    with pytest.raises(ValueError, match="closed"):
        recorder.insert(_chunk(160, 10))


def test_insert_needs_all_fields() -> None:
    recorder = DataRecorder(io.BytesIO())
    chunk = _chunk(0, 10)
    del chunk["signals"]["power"]
    with pytest.raises(KeyError, match="power"):
        recorder.insert(chunk)


def _raw_source(count: int) -> Source:
    fields: dict[str, Any] = {name: np.ones(count, np.float32) for name in FIELDS}
    return Source(2_000_000, {**fields, "raw": np.full((count, 2), 5, np.uint16)})


def test_voltage_range_cannot_change_inside_a_block(sizes: Any) -> None:
    sizes({"samples_per_reduction": 10, "samples_per_tlv": 20, "samples_per_block": 40})
    source, recorder = _raw_source(100), DataRecorder(file := io.BytesIO())
    for filled, voltage_range in ((0, 0), (40, 0), (60, 1)):
        source.filled, source.voltage_range = filled, voltage_range
        recorder.stream_notify(source)
    source.filled, source.voltage_range = 80, 0
    with pytest.raises(ValueError, match="inside a block"):
        recorder.stream_notify(source)
    source.voltage_range = 1
    recorder.close()
    assert DataReader().open(file).sample_id_range == [0, 80]


def test_stream_buffer_too_small_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "__len__", lambda _: 399_999)
    recorder = DataRecorder(file := io.BytesIO())
    before = file.getvalue()
    with pytest.raises(ValueError, match="too small"):
        recorder.stream_notify(_raw_source(10))
    assert file.getvalue() == before


def test_stream_that_lost_samples_is_refused(sizes: Any) -> None:
    sizes({"samples_per_reduction": 10, "samples_per_tlv": 20, "samples_per_block": 40})
    source, recorder = _raw_source(100), DataRecorder(io.BytesIO())
    recorder.stream_notify(source)
    source.first, source.filled = 5, 50
    with pytest.raises(ValueError, match="lost"):
        recorder.stream_notify(source)
    with pytest.raises(ValueError, match="one stream buffer"):
        recorder.stream_notify(_raw_source(10))


def test_nothing_is_written_after_close(sizes: Any) -> None:
    sizes({"samples_per_reduction": 10, "samples_per_tlv": 20, "samples_per_block": 40})
    source, recorder = _raw_source(100), DataRecorder(file := io.BytesIO())
    recorder.stream_notify(source)
    source.filled = 50
    recorder.close()
    before = file.getvalue()
    source.filled = 100
    recorder.stream_notify(source)
    recorder.close({"again": True})
    assert file.getvalue() == before


def test_sources_that_multiply_are_stored_right() -> None:
    """The maker's downsampling buffer gives ranges times 16 and input bits times 255."""

    class DownsamplingStreamBuffer(Source):
        pass

    fields: dict[str, Any] = {name: np.ones(10, np.float32) for name in FIELDS}
    fields["current_range"] = np.full(10, 40, np.uint8)
    fields["current_lsb"] = np.full(10, 255, np.uint8)
    source = DownsamplingStreamBuffer(1000, fields)
    recorder = DataRecorder(file := io.BytesIO())
    recorder.stream_notify(source)
    source.filled = 10
    recorder.close()
    got = DataReader().open(file).samples_get(fields=["current_range", "current_lsb"])
    assert got is not None
    assert (got["signals"]["current_range"]["value"] == 2.5).all()
    assert (got["signals"]["current_lsb"]["value"] == 1).all()


def test_calibration_objects() -> None:
    calibration = Calibration.default()

    class Unsaved:
        data = None

        def save(self) -> bytes:
            return calibration.data

    for given in (calibration, calibration.data, Unsaved()):
        DataRecorder(file := io.BytesIO(), calibration=given).close()
        got = DataReader().open(file).calibration
        assert got is not None
        assert got.data == calibration.data
    with pytest.raises(TypeError, match="calibration"):
        DataRecorder(io.BytesIO(), calibration=42)


def test_user_data_that_is_no_json_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        DataRecorder(tmp_path / "x.jls", user_data=object())
    assert list(tmp_path.iterdir()) == []
    with DataRecorder(file := io.BytesIO()) as recorder:
        before = file.getvalue()
        with pytest.raises(TypeError):
            recorder.close(object())
        assert file.getvalue() == before


def test_file_object_must_be_at_its_start() -> None:
    file = io.BytesIO(b"something else")
    file.seek(5)
    with pytest.raises(ValueError, match="position 0"):
        DataRecorder(file)
    assert file.getvalue() == b"something else"


def test_construct_record_filename() -> None:
    assert re.fullmatch(r"\d{8}_\d{6}\.jls", data_recorder.construct_record_filename())
