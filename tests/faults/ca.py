"""A Channel Access client of bare sockets: what a good client sends, and what a bad one can.

One circuit, one request at a time, every wait bounded; no search, since tests know the port.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

EPICS_EPOCH: Final = 631_152_000
VERSION, SEARCH, READ_NOTIFY, CREATE_CHAN, WRITE_NOTIFY = 0, 6, 15, 18, 19
CLIENT_NAME, HOST_NAME, CREATE_CH_FAIL, EVENT_ADD, ERROR = 20, 21, 26, 1, 11
STRING, INT, FLOAT, ENUM, CHAR, LONG, DOUBLE = range(7)
OK: Final = 1  # ECA_NORMAL
_NUMBERS: Final = {INT: "h", FLOAT: "f", ENUM: "H", LONG: "i", DOUBLE: "d"}
_TIME_PADDING: Final = {STRING: 0, INT: 2, FLOAT: 0, ENUM: 2, CHAR: 3, LONG: 0, DOUBLE: 4}
_MINOR: Final = 13


def message(
    command: int, kind: int = 0, count: int = 0, p1: int = 0, p2: int = 0, payload: bytes = b""
) -> bytes:
    """One message, its payload padded to 8 bytes."""
    payload += bytes(-len(payload) % 8)
    if len(payload) > 0xFFF0 or count > 0xFFFF:
        head = struct.pack(">HHHHII", command, 0xFFFF, kind, 0, p1, p2)
        return head + struct.pack(">II", len(payload), count) + payload
    return struct.pack(">HHHHII", command, len(payload), kind, count, p1, p2) + payload


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def greeting() -> bytes:
    return (
        message(VERSION, 0, _MINOR)
        + message(HOST_NAME, payload=text("tester"))
        + message(CLIENT_NAME, payload=text("tester"))
    )


def search(name: str, number: int = 1) -> bytes:
    """A datagram that asks who serves ``name``."""
    return message(VERSION, 0, _MINOR) + message(SEARCH, 5, _MINOR, number, number, text(name))


@dataclass(frozen=True)
class Got:
    """An answer: value, severity, and time stamp as Unix time."""

    value: Any
    severity: int
    time: float


@dataclass(frozen=True)
class _Channel:
    sid: int
    kind: int
    count: int


class RefusedError(Exception):
    """The server answered, and said no."""


class Client:
    """A circuit to the IOC on ``port`` of loopback; names get ``prefix`` before them."""

    def __init__(self, port: int, prefix: str = "JS:", timeout: float = 30.0) -> None:
        self.prefix = prefix
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(greeting())
        self._received = b""
        self._number = 0
        self._channels: dict[str, _Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self.socket.close()

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            more = self.socket.recv(1 << 16)
            if not more:
                raise ConnectionError("the IOC closed the connection")
            self._received += more
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def receive(self) -> tuple[int, int, int, int, int, bytes]:
        """The next message: command, type, count, parameters 1 and 2, payload."""
        command, size, kind, count, p1, p2 = struct.unpack(">HHHHII", self._take(16))
        if size == 0xFFFF and count == 0:
            size, count = struct.unpack(">II", self._take(8))
        return command, kind, count, p1, p2, self._take(size)

    def _answer(self, command: int, number: int) -> tuple[int, int, int, bytes]:
        """Type, count, status and payload of the answer to request ``number``."""
        while True:
            got, kind, count, p1, p2, payload = self.receive()
            if got == command and p2 == number:
                return kind, count, p1, payload
            if got == ERROR and payload[:2] == struct.pack(">H", command):
                # What went wrong: the request's header, then words. caproto refuses puts by it.
                return kind, count, p2, payload[16:]

    def channel(self, name: str) -> _Channel:
        known = self._channels.get(name)
        if known is not None:
            return known
        self._number += 1
        number = self._number
        self.socket.sendall(message(CREATE_CHAN, 0, 0, number, _MINOR, text(self.prefix + name)))
        while True:
            got, kind, count, p1, p2, _ = self.receive()
            if got == CREATE_CH_FAIL and p1 == number:
                raise RefusedError(f"no PV {name}")
            if got == CREATE_CHAN and p1 == number:
                made = self._channels[name] = _Channel(p2, kind, count)
                return made

    def read(self, name: str) -> Got:
        """Value, severity and time of a PV; text PVs give str, arrays a tuple."""
        channel = self.channel(name)
        self._number += 1
        self.socket.sendall(message(READ_NOTIFY, channel.kind + 14, 0, channel.sid, self._number))
        kind, count, status, payload = self._answer(READ_NOTIFY, self._number)
        if status != OK:
            raise RefusedError(f"reading {name}: status {status}")
        kind -= 14
        _, severity, seconds, nanoseconds = struct.unpack_from(">HHII", payload)
        data = payload[12 + _TIME_PADDING[kind] :]
        value: Any
        if kind in (STRING, CHAR):
            value = data[: 40 if kind == STRING else count].split(b"\0")[0].decode(errors="replace")
        else:
            value = struct.unpack_from(f">{count}{_NUMBERS[kind]}", data)
            value = value[0] if count == 1 else value
        return Got(value, severity, EPICS_EPOCH + seconds + nanoseconds * 1e-9)

    def get(self, name: str) -> Any:
        return self.read(name).value

    def put(self, name: str, value: float | str) -> bool:
        """Put and wait until it is done; whether the IOC accepted it."""
        channel = self.channel(name)
        if isinstance(value, str):
            kind = CHAR if channel.kind == CHAR else STRING
            data = text(value)
        elif channel.kind == CHAR:
            raise TypeError(f"{name} takes text")
        else:
            kind = DOUBLE if channel.kind == DOUBLE else LONG
            data = struct.pack(f">{_NUMBERS[kind]}", value)
        return self.put_bytes(name, kind, len(data) if kind == CHAR else 1, data)

    def put_bytes(self, name: str, kind: int, count: int, data: bytes) -> bool:
        """Put ``data`` as elements of type ``kind``, whatever they are."""
        channel = self.channel(name)
        self._number += 1
        self.socket.sendall(message(WRITE_NOTIFY, kind, count, channel.sid, self._number, data))
        return self._answer(WRITE_NOTIFY, self._number)[2] == OK

    def monitor(self, name: str) -> None:
        """Subscribe to a PV with time; the updates are for `receive`, or for nobody."""
        channel = self.channel(name)
        self._number += 1
        mask = struct.pack(">fffHH", 0.0, 0.0, 0.0, 5, 0)
        self.socket.sendall(
            message(EVENT_ADD, channel.kind + 14, 0, channel.sid, self._number, mask)
        )

    def wait(self, name: str, value: object, seconds: float = 20.0) -> float:
        """Wait until a PV has a value; how long that took, s."""
        began = time.monotonic()
        while (now := self.get(name)) != value:
            took = time.monotonic() - began
            if took > seconds:
                message_ = self.get("MESSAGE")
                raise TimeoutError(
                    f"{name} is {now!r}, not {value!r}, after {took:.1f} s: {message_}"
                )
            time.sleep(0.01)
        return time.monotonic() - began

    def wait_more(self, name: str, than: float, seconds: float = 20.0) -> float:
        """Wait until a PV is above ``than``; its value then."""
        end = time.monotonic() + seconds
        while (now := self.get(name)) <= than:
            if time.monotonic() > end:
                raise TimeoutError(f"{name} is {now!r}, not above {than!r}")
            time.sleep(0.01)
        return float(now)
