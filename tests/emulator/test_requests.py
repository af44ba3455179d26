"""Every vendor request, right and wrong, and what recorded hosts asked."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import Extio, Request, Settings
from daq_ioc.emulator import encode
from daq_ioc.joulescope.calibration import Calibration, CalibrationError
from tests.emulator.conftest import Host

VECTORS = Path(__file__).parent.parent / "vectors"
PIPE = (errno.EPIPE, -9)


def _calibration(host: Host) -> bytes:
    """Read as the host software does: the header, then chunks."""
    total = int.from_bytes(host.get(Request.CALIBRATION, 32, value=1)[16:24], "little")
    data = b""
    while len(data) < total:
        data += host.get(Request.CALIBRATION, 4096, value=1, index=len(data))
    return data


def test_loopbacks(fast: Host) -> None:
    fast.put(Request.LOOPBACK_WVALUE, value=0x1234)
    assert fast.get(Request.LOOPBACK_WVALUE, 2) == b"\x34\x12"
    fast.put(Request.LOOPBACK_BUFFER, bytes(range(132)))
    assert fast.get(Request.LOOPBACK_BUFFER, 10) == bytes(range(10))
    assert fast.error(lambda: fast.put(Request.LOOPBACK_BUFFER, bytes(133))) == PIPE


def test_settings_are_busy_for_some_polls_and_read_back(fast: Host) -> None:
    assert fast.status().settings_result == protocol.RESULT_NONE
    settings = Settings(select=0x04, source=protocol.SOURCE_RAW, options=2)
    fast.put(Request.SETTINGS, settings.pack())
    assert fast.get(Request.SETTINGS, 16) == settings.pack()
    results = [fast.status().settings_result for _ in range(4)]
    assert results == [19, 19, 0, 0]
    status = fast.status()
    assert (status.select, status.source, status.options) == (0x04, 0xC0, 2)


def test_settings_that_fail(fast: Host) -> None:
    fast.faults.busy = True
    fast.set(select=0x01)
    assert {fast.status().settings_result for _ in range(20)} == {19}
    fast.faults.busy = False
    fast.faults.result = 5
    fast.set(select=0x01)
    assert [fast.status().settings_result for _ in range(3)][-1] == 5
    assert fast.status().select == 0  # what failed changes nothing
    assert fast.error(lambda: fast.put(Request.SETTINGS, bytes(16))) == PIPE


def test_calibration_belongs_to_the_instrument(fast: Host) -> None:
    calibration = Calibration.from_bytes(_calibration(fast))
    assert calibration.serial_number == fast.get(Request.SERIAL_NUMBER, 16).hex()
    assert calibration.current_gain[:7].tolist() == encode.CURRENT_GAIN.tolist()
    assert calibration.voltage_offset.tolist() == encode.VOLTAGE_OFFSET.tolist()
    assert fast.get(Request.CALIBRATION, 4096, value=0) == _calibration(fast)
    assert fast.error(lambda: fast.get(Request.CALIBRATION, 32, value=2)) == PIPE


def test_spoilt_calibrations() -> None:
    wrong = Host("js110:calibration=wrong-serial")
    serial = Calibration.from_bytes(_calibration(wrong)).serial_number
    assert serial != wrong.get(Request.SERIAL_NUMBER, 16).hex()
    for kind in ("bad-crc", "garbage", "none"):
        data = Host(f"js110:calibration={kind}").get(Request.CALIBRATION, 4096, value=1)
        with pytest.raises((CalibrationError, OSError)):
            Calibration.from_bytes(data)


def test_long_calibration_needs_several_chunks() -> None:
    host = Host("js110:calibration=long")
    data = _calibration(host)
    assert len(data) > 8192
    assert Calibration.from_bytes(data).serial_number == host.get(7, 16).hex()


def test_extio_reads_back_with_live_pins(fast: Host) -> None:
    extio = Extio(current_lsb=2, voltage_lsb=3, gpo0=1, io_voltage=1800)
    fast.put(Request.EXTIO, extio.pack())
    reply = Extio.unpack(fast.get(Request.EXTIO, 128))
    assert (reply.current_lsb, reply.voltage_lsb, reply.gpo0, reply.io_voltage) == (2, 3, 1, 1800)
    fast.stream()
    pins = set()
    for _ in range(8):
        fast.read(4000)
        pins.add(Extio.unpack(fast.get(Request.EXTIO, 24)).gpi_value)
    assert {value >> 1 for value in pins} == {0, 1}


@pytest.mark.parametrize(
    ("firmware", "header", "statistics"), [("1.3.2", 0, True), ("1.0.0", 8, False)]
)
def test_info_and_status_follow_the_firmware(firmware: str, header: int, statistics: bool) -> None:
    host = Host(f"js110:firmware={firmware},serial=000777")
    reply = host.get(Request.INFO, 1024)
    if header:
        assert reply[:4] == bytes([1, len(reply), protocol.PacketType.INFO, 0])
    info = json.loads(reply[header:])
    assert info["ctl"]["fw"]["ver"] == info["sensor"]["fw"]["ver"] == firmware
    assert info["ctl"]["hw"]["sn_mfg"] == "000777"
    assert (host.status().statistics is not None) == statistics


def test_what_the_instrument_does_not_know_stalls(fast: Host) -> None:
    old = Host("js110:firmware=0.2.9")
    assert old.error(lambda: old.get(Request.INFO, 1024)) == PIPE
    assert fast.error(lambda: fast.get(99, 16)) == PIPE
    assert fast.error(lambda: fast.put(Request.CONTROLLER_BOOTLOADER, value=1)) == PIPE
    fast.put(Request.TEST_MODE, value=1)  # accepted


def test_wrong_replies_and_stalls_for_a_number_of_times(fast: Host) -> None:
    fast.faults.reply(Request.INFO, b"not json", times=1)
    assert fast.get(Request.INFO, 1024) == b"not json"
    assert json.loads(fast.get(Request.INFO, 1024))
    fast.faults.stall_request(Request.STATUS, times=2)
    assert fast.error(fast.status) == PIPE
    assert fast.error(fast.status) == PIPE
    assert fast.status()
    fast.faults.stall_request(Request.STATUS)
    fast.faults.clear()
    assert fast.status()


@pytest.mark.parametrize("name", ["a", "b"])
def test_recorded_hosts_get_answers_of_the_recorded_shape(name: str) -> None:
    events = json.loads((VECTORS / f"js110_transcript_host_{name}.json").read_text())
    host = Host("js110:pace=fast")
    asked = set()
    for event in events:
        if event["ev"] != "ctrl" or event["bmRequestType"] == 0x80:
            continue
        asked.add(event["bRequest"])
        _replay(host, event)
    assert asked >= {Request.SETTINGS, Request.STATUS, Request.CALIBRATION, Request.EXTIO}


def _replay(host: Host, event: dict[str, Any]) -> None:
    request = event["bRequest"]
    if "out" in event:
        host.put(request, bytes.fromhex(event["out"]), value=event["wValue"])
        return
    expected = bytes.fromhex(event["in"])
    reply = host.get(request, event["wLength"], event["wValue"], event["wIndex"])
    if request in (Request.SETTINGS, Request.LOOPBACK_BUFFER):
        assert reply == expected
    elif request == Request.EXTIO:  # all but the live pins
        assert reply[:15] + reply[16:] == expected[:15] + expected[16:]
    elif request == Request.STATUS:
        assert len(reply) == len(expected)
        assert (reply[:8], reply[20:24]) == (expected[:8], bytes([1, *expected[21:24]]))
    elif request == Request.CALIBRATION:
        total = int.from_bytes(reply[16:24], "little")
        assert reply[:16] == expected[:16]
        assert len(reply) == min(event["wLength"], total)
    elif request == Request.INFO:
        assert json.loads(reply).keys() == json.loads(expected).keys()
    else:
        assert len(reply) == len(expected)
