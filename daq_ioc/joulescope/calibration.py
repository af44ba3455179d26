"""The calibration of one Joulescope: offsets and gains that turn its raw words into A and V.

It travels as a small container (see `daq_ioc.joulescope.container`): read from the instrument's
flash, and embedded in every recording. Applying it is the business of others.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from daq_ioc.joulescope import container, container_reader, container_writer

PRODUCT = "1.1.1"
"""Product, vendor and subtype of a JS110 calibration."""

SIGNING_KEYS = (
    bytes.fromhex("3b3aee3fb2ac984fd37040aa52092e2ad88371455285002a6eef568ef152232f"),
    bytes.fromhex("75693bf67e3a8d783789e831e16a8df40fee55b363e787d2212866b1a18cf64d"),
)
"""Public keys with which the maker signs calibrations (factory, recalibration service)."""

UNKNOWN_SERIAL = "0" * 32

Array = npt.NDArray[np.float32]


class CalibrationError(ValueError):
    """A calibration cannot be used; the text says what is wrong with it."""


def _values(values: Any, count: int, what: str) -> Array:
    """``count`` finite float32 from what a calibration or a caller gives."""
    try:
        array = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"calibration {what} is not a list of numbers") from error
    if array.shape != (count,):
        raise CalibrationError(f"calibration {what} needs {count} values, not {array.shape}")
    if not np.isfinite(array).all():
        raise CalibrationError(f"calibration {what} has values that are not finite")
    return array


def _current(values: Any, what: str) -> Array:
    """Nine entries: the seven ranges, 0 for off, NaN for missing; short lists repeat their last."""
    if not isinstance(values, list) or not 1 <= len(values) <= 9:
        raise CalibrationError(f"calibration {what} needs a list of 1 to 9 values")
    seven = (values + values[-1:] * 6)[:7]
    return np.append(_values(seven, 7, what), np.array([0.0, np.nan], np.float32))


def _serial(text: Any) -> bytes:
    try:
        serial = bytes.fromhex(text)
    except (TypeError, ValueError):
        serial = b""
    if len(serial) != 16:
        raise CalibrationError(f"calibration serial number is not 32 hex digits: {text!r}")
    return serial


@dataclass(frozen=True, eq=False)
class Calibration:
    """Offsets and gains: value = (14-bit code + offset[range]) * gain[range], in float32.

    ``current_offset``, ``current_gain`` float32 (9,): codes and A per code for current ranges
    0 to 6; entry 7 (off) is 0 and entry 8 (missing) NaN. ``voltage_offset``, ``voltage_gain``
    float32 (2,): codes and V per code for voltage range 0 (15 V) and 1 (5 V). ``serial_number``
    is that of the instrument, 32 hex digits; ``time`` (ISO 8601) and ``version`` (a.b.c) are those
    of the calibration. ``signed`` is True when a signature of the maker was checked and matches.
    ``data`` is the calibration as container bytes. The arrays are read-only.
    """

    current_offset: Array
    current_gain: Array
    voltage_offset: Array
    voltage_gain: Array
    serial_number: str
    time: str
    version: str
    signed: bool
    data: bytes

    def __post_init__(self) -> None:
        for array in (
            self.current_offset, self.current_gain, self.voltage_offset, self.voltage_gain,
        ):  # fmt: skip
            array.flags.writeable = False

    @classmethod
    def default(cls) -> Calibration:
        """Unit calibration, for when there is none: offsets 0, gains 1 (off: gain 0)."""
        return cls.make([0.0] * 7, [1.0] * 7, [0.0] * 2, [1.0] * 2)

    @classmethod
    def make(
        cls,
        current_offset: npt.ArrayLike,
        current_gain: npt.ArrayLike,
        voltage_offset: npt.ArrayLike,
        voltage_gain: npt.ArrayLike,
        serial_number: str = UNKNOWN_SERIAL,
        time: datetime | str = "2018-01-01T00:00:00+00:00",
    ) -> Calibration:
        """An unsigned calibration, ``data`` included, that the maker's software accepts too.

        Seven current and two voltage values each; ``serial_number`` 32 hex digits; a ``time``
        without zone is UTC. CalibrationError for anything else.
        """
        values = {
            "voltage": {
                "offset": _values(voltage_offset, 2, "voltage.offset").tolist(),
                "gain": _values(voltage_gain, 2, "voltage.gain").tolist(),
            },
            "current": {  # with entries for off and missing, as the maker writes them
                "offset": [*_values(current_offset, 7, "current.offset").tolist(), 0.0, math.nan],
                "gain": [*_values(current_gain, 7, "current.gain").tolist(), 0.0, math.nan],
            },
        }
        return cls.from_bytes(_encode(values, serial_number, time))

    @classmethod
    def from_bytes(cls, data: bytes, keys: Collection[bytes] = SIGNING_KEYS) -> Calibration:
        """Read a calibration container; bytes after its stated end are ignored.

        CalibrationError when it is not one: wrong magic, wrong checksum, cut short, another
        product, wrong numbers of values, or a signature with one of the public ``keys`` that does
        not match. A record with a wrong checksum is refused, where the maker's reader warns and
        goes on: a wrong gain is a wrong measurement. Missing or unknown signatures are accepted,
        with ``signed`` False; so is a known one when pymonocypher, which checks it, is missing.
        """
        try:
            content, signed = _read(data, keys)
            text = json.loads(content)
            if text["product"] != PRODUCT:
                raise CalibrationError(f"calibration of product {text['product']!r}, not {PRODUCT}")
            _serial(text["serial_number"])
            return cls(
                _current(text["current"]["offset"], "current.offset"),
                _current(text["current"]["gain"], "current.gain"),
                _values(text["voltage"]["offset"], 2, "voltage.offset"),
                _values(text["voltage"]["gain"], 2, "voltage.gain"),
                text["serial_number"],
                str(text["time"]),
                str(text["version"]),
                signed,
                bytes(data),
            )
        except container.ContainerError as error:
            raise CalibrationError(f"calibration: {error}") from error
        except (KeyError, TypeError) as error:
            raise CalibrationError(f"calibration lacks {error}") from error
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise CalibrationError(f"calibration is not JSON: {error}") from error

    def to_bytes(self) -> bytes:
        """The container, as it was read or made."""
        return self.data


def _read(data: bytes, keys: Collection[bytes]) -> tuple[bytes, bool]:
    """JSON text of a calibration container, and whether one of ``keys`` signed it."""
    reader = container_reader.Reader(io.BytesIO(data))
    if reader.length > len(data):
        raise CalibrationError(f"calibration is cut: {len(data)} of {reader.length} bytes")
    first = reader.record(container.HEADER_SIZE)
    begun = first.tag == container.SIGNATURE_START
    known = begun and first.stored[8:] in keys and container.can_sign()
    records = list(reader.records(verify=known))[begun:]
    tags = [record.tag for record in records]
    if tags[:1] != [container.HEADER]:
        raise CalibrationError("calibration has no header record where it belongs")
    if not {container.DATA_JSON, container.CALIBRATION_JSON}.intersection(tags[1:2]):
        raise CalibrationError("calibration has no JSON record where it belongs")
    return records[1].payload, known and tags[2:3] == [container.SIGNATURE_END]


def _encode(
    values: dict[str, dict[str, list[float]]], serial_number: str, time: datetime | str
) -> bytes:
    """Container bytes of an unsigned calibration."""
    try:
        when = datetime.fromisoformat(time) if isinstance(time, str) else time
    except ValueError as error:
        raise CalibrationError(f"calibration time is not ISO 8601: {time!r}") from error
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    stamp = container.timestamp(when.timestamp())
    file = io.BytesIO()
    writer = container_writer.Writer(file)
    writer.append_header(
        container.Header(stamp, (1, 0, 0), 1, 1, 1, serial_number=_serial(serial_number))
    )
    text = {
        "version": "1.0.0",
        "time": when.isoformat(),
        "timestamp": str(stamp),
        "product_name": "Joulescope JS110",
        "vendor_name": "Jetperch LLC",
        "subtype_name": "Calibration",
        "product": PRODUCT,
        "serial_number": serial_number,
        **values,
    }
    writer.append(container.DATA_JSON, json.dumps(text).encode())
    writer.finalize()
    return file.getvalue()
