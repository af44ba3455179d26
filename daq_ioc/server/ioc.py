"""The IOC: serves devices over Channel Access until it is told to stop.

It moves readings from device threads to the event loop, hands puts to the devices in threads, and
ends in order: recordings are finalised before the process goes. It knows devices only as `Served`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from daq_ioc.attributes import Attribute, Reading, Value
from daq_ioc.errors import UserError
from daq_ioc.server import health
from daq_ioc.server.access import EVERYONE, Access
from daq_ioc.server.alarms import Limits
from daq_ioc.server.autosave import Settings
from daq_ioc.server.channels import Channel, channels
from daq_ioc.server.corrections import quieten
from daq_ioc.server.delivery import Context
from daq_ioc.server.table import Row, joined, rows

log = logging.getLogger(__name__)

STOP_TIMEOUT = 20.0
"""Seconds a device may take to stop, which includes finalising its recording."""

WAITING_PUTS = 100
"""Puts that may wait for one device; more are refused, so that no client can fill the memory."""

TURN = 0.02
"""Seconds after which others have a turn while readings are published."""

SAVE_DELAY = 0.5
"""Seconds from a put to its being on disk, so that a flood of puts does not wear the disk out."""


class Served(Protocol):
    """What a server needs of a device; see `daq_ioc.device`."""

    @property
    def attributes(self) -> Sequence[Attribute]: ...

    def snapshot(self) -> Mapping[str, Reading]: ...

    def subscribe(self, callback: Callable[[Mapping[str, Reading]], None], /) -> None: ...

    def put(self, name: str, value: Value, /) -> None: ...

    def restore(self, name: str, value: Value, /) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Publication(NamedTuple):
    """A device as it is published: under which names, and by which rules."""

    prefix: str
    device: Served
    limits: Mapping[str, Limits] = {}
    access: Access = EVERYONE
    settings: Settings | None = None
    """What survives a restart; None is nothing."""


class StuckError(UserError):
    """A device did not stop in time; its threads still run and would hold up the process's end."""


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """The result of ``function(*args)``, called in a thread of its own.

    The thread is a daemon: unlike one of an executor it cannot keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as caught:  # noqa: BLE001 - it is raised where the caller waits
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await done


class Publisher:
    """One device on the event loop: its readings to channels, its puts from clients."""

    def __init__(self, published: Publication) -> None:
        self.device = device = published.device
        self.prefix = prefix = published.prefix
        self.settings = published.settings
        self.rows: list[Row] = rows(prefix, device.attributes, published.limits)
        self.channels: dict[str, Channel] = channels(self.rows, self.put, published.access.refusal)
        self.stopping = False
        self._newest: dict[str, Reading] = {}
        self._newest_lock = threading.Lock()
        self._failing: dict[str, type[Exception]] = {}
        """What is wrong with PVs that cannot be shown."""
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._one_put = asyncio.Lock()
        self._one_publishes = asyncio.Lock()
        self._waiting = 0
        self._saving: asyncio.Task[None] | None = None

    def subscribe(self) -> None:
        """Let the device send its readings here, beginning with those it has."""
        self.device.subscribe(self.receive)
        self.receive(self.device.snapshot())

    def receive(self, readings: Mapping[str, Reading]) -> None:
        """Take readings from any thread; those not yet published are replaced by newer ones."""
        with self._newest_lock:
            asleep = not self._newest
            self._newest.update(readings)
        if asleep and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Publish until cancelled.

        The loop always turns between two updates, since waking takes a turn of it; in that turn
        caproto hands all of the last update to the queues of the clients.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.publish()

    async def publish(self) -> None:
        """Show what has come in since the last time, all of it in one go unless that takes long."""
        async with self._one_publishes:
            with self._newest_lock:
                readings, self._newest = self._newest, {}
            began = self._loop.time()
            for name, reading in readings.items():
                await self._show(name, reading)
                if self._loop.time() > began + TURN:
                    await asyncio.sleep(0)
                    began = self._loop.time()

    async def _show(self, name: str, reading: Reading) -> None:
        """Show one reading. Whatever is wrong with it, other PVs go on, and it is told but once."""
        try:
            await self.channels[name].show(reading)
        except Exception as error:
            if self._failing.get(name) is not type(error):
                log.exception("%s%s cannot show %r", self.prefix, name, reading)
            self._failing[name] = type(error)
        else:
            self._failing.pop(name, None)

    async def put(self, name: str, value: Value) -> None:
        """Have the device take a value, one put after the other in the order they came.

        Returns when the device has done it and the PV shows what it did.
        """
        if self.stopping:
            raise UserError("the IOC is stopping")
        if self._waiting >= WAITING_PUTS:
            raise UserError(f"{WAITING_PUTS} puts are waiting for this device; try again later")
        self._waiting += 1
        try:
            async with self._one_put:
                await in_thread(self.device.put, name, value)
        finally:
            self._waiting -= 1
        self.receive({name: self.device.snapshot()[name]})
        await self.publish()
        self._keep(name, value)

    def _keep(self, name: str, value: Value) -> None:
        """Remember what was put, and write it soon."""
        if self.settings is None or not self.settings.note(name, value):
            return
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save(self.settings))

    async def _save(self, settings: Settings) -> None:
        await asyncio.sleep(SAVE_DELAY)
        await in_thread(settings.save)

    def stop(self) -> None:
        """Stop the device and keep its settings; for a thread."""
        self.device.stop()
        if self.settings is not None:
            self.settings.save()


@dataclass
class Ioc:
    """Devices served under their prefixes on some interfaces (IPv4 addresses of this computer).

    ``health``: the prefix of PVs that tell how the IOC itself is; None serves none.
    """

    devices: Sequence[Publication] | Sequence[tuple[str, Served]]
    interfaces: Sequence[str]
    health: str | None = None
    stop_timeout: float = STOP_TIMEOUT
    context: Context | None = None
    """The server while it runs: its clients and ports."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Ask `run` to end; call on the event loop."""
        self._stop.set()

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Serve until `stop`; ``on_ready`` gets one line when clients can connect.

        Raises UserError if it cannot serve, StuckError if a device does not stop in time.
        """
        quieten()
        publishers = self._publishers()
        table = joined(publisher.rows for publisher in publishers)
        pvdb = {
            row.pv: publisher.channels[row.attribute.name]
            for publisher in publishers
            for row in publisher.rows
        }
        context = self.context = Context(pvdb, self.interfaces)
        for publisher in publishers:
            if publisher.settings is not None:
                publisher.settings.restore(publisher.device)
            publisher.subscribe()
            await publisher.publish()
        tasks = [asyncio.create_task(context.run())]
        try:
            await self._started(publishers, context, tasks[0])
            on_ready(self._ready_line(len(table), context))
            tasks += [asyncio.create_task(publisher.run()) for publisher in publishers]
            await _first(*tasks, asyncio.create_task(self._stop.wait()))
        finally:
            await self._end(publishers, context, tasks)

    def _publishers(self) -> list[Publisher]:
        made = [Publisher(Publication(*each)) for each in self.devices]
        if self.health is not None:
            records = sum(len(each.rows) for each in made) + len(health.ATTRIBUTES)
            device = health.Health(self._counts, records)
            made.append(Publisher(Publication(self.health, device, health.LIMITS)))
        return made

    def _counts(self) -> tuple[int, int]:
        """How many clients are connected, and to how many channels; for any thread."""
        circuits = list(self.context.circuits) if self.context else []
        return len(circuits), sum(len(each.circuit.channels_sid) for each in circuits)

    async def _started(
        self, publishers: Sequence[Publisher], context: Context, server: asyncio.Task[Any]
    ) -> None:
        try:
            await _first(server, asyncio.create_task(context.listening.wait()))
        except (OSError, RuntimeError) as error:
            reason = error.__cause__ or error
            raise UserError(
                f"cannot serve on {', '.join(self.interfaces)} port {context.ca_server_port}: "
                f"{reason}; give addresses of this computer, or another EPICS_CAS_SERVER_PORT"
            ) from error
        if server.done():
            raise UserError("the server ended at once")
        await asyncio.gather(*(in_thread(publisher.device.start) for publisher in publishers))

    def _ready_line(self, count: int, context: Context) -> str:
        port = str(context.ca_server_port)
        if context.port != context.ca_server_port:
            log.warning("TCP port %s is taken; clients connect to %s", port, context.port)
            port += f" (TCP {context.port})"
        prefixes = ", ".join(dict.fromkeys(each[0] for each in self.devices))
        return f"serving {count} PVs under {prefixes} on {', '.join(self.interfaces)} port {port}"

    async def _end(
        self, publishers: Sequence[Publisher], context: Context, tasks: list[asyncio.Task[Any]]
    ) -> None:
        """Stop the devices while clients still see what happens, then the server."""
        for publisher in publishers:
            publisher.stopping = True
        stops = [asyncio.ensure_future(in_thread(each.stop)) for each in publishers]
        done, late = await asyncio.wait(stops, timeout=self.stop_timeout)
        await asyncio.sleep(0.05)  # for the last states to reach the clients
        for circuit in list(context.circuits):
            circuit.client.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stop in done:
            stop.result()
        if late:
            raise StuckError(f"a device did not stop within {self.stop_timeout:g} s; giving up")


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait until one task is done, and raise what it raised; the last one is only waited for."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks[-1].cancel()
    for task in tasks[:-1]:
        if task.done():
            task.result()


def serve(
    devices: Sequence[Publication] | Sequence[tuple[str, Served]],
    interfaces: Sequence[str],
    on_ready: Callable[[str], None] = print,
    health: str | None = None,
) -> None:
    """Serve devices until SIGINT or SIGTERM; a second signal ends the process at once.

    ``devices``: pairs of prefix and device, or with rules as a `Publication`. ``on_ready`` gets one
    line when clients can connect. ``health``: see `Ioc`. Raises UserError.

    Trap: caproto's own runner dies of SIGTERM without any clean-up.
    """

    def ready(line: str) -> None:
        # What there is now stays: the garbage collector need not look through it again and again,
        # which stops everything, acquisition too, for 30 ms and more.
        gc.collect()
        gc.freeze()
        # When clients keep the event loop busy, acquisition waits this long whenever it wants to go
        # on; with Python's 5 ms, and many small steps in a block of samples, it lost some.
        sys.setswitchinterval(0.0005)
        on_ready(line)

    async def main() -> None:
        ioc = Ioc(devices, interfaces, health)
        with _signals(ioc):
            await ioc.run(ready)

    asyncio.run(main())


@contextmanager
def _signals(ioc: Ioc) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    stopping = False

    def received(number: int) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        log.info("%s: stopping", signal.Signals(number).name)
        ioc.stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
