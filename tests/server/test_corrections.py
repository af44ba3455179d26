"""Each correction to caproto does what it is for, and is still needed.

A scenario runs twice, with our class and with caproto's own. When a test fails for caproto's own,
upstream has mended it and the correction can go.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import caproto
import numpy as np
import pytest
from caproto.asyncio import server as caproto_server

from daq_ioc.errors import UserError
from daq_ioc.server import corrections, delivery
from tests.faults.ca import READ_NOTIFY, Client, message
from tests.server.conftest import ServerThread, until
from tests.server.stub import StubDevice


class Stock(corrections.Context):
    """A server with caproto's own circuits and queues."""

    CircuitClass = caproto_server.VirtualCircuit


EITHER = pytest.mark.parametrize(
    ("context", "mended"),
    [
        pytest.param(delivery.Context, True, id="corrected"),
        pytest.param(Stock, False, id="caproto"),
    ],
)


def holds(value: float, update: Any) -> bool:
    return float(update.data[0]) == value


class RawClient:
    """A client that sends what it is told and reads only when told to."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.circuit = caproto.VirtualCircuit(caproto.CLIENT, ("127.0.0.1", port), 0)
        self.received: list[Any] = []
        self.unread: deque[Any] = deque()
        self.send(caproto.VersionRequest(0, 13), caproto.HostNameRequest("h"),
                  caproto.ClientNameRequest("c"))  # fmt: skip

    def send(self, *commands: Any) -> None:
        for buffer in self.circuit.send(*commands):
            self.socket.sendall(bytes(buffer))

    def receive(self) -> None:
        """Read once; what came is in `received` and in `unread`."""
        data = self.socket.recv(65536)
        assert data, "the server closed the connection"
        commands, _ = self.circuit.recv(data)
        for command in commands:
            self.circuit.process_command(command)
            self.received.append(command)
            self.unread.append(command)

    def read_until(self, kind: type, condition: Callable[[Any], bool] = lambda _: True) -> Any:
        """Read until a command of a type comes for which the condition holds; returns it."""
        while True:
            while self.unread:
                command = self.unread.popleft()
                if isinstance(command, kind) and condition(command):
                    return command
            self.receive()

    def channel(self, name: str) -> Any:
        made = caproto.ClientChannel(name, self.circuit)
        self.send(made.create())
        self.read_until(caproto.CreateChanResponse)
        return made


@contextmanager
def raw_client(port: int) -> Iterator[RawClient]:
    client = RawClient(port)
    with closing(client.socket):
        yield client


@EITHER
def test_a_client_that_does_not_read_freezes_no_other(
    serve: Any, device: StubDevice, epics: int, pv: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch, context: Any, mended: bool,
) -> None:  # fmt: skip
    # How much caproto holds before it blocks; smaller than it is, for a short test.
    monkeypatch.setattr(caproto, "MAX_TOTAL_SUBSCRIPTION_BACKLOG", 20)
    serve(context)
    values: list[float] = []
    good = pv("T:CURRENT").subscribe(data_type="time")

    def note(_: Any, response: Any) -> None:
        values.append(float(response.data[0]))

    good.add_callback(note)
    with raw_client(epics) as stalled:
        for name in ("T:TRACE", "T:CURRENT"):
            stalled.send(stalled.channel(name).subscribe(data_type=6, mask=1))
        trace = np.arange(10_000.0)
        for number in range(1, 301):
            device.show(CURRENT=number, TRACE=trace)
            time.sleep(0.005)
        end = time.monotonic() + 3
        while values[-1] != 300 and time.monotonic() < end:
            time.sleep(0.01)
        assert (values[-1] == 300) == mended


def test_a_client_that_does_not_read_costs_little_memory_and_misses_no_newest_value(
    serve: Any, device: StubDevice, epics: int
) -> None:
    server = serve(delivery.Context)
    with raw_client(epics) as stalled:
        for name in ("T:TRACE", "T:STATE", "T:CURRENT"):
            stalled.send(stalled.channel(name).subscribe(data_type=6, mask=1))
        until(lambda: len(server.context.subscriptions) == 3, "the subscriptions")
        (circuit,) = server.context.circuits
        device.show(STATE=2)
        for number in range(1, 1501):
            device.show(CURRENT=number, TRACE=np.full(10_000, float(number)))
            time.sleep(0.002)
        assert 0 < circuit.waiting <= 2 * (10 + 10 + 3)
        assert not circuit.unexpired_updates

        def newest(name: str) -> float:
            channels = stalled.circuit.channels_sid
            added = stalled.circuit.event_add_commands
            updates = [
                command
                for command in stalled.received
                if isinstance(command, caproto.EventAddResponse)
                and channels[added[command.subscriptionid].sid].name == name
            ]
            return float(updates[-1].data[-1]) if updates else -1.0

        while (newest("T:TRACE"), newest("T:CURRENT")) != (1500, 1500):
            stalled.receive()
        assert newest("T:STATE") == 2, "a value that changed once, long ago, is not lost"


@EITHER
def test_a_cancelled_subscription_leaves_nothing_behind(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    server = serve(context)
    with raw_client(epics) as client:
        channel = client.channel("T:CURRENT")
        for _ in range(5):
            added = channel.subscribe(data_type=6, mask=1)
            client.send(added)
            client.read_until(caproto.EventAddResponse)
            client.send(channel.unsubscribe(added.subscriptionid))
            # On the wire the answer to a cancellation is an update without a value.
            client.read_until(caproto.EventAddResponse, lambda each: each.payload_size == 0)
        (served,) = server.context.circuits
        assert (len(served.unexpired_updates) == 0) == mended


@EITHER
def test_clearing_a_channel_with_subscriptions_ends_those_only(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    serve(context)
    with raw_client(epics) as client:
        cleared, kept = client.channel("T:VOLTAGE"), client.channel("T:CURRENT")
        for channel in (cleared, kept):
            client.send(channel.subscribe(data_type=6, mask=1))
            client.read_until(caproto.EventAddResponse)
        client.send(cleared.clear())
        client.read_until(caproto.ClearChannelResponse)
        device.show(VOLTAGE=1.0, CURRENT=1.0)
        time.sleep(0.2)  # caproto's task for this client ends here
        client.socket.settimeout(2)
        device.show(VOLTAGE=2.0, CURRENT=2.0)
        update = None
        with suppress(TimeoutError):
            update = client.read_until(caproto.EventAddResponse, partial(holds, 2.0))
        assert (update is not None) == mended


NOTHING_TO_BE_HAD = [
    ("CURRENT", caproto.ChannelType.PUT_ACKS),
    ("TIME_TEXT", caproto.ChannelType.TIME_DOUBLE),
    ("TIME_TEXT.DESC", caproto.ChannelType.LONG),
]
"""What a client may subscribe to in vain, and as which type."""


@EITHER
def test_a_subscription_to_what_cannot_be_had_keeps_no_update_from_others(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not mended:
        monkeypatch.delattr(corrections.Data, "_read")
    server = serve(context)
    device.show(CURRENT=1.0, TIME_TEXT="now")
    with raw_client(epics) as good, raw_client(epics) as bad:
        for number, (name, kind) in enumerate(NOTHING_TO_BE_HAD):
            channel = bad.channel(f"T:{name}")
            bad.send(caproto.EventAddRequest(kind, 0, channel.sid, number, 0, 0, 0, 1))
        until(lambda: len(server.context.subscriptions) == len(NOTHING_TO_BE_HAD), "them")
        for name in ("CURRENT", "TIME_TEXT"):
            good.send(good.channel(f"T:{name}").subscribe(mask=1))
            good.read_until(caproto.EventAddResponse)
        device.show(CURRENT=2.0, TIME_TEXT="later")
        good.socket.settimeout(2)
        seen = []
        with suppress(TimeoutError):
            for _ in range(2):
                seen.append(good.read_until(caproto.EventAddResponse).data[0])  # noqa: PERF401
        assert (seen == [2.0, b"later"]) == mended


@pytest.mark.parametrize("mended", [True, False], ids=["corrected", "caproto"])
@pytest.mark.parametrize("name", ["CURRENT", "STATE", "TIME_TEXT", "CURRENT.DESC"])
def test_text_is_where_clients_look_for_it(
    serve: Any, device: StubDevice, epics: int, monkeypatch: pytest.MonkeyPatch, mended: bool,
    name: str,
) -> None:  # fmt: skip
    if not mended:
        monkeypatch.delattr(corrections.Data, "_read")
    serve(delivery.Context)
    device.show(CURRENT=1.0, STATE=1, TIME_TEXT="now")
    with Client(epics, "T:") as client:
        sid = client.channel(name).sid
        client.socket.sendall(message(READ_NOTIFY, caproto.ChannelType.CTRL_STRING, 1, sid, 1))
        command, *_, payload = client.receive()
        assert command == READ_NOTIFY
        # Status and severity, then the text: dbr_ctrl_string of EPICS base.
        texts = {"CURRENT": b"1.0000000", "STATE": b"Connecting", "TIME_TEXT": b"now"}
        assert payload[4:].startswith(texts.get(name, b"mean current")) == mended


@EITHER
def test_updates_are_sent_at_once(
    serve: Any, device: StubDevice, epics: int, context: Any, mended: bool
) -> None:
    serve(context)
    delays = []
    with raw_client(epics) as client:
        for name in ("T:CURRENT", "T:VOLTAGE"):
            client.send(client.channel(name).subscribe(data_type=6, mask=1))
            client.read_until(caproto.EventAddResponse)
        # A burst makes caproto hold back what follows; nothing else may.
        for number in range(40):
            began = time.monotonic()
            device.show(CURRENT=number, VOLTAGE=number)
            for _ in range(2):
                client.read_until(caproto.EventAddResponse, partial(holds, number))
            delays.append(time.monotonic() - began)
    assert (np.median(delays) < 0.008) == mended


@pytest.mark.parametrize(
    ("convert", "mended"),
    [(corrections.time_stamp, True), (caproto.TimeStamp.from_unix_timestamp, False)],
)
def test_time_stamps_keep_every_bit_of_the_float(convert: Any, mended: bool) -> None:
    unix = 1_700_000_000.1234567
    stamp = convert(unix)
    whole, fraction = divmod(unix, 1)
    seen = (stamp.secondsSinceEpoch + 631_152_000, stamp.nanoSeconds)
    assert (seen == (int(whole), round(fraction * 1e9))) == mended


def test_time_stamps_at_their_edges() -> None:
    almost = np.nextafter(2_000_000_000.0, 0)
    stamp = corrections.time_stamp(float(almost))
    assert (stamp.secondsSinceEpoch + 631_152_000, stamp.nanoSeconds) == (
        1_999_999_999,
        999_999_762,
    )
    assert tuple(corrections.time_stamp(0.0)) == (0, 0)
    carried = corrections.time_stamp(631_152_001.9999999997)
    assert tuple(carried) == (2, 0)


@pytest.mark.parametrize("mended", [True, False], ids=["corrected", "caproto"])
def test_a_server_on_loopback_sends_beacons_to_loopback_only(
    epics: int, device: StubDevice, monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    monkeypatch.delenv("EPICS_CAS_BEACON_ADDR_LIST")
    monkeypatch.setenv("EPICS_CAS_AUTO_BEACON_ADDR_LIST", "YES")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        monkeypatch.setenv("EPICS_CAS_BEACON_PORT", str(listener.getsockname()[1]))
        if not mended:
            monkeypatch.delattr(corrections.Context, "broadcast_beacon_loop")
        server = ServerThread(("T:", device))
        try:
            until(lambda: server.context.beacon_count, "the first beacon")
            addresses = {address for address, _ in server.context.beacon_socks}
            assert addresses == ({"127.0.0.1"} if mended else {"255.255.255.255"})
            if mended:
                command, _, _, port = struct.unpack(">HHHH", listener.recv(100)[:8])
                assert (command, port) == (13, epics)
        finally:
            server.stop()


def test_the_servers_own_port_variable_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPICS_CA_SERVER_PORT", "EPICS_CAS_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert corrections.server_port() == 5064
    monkeypatch.setenv("EPICS_CA_SERVER_PORT", "6000")
    assert corrections.server_port() == 6000
    monkeypatch.setenv("EPICS_CAS_SERVER_PORT", "7000")
    assert corrections.server_port() == 7000
    monkeypatch.setenv("EPICS_CAS_SERVER_PORT", "many")
    with pytest.raises(UserError, match="EPICS_CAS_SERVER_PORT must be a port, not 'many'"):
        corrections.server_port()


def test_caproto_ignores_the_servers_port_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from caproto.server.common import Context as Stock

    monkeypatch.delenv("EPICS_CA_SERVER_PORT", raising=False)
    monkeypatch.setenv("EPICS_CAS_SERVER_PORT", "7000")
    assert Stock({}, []).ca_server_port == 5064
