"""Calibrations: the published ones, our own, and every way they can be unusable."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from daq_ioc.joulescope import container, container_reader, container_writer
from daq_ioc.joulescope.calibration import Calibration, CalibrationError

ARRAYS = ("current_offset", "current_gain", "voltage_offset", "voltage_gain")
Vectors = Callable[[str], dict[str, Any]]


@pytest.fixture
def published(vectors: Vectors) -> dict[str, Any]:
    return vectors("js110_raw_calibration")


def contents(changes: dict[str, Any]) -> bytes:
    """A calibration container whose JSON has these changes."""
    text = {
        "version": "1.0.0",
        "time": "2020-02-02T00:00:00+00:00",
        "product": "1.1.1",
        "serial_number": "0" * 32,
        "voltage": {"offset": [0, 0], "gain": [1, 1]},
        "current": {"offset": [0] * 7, "gain": [1] * 7},
    }
    for key, value in changes.items():
        if value is None:
            del text[key]
        else:
            text[key] = value
    return packed((container.HEADER, bytes(40)), (container.DATA_JSON, json.dumps(text).encode()))


def packed(*records: tuple[bytes, bytes]) -> bytes:
    writer = container_writer.Writer(file := io.BytesIO())
    for tag, payload in records:
        writer.append(tag, payload)
    writer.finalize()
    return file.getvalue()


@pytest.mark.parametrize("name", ["blob_unsigned", "blob_signed"])
def test_published(published: dict[str, Any], name: str) -> None:
    calibration = Calibration.from_bytes(published[name].tobytes())
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(calibration, array), published[array])
        assert getattr(calibration, array).dtype == np.float32
    assert calibration.serial_number == str(published["serial_number"])
    assert not calibration.signed  # by a key that nobody knows
    assert calibration.to_bytes() == published[name].tobytes()


def test_signature_of_a_known_key(published: dict[str, Any]) -> None:
    data, keys = published["blob_signed"].tobytes(), [published["public_key"].tobytes()]
    assert Calibration.from_bytes(data, keys).signed
    assert not Calibration.from_bytes(published["blob_unsigned"].tobytes(), keys).signed
    records = container_reader.Reader(io.BytesIO(data)).records(verify=False)
    forged = packed(*((r.tag, r.stored.replace(b"0.00067", b"0.00057", 1)) for r in records))
    assert forged != data
    assert not Calibration.from_bytes(forged).signed
    with pytest.raises(CalibrationError, match="signature"):
        Calibration.from_bytes(forged, keys)


def test_without_the_crypto_library(
    published: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "can_sign", lambda: False)
    keys = [published["public_key"].tobytes()]
    assert not Calibration.from_bytes(published["blob_signed"].tobytes(), keys).signed


def test_make_writes_what_the_maker_writes(published: dict[str, Any]) -> None:
    a, b, c, d = (published[name][:7] for name in ARRAYS)
    made = Calibration.make(a, b, c, d, str(published["serial_number"]))
    assert made.data == published["blob_unsigned"].tobytes()


def test_default() -> None:
    default = Calibration.default()
    np.testing.assert_array_equal(default.current_gain, [1] * 7 + [0, np.nan])
    np.testing.assert_array_equal(default.current_offset, [0] * 8 + [np.nan])
    np.testing.assert_array_equal(default.voltage_gain, [1, 1])
    with pytest.raises(ValueError, match="read-only"):
        default.current_gain[0] = 2


def test_short_lists_repeat_their_last_value() -> None:
    got = Calibration.from_bytes(contents({"current": {"offset": [1, 2], "gain": [3]}}))
    np.testing.assert_array_equal(got.current_offset, [1] + [2] * 6 + [0, np.nan])
    np.testing.assert_array_equal(got.current_gain, [3] * 7 + [0, np.nan])


def test_bytes_after_the_end_are_ignored() -> None:
    data = contents({})
    assert Calibration.from_bytes(data + b"\xff" * 300).time == "2020-02-02T00:00:00+00:00"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"product": "1.1.2"}, "product"),
        ({"product": None}, "lacks 'product'"),
        ({"current": None}, "lacks 'current'"),
        ({"voltage": {"offset": [0, 0]}}, "lacks 'gain'"),
        ({"voltage": {"offset": [0, 0], "gain": [1]}}, "voltage.gain"),
        ({"voltage": {"offset": [0, 0], "gain": ["a", "b"]}}, "numbers"),
        ({"current": {"offset": [], "gain": [1]}}, "current.offset"),
        ({"current": {"offset": [0] * 10, "gain": [1]}}, "current.offset"),
        ({"current": {"offset": 1, "gain": [1]}}, "current.offset"),
        ({"current": {"offset": [0, float("nan")], "gain": [1]}}, "finite"),
        ({"current": [1, 2]}, "lacks"),
        ({"serial_number": "12"}, "serial number"),
        ({"serial_number": 12}, "serial number"),
    ],
)
def test_wrong_contents(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        Calibration.from_bytes(contents(changes))


def test_wrong_containers() -> None:
    good = contents({})
    header = (container.HEADER, bytes(40))
    for data, text in (
        (b"", "too short"),
        (b"nothing of the kind, but longer than a header", "magic"),
        (good[:-40], "cut"),
        (good[:100] + b"\0" + good[101:], "checksum"),
        (good[:24] + b"x" + good[25:], "checksum"),
        (packed(), "record"),
        (packed((container.DATA_JSON, b"{}")), "header"),
        (packed(header), "JSON"),
        (packed(header, (b"ABN", b"{}")), "JSON"),
        (packed(header, (container.DATA_JSON, b"{nonsense")), "JSON"),
        (packed(header, (container.DATA_JSON, b"\xff\xff")), "JSON"),
        (packed(header, (container.DATA_JSON, b"[]")), "lacks"),
    ):
        with pytest.raises(CalibrationError, match=text):
            Calibration.from_bytes(data)


@pytest.mark.parametrize(
    "args",
    [
        ([0] * 6, [1] * 7, [0] * 2, [1] * 2),
        ([0] * 7, [1] * 7, [0] * 2, [1] * 3),
        ([0] * 7, [np.inf] * 7, [0] * 2, [1] * 2),
        ([0] * 7, [1] * 7, [0] * 2, [1] * 2, "xyz"),
        ([0] * 7, [1] * 7, [0] * 2, [1] * 2, "0" * 32, "yesterday"),
    ],
)
def test_make_refuses(args: Any) -> None:
    with pytest.raises(CalibrationError):
        Calibration.make(*args)
