"""The operating system's side: enumeration, handles, claims, errors and time-outs."""

from __future__ import annotations

import array
import errno
import threading

import pytest
import usb.backend
import usb.core
import usb.util

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import Request
from daq_ioc.emulator import get_backend
from tests.emulator.conftest import Host, indices

NO_DEVICE = (errno.ENODEV, -4)
PIPE = (errno.EPIPE, -9)
NOT_FOUND = (errno.ENOENT, -5)
BUSY = (errno.EBUSY, -6)
IO = (errno.EIO, -1)


def test_enumerates_with_descriptors_and_strings() -> None:
    backend = get_backend("js110:serial=000123;js110:serial=000124")
    assert isinstance(backend, usb.backend.IBackend)
    devices = list(usb.core.find(idVendor=0x16D0, find_all=True, backend=backend))
    assert [device.serial_number for device in devices] == ["000123", "000124"]
    assert usb.util.get_string(devices[0], 3) == "000123"
    endpoint = devices[0][0][(0, 0)][0]
    assert (endpoint.bEndpointAddress, endpoint.wMaxPacketSize) == (0x82, 512)
    assert len({device.address for device in devices}) == 2
    assert usb.core.find(idProduct=0x0E87, backend=backend) is None


def test_unplugged_instruments_are_not_listed() -> None:
    backend = get_backend("js110:plugged=no")
    assert usb.core.find(idVendor=0x16D0, backend=backend) is None
    backend.instruments[0].plug()
    assert usb.core.find(idVendor=0x16D0, backend=backend) is not None


def test_wrong_use_is_refused_as_by_an_operating_system(fast: Host) -> None:
    backend = fast.backend
    (other,) = (backend.open_device(device) for device in backend.enumerate_devices())
    buffer = array.array("B", bytes(512))
    assert fast.error(lambda: backend.bulk_read(other, 0x82, 0, buffer, 10)) == NOT_FOUND
    assert fast.error(lambda: backend.claim_interface(other, 0)) == BUSY
    assert fast.error(lambda: backend.release_interface(other, 0)) == NOT_FOUND
    assert fast.error(lambda: backend.set_interface_altsetting(other, 0, 0)) == NOT_FOUND
    assert fast.error(lambda: backend.set_configuration(other, 1)) == BUSY
    usb.util.dispose_resources(fast.device)
    assert fast.error(lambda: backend.set_configuration(other, 2)) == NOT_FOUND
    assert fast.error(lambda: backend.claim_interface(other, 1)) == NOT_FOUND
    backend.claim_interface(other, 0)
    assert fast.error(lambda: backend.bulk_read(other, 0x81, 0, buffer, 10)) == IO
    assert fast.error(lambda: backend.bulk_write(other, 0x02, 0, buffer, 10)) == IO
    backend.release_interface(other, 0)
    backend.set_configuration(other, 0)
    assert backend.get_configuration(other) == 0
    assert fast.error(lambda: backend.claim_interface(other, 0)) == NOT_FOUND
    backend.close_device(other)
    assert fast.error(lambda: backend.get_configuration(other)) == (errno.EINVAL, -2)


def test_a_silent_endpoint_times_out(live: Host) -> None:
    with pytest.raises(usb.core.USBTimeoutError) as caught:
        live.read(1, timeout=1)
    assert (caught.value.errno, caught.value.backend_error_code) == (errno.ETIMEDOUT, -7)


def test_a_timeout_hands_out_what_has_come(live: Host) -> None:
    live.stream()
    frames = live.read(1000, timeout=20)
    assert 0 < len(frames) < 1000
    assert indices(live.read(4))[0] == len(frames)


def test_a_transfer_that_packets_do_not_fit_overflows(fast: Host) -> None:
    fast.stream()
    assert fast.error(lambda: fast.device.read(0x82, 1000, 100)) == (errno.EOVERFLOW, -8)


def test_a_stalled_endpoint_stays_halted_until_cleared(fast: Host) -> None:
    fast.stream()
    fast.faults.stall(at=3)
    assert fast.error(lambda: fast.read(8)) == PIPE
    assert fast.error(lambda: fast.read(8)) == PIPE
    assert bytes(fast.device.ctrl_transfer(0x82, 0, 0, 0x82, 2)) == b"\x01\x00"
    fast.device.clear_halt(0x82)
    assert indices(fast.read(2)) == [3, 4]
    assert fast.status().settings_result == protocol.RESULT_BUSY  # control was never affected


def test_a_transmission_error_halts_nothing(fast: Host) -> None:
    fast.stream()
    fast.faults.error(at=0)
    assert fast.error(lambda: fast.read(2)) == IO
    assert indices(fast.read(2)) == [0, 1]


def test_overflow_on_demand(fast: Host) -> None:
    fast.stream()
    fast.faults.overflow(at=2)
    assert indices(fast.read(2)) == [0, 1]
    assert fast.error(lambda: fast.read(256)) == (errno.EOVERFLOW, -8)
    assert indices(fast.read(2)) == [3, 4]


def test_unplug_ends_everything_and_plug_brings_a_new_device(live: Host) -> None:
    live.stream(select=protocol.SELECT_AUTO)
    before = live.device.address
    live.instrument.unplug()
    assert live.error(lambda: live.read(1)) == NO_DEVICE
    assert live.error(live.status) == NO_DEVICE
    assert usb.core.find(idVendor=0x16D0, backend=live.backend) is None
    live.instrument.plug()
    assert live.error(lambda: live.read(1)) == NO_DEVICE  # the old handle stays dead
    live.open()
    assert live.device.address != before
    status = live.status()
    assert (status.settings_result, status.select, status.source) == (-1, 0, 0)


@pytest.mark.parametrize("replug", [False, True])
def test_unplug_ends_a_transfer_that_waits(live: Host, replug: bool) -> None:
    waiting, codes = threading.Event(), []

    def read() -> None:
        waiting.set()
        codes.append(live.error(lambda: live.read(1, timeout=0)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    waiting.wait()
    live.instrument.unplug()
    if replug:
        live.instrument.plug()
    thread.join(timeout=10)
    assert codes == [NO_DEVICE]


def test_a_slow_reply_times_out_only_for_a_host_that_does_not_wait(fast: Host) -> None:
    fast.faults.delay(0.02, Request.INFO)
    assert fast.get(Request.INFO, 1024)
    info = (protocol.REQUEST_IN, Request.INFO, 0, 0, 1024, 1)
    assert fast.error(lambda: fast.device.ctrl_transfer(*info)) == (errno.ETIMEDOUT, -7)
    assert fast.get(Request.SERIAL_NUMBER, 16)


def test_processor_time_of_the_emulator_is_counted(fast: Host) -> None:
    fast.stream()
    before = fast.backend.cpu_seconds
    fast.read(2000)
    assert fast.backend.cpu_seconds > before
