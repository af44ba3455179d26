"""pyusb's backend interface with emulated instruments on it: the USB of an operating system.

Enumeration, handles, claims, configurations, halted endpoints and time-outs as Linux and libusb
have them, and the errors that pyusb's libusb1 backend makes of them. Only stricter: an interface
that was not claimed is refused, where Linux claims it with a warning in its log.
"""

# ruff: noqa: ARG002 - the interface is pyusb's

from __future__ import annotations

import array
import errno
import math
import time
from collections.abc import Iterator, Sequence
from struct import Struct
from types import SimpleNamespace
from typing import Any, Final

import usb.backend
import usb.core

from daq_ioc.driver.joulescope.js110.protocol import ENDPOINT_IN, FRAME_BYTES
from daq_ioc.emulator import descriptors
from daq_ioc.emulator.faults import BusError, Stall, Unplugged
from daq_ioc.emulator.js110 import JS110

_ERRORS: Final = {  # libusb error: its text, errno
    -1: ("Input/Output Error", errno.EIO),
    -2: ("Invalid parameter", errno.EINVAL),
    -4: ("No such device (it may have been disconnected)", errno.ENODEV),
    -5: ("Entity not found", errno.ENOENT),
    -6: ("Resource busy", errno.EBUSY),
    -7: ("Operation timed out", errno.ETIMEDOUT),
    -8: ("Overflow", errno.EOVERFLOW),
    -9: ("Pipe error", errno.EPIPE),
}
IO, INVALID, NO_DEVICE, NOT_FOUND, BUSY, TIMEOUT, OVERFLOW, PIPE = _ERRORS

_DEVICE_FIELDS: Final = (
    "bLength bDescriptorType bcdUSB bDeviceClass bDeviceSubClass bDeviceProtocol bMaxPacketSize0 "
    "idVendor idProduct bcdDevice iManufacturer iProduct iSerialNumber bNumConfigurations"
)
_CONFIGURATION_FIELDS: Final = (
    "bLength bDescriptorType wTotalLength bNumInterfaces bConfigurationValue iConfiguration "
    "bmAttributes bMaxPower"
)
_INTERFACE_FIELDS: Final = (
    "bLength bDescriptorType bInterfaceNumber bAlternateSetting bNumEndpoints bInterfaceClass "
    "bInterfaceSubClass bInterfaceProtocol iInterface"
)
_ENDPOINT_FIELDS: Final = (
    "bLength bDescriptorType bEndpointAddress bmAttributes wMaxPacketSize bInterval"
)
_HIGH_SPEED: Final = 3


def _error(code: int) -> Exception:
    """The exception of pyusb's libusb1 backend for a libusb error."""
    text, number = _ERRORS[code]
    kind = usb.core.USBTimeoutError if code == TIMEOUT else usb.core.USBError
    error: Exception = kind(text, code, number)
    return error


class _Attached:
    """One instrument from a plug to the unplug: what an operating system knows of it."""

    def __init__(self, instrument: JS110, port: int) -> None:
        self.instrument = instrument
        self.address = instrument.address
        self.port = port
        self.configuration = 1  # Linux sets it when it enumerates
        self.owner: _Handle | None = None  # of interface 0
        self.halted = False  # endpoint 0x82

    @property
    def present(self) -> bool:
        return self.instrument.plugged and self.instrument.address == self.address


class _Handle:
    def __init__(self, attached: _Attached) -> None:
        self.attached = attached
        self.open = True


class Backend(usb.backend.IBackend):  # type: ignore[misc]
    """A USB bus with the given instruments.

    ``instruments`` reaches them for tests. ``cpu_seconds`` is the processor time that the emulator
    took inside transfers, so that a benchmark can leave it out.
    """

    def __init__(self, instruments: Sequence[JS110]) -> None:
        super().__init__()
        self.instruments = tuple(instruments)
        self.cpu_seconds = 0.0
        self._attached: dict[JS110, _Attached] = {}

    # ---- what is there

    def enumerate_devices(self) -> Iterator[_Attached]:
        for port, instrument in enumerate(self.instruments, start=1):
            known = self._attached.get(instrument)
            if known is None or known.address != instrument.address:
                known = self._attached[instrument] = _Attached(instrument, port)
            if instrument.plugged:
                yield known

    def get_parent(self, dev: _Attached) -> None:
        """None: the instruments hang on no hub."""

    def get_device_descriptor(self, dev: _Attached) -> SimpleNamespace:
        fields = _fields(_DEVICE_FIELDS, descriptors.DEVICE_FORMAT, descriptors.DEVICE)
        fields.bus, fields.address, fields.speed = 1, dev.address, _HIGH_SPEED
        fields.port_number, fields.port_numbers = dev.port, (dev.port,)
        return fields

    def get_configuration_descriptor(self, dev: _Attached, config: int) -> SimpleNamespace:
        if config != 0:
            raise _error(NOT_FOUND)
        return _fields(
            _CONFIGURATION_FIELDS, descriptors.CONFIGURATION_FORMAT, descriptors.CONFIGURATION
        )

    def get_interface_descriptor(
        self, dev: _Attached, intf: int, alt: int, config: int
    ) -> SimpleNamespace:
        self.get_configuration_descriptor(dev, config)
        if intf or alt:
            raise IndexError(f"Invalid interface or alternate setting index {intf}, {alt}")
        return _fields(_INTERFACE_FIELDS, descriptors.INTERFACE_FORMAT, descriptors.INTERFACE)

    def get_endpoint_descriptor(
        self, dev: _Attached, ep: int, intf: int, alt: int, config: int
    ) -> SimpleNamespace:
        self.get_interface_descriptor(dev, intf, alt, config)
        if ep:
            raise IndexError(f"Invalid endpoint index {ep}")
        fields = _fields(_ENDPOINT_FIELDS, descriptors.ENDPOINT_FORMAT, descriptors.ENDPOINT)
        fields.bRefresh = fields.bSynchAddress = 0  # pyusb asks, though only audio has them
        return fields

    # ---- handles and claims

    def open_device(self, dev: _Attached) -> _Handle:
        if not dev.present:
            raise _error(NO_DEVICE)
        return _Handle(dev)

    def close_device(self, dev_handle: _Handle) -> None:
        if dev_handle.attached.owner is dev_handle:
            dev_handle.attached.owner = None
        dev_handle.open = False

    def set_configuration(self, dev_handle: _Handle, config_value: int) -> None:
        attached = self._check(dev_handle)
        if attached.owner is not None:
            raise _error(BUSY)
        if config_value not in (-1, 0, 1):
            raise _error(NOT_FOUND)
        attached.configuration = max(config_value, 0)
        attached.halted = False

    def get_configuration(self, dev_handle: _Handle) -> int:
        return self._check(dev_handle).configuration

    def claim_interface(self, dev_handle: _Handle, intf: int) -> None:
        attached = self._check(dev_handle)
        if intf != 0 or not attached.configuration:
            raise _error(NOT_FOUND)
        if attached.owner not in (None, dev_handle):
            raise _error(BUSY)
        attached.owner = dev_handle

    def release_interface(self, dev_handle: _Handle, intf: int) -> None:
        self._check_claimed(dev_handle, intf).owner = None

    def set_interface_altsetting(self, dev_handle: _Handle, intf: int, altsetting: int) -> None:
        attached = self._check_claimed(dev_handle, intf)
        if altsetting != 0:
            raise _error(NOT_FOUND)
        attached.halted = False

    def clear_halt(self, dev_handle: _Handle, ep: int) -> None:
        attached = self._check_claimed(dev_handle, 0)
        if ep != ENDPOINT_IN:
            raise _error(NOT_FOUND)
        attached.halted = False

    def reset_device(self, dev_handle: _Handle) -> None:
        attached = self._check(dev_handle)
        attached.instrument.reset()
        attached.halted = False

    def is_kernel_driver_active(self, dev_handle: _Handle, intf: int) -> bool:
        self._check(dev_handle)
        return False

    def detach_kernel_driver(self, dev_handle: _Handle, intf: int) -> None:
        self._check(dev_handle)
        raise _error(NOT_FOUND)

    def attach_kernel_driver(self, dev_handle: _Handle, intf: int) -> None:
        self._check(dev_handle)
        raise _error(NOT_FOUND)

    def _check(self, handle: _Handle) -> _Attached:
        if not handle.open:
            raise _error(INVALID)
        if not handle.attached.present:
            raise _error(NO_DEVICE)
        return handle.attached

    def _check_claimed(self, handle: _Handle, intf: int) -> _Attached:
        attached = self._check(handle)
        if intf != 0 or attached.owner is not handle:
            raise _error(NOT_FOUND)
        return attached

    # ---- transfers

    def bulk_write(
        self, dev_handle: _Handle, ep: int, intf: int, data: array.array[int], timeout: int
    ) -> int:
        self._check_claimed(dev_handle, intf)
        raise _error(IO)  # there is no OUT endpoint

    def bulk_read(
        self, dev_handle: _Handle, ep: int, intf: int, buff: array.array[int], timeout: int
    ) -> int:
        attached = self._check_claimed(dev_handle, intf)
        if ep != ENDPOINT_IN:
            raise _error(IO)
        if attached.halted:
            raise _error(PIPE)
        began = time.thread_time()
        deadline = time.monotonic() + timeout * 1e-3 if timeout else math.inf
        try:
            return self._fill(attached, memoryview(buff).cast("B"), deadline)
        except Stall:
            attached.halted = True
            raise _error(PIPE) from None
        except BusError:
            raise _error(IO) from None
        except Unplugged:
            raise _error(NO_DEVICE) from None
        finally:
            self.cpu_seconds += time.thread_time() - began

    def _fill(self, attached: _Attached, buffer: memoryview, deadline: float) -> int:
        """Bytes received until the buffer is full, a short packet came, or the time is over."""
        got, in_time = 0, True
        while got < len(buffer) and in_time:
            room = len(buffer) - got
            in_time = attached.instrument.wait(attached.address, room, deadline)
            data = attached.instrument.bulk_in(ENDPOINT_IN, room)
            if data is None:
                continue
            if len(data) > room:
                raise _error(OVERFLOW)
            buffer[got : got + len(data)] = data
            got += len(data)
            if not data or len(data) % FRAME_BYTES:
                return got
        if got == 0 and len(buffer):
            raise _error(TIMEOUT)
        return got

    def ctrl_transfer(
        self,
        dev_handle: _Handle,
        bmRequestType: int,  # noqa: N803
        bRequest: int,  # noqa: N803
        wValue: int,  # noqa: N803
        wIndex: int,  # noqa: N803
        data: array.array[int],
        timeout: int,
    ) -> int:
        attached = self._check(dev_handle)
        began = time.thread_time()
        buffer = memoryview(data).cast("B")
        to_host = bool(bmRequestType & 0x80)
        payload = len(buffer) if to_host else bytes(buffer)
        try:
            if bmRequestType & 0x60 == 0:
                answer = _standard(attached, bmRequestType, bRequest, wValue)
            else:
                _delay(attached.instrument, bRequest, timeout)
                answer = attached.instrument.control(
                    bmRequestType, bRequest, wValue, wIndex, payload
                )
        except Stall:
            raise _error(PIPE) from None
        except Unplugged:
            raise _error(NO_DEVICE) from None
        finally:
            self.cpu_seconds += time.thread_time() - began
        if not to_host:
            return len(buffer)
        answer = answer[: len(buffer)]
        buffer[: len(answer)] = answer
        return len(answer)


def _fields(names: str, layout: Struct, data: bytes) -> SimpleNamespace:
    """A descriptor with its fields by name, as pyusb reads it."""
    values = layout.unpack_from(data)
    return SimpleNamespace(**dict(zip(names.split(), values, strict=True)), extra_descriptors=[])


def _delay(instrument: JS110, request: int, timeout: int) -> None:
    """Let a slow reply take its time; raises the time-out of a host that does not wait."""
    seconds = instrument.faults.delay_of(request)
    if seconds <= 0:
        return
    limit = timeout * 1e-3 if timeout else math.inf
    instrument.pause(min(seconds, limit))
    if seconds > limit:
        raise _error(TIMEOUT)


def _standard(attached: _Attached, kind: int, request: int, value: int) -> bytes:
    """The standard requests that applications make themselves, not through the kernel."""
    known: dict[str, Any] = attached.instrument.descriptors()
    found: bytes | None = None
    match kind, request:
        case 0x80, 6:  # GET_DESCRIPTOR
            which = {1: known["device"], 2: known["configurations"][0]}
            found = which.get(value >> 8)
            if value >> 8 == 3:
                found = descriptors.string(known["strings"], value & 0xFF)
        case 0x80, 8:  # GET_CONFIGURATION
            found = bytes([attached.configuration])
        case 0x81, 10:  # GET_INTERFACE
            found = b"\0"
        case ((0x80 | 0x81 | 0x82), 0):  # GET_STATUS
            found = bytes([kind == 0x82 and attached.halted, 0])
        case 0x02, 1:  # CLEAR_FEATURE(ENDPOINT_HALT)
            attached.halted = False
            found = b""
    if found is None:
        raise Stall("standard request")
    return found
