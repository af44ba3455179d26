"""A device: one instrument, kept running, with what it measures and what it can be told.

It owns the thread that reads the driver, connects again whenever the instrument was lost, and hands
on readings. It knows no network protocol and no particular instrument.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from daq_ioc.attributes import Attribute, Group, Kind, Reading, Severity, Status, Value
from daq_ioc.device.buffer import RingBuffer
from daq_ioc.device.recorder import Recorder
from daq_ioc.device.recording_formats import Source
from daq_ioc.device.rows import Rows
from daq_ioc.device.stream import Stream
from daq_ioc.driver import (
    Driver,
    DriverError,
    NotConnectedError,
    RowDriver,
    StreamDriver,
    load,
    recordable,
)
from daq_ioc.errors import UsageError, UserError

log = logging.getLogger(__name__)

Subscriber = Callable[[Mapping[str, Reading]], None]

SEARCH_PERIOD: Final = 0.5
"""How often an absent instrument is looked for, s."""

SPAN_MIN: Final = 0.5
"""Shortest buffer of a stream, s: several times what a recording writes at once."""

RETRY_FIRST: Final = 0.5
RETRY_MAX: Final = 5.0
"""Pause before an instrument that fails is tried again, s; it doubles with every failure."""

_HOUSEKEEPING: Final = 0.5


class NotRecordableError(UsageError):
    """A recorder was asked for, and the instrument has no raw samples."""


class State(IntEnum):
    DISCONNECTED = 0
    CONNECTING = 1
    STREAMING = 2
    FAULT = 3


_SEVERITY: Final = {
    State.DISCONNECTED: Severity.MAJOR,
    State.CONNECTING: Severity.MINOR,
    State.STREAMING: Severity.NO_ALARM,
    State.FAULT: Severity.MAJOR,
}

_OWN: Final = (
    Attribute(
        "STATE",
        Kind.ENUM,
        "What the instrument does",
        choices=tuple(state.name.lower() for state in State),
    ),
    Attribute("MESSAGE", Kind.TEXT, "What is wrong, if anything"),
    Attribute("RECONNECTS", Kind.DOUBLE, "Times the instrument came back", precision=0),
    Attribute(
        "dt",
        Kind.DOUBLE,
        "Publish period",
        units="s",
        precision=3,
        writable=True,
        group=Group.SETTING,
        low=0.01,
        high=3600.0,
    ),
)

_IDENTITY: Final = (
    Attribute("MODEL", Kind.STRING, "Model of the instrument"),
    Attribute("SERIAL", Kind.STRING, "Serial number"),
    Attribute("FIRMWARE", Kind.STRING, "Firmware version"),
    Attribute("HARDWARE", Kind.STRING, "Hardware revision"),
)


class Device:
    """One instrument behind ``driver``.

    ``dt``: publish period, s. ``buffer_span``: length of the circular buffer, s. ``record_root``:
    the directory that recordings go below; without one there is no recorder.

    `start` and `stop` run it in threads of its own; `run_once` does one step of it.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        dt: float = 0.5,
        buffer_span: float = 30.0,
        record_root: Path | None = None,
    ) -> None:
        self.driver = driver
        self.name = driver.name
        self._acquisition: Stream | Rows
        self._recorder: Recorder | None = None
        if isinstance(driver, StreamDriver):
            if not buffer_span >= SPAN_MIN:
                raise ValueError(f"buffer_span is at least {SPAN_MIN:g} s, not {buffer_span:g}")
            self._acquisition = Stream(driver.sample_rate, buffer_span)
            if record_root is not None:
                self._recorder = Recorder(record_root, self._show_recorder)
        elif isinstance(driver, RowDriver):
            if record_root is not None:
                raise NotRecordableError(
                    f"{driver.name} has no raw samples to record; "
                    f"instruments that have: {', '.join(recordable())}"
                )
            self._acquisition = Rows(
                driver.columns, driver.averaged, dt=dt, span=buffer_span, window=driver.window
            )
        else:
            raise TypeError(f"{driver!r} is neither a RowDriver nor a StreamDriver")
        self.attributes: Sequence[Attribute] = (
            *_OWN,
            *(_IDENTITY if isinstance(driver, StreamDriver) else ()),
            *self._acquisition.attributes,
            *driver.settings,
            *(self._recorder.attributes if self._recorder else ()),
        )
        self._by_name = {attribute.name: attribute for attribute in self.attributes}
        if len(self._by_name) < len(self.attributes):
            raise ValueError(f"{driver.name} declares a name twice")
        self._subscribers: list[Subscriber] = []
        self._publishing = threading.Lock()
        self._putting = threading.Lock()
        self._stopping = threading.Event()
        self._sooner = threading.Event()  # set when a pause is to be looked at again
        self._threads: list[threading.Thread] = []
        self._connected = False
        self._connections = 0
        self.turns = 0
        """How often the acquisition has gone round: each time it reads, or looks for, its
        instrument. It stands still while the driver does not come back."""
        self._state: State | None = None
        self._message = ""
        self._readings = self._initial()
        self._set_state(State.DISCONNECTED, "")
        self._show(self._acquisition.values())
        self._show_recorder()
        self.dt = dt

    @classmethod
    def named(cls, driver: str, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Device:
        """A device of the driver of this name, made with its ``options``. Raises UsageError."""
        return cls(load(driver)(**(options or {})), **kwargs)

    def _initial(self) -> dict[str, Reading]:
        now = time.time()
        return {
            a.name: Reading(
                "" if a.kind in (Kind.STRING, Kind.TEXT) else 0.0 if a.kind is Kind.DOUBLE else 0,
                now,
                Severity.INVALID,
                Status.UDF,
            )
            for a in self.attributes
        }

    # ---- what a server uses

    @property
    def buffer(self) -> RingBuffer:
        """The circular buffer of samples or rows."""
        return self._acquisition.buffer

    @property
    def state(self) -> State:
        return self._state or State.DISCONNECTED

    def snapshot(self) -> Mapping[str, Reading]:
        """The newest reading of every attribute."""
        with self._publishing:
            return dict(self._readings)

    def subscribe(self, callback: Subscriber) -> None:
        """Call ``callback`` with whatever readings are new, from threads of the device."""
        with self._publishing:
            self._subscribers.append(callback)

    def put(self, name: str, value: Any) -> None:
        """Write an attribute, and wait until it is done.

        Raises ValueError if the value is refused, UserError if it could not be done; nothing is
        changed then.
        """
        attribute = self._by_name.get(name)
        if attribute is None or not attribute.writable:
            raise ValueError(f"{name} cannot be written")
        checked = attribute.checked(value)
        with self._putting:
            self._put(name, checked)

    def restore(self, name: str, value: Any) -> None:
        """Set an attribute before `start` as it was in an earlier run; no instrument need be there.

        Raises ValueError or UserError, which changes nothing.
        """
        attribute = self._by_name.get(name)
        if attribute is None or not attribute.writable or attribute.momentary:
            raise ValueError(f"{name} is no setting")
        if any(setting.name == name for setting in self.driver.settings):
            self.driver.restore(name, attribute.checked(value))
        else:
            self._put(name, attribute.checked(value))

    def _put(self, name: str, value: Value) -> None:
        if name == "dt":
            self.dt = float(value)
        elif any(a.name == name for a in self._acquisition.attributes):
            self._acquisition.put(name, value)
            self._show(self._acquisition.values())
        elif name == "RECORD_START":
            if value:
                self._start_recording()
        elif name == "RECORD_STOP":
            if value and self._recorder:
                self._recorder.stop()
        elif self._recorder and name.startswith("RECORD_"):
            self._recorder.put(name, value)
            self._show_recorder()
        else:
            self._put_setting(name, value)

    def _put_setting(self, name: str, value: Value) -> None:
        driver = self.driver
        recording = self._recorder is not None and self._recorder.one_voltage_range
        fixed = driver.fixed_while_recording if isinstance(driver, StreamDriver) else ()
        if recording and name in fixed and value != driver.values()[name]:
            raise UserError(f"{name} cannot change within a recording; put RECORD_STOP first")
        self.driver.put(name, value)
        self._show_settings()

    def _start_recording(self) -> None:
        driver, stream = self.driver, self._acquisition
        if not (self._recorder and isinstance(driver, StreamDriver) and isinstance(stream, Stream)):
            return
        if self._state is not State.STREAMING:
            raise UserError(f"nothing to record: the instrument is {self.state.name.lower()}")
        self._recorder.start(Source(stream, driver.identity(), driver.calibration_data))

    @property
    def dt(self) -> float:
        """Publish period, s; settable while running. It reads back as what is really done."""
        return self._acquisition.dt

    @dt.setter
    def dt(self, seconds: float) -> None:
        self._acquisition.dt = seconds
        self._sooner.set()
        self._show({"dt": self._acquisition.dt})

    # ---- running

    def start(self) -> None:
        """Run in threads, until `stop`."""
        if self._threads:
            return
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._acquire, name="acquisition"),
            threading.Thread(target=self._keep_house, name="housekeeping"),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End acquisition, finish a recording, let go of the instrument. Never raises."""
        self._stopping.set()
        self._sooner.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._disconnect(State.DISCONNECTED, "stopped", "IOC stopped")
        if self._recorder:
            with contextlib.suppress(UserError):  # logged, and in RECORD_MESSAGE
                self._recorder.stop()

    def run_once(self) -> None:
        """Connect if need be, then take the next samples from the driver.

        Raises DriverError, NotConnectedError among them; the device is disconnected then.
        """
        try:
            if not self._connected:
                self._connect()
            windows = self._acquisition.take(self.driver.read())
        except DriverError as error:
            absent = isinstance(error, NotConnectedError)
            state = State.DISCONNECTED if absent else State.FAULT
            self._disconnect(state, str(error), f"instrument lost: {error}")
            raise
        for readings in windows:
            self._publish(readings)
            self._show_settings()
        if self._state is not State.STREAMING:
            self._set_state(State.STREAMING, "")

    def _acquire(self) -> None:
        pause = RETRY_FIRST
        while not self._stopping.is_set():
            self.turns += 1
            try:
                self._wait(self._acquisition.pause)
                self.run_once()
                pause = RETRY_FIRST
                continue
            except NotConnectedError:
                wait = SEARCH_PERIOD
            except DriverError:
                wait, pause = pause, min(2 * pause, RETRY_MAX)
            except Exception as error:  # an instrument's nonsense must not end the IOC
                log.exception("acquisition failed")
                message = f"internal error: {error}"
                self._disconnect(State.FAULT, message, message)
                wait, pause = pause, min(2 * pause, RETRY_MAX)
            self._stopping.wait(wait)

    def _wait(self, seconds: float) -> None:
        """Until the next reading is due, which another dt can make sooner."""
        while seconds > 0 and self._connected and not self._stopping.is_set():
            self._sooner.wait(seconds)
            self._sooner.clear()
            seconds = self._acquisition.pause

    def _connect(self) -> None:
        self.driver.open()
        self._connected = True
        self._set_state(State.CONNECTING, "")
        self._connections += 1
        self._acquisition.begin()
        if isinstance(self.driver, StreamDriver):
            self._show({name.upper(): text for name, text in self.driver.identity().items()})
        self._show({"RECONNECTS": float(self._connections - 1)})
        self._show_settings()

    def _disconnect(self, state: State, message: str, recording_ends: str) -> None:
        """Close the driver, account for its last samples, and say that nothing is valid now."""
        try:
            self.driver.close()
        except Exception:  # an instrument's nonsense must not end the IOC
            log.exception("%s cannot be closed", self.name)
        if self._connected:
            self._connected = False
            for readings in self._acquisition.end():
                self._publish(readings)
            if self._recorder:
                self._recorder.stop(recording_ends, self.buffer.stop_id, wait=False)
        self._invalidate()
        self._set_state(state, message)

    def _keep_house(self) -> None:
        """What has to be asked for now and then, away from the thread that reads samples."""
        told = ""
        while not self._stopping.wait(_HOUSEKEEPING):
            try:
                if self._state is State.STREAMING:
                    with contextlib.suppress(DriverError):  # the reading thread meets it too
                        self.driver.poll()
                self._show_recorder()
            except Exception as error:  # an instrument's nonsense must not end the IOC
                if told != repr(error):
                    log.exception("%s: housekeeping failed", self.name)
                told = repr(error)

    # ---- readings

    def _set_state(self, state: State, message: str) -> None:
        if (state, message) == (self._state, self._message):
            return
        first, self._state, self._message = self._state is None, state, message
        level = logging.INFO if state in (State.CONNECTING, State.STREAMING) else logging.WARNING
        if not first:
            log.log(level, "%s: %s %s", self.name, state.name.lower(), message)
        severity = _SEVERITY[state]
        status = Status.STATE if severity else Status.NO_ALARM
        now = time.time()
        self._publish(
            {
                "STATE": Reading(int(state), now, severity, status),
                "MESSAGE": Reading(message, now),
            }
        )

    def _show_settings(self) -> None:
        self._show(self.driver.values())

    def _show_recorder(self) -> None:
        if self._recorder:
            self._show(self._recorder.values())

    def _show(self, values: Mapping[str, Value]) -> None:
        """Publish those of ``values`` that are not what is shown already."""
        now = time.time()
        old = self._readings
        self._publish(
            {
                name: Reading(value, now)
                for name, value in values.items()
                if old[name].severity is not Severity.NO_ALARM or old[name].value != value
            }
        )

    def _invalidate(self) -> None:
        """Say of all that comes from the instrument that it cannot be trusted."""
        now = time.time()
        readings = {}
        for attribute in self.attributes:
            old = self._readings[attribute.name]
            known = old.status not in (Status.COMM, Status.UDF)
            if attribute.live and known:
                when = max(now, old.time)  # the computer's clock may have been set back
                readings[attribute.name] = Reading(old.value, when, Severity.INVALID, Status.COMM)
        self._publish(readings)

    def _publish(self, readings: Mapping[str, Reading]) -> None:
        if not readings:
            return
        with self._publishing:
            self._readings.update(readings)
            for subscriber in self._subscribers:
                subscriber(readings)
