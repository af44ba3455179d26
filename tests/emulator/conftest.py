"""A host's view of one emulated instrument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import usb.core
import usb.util

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import Request, Settings, Status
from daq_ioc.emulator import get_backend
from daq_ioc.emulator.js110 import JS110

Words = npt.NDArray[np.uint16]
TIMEOUT = 5000  # ms


class Host:
    """One instrument, found and claimed through pyusb."""

    def __init__(self, spec: str) -> None:
        self.backend = get_backend(spec)
        self.instrument: JS110 = self.backend.instruments[0]
        self.faults = self.instrument.faults
        self.open()

    def open(self) -> None:
        self.device: Any = usb.core.find(
            idVendor=protocol.VENDOR_ID, idProduct=protocol.PRODUCT_ID, backend=self.backend
        )
        self.device.set_configuration(1)
        usb.util.claim_interface(self.device, 0)

    def get(self, request: int, length: int, value: int = 0, index: int = 0) -> bytes:
        kind = protocol.REQUEST_IN
        return bytes(self.device.ctrl_transfer(kind, request, value, index, length, TIMEOUT))

    def put(self, request: int, data: bytes = b"", value: int = 0) -> None:
        self.device.ctrl_transfer(protocol.REQUEST_OUT, request, value, 0, data, TIMEOUT)

    def set(self, **fields: int) -> None:
        self.put(Request.SETTINGS, Settings(**fields).pack())

    def status(self) -> Status:
        return Status.unpack(self.get(Request.STATUS, 128))

    def stream(self, **fields: int) -> None:
        """Set up as a host does, then start."""
        self.set(**fields)
        self.set(streaming=protocol.STREAM_ON, **fields)

    def read(self, frames: int, timeout: int = TIMEOUT) -> Words:
        """Frames uint16 (n, 256) of one transfer."""
        data = self.device.read(protocol.ENDPOINT_IN, frames * protocol.FRAME_BYTES, timeout)
        return np.frombuffer(data, dtype="<u2").reshape(-1, 256)

    def error(self, action: Callable[[], object]) -> tuple[int | None, int | None]:
        """errno and libusb error of the exception that ``action`` raises."""
        with pytest.raises(usb.core.USBError) as caught:
            action()
        return caught.value.errno, caught.value.backend_error_code


def words(frames: Words) -> Words:
    """Samples uint16 (n, 2) of frames."""
    return frames[:, 4:].reshape(-1, 2)


def indices(frames: Words) -> list[int]:
    return [int(index) for index in frames[:, 2]]


@pytest.fixture
def fast() -> Host:
    """An instrument without pace."""
    return Host("js110:seed=7,pace=fast")


@pytest.fixture
def live() -> Host:
    """An instrument that samples in real time."""
    return Host("js110:seed=7")
