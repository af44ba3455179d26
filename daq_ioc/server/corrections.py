"""Corrections to caproto 1.3.0's server, each with a test that fails without it.

Everything here is about how caproto serves, not about what we serve; the day upstream mends one it
can be deleted. Our own values, alarms and puts are in `channels`; how updates reach clients, where
caproto has more traps, is in `delivery`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from ipaddress import IPv4Address
from math import floor
from typing import Any

import caproto
from caproto.asyncio import server as caproto_server
from caproto.asyncio.utils import _UdpTransportWrapper
from caproto.server.common import DisconnectedCircuit

from daq_ioc.errors import UserError

log = logging.getLogger(__name__)

peer: ContextVar[str] = ContextVar("peer", default="")
"""IPv4 address of the client whose command is being processed."""

UNIX_TIME_OF_EPICS_EPOCH = 631_152_000
"""1990-01-01 UTC, s."""


def time_stamp(unix: float) -> Any:
    """The caproto.TimeStamp of a Unix time in s, to the last bit of the float.

    Trap: caproto's own conversion goes through whole microseconds.
    """
    seconds = floor(unix)
    nanoseconds = round((unix - seconds) * 1e9)
    if nanoseconds == 1_000_000_000:
        seconds, nanoseconds = seconds + 1, 0
    # Before 1990 there are no EPICS times; 0 is what base sends for "never".
    epics = max(0, seconds - UNIX_TIME_OF_EPICS_EPOCH)
    return caproto.TimeStamp(secondsSinceEpoch=epics, nanoSeconds=nanoseconds if epics else 0)


class Data(caproto.ChannelData):  # type: ignore[misc]
    """The value of a PV or of a record field; mixed into caproto's class for the type."""

    async def _read(self, data_type: Any) -> Any:
        """Metadata and values of a type; values are None where they cannot be had as that type.

        Trap: caproto raises an error. A client that subscribes to a text as a number, or to a type
        that is for puts only, thereby stops the updates of that PV to all clients, for as long as
        it stays.
        """
        try:
            return await super()._read(data_type)
        except caproto.CaprotoConversionError:
            return b"", None

    async def read(self, data_type: Any) -> Any:
        """What a client gets that asks once, for which an error is the answer."""
        metadata, values = await super().read(data_type)
        if values is None:
            raise caproto.CaprotoConversionError(f"not to be had as {data_type.name}")
        return metadata, values


class Circuit(caproto_server.VirtualCircuit):  # type: ignore[misc]
    """The connection of one client."""

    _commands: asyncio.Task[Any] | None = None
    """Processes its commands."""
    _sub_task: asyncio.Task[Any] | None
    """Sends it its updates."""

    async def command_queue_loop(self) -> None:
        """Process this client's commands, in a task of their own.

        Traps: caproto asks for access rights by what the client claims to be, and does not tell
        where it really is. After a request that breaks the protocol it ends this task alone, and
        the client waits for ever, or goes on to send and fills the queue; we hang up.
        """
        peer.set(self.circuit.address[0])
        self._commands = asyncio.current_task()
        try:
            await super().command_queue_loop()
        except Exception as error:  # noqa: BLE001 - what a client sends must not end more than it
            log.warning("client %s: %s", peer.get(), _first_line(error))
        if self.connected:
            await self._on_disconnect()

    async def recv(self) -> None:
        """Take what has come from the client.

        Trap: where that is not Channel Access, caproto leaves the task behind that would answer it.
        """
        try:
            await super().recv()
        except DisconnectedCircuit:
            raise
        except Exception:
            if self._commands is not None:
                self._commands.cancel()
            raise

    async def _on_disconnect(self) -> None:
        """Take the connection down.

        Trap: caproto waits here for the task that sends updates. That may be the one that is here,
        or two may wait for it at once; the error of that ended the circuit's other task as well,
        and the server kept the circuit for ever. So it is told to end, and not waited for.
        """
        sending, self._sub_task = self._sub_task, None
        await super()._on_disconnect()
        if sending is not None and sending is not asyncio.current_task():
            sending.cancel()

    async def _start_write_task(self, handle_write: Callable[[], Any]) -> None:
        """Process a put in a task of its own.

        Trap: a client that is gone before its put was answered, or its channel (KeyError), leaves
        an error that nobody takes.
        """

        async def write() -> None:
            with suppress(DisconnectedCircuit, KeyError):
                await handle_write()

        await super()._start_write_task(write)

    async def _cull_subscriptions(self, db_entry: Any, func: Callable[[Any], bool]) -> Any:
        """Forget subscriptions, and their backlog with them.

        Trap: caproto keeps the backlog of a cancelled subscription for as long as the client stays
        connected, so every panel opened and closed leaves its waveforms behind.
        """
        removed = await super()._cull_subscriptions(db_entry, func)
        for _, subscription in removed:
            self.unexpired_updates.pop(subscription.subscriptionid, None)
        return removed

    async def _process_command(self, command: Any) -> Any:
        """Answer a client.

        Trap: when a client clears a channel with subscriptions on it, caproto looks for them by
        comparing a channel with its number and finds none; the next update to that channel then
        ends the task that sends this client its updates, of all PVs and for good.
        """
        if isinstance(command, caproto.ClearChannelRequest):
            await self._cull_subscriptions(None, lambda sub: bool(sub.channel.sid == command.sid))
        return await super()._process_command(command)


class Context(caproto_server.Context):  # type: ignore[misc]
    """The server: sockets, searches and circuits."""

    CircuitClass = Circuit

    def __init__(self, pvdb: dict[str, Any], interfaces: Sequence[str]) -> None:
        super().__init__(pvdb, list(interfaces))
        self.ca_server_port = server_port()
        self.listening = asyncio.Event()
        """Set when clients can connect."""
        self.beacon_socks: dict[tuple[str, int], Any]
        self._accepting = 0

    async def server_accept_loop(self, sock: Any) -> None:
        await super().server_accept_loop(sock)
        self._accepting += 1
        if self._accepting == len(self.tcp_sockets):
            self.listening.set()

    async def broadcast_beacon_loop(self) -> None:
        """Tell clients that this server is there.

        Trap: caproto broadcasts beacons to the whole network even when it serves on loopback only,
        and so tells of a server that nobody there can reach.
        """
        if all(IPv4Address(address).is_loopback for address in self.interfaces):
            for _, other in self.beacon_socks.values():
                other.close()
            address = ("127.0.0.1", self.environ["EPICS_CAS_BEACON_PORT"])
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.setblocking(False)
            udp.connect(address)
            self.beacon_socks = {address: (self.interfaces[0], _UdpTransportWrapper(udp, address))}
        await super().broadcast_beacon_loop()


def server_port() -> int:
    """The port for searches, and the first one tried for connections.

    Trap: caproto ignores EPICS_CAS_SERVER_PORT, the server's own of the two port variables.
    """
    for name in ("EPICS_CAS_SERVER_PORT", "EPICS_CA_SERVER_PORT"):
        text = os.environ.get(name, "")
        if text:
            if not text.isdecimal() or not 0 < int(text) < 65536:
                raise UserError(f"the environment variable {name} must be a port, not {text!r}")
            return int(text)
    return 5064


class OneLine(logging.Filter):
    """What caproto logs, as an operator needs it.

    Traps: a refused put is logged with a traceback (we log it ourselves, with who and why), and a
    beacon nobody listens for with another one, every time. So is whatever a client sends that is
    not Channel Access, which is no error of ours and gets one line.
    """

    _NOISE = ("Invalid write request", "Failed to send beacon")
    _BABBLE = (
        "Client ",
        "Circuit command queue",
        "Server failed to process",
        "Broadcaster command",
    )

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and text.startswith(self._BABBLE):
            record.msg, record.args = f"{record.getMessage()}: {_first_line(error)}", ()
            record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
        return not text.startswith(self._NOISE)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".splitlines()[0]


def quieten() -> None:
    """Apply `OneLine` to caproto's loggers; doing so twice changes nothing."""
    for name in ("caproto.circ", "caproto.ctx", "caproto.bcast"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, OneLine) for each in logger.filters):
            logger.addFilter(OneLine())
