"""USB beneath the drivers: the choice of a backend, finding instruments, bulk streams.

Everything goes through pyusb; what pyusb does not have, several bulk transfers queued in the kernel
at the same time, goes through the libusb that pyusb loaded. A backend without libusb, such as the
emulator, is read transfer by transfer and queues by itself.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from array import array
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

import libusb_package
import numpy as np
import usb.backend.libusb1
import usb.core
import usb.util

from daq_ioc.driver import DriverError, NotConnectedError
from daq_ioc.errors import UsageError

GONE: Final = (errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN)
"""errno of a USBError that means the instrument is unplugged."""


@cache
def get_backend(spec: str) -> Any:
    """The pyusb backend of ``usb`` (real instruments) or ``emulator:SPEC`` (software ones).

    The same text gives the same bus. Raises UsageError if the text is not one of these.
    """
    if spec == "usb":
        backend = libusb_package.get_libusb1_backend()
        if backend is None:
            raise DriverError("libusb cannot be loaded; reinstall the package libusb-package")
        return backend
    kind, _, rest = spec.partition(":")
    if kind == "emulator":
        from daq_ioc import emulator

        try:
            return emulator.get_backend(rest or "js110")
        except ValueError as error:
            raise UsageError(f"backend {spec!r}: {error}") from error
    raise UsageError(f"backend {spec!r}: expected 'usb' or 'emulator:...'")


def find(backend: Any, vendor_id: int, product_id: int) -> list[Any]:
    """The ``usb.core.Device``s of this kind that are plugged in now."""
    try:
        found = usb.core.find(
            find_all=True, idVendor=vendor_id, idProduct=product_id, backend=backend
        )
        return list(found)
    except usb.core.USBError as error:
        raise explain(error, "USB cannot be searched") from error


def serial_number(device: Any) -> str:
    """Serial number in the device descriptor's strings, without the newline some carry."""
    text: str = usb.util.get_string(device, device.iSerialNumber) or ""
    return text.strip()


def explain(error: usb.core.USBError, what: str) -> DriverError:
    """The driver error that tells a user what a USBError means."""
    if error.errno in GONE:
        return NotConnectedError(f"{what}: the instrument is unplugged")
    hint = {
        errno.EACCES: "no permission; install the udev rule of ioc_configs/udev and replug",
        errno.EBUSY: "another program is using the instrument; stop it",
        errno.EPIPE: "the instrument refused the request",
        errno.ETIMEDOUT: "the instrument does not answer; replug it",
    }.get(error.errno or 0, str(error))
    return DriverError(f"{what}: {hint}")


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one bulk transfer brought. ``data`` is valid until the next `BulkIn.read`.

    ``arrival``: ``time.monotonic()`` of its completion, late unless ``prompt``: it was waited for,
    and not longer than was allowed, which only a process does that was itself stopped meanwhile.
    """

    data: memoryview
    arrival: float
    prompt: bool


class BulkIn(Protocol):
    """A stream of bulk IN transfers from one endpoint."""

    def read(self, timeout: float) -> Transfer | None:
        """The next transfer, or None if none came within ``timeout`` s.

        Raises usb.core.USBError; the stream is to be closed then.
        """

    def close(self) -> None:
        """End all transfers and give back what they used."""


def open_bulk_in(device: Any, endpoint: int, transfer_bytes: int, queued: int) -> BulkIn:
    """Begin to read ``endpoint`` with ``queued`` transfers of ``transfer_bytes`` under way."""
    if isinstance(device.backend, usb.backend.libusb1._LibUSB):
        return _QueuedBulkIn(device, endpoint, transfer_bytes, queued)
    return _PlainBulkIn(device, endpoint, transfer_bytes)


class _PlainBulkIn:
    """One transfer after the other, for backends that queue what is not fetched in time."""

    _WAITED: Final = 1e-3

    def __init__(self, device: Any, endpoint: int, transfer_bytes: int) -> None:
        self._device = device
        self._endpoint = endpoint
        self._buffer = array("B", bytes(transfer_bytes))

    def read(self, timeout: float) -> Transfer | None:
        began = time.monotonic()
        try:
            count = self._device.read(self._endpoint, self._buffer, max(1, round(timeout * 1e3)))
        except usb.core.USBTimeoutError:
            return None
        arrival = time.monotonic()
        prompt = self._WAITED < arrival - began < timeout
        return Transfer(memoryview(self._buffer)[:count], arrival, prompt)

    def close(self) -> None:
        pass


class _CTransfer(ctypes.Structure):
    """struct libusb_transfer, without the descriptors of isochronous packets."""


_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.POINTER(_CTransfer))
_CTransfer._fields_ = [
    ("dev_handle", ctypes.c_void_p),
    ("flags", ctypes.c_uint8),
    ("endpoint", ctypes.c_ubyte),
    ("type", ctypes.c_ubyte),
    ("timeout", ctypes.c_uint),
    ("status", ctypes.c_int),
    ("length", ctypes.c_int),
    ("actual_length", ctypes.c_int),
    ("callback", _CALLBACK),
    ("user_data", ctypes.c_void_p),
    ("buffer", ctypes.c_void_p),
    ("num_iso_packets", ctypes.c_int),
]


class _TimeVal(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_usec", ctypes.c_long)]


_TRANSFER_BULK: Final = 2
_COMPLETED: Final = 0
# enum libusb_transfer_status, as the errno that a synchronous transfer would have had
_STATUS_ERRNO: Final = {
    1: errno.EIO,
    2: errno.ETIMEDOUT,
    3: errno.ECANCELED,
    4: errno.EPIPE,
    5: errno.ENODEV,
    6: errno.EOVERFLOW,
}
_ERROR_NO_DEVICE: Final = -4
_CLOSE_TIMEOUT: Final = 2.0


@cache
def _prototypes(path: Any) -> Any:
    """libusb with the types of the calls below, apart from pyusb's own handle of it."""
    library = ctypes.CDLL(path)
    transfer = ctypes.POINTER(_CTransfer)
    library.libusb_alloc_transfer.argtypes = [ctypes.c_int]
    library.libusb_alloc_transfer.restype = transfer
    for name in ("submit", "cancel", "free"):
        function = getattr(library, f"libusb_{name}_transfer")
        function.argtypes = [transfer]
        function.restype = None if name == "free" else ctypes.c_int
    library.libusb_handle_events_timeout_completed.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(_TimeVal),
        ctypes.POINTER(ctypes.c_int),
    ]
    return library


class _QueuedBulkIn:
    """Several asynchronous libusb transfers, kept queued in the kernel.

    Transfers on one endpoint complete in the order they were submitted. Their callbacks come from
    whichever thread handles libusb's events: the one in `read`, or one in a control request.
    """

    def __init__(self, device: Any, endpoint: int, transfer_bytes: int, queued: int) -> None:
        backend = device.backend
        self._library = _prototypes(backend.lib._name)
        self._context = backend.ctx
        self._device = device  # keeps the handle open
        self._done: deque[tuple[int, int, int, float]] = deque()
        self._completed = ctypes.c_int(0)
        self._pending = 0
        self._spent: int | None = None
        self._lock = threading.Lock()
        self._callback = _CALLBACK(self._on_complete)
        self._buffers = [np.empty(transfer_bytes, np.uint8) for _ in range(queued)]
        self._transfers = [self._library.libusb_alloc_transfer(0) for _ in range(queued)]
        handle = device._ctx.handle.handle
        for k, (pointer, buffer) in enumerate(zip(self._transfers, self._buffers, strict=True)):
            fields = pointer.contents
            fields.dev_handle = handle
            fields.endpoint = endpoint
            fields.type = _TRANSFER_BULK
            fields.timeout = 0  # a timeout loses what has been received
            fields.buffer = buffer.ctypes.data
            fields.length = transfer_bytes
            fields.callback = self._callback
            fields.user_data = k
        try:
            for k in range(queued):
                self._submit(k)
        except usb.core.USBError:
            self.close()
            raise

    def _on_complete(self, pointer: Any) -> None:
        fields = pointer.contents
        now = time.monotonic()
        self._done.append((fields.user_data or 0, fields.status, fields.actual_length, now))
        with self._lock:
            self._pending -= 1
        self._completed.value = 1

    def _submit(self, k: int) -> None:
        with self._lock:
            self._pending += 1
        code = self._library.libusb_submit_transfer(self._transfers[k])
        if code:
            with self._lock:
                self._pending -= 1
            number = errno.ENODEV if code == _ERROR_NO_DEVICE else errno.EIO
            raise usb.core.USBError(f"libusb refused a transfer ({code})", code, number)

    def _handle_events(self, timeout: float) -> None:
        """Wait until a transfer completes, or ``timeout`` s."""
        span = _TimeVal(int(timeout), int(timeout % 1 * 1e6))
        self._library.libusb_handle_events_timeout_completed(
            self._context, ctypes.byref(span), ctypes.byref(self._completed)
        )

    def read(self, timeout: float) -> Transfer | None:
        if self._spent is not None:
            spent, self._spent = self._spent, None
            self._submit(spent)
        if not self._done:
            self._completed.value = 0
            self._handle_events(0)
        prompt = not self._done
        deadline = time.monotonic() + timeout
        while not self._done:
            self._completed.value = 0
            # A callback in another thread just before the line above is found here.
            if self._done:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._handle_events(left)
        k, status, length, arrival = self._done[0]
        if status != _COMPLETED and length == 0:
            number = _STATUS_ERRNO.get(status, errno.EIO)
            raise usb.core.USBError(f"bulk transfer ended with status {status}", status, number)
        if status == _COMPLETED:
            self._done.popleft()
            self._spent = k
        else:  # what came before the error counts; the error is for the next call
            self._done[0] = (k, status, 0, arrival)
        return Transfer(self._buffers[k].data[:length], arrival, prompt and arrival < deadline)

    def close(self) -> None:
        if not self._transfers:
            return
        for pointer in self._transfers:
            self._library.libusb_cancel_transfer(pointer)
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        while self._pending and time.monotonic() < deadline:
            self._completed.value = 0
            self._handle_events(0.1)
        if self._pending:
            # The kernel may still write into what it was given: never free it.
            _abandoned.append(self)
            return
        for pointer in self._transfers:
            self._library.libusb_free_transfer(pointer)
        self._transfers = []


_abandoned: list[_QueuedBulkIn] = []
