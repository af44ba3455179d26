"""A small device of every kind of attribute, whose readings and puts the tests decide."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from daq_ioc.attributes import Attribute, Group, Kind, Reading, Severity, Status, Value
from daq_ioc.errors import UserError

ATTRIBUTES = (
    Attribute("CURRENT", Kind.DOUBLE, "mean current over dt", "A", 9, live=True),
    Attribute("VOLTAGE", Kind.DOUBLE, "mean voltage over dt", "V", 6, live=True),
    Attribute("STATS", Kind.DOUBLE, "statistics over dt", "", 6, length=15, live=True),
    Attribute("TRACE", Kind.DOUBLE, "a long trace", "A", 6, length=10_000),
    Attribute("NOTHING", Kind.DOUBLE, "an array that stays empty", length=5),
    Attribute("FILE2", Kind.TEXT, "text that stays empty"),
    Attribute("COUNT", Kind.LONG, "samples lost"),
    Attribute("TIME_TEXT", Kind.STRING, "time of the newest sample, UTC"),
    Attribute("FILE", Kind.TEXT, "file of the recording"),
    Attribute("STATE", Kind.ENUM, "connection", choices=("Gone", "Connecting", "Streaming")),
    Attribute("GPI0", Kind.ENUM, "input 0", choices=("Low", "High")),
    Attribute(
        "dt", Kind.DOUBLE, "publish period", "s", 3, writable=True, group=Group.SETTING,
        low=0.05, high=10.0,
    ),
    Attribute("POINTS", Kind.LONG, "trace points", writable=True, group=Group.SETTING, low=2,
              high=10_000),
    Attribute("I_RANGE", Kind.ENUM, "current range", choices=("auto", "10 A", "2 A", "off"),
              writable=True, group=Group.SETTING),
    Attribute("START", Kind.ENUM, "start", choices=("Idle", "Start"), writable=True,
              group=Group.RECORDING, momentary=True),
    Attribute("NOTE", Kind.TEXT, "note", writable=True, group=Group.RECORDING),
    Attribute("FRAGILE", Kind.DOUBLE, "fails on every put", writable=True, group=Group.SETTING),
)  # fmt: skip

_FIRST: dict[Kind, Value] = {
    Kind.DOUBLE: 0.0, Kind.LONG: 0, Kind.ENUM: 0, Kind.STRING: "", Kind.TEXT: "",
}  # fmt: skip


@dataclass
class StubDevice:
    """Publishes what `show` is given; a put becomes a reading after ``delay`` s."""

    delay: float = 0.0
    stop_delay: float = 0.0
    started: bool = False
    stopped: bool = False
    puts: list[tuple[str, Value]] = field(default_factory=list)
    restored: list[tuple[str, Value]] = field(default_factory=list)
    most_at_once: int = 0
    attributes: tuple[Attribute, ...] = ATTRIBUTES

    def __post_init__(self) -> None:
        self._callbacks: list[Callable[[Mapping[str, Reading]], None]] = []
        self._lock = threading.Lock()
        self._at_once = 0
        self._readings = {item.name: self._undefined(item) for item in self.attributes}

    @staticmethod
    def _undefined(item: Attribute) -> Reading:
        first = np.zeros(0) if item.length > 1 else _FIRST[item.kind]
        return Reading(first, 0.0, Severity.INVALID, Status.UDF)

    def snapshot(self) -> Mapping[str, Reading]:
        with self._lock:
            return dict(self._readings)

    def subscribe(self, callback: Callable[[Mapping[str, Reading]], None]) -> None:
        self._callbacks.append(callback)

    def show(
        self,
        at: float | None = None,
        severity: Severity = Severity.NO_ALARM,
        status: Status = Status.NO_ALARM,
        **values: Value,
    ) -> None:
        """Publish values, as a device thread does."""
        self.show_all(values, at, severity, status)

    def show_all(
        self,
        values: Mapping[str, Value],
        at: float | None = None,
        severity: Severity = Severity.NO_ALARM,
        status: Status = Status.NO_ALARM,
    ) -> None:
        stamp = time.time() if at is None else at
        readings = {name: Reading(v, stamp, severity, status) for name, v in values.items()}
        with self._lock:
            self._readings.update(readings)
        for callback in self._callbacks:
            callback(readings)

    def put(self, name: str, value: Value) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.delay)
        self._at_once -= 1
        if name == "FRAGILE":
            raise UserError("it broke")
        self.puts.append((name, value))
        # A momentary enum is back before the put is done.
        self.show_all({name: 0 if name == "START" else value})

    def restore(self, name: str, value: Value) -> None:
        if name == "FRAGILE":
            raise UserError("it broke")
        self.restored.append((name, value))
        self.show_all({name: value})

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        time.sleep(self.stop_delay)
        self.stopped = True
