"""How updates reach clients: none missing, in order, whatever the client asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import caproto
import numpy as np
import pytest

from daq_ioc.attributes import Attribute, Kind
from tests.server.conftest import ServerThread, run_client, until
from tests.server.stub import StubDevice
from tests.server.test_corrections import RawClient, raw_client


def test_a_panel_of_200_channels_opened_at_once_loses_no_first_value(epics: int) -> None:
    names = [f"V{number}" for number in range(200)]
    device = StubDevice(attributes=tuple(Attribute(n, Kind.DOUBLE, "x") for n in names))
    server = ServerThread(("P:", device))
    done = threading.Event()

    def count() -> None:
        number = 0
        while not done.wait(0.02):
            number += 1
            # Half of them never change after the first time: theirs comes once or never.
            device.show_all(dict.fromkeys(names[: 100 if number > 1 else 200], number))

    counting = threading.Thread(target=count)
    counting.start()
    try:
        with ThreadPoolExecutor() as pool:
            panels = [pool.submit(run_client, "panel.py", "P:", "200") for _ in range(3)]
            seen = [panel.result() for panel in panels]
    finally:
        done.set()
        counting.join()
        server.stop()
    assert seen == [{"initial": 200, "backward": 0}] * 3


@pytest.fixture
def client(server: ServerThread, epics: int) -> Iterator[RawClient]:
    with raw_client(epics) as made:
        yield made


def update(client: RawClient) -> caproto.EventAddResponse:
    return client.read_until(caproto.EventAddResponse)


@pytest.mark.parametrize(
    ("asked", "got"), [(0, [1, 2, 3]), (2, [1, 2]), (3, [1, 2, 3]), (5, [1, 2, 3, 0, 0])]
)
def test_as_many_elements_as_asked_for(
    client: RawClient, device: StubDevice, asked: int, got: list[float]
) -> None:
    device.show(STATS=np.array([1.0, 2.0, 3.0]))
    channel = client.channel("T:STATS")
    client.send(
        caproto.EventAddRequest(caproto.ChannelType.TIME_DOUBLE, asked, channel.sid, 7, 0, 0, 0, 1)
    )
    assert update(client).data.tolist() == got


def test_each_gets_the_type_it_asked_for(client: RawClient, device: StubDevice) -> None:
    device.show(CURRENT=2.0)
    for kind in (caproto.ChannelType.DOUBLE, caproto.ChannelType.TIME_LONG):
        client.send(client.channel("T:CURRENT").subscribe(data_type=kind, mask=1))
        assert update(client).data_type == kind
    device.show(CURRENT=3.0)
    assert {(each.data_type.name, each.data[0]) for each in (update(client), update(client))} == {
        ("DOUBLE", 3.0), ("TIME_LONG", 3),
    }  # fmt: skip


def test_a_large_array_comes_whole(client: RawClient, device: StubDevice) -> None:
    trace = np.linspace(0, 1, 10_000)
    device.show(TRACE=trace)
    client.send(client.channel("T:TRACE").subscribe(data_type=6, mask=1))
    assert np.array_equal(update(client).data, trace)


def test_a_client_that_wants_nothing_now_gets_the_newest_when_it_wants_again(
    client: RawClient, server: ServerThread, device: StubDevice
) -> None:
    device.show(CURRENT=0.0)
    client.send(client.channel("T:CURRENT").subscribe(data_type=6, mask=1))
    update(client)
    client.send(caproto.EventsOffRequest())
    (circuit,) = server.context.circuits
    until(lambda: not circuit.events_on.is_set(), "events to be off")
    for number in range(1, 30):
        device.show(CURRENT=number)
        time.sleep(0.005)
    client.send(caproto.EventsOnRequest())
    assert update(client).data[0] == 29


def test_array_filters_are_applied(client: RawClient, device: StubDevice) -> None:
    device.show(STATS=np.arange(15.0))
    channel = client.channel("T:STATS.[2:4]")
    client.send(
        caproto.EventAddRequest(caproto.ChannelType.TIME_DOUBLE, 0, channel.sid, 7, 0, 0, 0, 1)
    )
    assert update(client).data.tolist() == [2, 3, 4]
    device.show(STATS=np.arange(15.0) * 2)
    assert update(client).data.tolist() == [4, 6, 8]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CURRENT", caproto.ChannelType.PUT_ACKS),
        ("TIME_TEXT", caproto.ChannelType.CTRL_DOUBLE),
        ("TIME_TEXT", caproto.ChannelType.ENUM),
        ("TIME_TEXT.DESC", caproto.ChannelType.TIME_LONG),
        ('TRACE.{"arr":{"i":0}}', caproto.ChannelType.DOUBLE),
        ('TIME_TEXT.{"dbnd":{"abs":1}}', caproto.ChannelType.STRING),
    ],
)
def test_a_client_is_told_that_a_value_cannot_be_had_as_it_wants_it(
    client: RawClient, device: StubDevice, name: str, kind: caproto.ChannelType
) -> None:
    device.show(CURRENT=1.0, TIME_TEXT="now", TRACE=np.ones(3))
    channel = client.channel(f"T:{name}")
    client.send(caproto.EventAddRequest(kind, 0, channel.sid, 7, 0, 0, 0, 1))
    answer = update(client)
    if "dbnd" in name:  # the first value needs no comparing
        device.show(TIME_TEXT="later")
        answer = update(client)
    assert answer.status.name == "ECA_GETFAIL"
    assert (answer.data_type, answer.subscriptionid) == (kind, 7)


def test_text_is_a_number_when_it_reads_as_one(client: RawClient, device: StubDevice) -> None:
    """As from EPICS base; and the updates come again once there is something to be had."""
    device.show(TIME_TEXT="1.5")
    channel = client.channel("T:TIME_TEXT")
    client.send(channel.subscribe(data_type=caproto.ChannelType.DOUBLE, mask=1))
    assert update(client).data[0] == 1.5
    device.show(TIME_TEXT="now")
    assert update(client).status.name == "ECA_GETFAIL"
    device.show(TIME_TEXT="2.5")
    answer = update(client)
    assert (answer.status.name, answer.data[0]) == ("ECA_NORMAL", 2.5)


def test_clients_that_come_and_go_leave_nothing(server: ServerThread, epics: int) -> None:
    for _ in range(5):
        with raw_client(epics) as client:
            client.send(client.channel("T:CURRENT").subscribe(data_type=6, mask=1))
            update(client)
    until(lambda: not server.context.circuits, "the circuits to be gone")
    until(lambda: not any(server.context.subscriptions.values()), "the subscriptions to be gone")
