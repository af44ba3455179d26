"""The client against servers of our own: values of every kind, puts, subscriptions, failures."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from daq_ioc.attributes import Severity, Status
from daq_ioc.client import Client, ClientError, Reading
from daq_ioc.errors import UserError
from tests.server.conftest import ServerThread, until
from tests.server.stub import StubDevice

STAMP = 1_700_000_000.25


@pytest.fixture
def device() -> StubDevice:
    return StubDevice()


@pytest.fixture
def server(epics: int, device: StubDevice) -> Iterator[ServerThread]:
    running = ServerThread(("T:", device))
    device.show(
        at=STAMP, CURRENT=1.5e-3, STATS=np.arange(15.0), COUNT=7, TIME_TEXT="größer",
        FILE="/data/" + "µ" * 50 + ".jls", STATE=2, dt=0.5, POINTS=100, I_RANGE=0, NOTE="",
    )  # fmt: skip
    yield running
    running.stop()


@pytest.fixture
def client(server: ServerThread) -> Iterator[Client]:
    with Client("T:", timeout=20) as made:
        yield made


def test_values_of_every_kind(client: Client) -> None:
    current = client.current.read()
    assert current.data.dtype == np.dtype("=f8")
    assert current.data.tolist() == [1.5e-3]
    assert current.text == "0.0015"
    assert current.time == pytest.approx(STAMP, abs=1e-6)
    assert (current.severity, current.status) == (0, 0)
    assert client.stats.read().data.tolist() == list(range(15))
    assert client.count.read().data.tolist() == [7]
    assert client.time_text.read().data.tolist() == ["größer"]
    assert client.time_text.read().text == "größer"
    assert client.file.read().text == "/data/" + "µ" * 50 + ".jls"
    state = client.state.read()
    assert (state.data.tolist(), state.text) == ([2], "Streaming")
    undefined = client.voltage.read()
    assert (undefined.severity, undefined.status) == (3, 17)
    assert client["CURRENT.EGU"].read().text == "A"


def test_names_are_those_of_the_pvs_in_any_case_but_exact_in_brackets(client: Client) -> None:
    assert client.dt.read().data == client["dt"].read().data == 0.5
    assert client.i_range is client.i_range
    assert client.CURRENT.read().data == client.current.read().data
    with pytest.raises(ClientError, match="no server has T:current;"):
        client["current"].read(timeout=0.5)
    assert not hasattr(client, "__array__"), "what Python looks for is no PV"


def test_a_written_value_is_there_when_write_returns(client: Client, device: StubDevice) -> None:
    device.delay = 0.05
    client.dt.write(0.25)
    assert client.dt.read().data == 0.25
    client.points.write(np.int32(12))
    client.i_range.write("10 A")
    assert client.i_range.read().text == "10 A"
    client.i_range.write(3)
    assert client.i_range.read().text == "off"
    client.note.write("länger " * 20)
    assert client.note.read().text == "länger " * 20
    assert [value for _, value in device.puts] == [0.25, 12, 1, 3, "länger " * 20]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dt", 99.0, "T:dt refused 99.0: dt takes 0.05 to 10.0, not 99"),
        ("i_range", "7 A", "T:I_RANGE refused '7 A': .*takes one of: auto, 10 A, 2 A, off"),
        ("current", 1.0, "T:CURRENT refused 1.0: .*read only"),
        ("fragile", 1.0, "T:FRAGILE refused 1.0: it broke"),
        ("dt", [1.0, 2.0], "T:dt takes at most 1 values, not 2"),
        ("dt", None, "T:dt takes numbers or text, not None"),
    ],
)
def test_a_refused_value_says_why_at_once(
    client: Client, device: StubDevice, name: str, value: object, message: str
) -> None:
    client.timeout = 60  # which nobody should wait for
    began = time.monotonic()
    with pytest.raises(ClientError, match=message):
        getattr(client, name).write(value)
    assert time.monotonic() - began < 30
    assert device.puts == []


def test_a_put_that_takes_longer_than_the_time_out(client: Client, device: StubDevice) -> None:
    assert client.dt.read().data == 0.5
    device.delay = 1.0
    with pytest.raises(ClientError, match="T:dt cannot be written: no answer in time"):
        client.dt.write(1.0, timeout=0.1)
    client.points.write(5)  # waits for its turn
    assert client.dt.read().data == 1.0


class Listener:
    def __init__(self) -> None:
        self.seen: list[Reading] = []

    def note(self, reading: Reading) -> None:
        self.seen.append(reading)

    @property
    def values(self) -> list[float]:
        return [float(reading.data[0]) for reading in self.seen]


def test_subscriptions_last_until_they_are_ended(client: Client, device: StubDevice) -> None:
    first, second = Listener(), Listener()
    client.voltage.subscribe(first.note)
    client.voltage.subscribe(first.note)  # once is enough
    client.voltage.subscribe(lambda reading: second.seen.append(reading))
    until(lambda: first.seen and second.seen, "the first readings")
    assert first.seen[0].severity == 3
    gc.collect()  # the library holds callbacks weakly, and would forget a lambda
    device.show(at=STAMP, VOLTAGE=3.3, severity=Severity.MINOR, status=Status.READ)
    until(lambda: len(second.seen) == 2, "the second reading")
    assert second.seen[1].time == pytest.approx(STAMP, abs=1e-6)
    assert second.seen[1].severity == 1
    until(lambda: first.values[1:] == [3.3], "the same for both, and once")
    client.voltage.unsubscribe(first.note)
    client.voltage.unsubscribe(first.note)
    device.show(VOLTAGE=3.4)
    until(lambda: second.values[-1] == 3.4, "the third reading")
    assert len(first.seen) == 2


def test_a_callback_that_fails_is_logged_and_ends_nothing(
    client: Client, device: StubDevice, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []

    def fails(reading: Reading) -> None:
        seen.append(float(reading.data[0]))
        raise RuntimeError("spilt coffee")

    client.voltage.subscribe(fails)
    until(lambda: len(seen) == 1, "the first reading")
    device.show(VOLTAGE=2.0)
    until(lambda: seen[-1] == 2.0, "the next reading")
    until(lambda: "a callback of T:VOLTAGE failed" in caplog.text, "the log")
    assert "spilt coffee" in caplog.text


def test_enums_arrive_with_their_words(client: Client, device: StubDevice) -> None:
    listener = Listener()
    client.state.subscribe(listener.note)
    until(lambda: listener.seen, "the first reading")
    device.show(STATE=1)
    until(lambda: [r.text for r in listener.seen] == ["Streaming", "Connecting"], "both words")


def test_nobody_there_names_the_pv_and_what_to_check(
    epics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client("NIX:") as client, pytest.raises(UserError) as raised:
        client.cpu.read(timeout=0.2)
    message = str(raised.value)
    assert message.startswith(
        f"no server has NIX:CPU or NIX:cpu; asked were: 127.0.0.1, port {epics}. Check"
    )
    assert "EPICS_CA_ADDR_LIST" in message


def test_a_server_that_went_away_and_came_back(epics: int, device: StubDevice) -> None:
    running = ServerThread(("T:", device))
    listener = Listener()
    with Client("T:", timeout=20) as client:
        device.show(CURRENT=1.0)
        until(lambda: client.current.read().data == 1.0, "the first value")
        client.current.subscribe(listener.note)
        assert client.current.connected
        running.stop()
        until(lambda: not client.current.connected, "the end of the server")
        with pytest.raises(ClientError, match=r"no server has T:CURRENT;"):
            client.current.read(timeout=0.2)
        device.show(CURRENT=2.0)
        running = ServerThread(("T:", device))
        try:
            assert client.current.read().data == 2.0
            until(lambda: listener.values[-1] == 2.0, "the subscription to go on")
        finally:
            running.stop()


def test_a_closed_client(client: Client) -> None:
    current = client.current
    current.read()
    client.close()
    client.close()
    assert not current.connected
    for channel in (current, client.voltage):
        with pytest.raises(ClientError):
            channel.read(timeout=0.2)


def test_nothing_is_left_behind(server: ServerThread) -> None:
    before = set(threading.enumerate())
    with Client("T:", timeout=20) as client:
        client.current.read()
        client.current.subscribe(lambda _: None)
    until(lambda: set(threading.enumerate()) <= before, "the threads to end")


SCRIPT = """
import sys, psutil
from daq_ioc.client import Client
print(Client("T:", timeout=20).current.read().data, len(psutil.Process().children()))
assert not {name for name in sys.modules if name.startswith(("daq_ioc.dev", "daq_ioc.ser"))}
"""


def test_a_script_that_closes_nothing_ends_and_starts_no_repeater(server: ServerThread) -> None:
    # Its output is a pipe, which a repeater would hold open for ever.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[0.0015] 0\n"
    assert done.stderr == ""


def test_without_addresses_this_computer_is_asked(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EPICS_CA_ADDR_LIST")
    with Client("T:", timeout=20) as client:
        assert client.current.read().data == 1.5e-3
