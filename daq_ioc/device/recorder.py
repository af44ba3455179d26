"""What operators set and see of recordings: the RECORD_ attributes, and one recording at a time.

RECORD_FORMAT and RECORD_RATE can be set in any order; RECORD_START refuses a pair that cannot be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from daq_ioc.attributes import Attribute, Group, Kind, Value
from daq_ioc.device import paths
from daq_ioc.device.recording import Options, Recording, RecordState, free_bytes, rate_text
from daq_ioc.device.recording_formats import FORMATS, JLS2_FORMAT, RECORD_RATES, Source
from daq_ioc.errors import UserError
from daq_ioc.jls import writer_v2

FINISH_TIMEOUT: Final = 15.0
"""How long a put waits for a disk that is slow, s, so that other puts are not held up for ever."""


def _action(name: str, doc: str) -> Attribute:
    return Attribute(
        name,
        Kind.ENUM,
        doc,
        choices=("0", "1"),
        writable=True,
        group=Group.RECORDING,
        momentary=True,
    )


def _number(name: str, doc: str, units: str = "", precision: int = 0) -> Attribute:
    return Attribute(name, Kind.DOUBLE, doc, units=units, precision=precision)


def _seconds(name: str, doc: str) -> Attribute:
    return Attribute(
        name,
        Kind.DOUBLE,
        doc,
        units="s",
        precision=3,
        writable=True,
        group=Group.RECORDING,
        low=0.0,
        high=1e9,
    )


def _text(name: str, doc: str, *, writable: bool = False) -> Attribute:
    return Attribute(name, Kind.TEXT, doc, writable=writable, group=Group.RECORDING)


def _choice(name: str, doc: str, choices: tuple[str, ...]) -> Attribute:
    group = Group.RECORDING
    return Attribute(name, Kind.ENUM, doc, choices=choices, writable=True, group=group)


ATTRIBUTES: Final = (
    _action("RECORD_START", "Put 1 to start recording"),
    _action("RECORD_STOP", "Put 1 to stop recording"),
    Attribute(
        "RECORD_STATE",
        Kind.ENUM,
        "What the recorder does",
        choices=tuple(state.name.lower() for state in RecordState),
    ),
    _text("RECORD_DIR", "Directory below the record root", writable=True),
    _text("RECORD_NAME", "File name: strftime, {serial}, {n}", writable=True),
    _choice("RECORD_FORMAT", "Format of the file", FORMATS),
    _choice("RECORD_RATE", "Samples per second in the file", tuple(map(rate_text, RECORD_RATES))),
    _seconds("RECORD_LIMIT", "Stop after this time, 0 never"),
    _seconds("RECORD_PRETRIGGER", "Begin this long before the start"),
    _text("RECORD_NOTE", "Stored with the recording", writable=True),
    _text("RECORD_FILE", "File of this or the last recording"),
    _text("RECORD_MESSAGE", "How the last recording went"),
    _number("RECORD_DURATION", "Time recorded", "s", 3),
    _number("RECORD_SAMPLES", "Samples recorded, missing included"),
    _number("RECORD_BYTES", "Size of the file", "byte"),
    _number("RECORD_DROPPED", "Missing samples in the recording"),
    _number("RECORD_FREE", "Free space on the disk", "byte"),
)


class Recorder:
    """At most one recording at a time, below the directory ``root``.

    ``changed`` is called, from any thread, when `values` may have changed.
    """

    attributes = ATTRIBUTES

    def __init__(self, root: Path, changed: Callable[[], None]) -> None:
        self.root = root
        self.options = Options()
        self._changed = changed
        self._lock = threading.Lock()
        self._recording: Recording | None = None
        self._message = ""

    @property
    def state(self) -> RecordState:
        recording = self._recording
        if recording is None:
            return RecordState.ERROR if self._message else RecordState.IDLE
        return recording.state

    @property
    def active(self) -> bool:
        return self.state in (RecordState.RECORDING, RecordState.STOPPING)

    @property
    def one_voltage_range(self) -> bool:
        """Whether a recording runs that has one voltage range: a raw one."""
        recording = self._recording
        return self.active and recording is not None and recording.raw

    def put(self, name: str, value: Value) -> None:
        """Change an option for the next recording. ValueError refuses the value."""
        options = self.options
        if name == "RECORD_DIR":
            options.directory = paths.checked_directory(str(value), name)
        elif name == "RECORD_NAME":
            options.name = paths.checked_name(str(value), name)
        elif name == "RECORD_FORMAT":
            if value == JLS2_FORMAT and not writer_v2.available():
                raise ValueError(f"{name}: {writer_v2.MISSING}")
            options.format = int(value)
        elif name == "RECORD_RATE":
            options.rate = int(value)
        elif name == "RECORD_NOTE":
            options.note = str(value)
        elif name == "RECORD_LIMIT":
            options.limit = float(value)
        elif name == "RECORD_PRETRIGGER":
            options.pretrigger = float(value)
        else:
            raise ValueError(f"{name} cannot be changed")

    def start(self, source: Source) -> None:
        """Begin a recording; its file is there when this returns. UserError if it cannot be."""
        with self._lock:
            if self.active:
                raise UserError("a recording is running already; put RECORD_STOP first")
            self._message = ""
            try:
                self._recording = Recording(self.root, self.options, source, self._changed)
            except UserError as error:
                self._recording, self._message = None, str(error)
                raise
            finally:
                self._changed()

    def stop(self, reason: str = "stopped", at: int | None = None, *, wait: bool = True) -> None:
        """End the recording with sample ``at``, or the newest; nothing if there is none.

        When this returns the file is finished and on disk, unless it is not to ``wait``. UserError
        if it could not be finished.
        """
        recording = self._recording
        if recording is None:
            return
        was_active = self.active
        recording.end(reason, at)
        if wait:
            if not recording.join(FINISH_TIMEOUT):
                raise UserError(
                    f"the disk of {recording.path} is slow, the file is not finished yet; "
                    "RECORD_STATE will say when it is"
                )
            if was_active and recording.state is RecordState.ERROR:
                raise UserError(recording.message)

    def values(self) -> Mapping[str, Value]:
        """Present values of the attributes, by name."""
        options, recording = self.options, self._recording
        values: dict[str, Value] = {
            "RECORD_START": 0,
            "RECORD_STOP": 0,
            "RECORD_FILE": "",
            "RECORD_DURATION": 0.0,
            "RECORD_SAMPLES": 0.0,
            "RECORD_BYTES": 0.0,
            "RECORD_DROPPED": 0.0,
            "RECORD_STATE": int(self.state),
            "RECORD_DIR": options.directory,
            "RECORD_NAME": options.name,
            "RECORD_FORMAT": options.format,
            "RECORD_RATE": options.rate,
            "RECORD_LIMIT": options.limit,
            "RECORD_PRETRIGGER": options.pretrigger,
            "RECORD_NOTE": options.note,
            "RECORD_MESSAGE": self._message if recording is None else recording.message,
            "RECORD_FREE": float(free_bytes(self.root)),
        }
        if recording is not None:
            values |= {
                "RECORD_FILE": str(recording.path),
                "RECORD_DURATION": recording.samples / recording.rate,
                "RECORD_SAMPLES": float(recording.samples),
                "RECORD_BYTES": float(recording.bytes),
                "RECORD_DROPPED": float(recording.dropped),
            }
        return values
