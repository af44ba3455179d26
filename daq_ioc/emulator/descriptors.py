"""The USB descriptors of the emulated JS110: its identity before any vendor request."""

from __future__ import annotations

import struct
from typing import Any, Final

from daq_ioc.driver.joulescope.js110 import protocol

DEVICE_FORMAT: Final = struct.Struct("<BBHBBBBHHHBBBB")
CONFIGURATION_FORMAT: Final = struct.Struct("<BBHBBBBB")
INTERFACE_FORMAT: Final = struct.Struct("<BBBBBBBBB")
ENDPOINT_FORMAT: Final = struct.Struct("<BBBBHB")

SERIAL_INDEX: Final = 3

DEVICE: Final = DEVICE_FORMAT.pack(
    18, 1, 0x0200, 0, 0, 0, 64, protocol.VENDOR_ID, protocol.PRODUCT_ID, 0x0100, 1, 2, 3, 1
)
ENDPOINT: Final = ENDPOINT_FORMAT.pack(7, 5, protocol.ENDPOINT_IN, 2, protocol.FRAME_BYTES, 0)
INTERFACE: Final = INTERFACE_FORMAT.pack(9, 4, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0)
CONFIGURATION: Final = (
    CONFIGURATION_FORMAT.pack(9, 2, 9 + len(INTERFACE) + len(ENDPOINT), 1, 1, 0, 0x80, 250)
    + INTERFACE
    + ENDPOINT
)
"""One configuration, one interface, one bulk endpoint; 500 mA."""


def of(serial: str) -> dict[str, Any]:
    """All descriptors, as a software USB device is asked for them.

    ``device`` bytes, ``configurations`` [bytes], ``strings`` {index: str}.
    """
    return {
        "device": DEVICE,
        "configurations": [CONFIGURATION],
        "strings": {1: "Jetperch LLC", 2: "Joulescope", SERIAL_INDEX: serial},
    }


def string(strings: dict[int, str], index: int) -> bytes | None:
    """String descriptor ``index``; 0 gives the languages (US English). None: there is none."""
    if index == 0:
        return b"\x04\x03\x09\x04"
    if index not in strings:
        return None
    text = strings[index].encode("utf-16-le")[:252]
    return bytes([2 + len(text), 3]) + text
