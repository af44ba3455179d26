"""The emulated JS110: vendor requests in, packets out, whatever carries them.

Put it behind pyusb with `daq_ioc.emulator.get_backend`, or before a real kernel with anything that
calls `control` and `bulk_in`. It knows no USB states but being plugged: configurations, claims and
halted endpoints belong to the transport.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Final

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import (
    FRAME_SAMPLES,
    SAMPLE_RATE,
    Extio,
    PacketError,
    Request,
    Settings,
    Status,
)
from daq_ioc.emulator import calibrations, descriptors, encode
from daq_ioc.emulator.encode import Wire, Words
from daq_ioc.emulator.faults import Faults, Stall, Unplugged
from daq_ioc.emulator.statistics import SensorCounter
from daq_ioc.emulator.stream import FRAME_TIME, Stream
from daq_ioc.emulator.target import Target, Waveform
from daq_ioc.emulator.timeline import Timeline, Totals

LOOPBACK_BYTES: Final = 132
BUSY_POLLS: Final = 2
"""STATUS replies that say busy after each SETTINGS."""

POWER_ON: Final = Settings(sensor_power=0, select=0, source=0)
PATTERNS: Final = (
    protocol.SOURCE_PATTERN_USB,
    protocol.SOURCE_PATTERN_CONTROL,
    protocol.SOURCE_PATTERN_SENSOR,
)

_plugs = itertools.count()


@dataclass(frozen=True, slots=True)
class Options:
    """What one emulated instrument is like; see `daq_ioc.emulator` for the meanings."""

    serial: str = "000415"
    seed: int = 0
    realtime: bool = True
    firmware: tuple[int, ...] = (1, 3, 2)
    queue_ms: float = 200.0
    calibration: str = "good"
    ppm: float = 0.0


class JS110:
    """One instrument with its target, from a power-on to the next.

    All methods may be called from any thread. ``faults`` is what shall go wrong.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self._changed = threading.Condition()  # the one lock; notified when a wait may end
        self._stream: Stream | None = None
        self.faults = Faults(self._changed, self._advance)
        self._frame_time = FRAME_TIME / (1 + self.options.ppm * 1e-6)
        self._target = Target(self.options.seed)
        self._mcu_serial = hashlib.blake2b(self.options.serial.encode(), digest_size=16).digest()
        self._calibration = calibrations.make(self.options.calibration, self._mcu_serial.hex())
        self.address = 0
        self.plugged = False
        self.plug()

    # ---- the cable

    def plug(self) -> None:
        """Plug in: a new address, and every setting as after power-on. Nothing if it is in."""
        with self._changed:
            if not self.plugged:
                self.address = 2 + next(_plugs) % 126
                self.plugged = True
                self._power_on()
                self._changed.notify_all()

    def unplug(self) -> None:
        """Pull the cable: transfers under way and all later ones fail."""
        with self._changed:
            self.plugged = False
            self._changed.notify_all()

    def reset(self) -> None:
        """A bus reset: the same as losing and getting power."""
        with self._changed:
            self._power_on()
            self._changed.notify_all()

    def _power_on(self) -> None:
        self.settings, self.extio = POWER_ON, Extio()
        self._busy_polls = 0
        self._result = protocol.RESULT_NONE
        self._loopback_value, self._loopback = 0, b""
        self._timeline = Timeline(self._target)
        self._epoch = time.monotonic()  # when frame 0 of the timeline began (realtime)
        self._stream = None
        self._idle = 0  # position between streams that are not realtime: time stands still
        self._first = 0  # frame of the timeline that is frame 0 of the (last) stream
        self._kind: str | None = None
        self._discarded = 0
        self._counter = SensorCounter(self._timeline)

    def _check_plugged(self) -> None:
        if not self.plugged:
            raise Unplugged

    # ---- what a transport asks for

    def descriptors(self) -> dict[str, Any]:
        """Device and configuration descriptors and strings, see `descriptors.of`."""
        return descriptors.of(self.options.serial)

    def control(
        self, kind: int, request: int, value: int, index: int, data_or_length: bytes | int
    ) -> bytes:
        """Answer a vendor request: wLength in and bytes back (IN), or data in (OUT, b"" back).

        Raises ``Stall`` for what the instrument does not know, ``Unplugged``.
        """
        with self._changed:
            self._check_plugged()
            to_host = isinstance(data_or_length, int)
            wrong = self.faults.answer(request, to_host=to_host)
            if kind == protocol.REQUEST_IN and isinstance(data_or_length, int):
                if wrong is not None:
                    return wrong[:data_or_length]
                return self._read(request, value, index, data_or_length)[:data_or_length]
            if kind == protocol.REQUEST_OUT and not isinstance(data_or_length, int):
                self._write(request, value, data_or_length)
                self._changed.notify_all()
                return b""
            raise Stall(f"bmRequestType {kind:#x}")

    def bulk_in(self, endpoint: int, length: int) -> bytes | None:
        """The packets that are due, at most ``length`` bytes rounded up to whole packets.

        None: nothing is due. A last packet of less than 512 bytes ends the transfer; more than
        ``length`` is an overflow. Raises ``Stall``, ``BusError``, ``Unplugged``. Never blocks.
        """
        with self._changed:
            self._check_plugged()
            if endpoint != protocol.ENDPOINT_IN:
                raise Stall(f"endpoint {endpoint:#x}")
            return self._stream.take(length, time.monotonic()) if self._stream else None

    def wait(self, address: int, length: int, deadline: float) -> bool:
        """Sleep until ``bulk_in(length)`` is worth while, at most until ``deadline``.

        ``deadline``: ``time.monotonic()`` seconds. False when it passed. Raises ``Unplugged`` as
        soon as the instrument is no longer the one that was plugged in at ``address``.
        """
        with self._changed:
            while True:
                self._check_plugged()
                if self.address != address:
                    raise Unplugged
                now = time.monotonic()
                ready = self._stream.ready_at(length, now) if self._stream else None
                if ready is not None and ready <= now:
                    return True
                if now >= deadline:
                    return False
                until = deadline if ready is None else min(ready, deadline)
                self._changed.wait(min(until - now, 3600.0))  # C refuses to wait for ever

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than the instrument is plugged in. Raises ``Unplugged``."""
        with self._changed:
            self._changed.wait_for(lambda: not self.plugged, seconds)
            self._check_plugged()

    def plan(self, frame: int, *, select: int | None = None, options: int | None = None) -> None:
        """Sample under other settings from ``frame`` of the raw stream on.

        As if SETTINGS had come just then, so that tests can place a change inside a transfer; but
        SETTINGS and STATUS do not tell of it, and the next SETTINGS or EXTIO ends it.
        """
        with self._changed:
            wire = self._timeline.wire
            if wire is None:
                raise ValueError("nothing is sampled")
            select = wire.select if select is None else select
            options = wire.options if options is None else options
            planned = replace(wire, select=select, options=options)
            self._timeline.switch(self._first + frame, planned)

    # ---- the truth

    @property
    def frames(self) -> int:
        """Frames of the present (or last) stream that are sampled, lost ones included."""
        with self._changed:
            self._advance()
            return self._stream.position() if self._stream else 0

    @property
    def first_sample(self) -> int:
        """``samples_total`` of the on-instrument statistics at the stream's sample 0."""
        with self._changed:
            return self._first * FRAME_SAMPLES

    @property
    def discarded(self) -> int:
        """Frames dropped since power-on because the host was late."""
        with self._changed:
            return self._discarded + (self._stream.discarded if self._stream else 0)

    def truth(self, start: int, stop: int) -> Words:
        """Raw words uint16 (n, 2) of samples [start, stop) of the present or last raw stream.

        As sampled, so without what faults do to frames on their way. Samples that are still to
        come are those of the present settings. Of a stream older than 200 changes of settings,
        the beginning is forgotten.
        """
        with self._changed:
            return self._timeline.words(*self._samples(start, stop))

    def ideal(self, start: int, stop: int) -> Waveform:
        """The physical current and voltage of these samples: no ADC, no ranges, no glitches."""
        with self._changed:
            return self._timeline.ideal(*self._samples(start, stop))

    def totals(self, start: int, stop: int) -> Totals:
        """Sums and extremes of these samples as calibrated (float32, summed in float64).

        Before range-switch suppression: the glitches of range switches count.
        """
        with self._changed:
            return self._timeline.totals(*self._samples(start, stop))

    def charge(self, start: int, stop: int) -> float:
        """Charge in C that ``totals`` makes of these samples."""
        return float(self.totals(start, stop).sums[0]) / SAMPLE_RATE

    def energy(self, start: int, stop: int) -> float:
        """Energy in J that ``totals`` makes of these samples."""
        return float(self.totals(start, stop).sums[2]) / SAMPLE_RATE

    def _samples(self, start: int, stop: int) -> tuple[int, int]:
        offset = self._first * FRAME_SAMPLES
        return start + offset, stop + offset

    # ---- requests

    def _read(self, request: int, value: int, index: int, length: int) -> bytes:
        if request == Request.LOOPBACK_WVALUE:
            return self._loopback_value.to_bytes(2, "little")
        if request == Request.LOOPBACK_BUFFER:
            return self._loopback
        if request == Request.SETTINGS:
            return self.settings.pack()
        if request == Request.STATUS:
            return self._status().pack()
        if request == Request.SERIAL_NUMBER:
            return self._mcu_serial
        if request == Request.CALIBRATION and value in (0, 1):
            return self._calibration[index : index + length]
        if request == Request.EXTIO:
            pins = self._timeline.gpi(self._position(time.monotonic()))
            return replace(self.extio, gpi_value=pins).pack()
        if request == Request.INFO:
            return self._info()
        raise Stall(f"IN request {request}")

    def _write(self, request: int, value: int, data: bytes) -> None:
        try:
            if request == Request.LOOPBACK_WVALUE:
                self._loopback_value = value
            elif request == Request.LOOPBACK_BUFFER and 0 < len(data) <= LOOPBACK_BYTES:
                self._loopback = data
            elif request == Request.SETTINGS:
                self._set(Settings.unpack(data))
            elif request == Request.EXTIO:
                self.extio = Extio.unpack(data)
                self._apply()
            elif request != Request.TEST_MODE:
                raise Stall(f"OUT request {request}")
        except PacketError as error:
            raise Stall(str(error)) from error

    def _set(self, settings: Settings) -> None:
        """Take new settings, unless a fault keeps the sensor side from it."""
        self._busy_polls, self._result = BUSY_POLLS, self.faults.result
        if not self.faults.busy and self._result == protocol.RESULT_OK:
            self.settings = settings
            self._apply()

    def _status(self) -> Status:
        result = self._result
        if self.faults.busy or self._busy_polls > 0:
            self._busy_polls = max(0, self._busy_polls - 1)
            result = protocol.RESULT_BUSY
        self._advance()
        old = self.options.firmware < (1, 2, 0)
        return Status(
            settings_result=result,
            fpga_frame_counter=(self._stream.produced if self._stream else 0) & 0xFFFFFFFF,
            fpga_discard_counter=self.discarded & 0xFFFFFFFF,
            flags=self.settings.sensor_power & 1,
            select=self.settings.select,
            source=self.settings.source,
            options=self.settings.options,
            statistics=None if old else self._counter.report(self._position(time.monotonic())),
        )

    def _info(self) -> bytes:
        version = ".".join(map(str, self.options.firmware))
        if self.options.firmware < (0, 3):
            raise Stall("INFO")
        hardware = {"rev": "H", "sn_mcu": self._mcu_serial.hex(), "sn_mfg": self.options.serial}
        info = {
            "type": "info",
            "ver": 1,
            "ctl": {"hw": hardware, "fw": {"ver": version}, "fpga": {"ver": "0.2.0"}},
            "sensor": {"fw": {"ver": version}, "fpga": {"ver": "1.2.1"}},
        }
        if self.options.firmware >= (1, 1, 0):
            return json.dumps(info).encode()
        text = json.dumps(info, separators=(",", ":")).encode()
        total = protocol.HEADER.size + len(text)
        kind = protocol.PacketType.INFO
        return protocol.HEADER.pack(protocol.PACKET_VERSION, total, kind, 0, 0) + text

    # ---- sampling and streaming

    def _advance(self) -> None:
        """Let the stream sample what is due."""
        if self._stream:
            self._stream.advance(time.monotonic())

    def _position(self, now: float) -> int:
        """The first frame of the timeline that new settings can change."""
        if self._stream:
            return self._first + self._stream.position()
        if self.options.realtime:
            return int((now - self._epoch) / self._frame_time + 1e-6)
        return self._idle

    def _wire(self) -> Wire | None:
        settings = self.settings
        if not settings.sensor_power or settings.source != protocol.SOURCE_RAW:
            return None
        extio = self.extio
        return Wire(settings.select, settings.options & 3, extio.current_lsb, extio.voltage_lsb)

    def _stream_kind(self) -> str | None:
        """What the settings let flow: "raw", "pattern" or nothing."""
        streaming = self.settings.streaming
        test = streaming & 0x80 and streaming & protocol.STREAM_ON
        if test or (streaming == protocol.STREAM_ON and self.settings.source in PATTERNS):
            return "pattern"
        return "raw" if streaming == protocol.STREAM_ON and self._wire() else None

    def _apply(self) -> None:
        """Make sampling and streaming follow the settings, from now on."""
        now = time.monotonic()
        kind, wire = self._stream_kind(), self._wire()
        if self._stream:
            self._stream.advance(now)
        frame = self._position(now)
        starts = kind is not None and kind != self._kind
        self._counter.collect(frame)
        was_sampling = self._timeline.wire is not None
        if starts or wire != self._timeline.wire:
            self._timeline.switch(frame, wire, origin=frame if starts else None)
        if wire is None or not was_sampling:
            self._counter.restart(frame)
        if kind != self._kind:
            self._end_stream()
            if kind is not None:
                self._begin_stream(kind, frame, now)
        self._kind = kind
        self._idle = frame + 1  # changes of settings follow each other even without a clock

    def _end_stream(self) -> None:
        if self._stream:
            self._discarded += self._stream.discarded
        self._stream = None

    def _begin_stream(self, kind: str, frame: int, now: float) -> None:
        self._first = frame
        self._epoch = now - frame * self._frame_time  # frame 0 of the stream begins now

        def raw(start: int, stop: int) -> Words:
            return self._timeline.frames(frame + start, frame + stop)

        def pattern(start: int, stop: int) -> Words:
            return encode.pattern(start, stop - start)

        self._stream = Stream(
            raw if kind == "raw" else pattern,
            self.faults,
            start=now,
            depth=max(1, round(self.options.queue_ms * 1e-3 / FRAME_TIME)),
            realtime=self.options.realtime,
            frame_time=self._frame_time,
        )
