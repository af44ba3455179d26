"""An open JS110: its control requests, one method each, over pyusb."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import usb.core
import usb.util

from daq_ioc.driver import DriverError, NotConnectedError
from daq_ioc.driver import usb as usb_io
from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import Extio, PacketError, Request, Settings, Status
from daq_ioc.joulescope.calibration import Calibration, CalibrationError

CONTROL_TIMEOUT: Final = 1000
"""Of one control request, ms."""

READY_TIMEOUT: Final = 3.0
"""How long the sensor side may take to apply settings, s."""

_POLL: Final = 0.005
_CALIBRATION_ACTIVE: Final = 1
_CALIBRATION_HEADER: Final = 32
_CALIBRATION_MAX: Final = 0x8000
_DRAIN_READS: Final = 64


@dataclass(frozen=True, slots=True)
class Instrument:
    """A JS110 found on the bus; ``problem`` says why it cannot be used, if it cannot."""

    model: str
    serial: str
    location: str
    problem: str = ""


def _location(device: Any) -> str:
    return f"bus {device.bus} address {device.address}"


def scan(backend: Any) -> list[Instrument]:
    """The JS110s that are plugged in, those in their bootloader included."""
    found = []
    for device in usb_io.find(backend, protocol.VENDOR_ID, protocol.PRODUCT_ID):
        serial, problem = "unknown", ""
        try:
            serial = usb_io.serial_number(device)
        except usb.core.USBError as error:
            problem = str(usb_io.explain(error, "serial number"))
        except ValueError as error:  # what pyusb makes of strings it may not read
            problem = f"serial number: {error}"
        finally:
            usb.util.dispose_resources(device)
        found.append(Instrument("JS110", serial, _location(device), problem))
    for device in usb_io.find(backend, protocol.VENDOR_ID, protocol.PRODUCT_ID_BOOTLOADER):
        problem = "in its bootloader; replug it, or update its firmware with the maker's software"
        found.append(Instrument("JS110", "unknown", _location(device), problem))
    return found


def _select(backend: Any, serial: str | None) -> Any:
    """The one JS110 that is meant. Raises DriverError that says which ones there are."""
    others = []
    unreadable = False
    for device in usb_io.find(backend, protocol.VENDOR_ID, protocol.PRODUCT_ID):
        if serial is None:
            return device
        try:
            number = usb_io.serial_number(device)
        except (usb.core.USBError, ValueError):  # pyusb's word for strings it may not read
            unreadable = True
            usb.util.dispose_resources(device)
            continue
        if number == serial:
            return device
        others.append(number)
        usb.util.dispose_resources(device)
    if unreadable:
        raise DriverError(
            "no permission to read serial numbers; install the udev rule of ioc_configs/udev"
        )
    if others:
        raise NotConnectedError(f"no JS110 with serial number {serial}; found {', '.join(others)}")
    raise NotConnectedError("no JS110 is plugged in" + (f" ({serial})" if serial else ""))


class Connection:
    """One JS110, configured and claimed.

    All methods raise NotConnectedError when the instrument is gone and DriverError for whatever
    else goes wrong. They may be called from any thread; requests go one after the other.
    """

    def __init__(self, backend: Any, serial: str | None) -> None:
        self._lock = threading.RLock()
        with self._explained("opening the JS110"):
            self.device = _select(backend, serial)
            try:
                self._configure()
                self.serial = usb_io.serial_number(self.device)
            except BaseException:
                usb.util.dispose_resources(self.device)
                raise

    def _configure(self) -> None:
        try:
            configuration = self.device.get_active_configuration()
        except usb.core.USBError as error:
            if error.errno is None or error.errno in usb_io.GONE:
                raise
            configuration = None
        if configuration is None or configuration.bConfigurationValue != 1:
            self.device.set_configuration(1)
        usb.util.claim_interface(self.device, 0)
        self.device.set_interface_altsetting(0, 0)
        self.device.clear_halt(protocol.ENDPOINT_IN)

    def close(self) -> None:
        """Give the instrument back. Never raises."""
        with contextlib.suppress(usb.core.USBError):
            usb.util.dispose_resources(self.device)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except usb.core.USBError as error:
            raise usb_io.explain(error, what) from error
        except PacketError as error:
            raise DriverError(f"{what}: {error}") from error

    # ---- requests

    def _out(self, request: Request, data: bytes) -> None:
        self.device.ctrl_transfer(protocol.REQUEST_OUT, request, 0, 0, data, CONTROL_TIMEOUT)

    def _in(self, request: Request, length: int, value: int = 0, index: int = 0) -> bytes:
        return bytes(
            self.device.ctrl_transfer(
                protocol.REQUEST_IN, request, value, index, length, CONTROL_TIMEOUT
            )
        )

    def status(self) -> Status:
        """STATUS, with the on-instrument statistics of newer firmware."""
        with self._explained("STATUS"):
            return Status.unpack(self._in(Request.STATUS, 128))

    def put_settings(self, settings: Settings) -> Status:
        """Apply SETTINGS, wait until the sensor side has done so; the STATUS that says it has."""
        with self._explained("SETTINGS"):
            self._out(Request.SETTINGS, settings.pack())
            status = self._ready()
        if status.settings_result != protocol.RESULT_OK:
            raise DriverError(
                f"SETTINGS: the instrument reports error {status.settings_result}; replug it"
            )
        return status

    def _ready(self) -> Status:
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            status = self.status()
            if status.settings_result not in (protocol.RESULT_BUSY, protocol.RESULT_NONE):
                return status
            if time.monotonic() > deadline:
                raise DriverError(
                    f"SETTINGS: the instrument is still busy after {READY_TIMEOUT:g} s; replug it"
                )
            time.sleep(_POLL)

    def settings(self) -> Settings:
        """The SETTINGS last applied."""
        with self._explained("SETTINGS"):
            return Settings.unpack(self._in(Request.SETTINGS, protocol.SETTINGS_BYTES))

    def put_extio(self, extio: Extio) -> None:
        """Apply EXTIO."""
        with self._explained("EXTIO"):
            self._out(Request.EXTIO, extio.pack())

    def extio(self) -> Extio:
        """The EXTIO in force, with the present inputs."""
        with self._explained("EXTIO"):
            return Extio.unpack(self._in(Request.EXTIO, protocol.EXTIO_BYTES))

    def mcu_serial(self) -> str:
        """Serial number of the microcontroller, 32 hex digits; a calibration must name it."""
        with self._explained("SERIAL_NUMBER"):
            data = self._in(Request.SERIAL_NUMBER, 16)
            if len(data) != 16:
                raise PacketError(f"reply has {len(data)} bytes, expected 16")
            return data.hex()

    def info(self) -> dict[str, Any]:
        """INFO, empty if the firmware is too old to have it or it is not JSON."""
        with self._explained("INFO"):
            try:
                data = self._in(Request.INFO, 1024)
            except usb.core.USBError as error:
                if error.errno in usb_io.GONE:
                    raise
                return {}
        text = data[protocol.HEADER.size :] if data[:1] != b"{" else data
        try:
            info = json.loads(text)
        except ValueError:
            return {}
        return info if isinstance(info, dict) else {}

    def calibration(self) -> Calibration:
        """The active calibration, which must be this instrument's own."""
        with self._explained("CALIBRATION"):
            data = self._calibration_data()
        try:
            calibration = Calibration.from_bytes(data)
        except CalibrationError as error:
            raise DriverError(f"CALIBRATION: {error}; have the instrument calibrated") from error
        serial = self.mcu_serial()
        if calibration.serial_number != serial:
            raise DriverError(
                f"CALIBRATION: it is that of instrument {calibration.serial_number}, "
                f"this one is {serial}; have the instrument calibrated"
            )
        return calibration

    def _calibration_data(self) -> bytes:
        header = self._in(Request.CALIBRATION, _CALIBRATION_HEADER, _CALIBRATION_ACTIVE)
        length = int.from_bytes(header[16:24], "little")
        if len(header) < _CALIBRATION_HEADER or not 0 < length <= _CALIBRATION_MAX:
            raise PacketError(f"{len(header)} bytes of header tell a length of {length}")
        data = b""
        while len(data) < length:
            wanted = min(protocol.CONTROL_MAX_BYTES, length - len(data))
            part = self._in(Request.CALIBRATION, wanted, _CALIBRATION_ACTIVE, len(data))
            if not part:
                raise PacketError(f"it ends after {len(data)} of {length} bytes")
            data += part
        return data

    # ---- the stream

    def drain(self) -> None:
        """Throw away what the instrument still holds of an earlier stream."""
        for _ in range(_DRAIN_READS):
            try:
                self.device.read(protocol.ENDPOINT_IN, protocol.FRAME_BYTES * 64, 5)
            except usb.core.USBError:
                return

    def open_stream(self, transfer_frames: int, queued: int) -> usb_io.BulkIn:
        """Begin to read the stream; frames come when SETTINGS starts them."""
        with self._explained("stream"):
            self.device.clear_halt(protocol.ENDPOINT_IN)
            return usb_io.open_bulk_in(
                self.device, protocol.ENDPOINT_IN, transfer_frames * protocol.FRAME_BYTES, queued
            )
