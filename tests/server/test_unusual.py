"""Puts and requests that are unusual, and readings that cannot be shown."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterator
from typing import Any

import caproto
import numpy as np
import pytest

from daq_ioc.attributes import Reading
from daq_ioc.server import ioc
from daq_ioc.server.channels import Channel, as_text, as_texts
from daq_ioc.server.fields import TEXT_LENGTH
from tests.faults import ca
from tests.server.conftest import ServerThread, until
from tests.server.stub import StubDevice
from tests.server.test_corrections import RawClient, raw_client

CHAR = caproto.ChannelType.CHAR


@pytest.fixture
def client(server: ServerThread, epics: int) -> Iterator[RawClient]:
    with raw_client(epics) as made:
        yield made


def reason(client: RawClient, kind: int, count: int, data: bytes, name: str) -> str:
    """Why a put is refused; empty if it is not."""
    sid = client.channel(f"T:{name}").sid
    client.send(caproto.WriteNotifyRequest(data, kind, count, sid, 7))
    answer = client.read_until((caproto.ErrorResponse, caproto.WriteNotifyResponse))  # type: ignore[arg-type]
    if isinstance(answer, caproto.WriteNotifyResponse):
        return ""
    told = bytes(answer.error_message)
    assert told.endswith(b"\0")  # clients print until there
    return told.rstrip(b"\0").decode()


@pytest.mark.parametrize(
    ("name", "kind", "count", "data"),
    [
        ("dt", ca.DOUBLE, 3, struct.pack(">3d", 1, 2, 3)),
        ("POINTS", ca.LONG, 2, struct.pack(">2i", 10, 20)),
        ("I_RANGE", ca.STRING, 2, b"auto".ljust(40, b"\0") * 2),
        ("NOTE", ca.STRING, 2, b"hello".ljust(40, b"\0") * 2),
        ("NOTE", ca.CHAR, TEXT_LENGTH + 1, b"x" * (TEXT_LENGTH + 1)),
        ("dt", ca.CHAR, 8, b"1.000000"),
    ],
)
def test_more_elements_than_a_pv_has_are_refused(
    client: RawClient, device: StubDevice, name: str, kind: int, count: int, data: bytes
) -> None:
    assert f"{name} takes at most" in reason(client, kind, count, data, name)
    assert not device.puts


def test_as_many_elements_as_a_pv_has_are_taken(client: RawClient, device: StubDevice) -> None:
    text = b"x" * (TEXT_LENGTH - 1)
    assert not reason(client, ca.CHAR, TEXT_LENGTH, text + b"\0", "NOTE")
    assert not reason(client, ca.STRING, 1, b"short\0", "NOTE")  # without the rest of 40 bytes
    assert not reason(client, ca.DOUBLE, 1, struct.pack(">d", 0.5), "dt")
    assert device.puts == [("NOTE", text.decode()), ("NOTE", "short"), ("dt", 0.5)]


@pytest.mark.parametrize("kind", [37, 38])
def test_what_is_for_reading_only_cannot_be_put(
    client: RawClient, device: StubDevice, kind: int
) -> None:
    assert "cannot be put as" in reason(client, kind, 1, bytes(48), "NOTE")
    assert not device.puts


def test_a_reason_and_a_client_are_told_in_a_few_words(
    client: RawClient, device: StubDevice, caplog: pytest.LogCaptureFixture
) -> None:
    client.send(caproto.ClientNameRequest("u" * 30_000), caproto.HostNameRequest("h" * 30_000))
    told = reason(client, ca.STRING, 1, ("é" * 19).encode() + b"\0", "dt")
    assert "takes a number, not 'éé" in told
    assert len(told) < 500
    assert caplog.records
    assert all(len(each.getMessage()) < 1200 for each in caplog.records)


def test_alarms_are_acknowledged_only_by_those_who_may_write(
    client: RawClient, device: StubDevice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "daq_ioc")
    assert "read only" in reason(client, 36, 1, struct.pack(">H", 3), "CURRENT")
    assert not reason(client, 36, 1, struct.pack(">H", 3), "dt")
    assert "refused T:CURRENT = 'PUT_ACKS' from 'c' on 'h' (127.0.0.1)" in caplog.text
    assert "put T:dt = 'PUT_ACKS' from 'c' on 'h' (127.0.0.1)" in caplog.text
    assert not device.puts


@pytest.mark.parametrize("count", [0, 5, 61])
def test_a_text_as_long_string_has_as_many_letters_as_are_asked_for(
    client: RawClient, device: StubDevice, count: int
) -> None:
    device.show(TIME_TEXT="2026-11-21")
    channel = client.channel("T:TIME_TEXT.VAL$")
    client.send(caproto.EventAddRequest(CHAR, count, channel.sid, 1, 0, 0, 0, 1))
    update = client.read_until(caproto.EventAddResponse)
    assert bytes(update.data[: count or None]).rstrip(b"\0") == b"2026-11-21"[: count or None]
    assert update.data_count == (count or 10)


def test_numbers_as_text_are_the_same_in_every_type(client: RawClient, device: StubDevice) -> None:
    device.show(STATS=np.array([1.0, np.nan, -2.5]))
    channel = client.channel("T:STATS")
    for kind in (0, 7, 14, 21):
        client.send(channel.read(data_type=kind))
        answer = client.read_until(caproto.ReadNotifyResponse)
        assert list(answer.data) == [b"1.000000", b"nan", b"-2.500000"]
        if kind:
            assert (answer.metadata.severity, answer.metadata.status) == (0, 0)
    device.show(STATS=np.array([3.0]))
    client.send(channel.read(data_type=14))
    assert list(client.read_until(caproto.ReadNotifyResponse).data) == [b"3.000000"]


@pytest.mark.parametrize("precision", [0, 3, 8, 9, 20])
def test_many_numbers_as_text_are_what_each_of_them_is(precision: int) -> None:
    numbers = np.array([0.0, -0.0, 1.5, -2e-7, 1e7, 1e8, -1e17, 5e-324, np.nan, np.inf, -np.inf])
    each = [as_text(number, precision).encode() for number in numbers]
    assert as_texts(numbers, precision) == each
    assert [as_texts(number, precision) for number in numbers] == [[one] for one in each]


# ---- readings that cannot be shown


@pytest.mark.parametrize("error", [RuntimeError("broken"), OverflowError(), AttributeError("x")])
def test_a_pv_that_cannot_be_shown_stops_no_other_and_is_told_once(
    client: RawClient, device: StubDevice, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, error: Exception,
) -> None:  # fmt: skip
    show = Channel.show
    broken = True

    async def sometimes(self: Channel, reading: Reading) -> None:
        if broken and self.row.attribute.name == "CURRENT":
            raise error
        await show(self, reading)

    monkeypatch.setattr(Channel, "show", sometimes)
    for name in ("CURRENT", "VOLTAGE"):
        client.send(client.channel(f"T:{name}").subscribe(data_type=6, mask=1))
        client.read_until(caproto.EventAddResponse)

    def shown(value: float) -> Any:
        device.show(CURRENT=value, VOLTAGE=value)
        return client.read_until(caproto.EventAddResponse, lambda each: each.data[0] == value)

    for value in (1.0, 2.0, 3.0):
        shown(value)
    assert caplog.text.count("T:CURRENT cannot show") == 1
    broken = False
    shown(4.0)
    client.read_until(caproto.EventAddResponse, lambda each: each.data[0] == 4.0)
    broken = True
    for value in (5.0, 6.0):
        shown(value)
    assert caplog.text.count("T:CURRENT cannot show") == 2


def test_text_that_is_no_unicode_is_shown_as_far_as_it_is(
    client: RawClient, device: StubDevice
) -> None:
    """Names of files may have such bytes."""
    device.show(FILE="/data/\udcff.jls")
    client.send(client.channel("T:FILE").read(data_type=CHAR))
    assert bytes(client.read_until(caproto.ReadNotifyResponse).data) == b"/data/?.jls"


def test_others_have_a_turn_while_much_is_published(
    server: ServerThread, device: StubDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ioc, "TURN", -1.0)
    turns = 0
    shown: list[int] = []
    show = Channel.show

    async def noted(self: Channel, reading: Reading) -> None:
        shown.append(turns)
        await show(self, reading)

    async def count() -> None:
        nonlocal turns
        while len(shown) < 4:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Channel, "show", noted)
    counting = asyncio.run_coroutine_threadsafe(count(), server.loop)
    until(lambda: turns, "turns")
    device.show(CURRENT=1.0, VOLTAGE=1.0, COUNT=1, STATE=1)
    counting.result(10)
    assert len(set(shown)) == 4
