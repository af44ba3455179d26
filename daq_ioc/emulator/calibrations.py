"""The calibration that the emulated instrument stores, good or spoilt."""

from __future__ import annotations

import io
from collections.abc import Callable

from daq_ioc.driver.joulescope.js110.protocol import CONTROL_MAX_BYTES
from daq_ioc.emulator.encode import CURRENT_GAIN, CURRENT_OFFSET, VOLTAGE_GAIN, VOLTAGE_OFFSET
from daq_ioc.joulescope import container, container_reader, container_writer
from daq_ioc.joulescope.calibration import Calibration

_HEADER_BYTES = 32  # of the container


def _good(serial: str) -> bytes:
    made = Calibration.make(CURRENT_OFFSET, CURRENT_GAIN, VOLTAGE_OFFSET, VOLTAGE_GAIN, serial)
    return made.data


def _bad_crc(serial: str) -> bytes:
    """One bit of the first record flipped."""
    data = bytearray(_good(serial))
    data[_HEADER_BYTES + 16] ^= 1
    return bytes(data)


def _long(serial: str) -> bytes:
    """Good, with so much white space in its JSON that it takes three control transfers."""
    file = io.BytesIO()
    writer = container_writer.Writer(file)
    for record in container_reader.Reader(io.BytesIO(_good(serial))).records():
        padding = b" " * (2 * CONTROL_MAX_BYTES) if record.tag == container.DATA_JSON else b""
        if record.tag != container.END:
            writer.append(record.tag, record.payload + padding)
    writer.finalize()
    return file.getvalue()


KINDS: dict[str, Callable[[str], bytes]] = {
    "good": _good,
    "wrong-serial": lambda _: _good("00" * 16),
    "bad-crc": _bad_crc,
    "garbage": lambda _: bytes(range(256)) * 3,
    "long": _long,
    "none": lambda _: b"",
}
"""By name: what CALIBRATION answers to an instrument whose serial (32 hex digits) is given."""


def make(kind: str, serial: str) -> bytes:
    """The stored bytes of a calibration ``kind``, one of ``KINDS``."""
    return KINDS[kind](serial)
