"""Corrections to caproto 1.3.0's server, each with a test that fails without it.

Everything here is about how caproto serves, not about what we serve; the day upstream mends one it
can be deleted. Our own values, alarms and puts are in `channels`; how updates reach clients, where
caproto has more traps, is in `delivery`.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from ipaddress import IPv4Address
from math import floor
from typing import Any

import caproto
from caproto._utils import parse_channel_filter
from caproto.asyncio import server as caproto_server
from caproto.asyncio.utils import _UdpTransportWrapper
from caproto.server.common import DisconnectedCircuit

from daq_ioc.errors import UserError

log = logging.getLogger(__name__)

peer: ContextVar[str] = ContextVar("peer", default="")
"""IPv4 address of the client whose command is being processed."""

UNIX_TIME_OF_EPICS_EPOCH = 631_152_000
"""1990-01-01 UTC, s."""

# What one client can have; what it does beyond that slows it down, or is refused.

COMMANDS = 128
"""Commands that may wait to be processed; until they are, no more is read from the client."""

CHANNELS = 10_000
"""Channels. Beyond 65 536 caproto looks for an unused number for ever; and with every 10 000 the
garbage collector stops everything for some 100 ms now and then."""

SUBSCRIBED = 1 << 24
"""Bytes of one update of all its subscriptions, each of which counts as at least 2 KiB."""

MESSAGE = 1 << 16
"""Bytes of the longest message, unless there are PVs that need more."""

DATAGRAM = 1472
"""Bytes of the longest request for names: what an Ethernet frame holds. Clients send less."""

LINES = 1000
"""Lines a minute in the log of each thing that clients can do."""

HANDLES = 200
"""Open files that are kept from clients: for devices, recordings and the server itself."""


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

        Traps: caproto raises an error. A client that subscribes to a text as a number, or to a type
        that is for puts only, thereby stops the updates of that PV to all clients, for as long as
        it stays. And it puts a time before text with limits, which clients take for the text.
        """
        if data_type == caproto.ChannelType.CTRL_STRING:
            data_type = caproto.ChannelType.STS_STRING
        try:
            return await self._converted(data_type)
        except Exception as error:  # noqa: BLE001 - the client chose the type
            log.debug("as %s: %s", data_type.name, error)
            return b"", None

    async def _converted(self, data_type: Any) -> Any:
        """Metadata and values of a type; may raise any error."""
        return await super()._read(data_type)

    async def read(self, data_type: Any) -> Any:
        """What a client gets that asks once, for which an error is the answer."""
        metadata, values = await super().read(data_type)
        if values is None:
            raise caproto.CaprotoConversionError(f"not to be had as {data_type.name}")
        return metadata, values


class _Subscriptions(dict[Any, None]):
    """Subscriptions of one kind, in order.

    Trap: caproto looks through all that there are to remove one, so that a client that leaves with
    thousands of them, while another has as many, stops the server for minutes.
    """

    def append(self, subscription: Any) -> None:
        self[subscription] = None

    def remove(self, subscription: Any) -> None:
        self.pop(subscription, None)


class Circuit(caproto_server.VirtualCircuit):  # type: ignore[misc]
    """The connection of one client."""

    _commands: asyncio.Task[Any] | None = None
    """Processes its commands."""
    _receiving: asyncio.Task[Any] | None = None
    """Takes them from it."""
    _sub_task: asyncio.Task[Any] | None
    """Sends it its updates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command_queue: asyncio.Queue[Any] = asyncio.Queue(COMMANDS)
        self.subscriptions: dict[Any, _Subscriptions] = defaultdict(_Subscriptions)
        self._sizes: dict[int, int] = {}
        """Bytes of an update by number of the subscription."""
        # Trap: caproto keeps the connection of a computer that was switched off for ever.
        connection = self.client.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def run(self) -> None:
        self._receiving = asyncio.current_task()
        self._commands = self.tasks.create(self.command_queue_loop())
        self._sub_task = self.tasks.create(self.subscription_queue_loop())

    async def command_queue_loop(self) -> None:
        """Process this client's commands, in a task of their own.

        Traps: caproto asks for access rights by what the client claims to be, and does not tell
        where it really is. After a request that breaks the protocol it ends this task alone, and
        the client waits for ever, or goes on to send and fills the queue; we hang up. And of a
        client that went while its queue was full caproto keeps all for ever, waiting for room.
        """
        peer.set(self.circuit.address[0])
        try:
            await super().command_queue_loop()
        except Exception as error:  # noqa: BLE001 - what a client sends must not end more than it
            log.warning("client %s: %s", peer.get(), _first_line(error))
        await self._on_disconnect()
        await self.context.circuit_disconnected(self)
        if self._receiving is not None:
            self._receiving.cancel()

    async def recv(self) -> None:
        """Take what has come from the client.

        Traps: where that is not Channel Access, caproto leaves the task behind that would answer
        it. It keeps of a message what has come of it, which may be as much as 4 GB, and lets nobody
        else have a turn while there is more to take.
        """
        try:
            await super().recv()
        except DisconnectedCircuit:
            raise
        except Exception:
            self._hang_up()
            raise
        if len(self.circuit._data) > self.context.longest_message:
            log.warning("client %s sends more than any PV can take", self.circuit.host)
            self._hang_up()
        await asyncio.sleep(0)

    def _hang_up(self) -> None:
        if self._commands is not None:
            self._commands.cancel()

    async def _on_disconnect(self) -> None:
        """Take the connection down.

        Traps: caproto waits here for the task that sends updates. That may be the one that is here,
        or two may wait for it at once; the error of that ended the circuit's other task as well,
        and the server kept the circuit for ever. So it is told to end, and not waited for. And
        what filters remember of a subscription, and with it the circuit, caproto keeps for ever.
        """
        if self.connected:
            await self._cull_subscriptions(None, lambda _: True)
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

        Traps: caproto keeps the backlog of a cancelled subscription for as long as the client stays
        connected, so every panel opened and closed leaves its waveforms behind; and for ever that
        there once was a subscription with this mask and filter.
        """
        removed = await super()._cull_subscriptions(db_entry, func)
        for spec, subscription in removed:
            self.unexpired_updates.pop(subscription.subscriptionid, None)
            self._sizes.pop(subscription.subscriptionid, None)
            for kept in (self.subscriptions, self.context.subscriptions):
                if not kept[spec]:
                    del kept[spec]
        return removed

    async def _command_queue_iteration(self, command: Any) -> Any:
        """Answer a client, unless it asks for what cannot be had.

        Traps: caproto lets nobody else have a turn while there are commands; a client can change
        who it is when it has been told what it may do; and see `_unwilling` and `_can_be_had`.
        """
        await asyncio.sleep(0)
        if isinstance(command, _WHO) and self.circuit.channels:
            reason = "a client says who it is before it has channels"
            return [caproto.ErrorResponse(command, 0, caproto.CAStatus.ECA_INTERNAL, reason)]
        if isinstance(command, caproto.CreateChanRequest):
            if not self._can_be_had(command.name):
                command = caproto.CreateChanRequest("", command.cid, command.version)
        elif isinstance(command, _WITH_DATA) and command.sid in self.circuit.channels_sid:
            with suppress(ValueError):  # no such data type, of which caproto tells the client
                if refused := self._unwilling(command):
                    cid = self.circuit.channels_sid[command.sid].cid
                    return [caproto.ErrorResponse(command, cid, *refused)]
        return await super()._command_queue_iteration(command)

    def _can_be_had(self, name: str) -> bool:
        """Whether a client can have a channel of this name.

        Traps: caproto does not answer if a filter is wrong, so that the client waits for ever. What
        it remembers of synchronizing filters grows with every name of a state, of which we have
        none.
        """
        try:
            modifiers = caproto.parse_record_field(name).modifiers
            wanted = parse_channel_filter(modifiers.filter_) if modifiers else None
        except Exception:  # noqa: BLE001 - there are many ways to be wrong
            return False
        return (wanted is None or wanted.sync is None) and len(self.circuit.channels) < CHANNELS

    def _unwilling(self, command: Any) -> tuple[caproto.CAStatus, str] | None:
        """Why a subscription or a put is refused.

        Traps: caproto makes as many strings of a put as its header says, up to 4 thousand million,
        whatever was sent. Every subscription costs time with every update of its PV, so that one
        client could slow all others down.
        """
        kind = caproto.native_type(command.data_type)
        size = ctypes.sizeof(caproto.DBR_TYPES[kind])
        count = command.data_count
        if not isinstance(command, caproto.EventAddRequest):
            # One string alone is sent without the rest of its 40 bytes.
            if count > 1 and (count - 1) * size >= len(command.buffers[1]):
                return caproto.CAStatus.ECA_BADCOUNT, f"{count} elements were not sent"
            return None
        if command.subscriptionid in self.circuit.event_add_commands:
            return caproto.CAStatus.ECA_BADMONID, "another subscription has this number"
        entry = self.context[self.circuit.channels_sid[command.sid].name]
        size *= min(count, entry.max_length) or entry.max_length
        self._sizes[command.subscriptionid] = max(size, 2048)
        if sum(self._sizes.values()) > SUBSCRIBED:
            del self._sizes[command.subscriptionid]
            return caproto.CAStatus.ECA_ALLOCMEM, "too many subscriptions, or to too much"
        return None

    async def send(self, *commands: Any) -> None:
        """Send answers.

        Traps: caproto keeps the numbers of requests that fail, the requests for channels that there
        are not, and the subscriptions of a channel that is closed: it looks for them by comparing a
        channel with its number. The next update to that channel then ends the task that sends this
        client its updates, of all PVs and for good. The answer to a put whose channel the client
        has closed meanwhile is an error that nobody takes, or hangs up.
        """
        for command in commands:
            if isinstance(command, caproto.ErrorResponse):
                self._failed(command.original_request)
            elif isinstance(command, caproto.ClearChannelResponse | caproto.ServerDisconnResponse):
                await self._forget(command.cid)
        try:
            await super().send(*commands)
        except caproto.LocalProtocolError as error:
            log.debug("client %s: %s", peer.get(), error)
        for command in commands:
            if isinstance(command, caproto.CreateChFailResponse):
                self.circuit.channels.pop(command.cid, None)

    def _failed(self, request: Any) -> None:
        number = request.parameter2
        if request.command != caproto.EventAddRequest.ID:
            self.circuit._ioids.pop(number, None)
        elif number not in self._sizes:
            self.circuit.event_add_commands.pop(number, None)

    async def _forget(self, cid: int) -> None:
        """Forget the subscriptions of a channel."""
        await self._cull_subscriptions(None, lambda sub: bool(sub.channel.cid == cid))
        if cid in self.circuit.channels:
            for number in self.circuit.channels[cid].subscriptions:
                for asked in (self.circuit.event_add_commands, self.circuit.event_cancel_commands):
                    asked.pop(number, None)


_WHO = (caproto.ClientNameRequest, caproto.HostNameRequest)
_WITH_DATA = (caproto.EventAddRequest, caproto.WriteRequest, caproto.WriteNotifyRequest)


class Context(caproto_server.Context):  # type: ignore[misc]
    """The server: sockets, searches and circuits."""

    CircuitClass = Circuit

    def __init__(self, pvdb: dict[str, Any], interfaces: Sequence[str]) -> None:
        super().__init__(pvdb, list(interfaces))
        self.ca_server_port = server_port()
        self.listening = asyncio.Event()
        """Set when clients can connect."""
        self.beacon_socks: dict[tuple[str, int], Any]
        self.subscriptions: dict[Any, _Subscriptions] = defaultdict(_Subscriptions)
        # All elements of any PV as text.
        self.longest_message = max(MESSAGE, *(40 * each.max_length for each in pvdb.values()), 0)
        self._accepting = 0
        self._full = False

    async def server_accept_loop(self, sock: Any) -> None:
        await super().server_accept_loop(sock)
        self._accepting += 1
        if self._accepting == len(self.tcp_sockets):
            self.listening.set()

    async def tcp_handler(self, client: Any, addr: tuple[str, int]) -> None:
        """Serve a client.

        Trap: caproto lets clients use up the open files that devices and recordings need.
        """
        limit = max(50, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - HANDLES)
        full = len(self.circuits) >= limit
        if full and not self._full:
            log.warning("there are %d clients; more cannot connect", len(self.circuits))
        self._full = full
        if full:
            client.close()
        else:
            await super().tcp_handler(client, addr)

    async def _broadcaster_recv_datagram(self, bytes_received: bytes, address: Any) -> None:
        """Take a request for names.

        Trap: for one of 64 kB, with thousands of names, caproto stops the server, and makes an
        answer of it that cannot be sent.
        """
        if len(bytes_received) <= DATAGRAM:
            await super()._broadcaster_recv_datagram(bytes_received, address)

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


class Bounded(logging.Filter):
    """Lets through only so many lines a minute, so that no client fills the disk with them."""

    def __init__(self) -> None:
        super().__init__()
        self._minute = self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        minute = int(record.created // 60)
        self._lines = self._lines + 1 if minute == self._minute else 1
        self._minute = minute
        if self._lines == LINES:
            record.msg, record.args = "%s; more in this minute is left out", (record.getMessage(),)
        return self._lines <= LINES


def quieten() -> None:
    """Apply `OneLine` to caproto's loggers, and `Bounded` to all that tell what clients do.

    Doing so twice changes nothing.
    """
    caprotos = ("caproto.circ", "caproto.ctx", "caproto.bcast")
    for kind, names in ((OneLine, caprotos), (Bounded, (*caprotos, "daq_ioc.server.channels"))):
        for logger in map(logging.getLogger, names):
            if not any(isinstance(each, kind) for each in logger.filters):
                logger.addFilter(kind())
