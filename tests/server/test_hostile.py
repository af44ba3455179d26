"""What one client does, no other notices; and of what it leaves, nothing stays.

Scenarios run twice, with our classes and with caproto's own, as in `test_corrections`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import caproto
import pytest

from daq_ioc.server import corrections, delivery
from daq_ioc.server.access import Access, Rule
from daq_ioc.server.corrections import Bounded, OneLine
from daq_ioc.server.ioc import Publication
from tests.faults import ca
from tests.server.conftest import ServerThread, until
from tests.server.stub import StubDevice
from tests.server.test_corrections import EITHER, raw_client

NO_ANSWER = 0.3
"""Seconds after which no answer is to be expected any more."""


def in_loop(server: ServerThread, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on the server's loop, and wait for what it returns."""

    async def call() -> Any:
        return function(*arguments)

    return asyncio.run_coroutine_threadsafe(call(), server.loop).result(10)


def the_circuit(server: ServerThread) -> Any:
    until(lambda: server.context.circuits, "the client")
    (circuit,) = server.context.circuits
    return circuit


@contextmanager
def not_reading(server: ServerThread) -> Iterator[Any]:
    """Make the only client one that takes no answers; gives its circuit."""
    circuit = the_circuit(server)
    lock = circuit.client.send_lock
    asyncio.run_coroutine_threadsafe(lock.acquire(), server.loop).result(10)
    try:
        yield circuit
    finally:
        in_loop(server, lock.release)


def patience(expected: bool) -> float:
    """Seconds to wait for something: as long as a slow machine may need if it is expected."""
    return 10.0 if expected else NO_ANSWER


def happens(event: Callable[[], object], expected: bool) -> bool:
    """Whether something comes about."""
    end = time.monotonic() + patience(expected)
    while not (came := bool(event())) and time.monotonic() < end:
        time.sleep(0.01)
    return came


def nobody_took(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Errors of tasks that nobody waited for."""
    gc.collect()
    return [each.getMessage() for each in caplog.records if each.name == "asyncio"]


# ---- channels


@pytest.mark.parametrize(
    "name",
    [
        "T:CURRENT.{", 'T:CURRENT.{"dbnd":{"d":1}}', 'T:CURRENT.{"arr":3}', "T:STATS.[a]",
        "T:STATS.[1:2:3:4]", 'T:CURRENT.{"nonsense":{}}', 'T:CURRENT.{"arr":' + "[" * 9000,
    ],
)  # fmt: skip
@EITHER
def test_a_channel_whose_filter_is_wrong_is_refused(
    serve: Any, epics: int, context: Any, mended: bool, name: str
) -> None:
    serve(context)
    with raw_client(epics) as client:
        client.socket.sendall(ca.message(ca.CREATE_CHAN, p1=77, p2=13, payload=ca.text(name)))
        client.socket.settimeout(patience(mended))
        heard = b""
        with suppress(TimeoutError):
            while struct.pack(">HHHHI", ca.CREATE_CH_FAIL, 0, 0, 0, 77) not in heard:
                heard += client.socket.recv(4096)
        assert (struct.pack(">HHHHI", ca.CREATE_CH_FAIL, 0, 0, 0, 77) in heard) == mended


@EITHER
def test_filters_on_states_that_there_are_not_leave_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        for number in range(5):
            made = caproto.ClientChannel(f'T:CURRENT.{{"while":"s{number}"}}', client.circuit)
            client.send(made.create())
            client.read_until((caproto.CreateChanResponse, caproto.CreateChFailResponse))  # type: ignore[arg-type]
            if made.sid is not None:
                client.send(made.subscribe(mask=1))
        client.channel("T:VOLTAGE")  # all that came before it is done
    if mended:  # caproto keeps some clients for ever
        until(lambda: not server.context.circuits, "the client to be gone")
    channel = server.context["T:CURRENT"]
    assert (len(channel._queues[server.context.subscription_queue]) <= 1) == mended


@EITHER
def test_names_that_there_are_not_leave_nothing(
    serve: Any, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        for number in range(5):
            client.send(caproto.ClientChannel(f"T:NO{number}", client.circuit).create())
            client.read_until(caproto.CreateChFailResponse)
        circuit = the_circuit(server).circuit
        assert happens(lambda: not circuit.channels, mended) == mended


def test_a_client_can_have_only_so_many_channels(
    serve: Any, epics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "CHANNELS", 3)
    serve(delivery.Context)
    with raw_client(epics) as client:
        made = [client.channel("T:CURRENT") for _ in range(3)]
        client.send(caproto.ClientChannel("T:CURRENT", client.circuit).create())
        client.read_until(caproto.CreateChFailResponse)
        client.send(made[0].clear())
        client.read_until(caproto.ClearChannelResponse)
        client.channel("T:VOLTAGE")


# ---- subscriptions


def test_a_client_can_subscribe_only_to_so_much(
    serve: Any, device: StubDevice, epics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "SUBSCRIBED", 100_000)
    server = serve(delivery.Context)
    with raw_client(epics) as client:
        trace, current = client.channel("T:TRACE"), client.channel("T:CURRENT")
        first = trace.subscribe(data_type=6, mask=1)  # 80 000 bytes
        client.send(first)
        client.read_until(caproto.EventAddResponse)
        client.send(trace.subscribe(data_type=6, mask=1))
        refused = client.read_until(caproto.ErrorResponse)
        assert refused.status.name == "ECA_ALLOCMEM"
        client.send(*(current.subscribe(data_type=6, mask=1) for _ in range(15)))
        client.read_until(caproto.ErrorResponse)
        client.send(trace.unsubscribe(first.subscriptionid))
        client.read_until(caproto.EventAddResponse, lambda each: each.payload_size == 0)
        client.send(trace.subscribe(data_type=6, mask=1, data_count=5))
        client.read_until(caproto.EventAddResponse, lambda each: each.data_count == 5)
    until(lambda: not server.context.circuits, "the client to be gone")
    assert not server.context.subscriptions


def test_two_subscriptions_cannot_have_one_number(
    serve: Any, device: StubDevice, epics: int
) -> None:
    server = serve(delivery.Context)
    with raw_client(epics) as client:
        for name in ("T:CURRENT", "T:VOLTAGE"):
            channel = client.channel(name)
            client.send(channel.subscribe(data_type=6, mask=1, subscriptionid=5))
        refused = client.read_until(caproto.ErrorResponse)
        assert refused.status.name == "ECA_BADMONID"
        assert len(server.context.subscriptions) == 1
        device.show(CURRENT=3.0)
        client.read_until(caproto.EventAddResponse, lambda each: each.data[0] == 3.0)


@EITHER
def test_masks_and_filters_leave_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        for mask in range(1, 6):
            channel = client.channel(f"T:STATS.[0:{mask}]")
            added = channel.subscribe(data_type=6, mask=mask)
            client.send(added)
            client.read_until(caproto.EventAddResponse)
            client.send(channel.unsubscribe(added.subscriptionid))
            client.read_until(caproto.EventAddResponse, lambda each: each.payload_size == 0)
        circuit = the_circuit(server)
        kept = server.context.subscriptions, circuit.subscriptions
        assert happens(lambda: not any(kept), mended) == mended


@EITHER
def test_dead_bands_of_clients_that_are_gone_leave_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        channel = client.channel('T:CURRENT.{"dbnd":{"abs":1}}')
        client.send(channel.subscribe(mask=1))
        client.read_until(caproto.EventAddResponse)
        assert server.context.last_dead_band
    assert happens(lambda: not server.context.last_dead_band, mended) == mended


@EITHER
def test_a_channel_that_the_server_closes_takes_its_subscriptions_along(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        channel = client.channel("T:CURRENT")
        client.send(channel.subscribe(data_type=6, mask=1, subscriptionid=5))
        client.read_until(caproto.EventAddResponse)
        client.socket.sendall(ca.message(2, 6, 0, channel.sid, 99))  # cancels what there is not
        client.read_until(caproto.ServerDisconnResponse)
        circuit = the_circuit(server)
        kept = circuit.circuit.event_add_commands, server.context.subscriptions
        assert happens(lambda: not any(kept), mended) == mended


@EITHER
def test_clearing_channels_leaves_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        for _ in range(3):
            channel = client.channel("T:CURRENT")
            client.send(channel.subscribe(data_type=6, mask=1))
            client.read_until(caproto.EventAddResponse)
            client.send(channel.clear())
            client.read_until(caproto.ClearChannelResponse)
        kept = the_circuit(server).circuit.event_add_commands
        assert happens(lambda: not kept, mended) == mended


MANY = 500


@pytest.mark.parametrize("mended", [True, False], ids=["corrected", "caproto"])
def test_leaving_with_many_subscriptions_stops_nobody(
    serve: Any, device: StubDevice, epics: int, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mended:
        monkeypatch.setattr(corrections, "_Subscriptions", deque)
    compared = 0

    def equal(self: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    monkeypatch.setattr(delivery.Circuit, "__eq__", equal)
    server = serve(delivery.Context)
    with raw_client(epics) as first, raw_client(epics) as second:
        for client in (first, second):
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sid = client.channel("T:CURRENT").sid
            mask = struct.pack(">fffHH", 0, 0, 0, 1, 0)
            asked = (ca.message(ca.EVENT_ADD, 6, 0, sid, k, mask) for k in range(MANY))
            client.socket.sendall(b"".join(asked))
        count = server.context.subscriptions
        until(lambda: sum(map(len, count.values())) == 2 * MANY, "all subscriptions")
        circuit = next(
            each
            for each in server.context.circuits
            if each.circuit.address == second.socket.getsockname()
        )
        compared = 0
        asyncio.run_coroutine_threadsafe(circuit._on_disconnect(), server.loop).result(30)
        assert (compared < 10 * MANY) == mended


# ---- requests that fail


@EITHER
def test_requests_that_fail_leave_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    device.show(TIME_TEXT="now")
    server = serve(context)
    with raw_client(epics) as client:
        text, setting = client.channel("T:TIME_TEXT"), client.channel("T:dt")
        for _ in range(3):
            client.send(text.read(data_type=caproto.ChannelType.DOUBLE))
            client.read_until(caproto.ErrorResponse)
            client.send(setting.write([99.0], notify=True))
            client.read_until(caproto.ErrorResponse)
        for number in range(3):
            no_type = ca.message(ca.EVENT_ADD, 77, 0, setting.sid, number, bytes(16))
            client.socket.sendall(no_type)

        def kept() -> int:
            circuits = [each.circuit for each in server.context.circuits]
            return sum(len(each._ioids) + len(each.event_add_commands) for each in circuits)

        if mended:
            client.channel("T:CURRENT")  # all that came before it is done; caproto hangs up
        assert happens(lambda: kept() == 0, mended) == mended


@EITHER
def test_a_put_whose_channel_is_closed_meanwhile_is_no_error(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device.delay = 0.1
    serve(context)
    with raw_client(epics) as client:
        for name in ("T:dt", "T:FRAGILE"):  # one is accepted, the other fails
            channel = client.channel(name)
            client.send(channel.write([0.5], notify=True), channel.clear())
        until(lambda: device.puts, "the put")
        client.channel("T:CURRENT")  # still answered
        assert happens(lambda: nobody_took(caplog), not mended) == (not mended)


@EITHER
def test_two_puts_of_one_number_are_no_error(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device.delay = 0.1
    serve(context)
    with raw_client(epics) as client:
        channel = client.channel("T:dt")
        client.send(*(channel.write([0.5], notify=True, ioid=7) for _ in range(2)))
        until(lambda: len(device.puts) == 2, "both puts")
        client.channel("T:CURRENT")
        assert happens(lambda: nobody_took(caplog), not mended) == (not mended)


@EITHER
def test_a_put_does_not_have_more_strings_made_than_were_sent(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    serve(context)
    with raw_client(epics) as client:
        channel = client.channel("T:NOTE")
        head = struct.pack(">HHHHIIII", 19, 0xFFFF, 0, 0, channel.sid, 1, 8, 1_000_000)
        client.socket.sendall(head + b"hello\0\0\0")
        refused = client.read_until(caproto.ErrorResponse)
        assert (refused.status.name == "ECA_BADCOUNT") == mended
        assert not device.puts


# ---- too much at once


@EITHER
def test_a_client_that_goes_while_it_is_waited_for_leaves_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(caproto, "MAX_COMMAND_BACKLOG", 100)  # to have a short test
    server = serve(context)
    with raw_client(epics) as client:
        sid = client.channel("T:CURRENT").sid
        requests = b"".join(ca.message(ca.READ_NOTIFY, 6, 0, sid, k) for k in range(10_000))
        with not_reading(server) as circuit:
            client.socket.sendall(requests)
            until(lambda: circuit.command_queue.full(), "the queue to be full")
            assert (circuit.command_queue.qsize() == corrections.COMMANDS) == mended
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
    assert happens(lambda: not server.context.server_tasks.tasks, mended) == mended
    if mended:
        assert not circuit.tasks.tasks
        assert not server.context.circuits


@EITHER
def test_a_message_without_end_is_not_kept(
    serve: Any, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        channel = client.channel("T:NOTE")
        circuit = the_circuit(server)
        head = struct.pack(">HHHHIIII", 4, 0xFFFF, 4, 0, channel.sid, 1, 1 << 31, 1 << 31)
        with suppress(OSError):
            client.socket.sendall(head + bytes(1_000_000))
        assert happens(lambda: len(circuit.circuit._data) > 500_000, not mended) == (not mended)
        assert happens(lambda: circuit not in server.context.circuits, mended) == mended
        if mended:
            until(lambda: not circuit.tasks.tasks, "its tasks to be gone")


@EITHER
def test_commands_in_a_flood_are_taken_in_turns(
    serve: Any, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    turns = 0
    at: list[int] = []
    ended = threading.Event()

    async def count() -> None:
        nonlocal turns
        while not ended.is_set():
            turns += 1
            await asyncio.sleep(0)

    with raw_client(epics) as client:
        client.channel("T:CURRENT")
        circuit = the_circuit(server)
        process = circuit._process_command

        async def noted(command: Any) -> Any:
            at.append(turns)
            return await process(command)

        circuit._process_command = noted
        counting = asyncio.run_coroutine_threadsafe(count(), server.loop)
        client.socket.sendall(ca.message(23) * 2000)
        until(lambda: len(at) == 2000, "all of them to be processed")
        ended.set()
        counting.result(10)
    most = max(at.count(turn) for turn in set(at))
    assert (most == 1) == mended


@pytest.mark.parametrize("mended", [True, False], ids=["corrected", "caproto"])
def test_a_request_for_thousands_of_names_is_ignored(
    serve: Any, epics: int, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mended:
        monkeypatch.delattr(corrections.Context, "_broadcaster_recv_datagram")
    server = serve(delivery.Context)
    (before,) = server.context.udp_socks.values()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as udp:
        udp.settimeout(5)
        udp.connect(("127.0.0.1", epics))
        name = struct.pack(">HHHHII", 6, 4, 5, 13, 1, 1) + b"T:dt"
        udp.send(ca.message(0, 0, 13) + name * 3000)
        # Another where an answer was too long.
        another = happens(lambda: before not in server.context.udp_socks.values(), not mended)
        assert another == (not mended)
        if not mended:
            return
        udp.send(ca.search("T:CURRENT", 9))
        assert struct.pack(">I", 9) in udp.recv(4096)
        udp.send(ca.message(0, 0, 13) + name * 60)  # as many as a frame holds
        assert len(udp.recv(4096)) >= 60 * 24


# ---- connections


def test_some_open_files_are_kept_from_clients(
    serve: Any, epics: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    server = serve(delivery.Context)
    idle = [socket.create_connection(("127.0.0.1", epics)) for _ in range(50)]
    until(lambda: len(server.context.circuits) == 50, "the clients")
    for _ in range(3):
        with closing(socket.create_connection(("127.0.0.1", epics))) as one_more:
            one_more.settimeout(5)
            assert one_more.recv(100) == b""
    assert caplog.text.count("more cannot connect") == 1
    for each in idle:
        each.close()
    until(lambda: not server.context.circuits, "the clients to be gone")
    with raw_client(epics) as client:
        client.channel("T:CURRENT")


@EITHER
def test_computers_that_are_gone_are_noticed(
    serve: Any, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics):
        connection = the_circuit(server).client.writer.get_extra_info("socket")
        alive = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert bool(alive) == mended


# ---- corrections of the circuit


@EITHER
def test_a_client_that_breaks_the_protocol_is_hung_up_on(
    serve: Any, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        client.channel("T:CURRENT")
        circuit = the_circuit(server)
        client.socket.sendall(ca.message(0, 50, 13))  # another priority than at first
        client.socket.settimeout(patience(mended))
        ended = False
        with suppress(TimeoutError):
            ended = client.socket.recv(100) == b""
        assert ended == mended
        assert happens(lambda: circuit not in server.context.circuits, mended) == mended


@EITHER
def test_rights_are_those_of_where_a_client_really_is(
    epics: int, device: StubDevice, context: Any, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daq_ioc.server.ioc.Context", context)
    here = Rule(write=("setting",), networks=("127.0.0.0/8",))
    server = ServerThread(Publication("T:", device, access=Access([here])))
    try:
        with raw_client(epics) as client:
            channel = client.channel("T:dt")
            assert (caproto.AccessRights.WRITE in channel.access_rights) == mended
    finally:
        server.stop()


@EITHER
def test_a_client_cannot_become_another_once_it_has_channels(
    epics: int, device: StubDevice, context: Any, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daq_ioc.server.ioc.Context", context)
    rules = [Rule(write=("setting",), users=("operator",))]
    server = ServerThread(Publication("T:", device, access=Access(rules)))
    try:
        with raw_client(epics) as client:
            channel = client.channel("T:dt")
            assert caproto.AccessRights.WRITE not in channel.access_rights
            client.send(caproto.ClientNameRequest("operator"), channel.write([0.5], notify=True))
            client.channel("T:CURRENT")  # still answered
            assert happens(lambda: device.puts, not mended) == (not mended)
    finally:
        server.stop()


@EITHER
def test_what_is_not_channel_access_leaves_no_task(
    serve: Any, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        circuit = the_circuit(server)
        client.socket.sendall(ca.message(999))
        until(lambda: circuit not in server.context.circuits, "the server to hang up")
        assert happens(lambda: not circuit.tasks.tasks, mended) == mended


@EITHER
def test_a_client_that_goes_while_it_is_sent_updates_leaves_nothing(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        client.send(client.channel("T:CURRENT").subscribe(data_type=6, mask=1))
        client.read_until(caproto.EventAddResponse)
        with not_reading(server) as circuit:
            device.show(CURRENT=1.0)
            time.sleep(0.1)  # caproto waits for more to come
            client.socket.close()
            assert happens(lambda: circuit not in server.context.circuits, mended) == mended


@EITHER
def test_updates_that_are_the_first_to_find_the_client_gone_take_all_down(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(caproto, "MAX_COMMAND_BACKLOG", 100)
    server = serve(context)
    with raw_client(epics) as client:
        channel = client.channel("T:CURRENT")
        client.send(channel.subscribe(data_type=6, mask=1))
        client.read_until(caproto.EventAddResponse)
        with not_reading(server) as circuit:
            device.show(CURRENT=1.0)
            time.sleep(0.1)
            reads = (ca.message(ca.READ_NOTIFY, 6, 0, channel.sid, k) for k in range(1000))
            client.socket.sendall(b"".join(reads))  # so that it does not wait for the end of them
            until(lambda: circuit.command_queue.full(), "the queue to be full")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()

    def gone() -> bool:
        return not circuit.tasks.tasks and not server.context.circuits

    assert (happens(gone, mended) and nobody_took(caplog) == []) == mended


@pytest.mark.parametrize("mended", [True, False], ids=["corrected", "caproto"])
def test_the_log_has_a_line_for_what_clients_do_wrong_and_no_traceback(
    serve: Any, device: StubDevice, epics: int, mended: bool, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shown = logging.StreamHandler()
    loggers = [logging.getLogger(f"caproto.{name}") for name in ("circ", "ctx", "bcast")]
    for logger in loggers:
        monkeypatch.setattr(logger, "filters", [])
        logger.addHandler(shown)
    if not mended:
        monkeypatch.setattr("daq_ioc.server.ioc.quieten", lambda: None)
    device.show(TIME_TEXT="now")
    try:
        serve(delivery.Context)
        corrections.quieten() if mended else None  # twice changes nothing
        with raw_client(epics) as client:
            client.send(client.channel("T:TIME_TEXT").read(data_type=caproto.ChannelType.DOUBLE))
            client.read_until(caproto.ErrorResponse)
            client.send(client.channel("T:dt").write([99.0], notify=True))
            client.read_until(caproto.ErrorResponse)
    finally:
        for logger in loggers:
            logger.removeHandler(shown)
    kinds = [[type(each) for each in logger.filters] for logger in loggers]
    assert kinds == ([[OneLine, Bounded]] * 3 if mended else [[]] * 3)
    told = capfd.readouterr().err
    assert ("Traceback" not in told) == mended
    assert ("Invalid write request" not in told) == mended  # told by us, with who and why
    assert told.count("not to be had as DOUBLE") == 1 if mended else True


def test_the_log_does_not_grow_with_every_put(
    serve: Any, device: StubDevice, epics: int, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(corrections, "LINES", 20)
    monkeypatch.setattr(logging.getLogger("daq_ioc.server.channels"), "filters", [])
    serve(delivery.Context)
    with raw_client(epics) as client:
        channel = client.channel("T:dt")
        for _ in range(100):
            client.send(channel.write([99.0], notify=True))
            client.read_until(caproto.ErrorResponse)
    told = [each.getMessage() for each in caplog.records if "refused T:dt" in each.getMessage()]
    assert 20 <= len(told) <= 40  # a new minute may have begun
    assert told[19].endswith("not 99; more in this minute is left out")
