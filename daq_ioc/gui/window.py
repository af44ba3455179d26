"""The window: PyDM widgets bound to PVs, and plots of the traces."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyqtgraph as pg
from pydm.utilities import close_widget_connections
from pydm.utilities.stylesheet import apply_stylesheet
from pydm.widgets import PyDMEnumComboBox, PyDMLabel, PyDMLineEdit, PyDMPushButton
from pydm.widgets.channel import PyDMChannel
from pydm.widgets.display_format import DisplayFormat
from pydm.widgets.rules import RulesDispatcher
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QApplication,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QVBoxLayout,
    QWidget,
)

DISCONNECTED: Final = "disconnected"
REDRAW: Final = 100
"""ms between two drawings of the traces."""

_TRACES: Final = (
    ("CURRENT", "A", (0, 80, 180)),
    ("VOLTAGE", "V", (0, 120, 60)),
    ("POWER", "W", (180, 60, 0)),
)


class Text(PyDMLabel):  # type: ignore[misc]
    """A PV as text, with its alarm's colour as border; says so when nobody serves it."""

    def __init__(self, pv: str, *, long: bool = False) -> None:
        super().__init__(init_channel=f"ca://{pv}")
        self.alarmSensitiveBorder = True
        self.showUnits = True
        if long:  # an array of characters
            self.displayFormat = DisplayFormat.String
            self.setWordWrap(True)
        self.setText(DISCONNECTED)

    def connection_changed(self, connected: bool) -> None:
        super().connection_changed(connected)
        if not connected:
            self.setText(DISCONNECTED)


class Reading(Text):
    """A measured number, with an SI prefix to its unit."""

    def __init__(self, pv: str, *, large: bool = False) -> None:
        super().__init__(pv)
        self.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if large:
            # Not setFont: PyDM's style sheet has the last word.
            self.setStyleSheet("font-size: 18pt; font-weight: bold")

    def value_changed(self, new_value: Any) -> None:
        super().value_changed(new_value)
        self.setText(pg.functions.siFormat(float(new_value), 6, self._unit or ""))


class Traces(pg.GraphicsLayoutWidget):  # type: ignore[misc]
    """Current, voltage and power of the last seconds: the mean, within least and greatest."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.setBackground("w")
        self._newest: dict[str, np.ndarray[Any, Any]] = {}
        self._curves: dict[str, Any] = {}
        self._channels = [self._listen(prefix, "TIME_TRACE")]
        for row, (name, unit, colour) in enumerate(_TRACES):
            plot = self.addPlot(row=row, col=0)
            plot.showGrid(x=True, y=True, alpha=0.3)
            plot.setLabel("left", name.capitalize(), units=unit)
            plot.getAxis("left").setWidth(70)
            for end, alpha in (("_TRACE_MIN", 90), ("_TRACE_MAX", 90), ("_TRACE", 255)):
                self._curves[name + end] = plot.plot(pen=pg.mkPen((*colour, alpha)))
                self._channels.append(self._listen(prefix, name + end))
        plot.setLabel("bottom", "Time", units="s")
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._draw)
        self._timer.start(REDRAW)

    def _listen(self, prefix: str, name: str) -> PyDMChannel:
        def keep(values: np.ndarray[Any, Any]) -> None:
            self._newest[name] = values

        channel = PyDMChannel(f"ca://{prefix}{name}", value_slot=keep)
        channel.connect()
        return channel

    def points(self, name: str) -> int:
        """How many points a curve shows."""
        x, _ = self._curves[name].getData()
        return 0 if x is None else len(x)

    def _draw(self) -> None:
        before = self._newest.get("TIME_TRACE")
        if before is None:
            return
        for name, curve in self._curves.items():
            values = self._newest.get(name)
            # They come one by one; for a moment they may differ in length.
            if values is not None and len(values) == len(before):
                curve.setData(-before, values)

    def stop(self) -> None:
        self._timer.stop()
        for channel in self._channels:
            channel.disconnect()


class Window(QMainWindow):
    """The window on the PVs that begin with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.shown: dict[str, QWidget] = {}
        self.setWindowTitle(f"{prefix} Joulescope")
        left = QVBoxLayout()
        left.addWidget(self._readings())
        left.addWidget(self._ranges())
        left.addWidget(self._recording())
        left.addStretch()
        self.traces = Traces(prefix)
        whole = QHBoxLayout()
        whole.addLayout(left)
        whole.addWidget(self.traces, stretch=1)
        centre = QWidget()
        centre.setLayout(whole)
        self.setCentralWidget(centre)
        self.resize(1180, 660)

    def closeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        self.traces.stop()
        close_widget_connections(self)
        engine = RulesDispatcher().rules_engine  # a thread that PyDM starts, and leaves running
        engine.requestInterruption()
        engine.wait()
        super().closeEvent(event)

    # ---- what is in it

    def _keep(self, name: str, widget: QWidget) -> QWidget:
        self.shown[name] = widget
        return widget

    def _text(self, name: str, *, long: bool = False) -> QWidget:
        return self._keep(name, Text(self.prefix + name, long=long))

    def _reading(self, name: str, *, large: bool = False) -> QWidget:
        return self._keep(name, Reading(self.prefix + name, large=large))

    def _choice(self, name: str) -> QWidget:
        return self._keep(name, PyDMEnumComboBox(init_channel=f"ca://{self.prefix}{name}"))

    def _entry(self, name: str) -> QWidget:
        entry = PyDMLineEdit(init_channel=f"ca://{self.prefix}{name}")
        entry.showUnits = True
        return self._keep(name, entry)

    def _button(self, name: str, label: str, value: int = 1, confirm: str = "") -> QWidget:
        button = PyDMPushButton(
            label=label, pressValue=value, init_channel=f"ca://{self.prefix}{name}"
        )
        if confirm:
            button.showConfirmDialog = True
            button.confirmMessage = confirm
        return self._keep(f"{name} {label}", button)

    def _readings(self) -> QGroupBox:
        return _box(
            "Readings",
            [
                ("Current", self._reading("CURRENT", large=True)),
                ("Voltage", self._reading("VOLTAGE", large=True)),
                ("Power", self._reading("POWER", large=True)),
                ("Charge", self._reading("CHARGE"), self._button("ACCUM_RESET", "Clear")),
                ("Energy", self._reading("ENERGY")),
                ("State", self._text("STATE"), self._text("TIME_TEXT")),
                ("", self._text("MESSAGE", long=True)),
            ],
        )

    def _ranges(self) -> QGroupBox:
        ask = "Switch the power of the target {}?"
        return _box(
            "Ranges and target",
            [
                ("Current", self._choice("I_RANGE"), self._text("I_RANGE_RBV")),
                ("Voltage", self._choice("V_RANGE")),
                ("Every", self._entry("dt")),
                ("Target power", self._text("TARGET_POWER"),
                 self._button("TARGET_POWER", "On", 1, ask.format("on")),
                 self._button("TARGET_POWER", "Off", 0, ask.format("off"))),
            ],
        )  # fmt: skip

    def _recording(self) -> QGroupBox:
        return _box(
            "Recording",
            [
                ("", self._button("RECORD_START", "Start"), self._button("RECORD_STOP", "Stop"),
                 self._text("RECORD_STATE")),
                ("Duration", self._reading("RECORD_DURATION"), self._reading("RECORD_BYTES")),
                ("File", self._text("RECORD_FILE", long=True)),
                ("", self._text("RECORD_MESSAGE", long=True)),
            ],
        )  # fmt: skip


def _box(title: str, rows: Sequence[tuple[str, *tuple[QWidget, ...]]]) -> QGroupBox:
    """A framed table of labelled widgets; the last one of a row takes what room is left."""
    box, grid = QGroupBox(title), QGridLayout()
    box.setFixedWidth(400)
    columns = 1 + max(len(row) for row in rows)
    for line, (label, *widgets) in enumerate(rows):
        grid.addWidget(QLabel(label), line, 0)
        for column, widget in enumerate(widgets, start=1):
            rest = columns - column if column == len(widgets) else 1
            grid.addWidget(widget, line, column, 1, rest)
    box.setLayout(grid)
    return box


def application() -> QApplication:
    """A new Qt application, with PyDM's colours for alarms."""
    made = QApplication(sys.argv[:1])
    apply_stylesheet()
    return made


def show(prefix: str) -> int:
    """Show a window until it is closed; returns the exit status."""
    app = application()
    window = Window(prefix)
    window.show()
    status: int = app.exec_()
    return status
