"""A client for the PVs of one device, as attributes.

    from daq_ioc.client import Client

    with Client("simple_daq:") as client:
        client.cpu.read().data          # array([3.1])
        client.dt.write(0.5)            # returns when it is done
        client.cpu.subscribe(print)     # until unsubscribed, or the client is closed

It works with the IOC of any instrument, and knows none. What it needs of the environment is what
every EPICS client needs: EPICS_CA_ADDR_LIST, EPICS_CA_AUTO_ADDR_LIST, EPICS_CA_SERVER_PORT. Where
no addresses are given it asks this computer, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeAlias

import caproto
import numpy as np
import numpy.typing as npt
from caproto.threading.client import PV, Context, SharedBroadcaster, VirtualCircuitManager

from daq_ioc.errors import UserError

log = logging.getLogger(__name__)

SEARCH_PERIOD: Final = 0.3
"""How often a PV that is waited for is looked for, s."""

_NUMBERS: Final = (int, float, np.number, np.ndarray, list, tuple)


class ClientError(UserError):
    """A PV that does not connect, does not answer in time, or refuses a value; the text says which
    PV, and what to do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a PV had to say.

    ``data``: 1-D array, of float64 or integers; of str for strings; indices for enums. ``text``:
    the same for people; the word of an enum, the whole of a long string. ``time``: of the data,
    Unix s. ``severity`` and ``status``: numbers of EPICS with their names, 0 is no alarm.
    """

    data: npt.NDArray[Any]
    text: str
    time: float
    severity: caproto.AlarmSeverity
    status: caproto.AlarmStatus


Callback: TypeAlias = Callable[[Reading], None]


class Channel:
    """One PV; it connects when it is first used."""

    def __init__(self, client: Client, *names: str) -> None:
        self._client = client
        self._names = names
        self._pv: PV | None = None
        self._choices: tuple[str, ...] = ()
        self._callbacks: dict[Callback, tuple[Any, int, Any]] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<{self.name}, {state}>"

    @property
    def name(self) -> str:
        """Full name of the PV; all that it may be while that is not known."""
        return self._pv.name if self._pv else " or ".join(self._names)

    @property
    def connected(self) -> bool:
        """Whether its server is there at present."""
        return self._pv is not None and bool(self._pv.connected)

    def read(self, timeout: float | None = None) -> Reading:
        """The present value; waits for up to ``timeout`` s. Raises ClientError."""
        with self._told_as("read", timeout) as (pv, left):
            response = pv.read(data_type="time", timeout=left)
            if isinstance(response, caproto.ErrorResponse):
                raise ClientError(f"{pv.name} cannot be read: {_reason(response)}")
            return self._reading(response)

    def write(self, value: Any, timeout: float | None = None) -> None:
        """Write a number, numbers, or text (the word of an enum, too), and wait until it is done.

        Raises ClientError if that takes longer than ``timeout`` s, or if it is refused.
        """
        with self._told_as("written", timeout) as (pv, left):
            data, data_type = _sendable(pv, value)
            response = pv.write(data, data_type=data_type, timeout=left)
        if not response.status.success:
            raise ClientError(f"{pv.name} refused {value!r}: {_reason(response)}")

    def subscribe(self, callback: Callback) -> None:
        """Call ``callback`` with the present reading and every one to come, in another thread.

        Raises ClientError if the PV does not connect. It may disconnect and come back later.
        """
        with self._told_as("subscribed to") as (pv, _), self._lock:
            if callback in self._callbacks:
                return

            def hand_on(_: Any, response: Any) -> None:
                try:
                    callback(self._reading(response))
                except Exception:  # which nobody would see otherwise
                    log.exception("a callback of %s failed", pv.name)

            subscription = pv.subscribe(data_type="time")
            # The library holds callbacks weakly: they are kept here.
            self._callbacks[callback] = (subscription, -1, hand_on)
            token = subscription.add_callback(hand_on)
            self._callbacks[callback] = (subscription, token, hand_on)

    def unsubscribe(self, callback: Callback) -> None:
        """End what `subscribe` began; nothing happens if it was not."""
        with self._lock:
            subscription, token, _ = self._callbacks.pop(callback, (None, -1, None))
            if subscription is not None:
                subscription.remove_callback(token)

    # ---- what the library makes of it

    @contextlib.contextmanager
    def _told_as(self, done: str, timeout: float | None = None) -> Iterator[tuple[PV, float]]:
        """The connected PV and the time left; failures become ClientErrors."""
        deadline = time.monotonic() + (self._client.timeout if timeout is None else timeout)
        try:
            pv = self._connected(deadline)
            yield pv, max(0.0, deadline - time.monotonic())
        except TimeoutError as error:
            raise ClientError(f"{self.name} cannot be {done}: no answer in time") from error
        except caproto.CaprotoError as error:
            raise ClientError(f"{self.name} cannot be {done}: {error}") from error

    def _connected(self, deadline: float) -> PV:
        """The PV, of whichever of its names is there first."""
        with self._lock:
            context = self._client._open_context()
            candidates = [self._pv] if self._pv else context.get_pvs(*self._names)
            again = time.monotonic() + SEARCH_PERIOD
            while not (found := [pv for pv in candidates if pv.connected]):
                now = time.monotonic()
                if now > deadline:
                    raise ClientError(_nobody(self.name))
                if now > again:  # left alone, the library waits ever longer
                    context.broadcaster.search_now()
                    again = now + SEARCH_PERIOD
                time.sleep(0.002)
            if self._pv is None:
                context.broadcaster.cancel(*{*self._names} - {found[0].name})
                self._choices = _choices(found[0], deadline)
                self._pv = found[0]
            return found[0]

    def _reading(self, response: Any) -> Reading:
        native = caproto.native_type(response.data_type)
        data = response.data
        if native is caproto.ChannelType.STRING:
            data = np.array([_decoded(bytes(text)) for text in data])
            text = ", ".join(data)
        else:
            data = np.asarray(data)
            data = data.astype(data.dtype.newbyteorder("="))
            if native is caproto.ChannelType.CHAR:
                text = _decoded(bytes(data.astype(np.uint8)))
            elif native is caproto.ChannelType.ENUM and int(data[0]) < len(self._choices):
                text = self._choices[int(data[0])]
            else:
                text = str(data[0] if len(data) == 1 else data)
        about = response.metadata
        severity, status = caproto.AlarmSeverity(about.severity), caproto.AlarmStatus(about.status)
        return Reading(data, text, about.timestamp, severity, status)


class Client:
    """The PVs of the device whose names begin with ``prefix``, as attributes.

    ``client.cpu`` is the PV ``CPU`` (or ``cpu``, if that is its name); ``client["CPU.EGU"]`` is
    that of exactly this name, fields included. ``timeout``: how long to wait for a PV, s.
    """

    def __init__(self, prefix: str = "simple_daq:", timeout: float = 5.0) -> None:
        self.prefix = prefix
        self.timeout = timeout
        self._channels: dict[tuple[str, ...], Channel] = {}
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prefix!r})"

    def __getattr__(self, name: str) -> Channel:
        if name.startswith("_"):  # what Python asks objects for; no PV of ours begins so
            raise AttributeError(name)
        return self._channel(*dict.fromkeys((name.upper(), name)))

    def __getitem__(self, name: str) -> Channel:
        return self._channel(name)

    def _channel(self, *names: str) -> Channel:
        with self._lock:
            if names not in self._channels:
                self._channels[names] = Channel(self, *(self.prefix + name for name in names))
            return self._channels[names]

    def _open_context(self) -> Context:
        with self._lock:
            if self._closed:
                raise ClientError(f"the client of {self.prefix!r} is closed")
            if self._context is None:
                self._context = _Context(_Broadcaster(), timeout=self.timeout)
            return self._context

    def close(self) -> None:
        """Disconnect from all PVs; the client cannot be used any more."""
        with self._lock:
            context, self._context = self._context, None
            self._closed = True
        if context is not None:
            context.disconnect()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Circuit(VirtualCircuitManager):  # type: ignore[misc]
    """Hands an error on to whoever waits for the answer; the library's own lets them wait."""

    __slots__ = ()

    def _process_command(self, command: Any) -> None:
        super()._process_command(command)
        if isinstance(command, caproto.ErrorResponse):
            waiting = self.ioids.pop(command.original_request.parameter2, None)
            if waiting is not None:
                waiting["response"] = command
                waiting["event"].set()


class _Context(Context):  # type: ignore[misc]
    """With circuits of the kind above, which the library has no other way to be given."""

    def get_circuit_manager(self, address: Any, priority: int) -> Any:
        manager = super().get_circuit_manager(address, priority)
        manager.__class__ = _Circuit
        return manager

    def disconnect(self, *, wait: bool = True) -> None:
        self._close_event.set()
        self._search_results_queue.put((None, ()))  # or its thread is waited for
        super().disconnect(wait=wait)


class _Broadcaster(SharedBroadcaster):  # type: ignore[misc]
    """Looks for PVs; on this computer too, unless addresses are given.

    Traps: the library's own stops searching for ever when one address cannot be reached (a computer
    without a network has no broadcasts), and takes seconds to be closed.
    """

    def send(self, *commands: Any) -> None:
        data = self.broadcaster.send(*commands)
        addresses = set(caproto.get_client_address_list())
        if not os.environ.get("EPICS_CA_ADDR_LIST"):
            addresses.add(("127.0.0.1", self.ca_server_port))
        for address in addresses:
            with contextlib.suppress(OSError, AttributeError):  # the latter when it is closed
                self.udp_sock.sendto(data, address)

    def disconnect(self, *, wait: bool = True) -> None:
        self._close_event.set()
        self._search_now.set()
        self.command_bundle_queue.put([])
        super().disconnect(wait=wait)


def _choices(pv: PV, deadline: float) -> tuple[str, ...]:
    """The words of an enum."""
    if pv.channel.native_data_type != caproto.ChannelType.ENUM:
        return ()
    control = pv.read(data_type="control", timeout=max(0.0, deadline - time.monotonic()))
    return tuple(map(_decoded, control.metadata.enum_strings))


def _sendable(pv: PV, value: Any) -> tuple[Any, Any]:
    """Data and type as the library sends them."""
    if isinstance(value, str):
        if pv.channel.native_data_type == caproto.ChannelType.CHAR:
            return value.encode() + b"\0", caproto.ChannelType.CHAR
        return [value.encode()], caproto.ChannelType.STRING
    if not isinstance(value, _NUMBERS):
        raise ClientError(f"{pv.name} takes numbers or text, not {value!r}")
    data = np.atleast_1d(np.asarray(value))
    if data.size > pv.channel.native_data_count:
        most = pv.channel.native_data_count
        raise ClientError(f"{pv.name} takes at most {most} values, not {data.size}")
    return data, None


def _reason(response: Any) -> str:
    """Why a server refused."""
    if isinstance(response, caproto.ErrorResponse):
        # Servers made with the same library say so first.
        said = _decoded(bytes(response.error_message))
        return re.sub(r"^Python exception: \w+ ", "", said) or str(response.status.description)
    return str(response.status.description)


def _decoded(text: bytes | str) -> str:
    """Text up to its end mark."""
    if isinstance(text, str):
        return text
    return text.split(b"\0", 1)[0].decode("utf-8", "replace")


def _nobody(names: str) -> str:
    """Why a PV may not have answered, and what to look at."""
    addresses = os.environ.get("EPICS_CA_ADDR_LIST", "")
    asked = f"asked were: {addresses or 'the networks of this computer, and itself'}"
    port = caproto.get_environment_variables()["EPICS_CA_SERVER_PORT"]
    return (
        f"no server has {names}; {asked}, port {port}. Check that the IOC runs, the prefix and "
        "the name (daq-ioc run CONFIG.toml --list-pvs), EPICS_CA_ADDR_LIST, EPICS_CA_SERVER_PORT"
    )
