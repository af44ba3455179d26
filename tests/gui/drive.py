"""A window on a running IOC, used as a person would; what it shows is told on stdout.

    drive.py PREFIX [SCREENSHOT.png]

Run by test_gui.py, in a process of its own because libca reads its variables once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from daq_ioc import gui

gui.prepare()

from qtpy.QtTest import QTest  # noqa: E402
from qtpy.QtWidgets import QMessageBox  # noqa: E402

from daq_ioc.gui.window import DISCONNECTED, Window, application  # noqa: E402


def until(what: str, condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not in time: {what}")
        QTest.qWait(20)
    print(what, flush=True)


def main() -> None:
    app = application()
    window = Window(sys.argv[1])
    window.show()
    shown: dict[str, Any] = dict(window.shown)

    def text(name: str) -> str:
        return str(shown[name].text())

    until("streams", lambda: text("STATE") == "streaming")
    until("has units", lambda: text("CURRENT").endswith("A") and text("VOLTAGE").endswith(" V"))
    until("has no alarm", lambda: shown["CURRENT"].alarmSeverity == shown["CURRENT"].ALARM_NONE)
    first = text("CURRENT")
    until("values move", lambda: text("CURRENT") not in (first, DISCONNECTED))
    until("traces are drawn", lambda: window.traces.points("POWER_TRACE_MAX") > 10)

    shown["I_RANGE"].activated[int].emit(2)  # as a click on the third of the list does
    until("a put goes through", lambda: text("I_RANGE_RBV") == "2 A")
    shown["I_RANGE"].activated[int].emit(0)

    button = QMessageBox.StandardButton
    answers: list[QMessageBox.StandardButton] = []
    for name in ("exec", "exec_"):
        setattr(QMessageBox, name, lambda _: answers.pop())
    off = shown["TARGET_POWER Off"]
    answers.append(button.No)
    off.click()
    QTest.qWait(300)
    assert text("TARGET_POWER") == "on", "nobody agreed"
    answers.append(button.Yes)
    off.click()
    until("target power is switched when confirmed", lambda: text("TARGET_POWER") == "off")
    assert not answers, "it asked both times"
    answers.append(button.Yes)
    shown["TARGET_POWER On"].click()
    until("and back", lambda: text("TARGET_POWER") == "on")

    shown["RECORD_START Start"].click()
    until("records", lambda: text("RECORD_STATE") == "recording")
    until("shows the file", lambda: text("RECORD_FILE").endswith(".jls"))
    if len(sys.argv) > 2:
        QTest.qWait(6000)
        assert window.grab().save(sys.argv[2])
    shown["RECORD_STOP Stop"].click()
    until("recording ends", lambda: text("RECORD_STATE") == "idle")

    print("ready for the IOC to go", flush=True)
    sys.stdin.readline()
    until("lost IOC shows disconnected", lambda: text("CURRENT") == text("STATE") == DISCONNECTED)
    assert shown["CURRENT"].alarmSeverity == shown["CURRENT"].ALARM_DISCONNECTED
    assert not shown["I_RANGE"].isEnabled()
    window.close()
    app.processEvents()


main()
