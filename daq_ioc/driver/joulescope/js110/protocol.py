"""The JS110's vendor requests and packets: numbers and layouts, nothing that moves bytes.

Everything here is little-endian. The names are those of the instrument maker's host software, so
that its documentation can be read beside this module.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

VENDOR_ID: Final = 0x16D0
PRODUCT_ID: Final = 0x0E88
PRODUCT_ID_BOOTLOADER: Final = 0x0E87

ENDPOINT_IN: Final = 0x82
FRAME_BYTES: Final = 512
FRAME_SAMPLES: Final = 126
SAMPLE_RATE: Final = 2_000_000
"""Samples per second at full rate, the only rate of the wire."""

CONTROL_MAX_BYTES: Final = 4096
"""Largest data stage of a control request that the instrument's hosts ever use."""

PACKET_VERSION: Final = 1

REQUEST_OUT: Final = 0x40
REQUEST_IN: Final = 0xC0
"""bmRequestType of all requests: vendor, to the device."""


class Request(IntEnum):
    """bRequest."""

    LOOPBACK_WVALUE = 1
    LOOPBACK_BUFFER = 2
    SETTINGS = 3
    STATUS = 4
    SENSOR_BOOTLOADER = 5
    CONTROLLER_BOOTLOADER = 6
    SERIAL_NUMBER = 7
    CALIBRATION = 8
    EXTIO = 9
    INFO = 10
    TEST_MODE = 11


class PacketType(IntEnum):
    """Third byte of the common packet header."""

    SETTINGS = 1
    STATUS = 2
    EXTIO = 3
    INFO = 4


class PacketError(ValueError):
    """A reply that does not have the layout of its packet."""


HEADER: Final = struct.Struct("<BBBBI")  # version, length, type, reserved, reserved
SETTINGS: Final = struct.Struct("<8sBBBBBBBB")
STATUS: Final = struct.Struct("<8siIIBBBB")
STATUS_STATISTICS: Final = struct.Struct("<qqqqiiiiiiiiiiii")
EXTIO: Final = struct.Struct("<8sBBBBBBBBII")
FRAME_HEADER: Final = struct.Struct("<BBHHH")  # type, status, length | voltage range, index, -

SETTINGS_BYTES: Final = SETTINGS.size
EXTIO_BYTES: Final = EXTIO.size
STATUS_BYTES: Final = STATUS.size
STATUS_STATISTICS_BYTES: Final = STATUS.size + STATUS_STATISTICS.size

RESULT_NONE: Final = -1
RESULT_OK: Final = 0
RESULT_BUSY: Final = 19
"""``Status.settings_result`` while the sensor side still works on the last SETTINGS."""

SELECT_OFF: Final = 0x00
SELECT_AUTO: Final = 0x80
"""``Settings.select``: bit n forces current range n; these two are not a range."""

SOURCE_OFF: Final = 0x00
SOURCE_RAW: Final = 0xC0
SOURCE_PATTERN_USB: Final = 0x09
SOURCE_PATTERN_CONTROL: Final = 0x0A
SOURCE_PATTERN_SENSOR: Final = 0xAF

OPTION_OVERFLOW_TO_LSB: Final = 0x01
OPTION_VOLTAGE_RANGE: Final = 0x02

STREAM_OFF: Final = 0x00
STREAM_ON: Final = 0x03
STREAM_TEST_USB: Final = 0x81
STREAM_TEST_FPGA: Final = 0x82
STREAM_TEST_BOTH: Final = 0x83

LSB_NORMAL: Final = 0
LSB_GPI0: Final = 2
LSB_GPI1: Final = 3

FRAME_RAW: Final = 0x01
FRAME_PATTERN: Final = 0x80
FRAME_VOLTAGE_RANGE: Final = 0x8000
"""In the length word of a frame: set while the 5 V range is selected."""


def _header(packet_type: PacketType, length: int) -> bytes:
    return HEADER.pack(PACKET_VERSION, length, packet_type, 0, 0)


def _check_header(data: bytes, packet_type: PacketType, lengths: tuple[int, ...]) -> None:
    name = packet_type.name
    if len(data) not in lengths:
        raise PacketError(f"{name} reply has {len(data)} bytes, expected {lengths}")
    version, length, kind, _, _ = HEADER.unpack_from(data)
    if (version, kind, length) != (PACKET_VERSION, packet_type, len(data)):
        raise PacketError(
            f"{name} reply has a header of version {version}, type {kind}, length {length}"
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """SETTINGS packet, 16 bytes: a whole snapshot, every send carries every field."""

    sensor_power: int = 1
    select: int = SELECT_AUTO
    source: int = SOURCE_RAW
    options: int = 0
    streaming: int = STREAM_OFF

    def pack(self) -> bytes:
        return SETTINGS.pack(
            _header(PacketType.SETTINGS, SETTINGS_BYTES),
            self.sensor_power,
            self.select,
            self.source,
            self.options,
            self.streaming,
            0,
            0,
            0,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        _check_header(data, PacketType.SETTINGS, (SETTINGS_BYTES,))
        return cls(*SETTINGS.unpack(data)[1:6])


@dataclass(frozen=True, slots=True)
class Extio:
    """EXTIO packet, 24 bytes: inputs, outputs and where the input bits of a sample come from.

    ``io_voltage`` is in mV. ``gpi_value`` is only meaningful in replies: bit 0 GPI0, bit 1 GPI1.
    """

    trigger_source: int = 0
    current_lsb: int = LSB_NORMAL
    voltage_lsb: int = LSB_NORMAL
    gpo0: int = 0
    gpo1: int = 0
    gpi_value: int = 0
    io_voltage: int = 3300

    def pack(self) -> bytes:
        return EXTIO.pack(
            _header(PacketType.EXTIO, EXTIO_BYTES),
            0,
            self.trigger_source,
            self.current_lsb,
            self.voltage_lsb,
            self.gpo0,
            self.gpo1,
            0,
            self.gpi_value,
            0,
            self.io_voltage,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Extio:
        _check_header(data, PacketType.EXTIO, (EXTIO_BYTES,))
        _, _, trigger, current, voltage, gpo0, gpo1, _, gpi, _, io_voltage = EXTIO.unpack(data)
        return cls(trigger, current, voltage, gpo0, gpo1, gpi, io_voltage)


@dataclass(frozen=True, slots=True)
class SensorStatistics:
    """Statistics that the instrument computes itself, in the integers of the wire.

    Scales: ``power_mean`` 2**-34 W, ``charge`` 2**-27 C, ``energy`` 2**-27 J, currents 2**-27 A,
    voltages 2**-17 V, ``power_min`` and ``power_max`` 2**-21 W. The window is the
    ``samples_this`` samples that end at ``samples_total``; 0 says that nothing is new.
    """

    samples_total: int = 0
    power_mean: int = 0
    charge: int = 0
    energy: int = 0
    samples_this: int = 0
    samples_per_update: int = 1_000_000
    samples_per_second: int = SAMPLE_RATE
    current_mean: int = 0
    current_min: int = 0
    current_max: int = 0
    voltage_mean: int = 0
    voltage_min: int = 0
    voltage_max: int = 0
    power_min: int = 0
    power_max: int = 0

    def pack(self) -> bytes:
        return STATUS_STATISTICS.pack(
            self.samples_total,
            self.power_mean,
            self.charge,
            self.energy,
            self.samples_this,
            self.samples_per_update,
            self.samples_per_second,
            self.current_mean,
            self.current_min,
            self.current_max,
            self.voltage_mean,
            self.voltage_min,
            self.voltage_max,
            self.power_min,
            self.power_max,
            0,
        )


@dataclass(frozen=True, slots=True)
class Status:
    """STATUS reply: 104 bytes, or 24 from old firmware, which keeps no statistics."""

    settings_result: int = RESULT_NONE
    fpga_frame_counter: int = 0
    fpga_discard_counter: int = 0
    flags: int = 0
    select: int = 0
    source: int = 0
    options: int = 0
    statistics: SensorStatistics | None = None

    def pack(self) -> bytes:
        statistics = b"" if self.statistics is None else self.statistics.pack()
        return (
            STATUS.pack(
                _header(PacketType.STATUS, STATUS_BYTES + len(statistics)),
                self.settings_result,
                self.fpga_frame_counter,
                self.fpga_discard_counter,
                self.flags,
                self.select,
                self.source,
                self.options,
            )
            + statistics
        )

    @classmethod
    def unpack(cls, data: bytes) -> Status:
        _check_header(data, PacketType.STATUS, (STATUS_BYTES, STATUS_STATISTICS_BYTES))
        statistics = None
        if len(data) == STATUS_STATISTICS_BYTES:
            statistics = SensorStatistics(*STATUS_STATISTICS.unpack_from(data, STATUS_BYTES)[:-1])
        result, frames, discards, flags, select, source, options = STATUS.unpack_from(data)[1:]
        return cls(result, frames, discards, flags, select, source, options, statistics)
