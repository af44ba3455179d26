"""Faults from outside the process: one-line commands on a Unix socket. A testing aid.

Each line is ``name [argument ...] [@frame]`` and is answered with ``ok [value]`` or
``error REASON``. The socket can be used by its owner only (mode 0600).
"""

from __future__ import annotations

import shlex
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from daq_ioc.driver.joulescope.js110.protocol import Request
from daq_ioc.emulator.js110 import JS110


def _integer(text: str) -> int:
    return int(text, 0)


def _request(text: str) -> int:
    """A request by name or by number."""
    try:
        return Request[text.upper().replace("-", "_")]
    except KeyError:
        return int(text, 0)


# Faults of the stream, which take `@frame`, and of requests: name in `Faults`, arguments.
_FRAME_FAULTS: dict[str, tuple[Callable[[str], int], ...]] = {
    "lose": (_integer,),
    "duplicate": (),
    "backward": (_integer,),
    "garbage": (),
    "missing": (_integer,),
    "flip_toggle": (),
    "flip_voltage_range": (),
    "frame_type": (_integer,),
    "frame_status": (_integer,),
    "frame_length": (_integer,),
    "short": (_integer,),
    "stall": (),
    "error": (),
    "overflow": (),
}
_REQUEST_FAULTS: dict[str, tuple[Callable[[str], Any], ...]] = {
    "stall_request": (_request, _integer),
    "reply": (_request, str.encode, _integer),
    "delay": (float, _request),
    "clear": (),
}


def _flag(text: str) -> bool:
    return {"on": True, "off": False}[text]


_STATES: dict[str, Callable[[str], Any]] = {"silent": _flag, "busy": _flag, "result": _integer}
_CABLE = ("plug", "unplug")
_VALUES = ("frames", "discarded", "plugged", "address")

COMMANDS = (*_CABLE, *_FRAME_FAULTS, *_REQUEST_FAULTS, *_STATES, *_VALUES)
"""plug, unplug; the methods of `Faults` with their arguments; its attributes with a value (``on``,
``off`` or a number); ``frames``, ``discarded``, ``plugged`` and ``address`` answer their value."""


def execute(instrument: JS110, line: str) -> str:
    """Do one command; returns ``ok``, ``ok VALUE`` or ``error REASON``."""
    try:
        name, *words = shlex.split(line)
        return f"ok {_execute(instrument, name, words)}".rstrip()
    except (ValueError, KeyError, TypeError) as error:
        return f"error {error} (commands: {', '.join(COMMANDS)})"


def _execute(instrument: JS110, name: str, words: Sequence[str]) -> object:
    if name in _CABLE:
        getattr(instrument, name)()
    elif name in _FRAME_FAULTS:
        at = [_integer(word[1:]) for word in words if word.startswith("@")]
        plain = [word for word in words if not word.startswith("@")]
        values = _convert(_FRAME_FAULTS[name], plain)
        getattr(instrument.faults, name)(*values, at=at[0] if at else None)
    elif name in _REQUEST_FAULTS:
        getattr(instrument.faults, name)(*_convert(_REQUEST_FAULTS[name], words))
    elif name in _STATES:
        (value,) = _convert((_STATES[name],), words)
        setattr(instrument.faults, name, value)
    elif name in _VALUES:
        return getattr(instrument, name)
    else:
        raise ValueError(f"unknown command {name!r}")
    return ""


def _convert(kinds: Sequence[Callable[[str], Any]], words: Sequence[str]) -> list[Any]:
    if len(words) > len(kinds):
        raise ValueError(f"at most {len(kinds)} arguments, not {len(words)}")
    return [kind(word) for kind, word in zip(kinds, words, strict=False)]


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            answer = execute(self.server.instrument, line.decode(errors="replace"))  # type: ignore[attr-defined]
            self.wfile.write(answer.encode() + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, instrument: JS110) -> None:
        self.instrument = instrument
        super().__init__(path, _Connection)

    def server_bind(self) -> None:
        super().server_bind()
        Path(str(self.server_address)).chmod(0o600)  # before anybody can connect


def serve(path: str, instrument: JS110) -> None:
    """Answer commands on a new Unix socket at ``path`` from a thread, until the process ends.

    A socket that is left there and that nobody answers is replaced. OSError if it cannot be made.
    """
    old = Path(path)
    if old.exists() and stat.S_ISSOCK(old.stat().st_mode) and not _answers(path):
        old.unlink()
    server = _Server(path, instrument)
    threading.Thread(target=server.serve_forever, name="emulator-control", daemon=True).start()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
