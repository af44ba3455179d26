"""The JS110 as a driver: opens it, streams its samples in A and V, changes its settings."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import usb.core

from daq_ioc.attributes import Attribute, Group, Kind, Value
from daq_ioc.driver import DriverError, NotConnectedError, StreamDriver
from daq_ioc.driver import usb as usb_io
from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.connection import Connection, Instrument, scan
from daq_ioc.driver.joulescope.js110.frames import FrameCounters, FrameParser, Run
from daq_ioc.driver.joulescope.js110.parameters import PARAMETERS, RANGES, Parameters, Where
from daq_ioc.driver.joulescope.js110.protocol import Extio, Status
from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.suppression import RawProcessor, Samples
from daq_ioc.samples import MISSING_BITS, MISSING_WORD, RANGE_MASK, SampleBlock

SILENCE: Final = 1.0
"""A stream that brings nothing for so long, s, has stopped."""

_RECOVERIES: Final = 3
_PIECE: Final = 1 << 16
"""Most missing samples converted at once."""

_SUPPRESS: Final = ("off", "interp_1_n_1", "interp_1_m_1", "mean_1_n_1", "nan_0_n_0", "other")
"""Words of SUPPRESS; ``other`` shows a filter that only a configuration can set."""


def _enum(name: str, doc: str, choices: tuple[str, ...], group: Group | None = None) -> Attribute:
    if group is None:
        return Attribute(name, Kind.ENUM, doc, choices=choices, live=True)
    return Attribute(name, Kind.ENUM, doc, choices=choices, live=True, writable=True, group=group)


_I_RANGES: Final = tuple(PARAMETERS["i_range"].options)
_V_RANGES: Final = ("15 V", "5 V")
_IO_VOLTAGES: Final = tuple(PARAMETERS["io_voltage"].options)

SETTINGS: Final = (
    _enum("I_RANGE", "Current range", _I_RANGES, Group.SETTING),
    _enum("I_RANGE_RBV", "Current range of the newest sample", (*RANGES, "off", "missing")),
    _enum("V_RANGE", "Voltage range", _V_RANGES, Group.SETTING),
    _enum("TARGET_POWER", "Current path to the target", ("off", "on"), Group.TARGET),
    _enum("GPO0", "General purpose output 0", ("0", "1"), Group.SETTING),
    _enum("GPO1", "General purpose output 1", ("0", "1"), Group.SETTING),
    _enum("GPI0", "General purpose input 0", ("0", "1")),
    _enum("GPI1", "General purpose input 1", ("0", "1")),
    _enum("IO_VOLTAGE", "Level of inputs and outputs", _IO_VOLTAGES, Group.SETTING),
    _enum("SUPPRESS", "Range-switch filter", _SUPPRESS, Group.SETTING),
)
"""What a device may show and change, beyond the samples."""

_PARAMETER_OF: Final = {
    "I_RANGE": "i_range",
    "V_RANGE": "v_range",
    "GPO0": "gpo0",
    "GPO1": "gpo1",
    "IO_VOLTAGE": "io_voltage",
    "SUPPRESS": "current_ranging",
}


class Driver(StreamDriver):
    """One JS110.

    ``serial``: as printed on it, None takes the first one found. ``backend``: ``usb``, or
    ``emulator:...``, or a pyusb backend. Any parameter of `parameters.PARAMETERS` may be given too;
    they are applied at every `open`. ValueError or UserError names what is wrong with an argument.

    One thread calls `open`, `read` and `close`; `put`, `poll` and `values` may come from others.
    """

    name = "js110"
    sample_rate = float(protocol.SAMPLE_RATE)
    fixed_while_recording = ("V_RANGE",)
    settings = SETTINGS
    option_of = _PARAMETER_OF

    def __init__(
        self, serial: str | None = None, backend: str | Any = "usb", **parameters: object
    ) -> None:
        if serial is not None and not isinstance(serial, str):
            raise ValueError(f"serial is text in quotes, such as '000415'; not {serial!r}")
        self._wanted_serial = serial
        self._backend = usb_io.get_backend(backend) if isinstance(backend, str) else backend
        self._parameters = Parameters()
        for name, value in parameters.items():
            self._parameters.set(name, value)
        self._connection: Connection | None = None
        self._identity: dict[str, str] = {}
        self._calibration: Calibration | None = None
        self._target_power = True
        self._applied = Status()
        self._extio = Extio()
        self._change = threading.RLock()  # one change of settings at a time
        self._stream: usb_io.BulkIn | None = None
        self._reset_stream()

    @classmethod
    def scan(cls, backend: str | Any = "usb") -> list[Instrument]:
        """The JS110s that are plugged in."""
        return scan(usb_io.get_backend(backend) if isinstance(backend, str) else backend)

    # ---- connection

    def open(self) -> None:
        """Connect, read calibration and identity, and apply all parameters; does not stream."""
        connection = Connection(self._backend, self._wanted_serial)
        try:
            info = connection.info()
            self._calibration = connection.calibration()
            self.calibration_data = self._calibration.data
            self._identity = {
                "model": "JS110",
                "serial": connection.serial,
                "firmware": _member(info, "ctl", "fw", "ver"),
                "hardware": _member(info, "ctl", "hw", "rev"),
            }
            with self._change:
                self._apply(connection, streaming=False)
                connection.put_extio(self._parameters.extio())
                self._extio = connection.extio()
            connection.drain()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Stop streaming and let go of the instrument, which keeps its settings. Never raises."""
        with contextlib.suppress(DriverError):
            self.stop()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open_connection(self) -> Connection:
        connection = self._connection
        if connection is None:
            raise NotConnectedError("the JS110 is not connected")
        return connection

    @property
    def calibration(self) -> Calibration:
        if self._calibration is None:
            raise NotConnectedError("the JS110 has not been connected yet")
        return self._calibration

    def identity(self) -> Mapping[str, str]:
        return self._identity

    # ---- settings

    def _apply(self, connection: Connection, *, streaming: bool) -> None:
        """Send all settings; raise DriverError if the instrument then has others."""
        wanted = self._parameters.settings(connected=self._target_power, streaming=streaming)
        status = connection.put_settings(wanted)
        if status.select != wanted.select:
            raise DriverError(
                f"the instrument has range selection {status.select:#x}, not {wanted.select:#x}"
            )
        self._applied = status

    def parameter_get(self, name: str) -> str:
        """The present value of a user parameter, as its option name."""
        return self._parameters[name]

    def parameter_set(self, name: str, value: object) -> None:
        """Change a user parameter and wait until the instrument has it.

        Raises ValueError that lists what is allowed, and DriverError if the instrument does not
        take it; nothing is changed then.
        """
        with self._change:
            before = self._parameters[name]
            where = self._parameters.set(name, value)
            connection = self._connection
            try:
                if where is Where.HOST:
                    self._suppress_mode = self._parameters.current_ranging
                elif connection is not None and where is Where.SETTINGS:
                    self._apply(connection, streaming=self._streaming)
                elif connection is not None and where is Where.EXTIO:
                    connection.put_extio(self._parameters.extio())
                    self._extio = connection.extio()
            except DriverError:
                self._parameters.set(name, before)
                raise

    def put(self, name: str, value: Value) -> None:
        self._open_connection()
        self.restore(name, value)

    def restore(self, name: str, value: Value) -> None:
        attribute = next((a for a in SETTINGS if a.name == name and a.writable), None)
        if attribute is None:
            raise ValueError(f"a JS110 has no setting {name!r}")
        index = attribute.checked(value)
        if not isinstance(index, int):
            raise TypeError(f"{name} is not an enum")
        if name == "TARGET_POWER":
            self._put_target_power(bool(index))
        else:
            self.parameter_set(_PARAMETER_OF[name], attribute.choices[index])

    def _put_target_power(self, on: bool) -> None:
        with self._change:
            before, self._target_power = self._target_power, on
            try:
                if self._connection is not None:
                    self._apply(self._connection, streaming=self._streaming)
            except DriverError:
                self._target_power = before
                raise

    def values(self) -> Mapping[str, Value]:
        parameters = self._parameters
        suppress = parameters.current_ranging
        newest = self._newest_bits & RANGE_MASK
        return {
            "I_RANGE": _I_RANGES.index(parameters["i_range"]),
            "I_RANGE_RBV": min(int(newest), len(RANGES) + 1),
            "V_RANGE": int(bool(self._applied.options & protocol.OPTION_VOLTAGE_RANGE)),
            "TARGET_POWER": int(self._target_power),
            "GPO0": self._extio.gpo0,
            "GPO1": self._extio.gpo1,
            "GPI0": self._extio.gpi_value & 1,
            "GPI1": self._extio.gpi_value >> 1 & 1,
            "IO_VOLTAGE": _IO_VOLTAGES.index(parameters["io_voltage"]),
            "SUPPRESS": _SUPPRESS.index(suppress if suppress in _SUPPRESS else "other"),
        }

    def poll(self) -> None:
        """Ask for what samples do not tell, the inputs. Takes a few ms; not for the read thread."""
        self._extio = self._open_connection().extio()

    def status(self) -> Status:
        """STATUS of the open instrument, with its own statistics."""
        return self._open_connection().status()

    # ---- samples

    def _reset_stream(self) -> None:
        self._streaming = False
        self._parser = FrameParser(time.monotonic())
        self._processor: RawProcessor | None = None
        self._suppress_mode = self._parameters.current_ranging
        self._blocks: deque[SampleBlock] = deque()
        self._received = 0  # samples given to the processor
        self._next_id = 0  # first of them not in a block yet
        self._range_from = deque([(0, 0)])  # (first sample id, voltage range)
        self._newest_bits = np.uint8(MISSING_BITS)
        self._failures = 0

    @property
    def frame_counters(self) -> FrameCounters:
        """What came of the present stream, in frames."""
        return self._parser.counters

    def start(self) -> None:
        """Start the stream, with sample id 0. Nothing if it runs."""
        if self._streaming:
            return
        connection = self._open_connection()
        self._reset_stream()
        self._processor = RawProcessor(self.calibration, self._suppress_mode)
        self._stream = self._open_stream(connection)
        with self._change:
            self._apply(connection, streaming=True)
            self._parser = FrameParser(time.monotonic())
            self._streaming = True

    def stop(self) -> None:
        """Stop the stream. Nothing if it does not run."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if not self._streaming:
            return
        self._streaming = False
        if self._connection is not None:
            with self._change:
                self._apply(self._connection, streaming=False)
            self._connection.drain()

    def _open_stream(self, connection: Connection) -> usb_io.BulkIn:
        frames, queued = (
            self._parameters.wire(f"transfer_{name}") for name in ("length", "outstanding")
        )
        return connection.open_stream(frames, queued)

    def read(self) -> SampleBlock:
        """The next samples, final ones; starts the stream if it does not run.

        Lost frames come as missing samples. Raises DriverError if nothing comes for SILENCE s, and
        when the stream fails more often than it delivers.
        """
        self.start()
        while not self._blocks:
            transfer = self._next_transfer()
            if transfer is not None:
                self._take(transfer)
        return self._blocks.popleft()

    def _next_transfer(self) -> usb_io.Transfer | None:
        """A transfer, or None where the stream had to be opened again after an error."""
        connection = self._open_connection()
        if self._stream is None:
            self._stream = self._open_stream(connection)
        try:
            transfer = self._stream.read(SILENCE)
        except usb.core.USBError as error:
            stream, self._stream = self._stream, None
            stream.close()
            self._failures += 1
            if error.errno in usb_io.GONE or self._failures > _RECOVERIES:
                raise usb_io.explain(error, "stream") from error
            return None
        if transfer is None:
            raise DriverError(f"stream: no samples for {SILENCE:g} s; replug the instrument")
        self._failures = 0
        return transfer

    def _take(self, transfer: usb_io.Transfer) -> None:
        """Turn a transfer into blocks."""
        runs = self._parser.parse(transfer.data, transfer.arrival, prompt=transfer.prompt)
        processor = self._processor
        if processor is None:
            return
        done = [processor.change_mode(self._suppress_mode)]
        for run in runs:
            if run.voltage_range != self._range_from[-1][1]:
                self._range_from.append((self._received, run.voltage_range))
            for raw in _pieces(run):
                done.append(processor.process(raw, run.voltage_range))
                self._received += len(raw)
        for samples in done:
            self._emit(samples, transfer.arrival)

    def _emit(self, samples: Samples, arrival: float) -> None:
        """Queue samples as blocks, a new one where the voltage range changes."""
        auto = self._parameters["i_range"] == "auto"
        while len(samples):
            while len(self._range_from) > 1 and self._range_from[1][0] <= self._next_id:
                self._range_from.popleft()
            stop = len(samples)
            if len(self._range_from) > 1:
                stop = min(stop, self._range_from[1][0] - self._next_id)
            part, samples = samples[:stop], samples[stop:]
            block = words.as_words(part.raw)
            missing = words.is_missing(block)
            self._blocks.append(
                SampleBlock(
                    sample_id=self._next_id,
                    raw=part.raw,
                    current=part.current,
                    voltage=part.voltage,
                    bits=part.bits,
                    voltage_range=self._range_from[0][1],
                    arrival=arrival,
                    arrival_id=self._received,
                    lost=0 if missing is None else int(np.count_nonzero(missing)),
                    overflow=words.overflows(block, part.bits, auto=auto),
                )
            )
            self._next_id += stop
            self._newest_bits = part.bits[-1]


def _pieces(run: Run) -> Iterator[npt.NDArray[np.uint16]]:
    """The raw words of a run, in pieces of bounded length where they have to be made up."""
    if run.raw is not None:
        yield run.raw
    for begin in range(0, run.missing, _PIECE):
        yield np.full((min(_PIECE, run.missing - begin), 2), MISSING_WORD, np.uint16)


def _member(info: object, *path: str) -> str:
    """A text inside nested JSON objects, empty if it is not there."""
    for key in path:
        info = info.get(key) if isinstance(info, dict) else None
    return info if isinstance(info, str) else ""
