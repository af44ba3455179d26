"""Updates on their way to clients: encoded once for all, the newest kept, sent together.

caproto encodes every update anew for every subscriber and passes it through two queues, which costs
eight times what EPICS base needs. Worse, those queues wait when they are full: one client that does
not read then freezes all others; they keep 1000 updates of every subscription; and a client is made
to wait up to 1 s for more to come. Here an update is encoded once for each type and length that is
asked for, laid down for every client at once, and each client's own task sends all that waits for
it in one go. What a client does not take is bounded: of every subscription only the last few
updates wait, newer ones replacing older ones, so that the newest value is never lost.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import caproto
import numpy as np
from caproto._dbr import _LongStringChannelType
from caproto._headers import EventAddResponseHeader

from daq_ioc.server import corrections

log = logging.getLogger(__name__)

BATCH = 65_536
"""Bytes sent at once, if there are more; a client that does not read holds up to twice as many."""


class Update(NamedTuple):
    """A message for any subscription: its bytes but for the number of the subscription."""

    head: bytes
    tail: bytes

    @classmethod
    def of(cls, command: Any) -> Update:
        """Of caproto's message, in whose header, short or long, bytes 12 to 16 are that number."""
        encoded = b"".join(map(bytes, (command.header, *command.buffers)))
        return cls(encoded[:12], encoded[16:])


class _Laid:
    """Takes what caproto would queue for one client, the updates that filters have changed."""

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit

    async def put(self, reference: Callable[[], Any]) -> None:
        command = reference()
        self._circuit.lay(command.subscriptionid, Update.of(command), 1)


class Circuit(corrections.Circuit):
    """The connection of one client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.subscription_queue = _Laid(self)
        self._waiting: dict[int, deque[Update]] = {}
        self._sending: dict[int, deque[Update]] = {}
        self._something = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many updates the client has not been sent yet."""
        return sum(map(len, (*self._waiting.values(), *self._sending.values())))

    def lay(self, subscription: int, update: Update, backlog: int) -> None:
        """Have an update sent; never waits. At most ``backlog`` of a subscription are kept."""
        kept = self._waiting.get(subscription)
        if kept is None:
            if not self._waiting:
                self._something.set()
            self._waiting[subscription] = deque((update,), backlog)
            return
        if not self.events_on.is_set():  # the client wants nothing now, and then the newest
            kept.clear()
        kept.append(update)

    async def subscription_queue_loop(self) -> None:
        """Send what waits, all of it in one go, as soon as the client takes it."""
        self.events_on.set()
        try:
            while self.connected:
                await self._something.wait()
                await self.events_on.wait()
                self._something.clear()
                self._sending, self._waiting = self._waiting, {}
                for batch in self._batches():
                    await self._send_buffers(*batch)
                    await asyncio.sleep(0)  # others have a turn
        except (OSError, caproto.CaprotoNetworkError):
            await self._on_disconnect()
            self.circuit.disconnect()
            await self.context.circuit_disconnected(self)
        except asyncio.CancelledError:
            pass

    def _batches(self) -> Iterator[list[bytes]]:
        """What is to be sent, in pieces of about BATCH or a single larger update."""
        batch: list[bytes] = []
        size = 0
        for subscription in list(self._sending):
            number = subscription.to_bytes(4, "big")
            # None where it was cancelled meanwhile: nothing may follow the answer to that.
            for head, tail in self._sending.pop(subscription, None) or ():
                batch += (head, number, tail)
                size += len(tail)
            if size > BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _cull_subscriptions(self, db_entry: Any, func: Callable[[Any], bool]) -> Any:
        """Forget subscriptions, and what waits for them."""
        removed = await super()._cull_subscriptions(db_entry, func)
        for _, subscription in removed:
            for waiting in (self._waiting, self._sending):
                waiting.pop(subscription.subscriptionid, None)
        return removed

    async def _on_disconnect(self) -> None:
        self._waiting.clear()
        self._sending.clear()
        await super()._on_disconnect()


class _Deliver:
    """Takes what channels would queue for the server, and delivers it at once."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def put(self, update: Any) -> None:
        await self._context.deliver(*update)


class Context(corrections.Context):
    """The server."""

    CircuitClass = Circuit

    def __init__(self, pvdb: dict[str, Any], interfaces: Sequence[str]) -> None:
        super().__init__(pvdb, interfaces)
        self.subscription_queue = _Deliver(self)

    async def subscription_queue_loop(self) -> None:
        """Nothing is queued."""

    async def deliver(
        self, sub_specs: Sequence[Any], metadata: Any, values: Any, flags: int, one: Any
    ) -> None:
        """Lay an update of one channel and type down for all its subscribers, or for ``one``."""
        encoded: dict[int, Update] = {}
        for spec in sub_specs:
            filtered = values is not None and any(spec.channel_filter)
            for sub in self.subscriptions[spec] if one is None else (one,):
                if filtered:
                    await self._filtered(spec, sub, metadata, values, flags)
                    continue
                update = encoded.get(sub.data_count)
                if update is None:
                    update = encoded[sub.data_count] = _encoded(sub, metadata, values)
                sub.circuit.lay(sub.subscriptionid, update, sub.db_entry.max_subscription_backlog)

    async def _filtered(self, spec: Any, sub: Any, metadata: Any, values: Any, flags: int) -> None:
        """Lay an update down as a client's filter makes it.

        Trap: that a filter cannot be applied, a step of 0 or a dead band of text, shows only here,
        and an error here ends caproto's server.
        """
        try:
            await self._subscription_queue_send(spec, sub, metadata, values, flags)
        except Exception as error:  # noqa: BLE001 - the client chose the filter
            log.debug("filter of %s: %s", sub.channel.name, error)
            sub.circuit.lay(sub.subscriptionid, _failed(sub.data_type), 1)


def _encoded(sub: Any, metadata: Any, values: Any) -> Update:
    """An update as a subscription asks for it, or the news that it cannot be had like that.

    Values are None where they cannot be had as that type. Whatever else goes wrong is for this
    client alone, too, since it chose type and length.
    """
    if values is None:
        return _failed(sub.data_type)
    try:
        return _whole(sub, metadata, values)
    except Exception as error:  # noqa: BLE001
        log.debug("%s as %s: %s", sub.channel.name, sub.data_type.name, error)
        return _failed(sub.data_type)


def _whole(sub: Any, metadata: Any, values: Any) -> Update:
    """An update of as many elements as are asked for; 0 are all there are."""
    count = min(sub.data_count, _most(sub)) or len(values)
    if count != len(values):
        values = _sized(values, count)
    if count > 1 and isinstance(values, list):  # text; caproto is slow at packing it
        values = np.array(values, f"S{caproto.MAX_STRING_SIZE}").tobytes()
    return Update.of(
        sub.channel.subscribe(
            data=values,
            metadata=metadata,
            data_type=sub.data_type,
            data_count=count,
            subscriptionid=0,
            status=1,
        )
    )


def _most(sub: Any) -> int:
    """The most elements that a subscription can have.

    Trap: one text has one element, but as many as it has letters where it is asked for as those.
    """
    letters = isinstance(sub.data_type, _LongStringChannelType)
    return int(sub.db_entry.long_string_max_length if letters else sub.db_entry.max_length)


def _failed(data_type: int) -> Update:
    """Says that there is no value, with zeros in its place, as EPICS base does.

    Without a payload it would be the answer to a cancelled subscription.
    """
    native = caproto.native_type(data_type)
    kinds = {data_type, native}  # metadata and one element, or that alone
    payload = bytes(sum(ctypes.sizeof(caproto.DBR_TYPES[kind]) for kind in kinds))
    payload += bytes(-len(payload) % 8)
    status = caproto.CAStatus.ECA_GETFAIL.value.code_with_severity
    header = EventAddResponseHeader(len(payload), data_type, 1, status, 0)
    return Update(bytes(header)[:12], payload)


def _sized(values: Any, count: int) -> Any:
    """Exactly ``count`` elements; zeros follow where there are fewer, as from EPICS base.

    Trap: caproto says that there are ``count``, and sends fewer.
    """
    missing = count - len(values)
    if missing <= 0:
        return values[:count]
    if isinstance(values, bytes):
        return values + bytes(missing)
    if isinstance(values, np.ndarray):
        return np.concatenate((values, np.zeros(missing, values.dtype)))
    return [*values, *[b""] * missing]
