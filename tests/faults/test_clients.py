"""Clients that hammer, stall, lie and babble: a good client is answered throughout."""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.faults import ca
from tests.faults.bench import STREAMING, Bench
from tests.faults.ca import Client
from tests.faults.conftest import Figure

P99_MAX = 1.0
"""s: far beyond what an undisturbed computer needs, since tests share theirs."""

KERNEL_QUEUE = 200
"""ms: what really waits for an IOC that its clients keep busy."""

MEMORY_MAX = 100.0
"""MB that the IOC may grow while it is attacked."""


class Watch(threading.Thread):
    """A good client: reads a PV again and again, and notes how long each answer took."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.client = Client(port)
        self.took: list[float] = []
        self.done = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.done.wait(0.02):
                began = time.monotonic()
                self.client.get("STATE")
                self.took.append(time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - raised where the test waits
            self.error = error


@contextlib.contextmanager
def good_client(running: Bench, figure: Figure, what: Callable[[], str]) -> Iterator[None]:
    """Watch the IOC meanwhile; afterwards it still measures, is no larger, and has lost nothing."""
    client = running.streaming()
    client.wait_more("BUFFER_SPAN", 2.9)  # the buffer has all its memory
    threads, handles, memory = running.footprint()
    watch = Watch(running.ioc.port)
    watch.start()
    try:
        yield
    finally:
        watch.done.set()
        watch.join(60)
        watch.client.close()
    assert watch.error is None, repr(watch.error)
    assert len(watch.took) > 10
    p99 = statistics.quantiles(watch.took, n=100, method="inclusive")[98]
    assert client.put("dt", 0.1)  # babble may have been a valid put of an hour
    client.wait_more("SAMPLES", client.get("SAMPLES"))
    grown = running.footprint()[2] - memory
    figure(
        f"{what()}: p99 of {len(watch.took)} answers {p99 * 1e3:.1f} ms, slowest "
        f"{max(watch.took) * 1e3:.0f} ms; memory {grown:+.0f} MB; "
        f"DROPPED {client.get('DROPPED'):.0f}"
    )
    assert client.get("STATE") == STREAMING
    assert p99 < P99_MAX
    assert grown < MEMORY_MAX
    end = time.monotonic() + 20
    while running.process.num_fds() > handles + 1:  # connections are taken down a moment later
        assert time.monotonic() < end, f"{running.process.num_fds()} handles, {handles} before"
        time.sleep(0.05)
    assert running.footprint()[0] <= threads + 2
    running.no_traceback()


def test_connections_in_a_flood(bench: Callable[..., Bench], long: bool, figure: Figure) -> None:
    """200 a second; each connects to a PV, and every other one goes without a word."""
    running = bench(queue_ms=KERNEL_QUEUE)
    seconds = 60 if long else 5
    made = 0
    began = time.monotonic()
    with good_client(
        running, figure, lambda: f"{made} connections, {made / (ended - began):.0f}/s"
    ):
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            due = int((now - began) * 200) - made
            if due <= 0:
                time.sleep(0.002)
                continue
            client = Client(running.ioc.port)
            if made % 2:
                client.channel("CURRENT")
            else:
                linger = struct.pack("ii", 1, 0)  # closing resets the connection
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
            made += 1
        ended = time.monotonic()


def test_clients_that_do_not_read(bench: Callable[..., Bench], long: bool, figure: Figure) -> None:
    """They subscribe to all there is, waveforms too, and never read again."""
    running = bench(queue_ms=KERNEL_QUEUE)
    seconds = 60 if long else 6
    names = ["CURRENT", "STATS", "TIME", "CURRENT_TRACE", "VOLTAGE_TRACE", "POWER_TRACE"]
    with (
        good_client(running, figure, lambda: f"10 clients that do not read, {seconds} s"),
        ExitStack() as stack,
    ):
        for _ in range(10):
            client = stack.enter_context(Client(running.ioc.port))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for name in names:
                client.channel(name)
            for name in names * 3:
                client.monitor(name)
        time.sleep(seconds)


def test_requests_whose_answers_nobody_reads(
    bench: Callable[..., Bench], long: bool, figure: Figure
) -> None:
    """Reads of a waveform, one after the other without waiting: answers must not pile up."""
    running = bench(queue_ms=KERNEL_QUEUE)
    asked = 0
    with (
        good_client(running, figure, lambda: f"{asked} waveforms asked for and not read"),
        Client(running.ioc.port) as client,
    ):
        channel = client.channel("CURRENT_TRACE")
        request = ca.message(ca.READ_NOTIFY, 20, 0, channel.sid, 1)
        client.socket.settimeout(0.5)
        end = time.monotonic() + (30 if long else 4)
        while time.monotonic() < end:
            with suppress(TimeoutError):
                asked += client.socket.send(request * 100) // len(request)


def test_connections_half_open(bench: Callable[..., Bench], long: bool, figure: Figure) -> None:
    """They connect and say nothing, or half a message."""
    running = bench(queue_ms=KERNEL_QUEUE)
    count = 500 if long else 200
    with (
        good_client(running, figure, lambda: f"{count} half-open connections"),
        ExitStack() as stack,
    ):
        for k in range(count):
            half = socket.create_connection(("127.0.0.1", running.ioc.port), 20)
            stack.enter_context(half)
            half.sendall(ca.greeting()[: k % 40])
        time.sleep(2)


def test_searches_for_others(bench: Callable[..., Bench], long: bool, figure: Figure) -> None:
    """1000 a second for names that are not ours: none is answered."""
    running = bench(queue_ms=KERNEL_QUEUE)
    seconds = 60 if long else 5
    sent = 0
    with (
        good_client(running, figure, lambda: f"{sent} searches for others"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.connect(("127.0.0.1", running.ioc.port))
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            while sent < (now - began) * 1000:
                udp.send(ca.search(f"OTHER:{sent}", sent))
                sent += 1
            time.sleep(0.002)
        udp.settimeout(5)
        udp.send(ca.search("JS:STATE", 7))
        answer = udp.recv(4096)
    assert struct.pack(">I", 7) in answer  # and ours is


# ---- babble


def _message(rng: random.Random, channels: int) -> bytes:
    """A message: nonsense, or nearly right, with any field wrong."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.choice((1, 7, 16, 24, 64, 1000)))
    command = rng.choice((0, 1, 2, 4, 6, 8, 9, 10, 12, 15, 18, 19, 20, 21, 23, 27, 33, 999))
    if kind == 1 and command == 0:
        command = rng.randrange(65536)
    odd = (0, 1, 2, 5, 6, 13, 39, 0xFFFF, rng.randrange(65536))
    payload = rng.choice(
        (
            b"", bytes(8), rng.randbytes(8), rng.randbytes(40), b"JS:STATE\0", b"JS:\xff\xff\xff",
            b"A" * 3000, b"JS:CURRENT.{}\0", b'JS:dt.{"arr":{"s":-1e99}}\0', b"JS:STATE.$\0",
            b'JS:CURRENT.{"arr":{"i":0}}\0', b'JS:TIME_TEXT.{"dbnd":{"abs":1}}\0',
        )
    )  # fmt: skip
    number = rng.choice((0, 1, rng.randrange(channels + 3), 0x7FFFFFFF, 0xFFFFFFFF))
    made = ca.message(
        command, rng.choice((*range(39), *odd)), rng.choice(odd), number, rng.choice((1, 2, 13)),
        payload,
    )  # fmt: skip
    if kind == 2:  # a header that lies about the length of what follows
        made = made[:2] + struct.pack(">H", rng.choice((1, 8, 16, 0xFFF0, 0xFFFF))) + made[4:]
    if kind == 3:
        cut = rng.randrange(1, len(made) + 1)
        made = made[:cut]
    if kind == 4:
        place = rng.randrange(len(made))
        made = made[:place] + rng.randbytes(1) + made[place + 1 :]
    return made


def _babble_tcp(running: Bench, rng: random.Random, count: int) -> int:
    """Send messages over circuits that were opened properly; a new one when the IOC hangs up."""
    sent = circuits = 0
    while sent < count:
        circuits += 1
        assert circuits <= count
        with suppress(OSError), Client(running.ioc.port) as client:
            for name in ("STATE", "CURRENT", "dt", "RECORD_NAME", "TIME_TEXT"):
                client.channel(name)
            client.socket.setblocking(False)
            for _ in range(rng.randrange(1, 60)):
                if sent >= count:
                    break
                sent += 1
                client.socket.sendall(_message(rng, 5))
                with suppress(BlockingIOError):
                    if not client.socket.recv(1 << 20):
                        break
    return circuits


@pytest.mark.parametrize("seeded", [True, False], ids=["fixed seed", "random seed"])
def test_babble(bench: Callable[..., Bench], long: bool, figure: Figure, seeded: bool) -> None:
    """Random and malformed messages on TCP and UDP. Settings stay what they were or are valid."""
    running = bench(queue_ms=KERNEL_QUEUE)
    seed = 20 if seeded else secrets.randbits(32)
    rng = random.Random(seed)
    count = 100_000 if long else 30_000
    circuits = 0
    with good_client(
        running, figure, lambda: f"seed {seed}, {count} messages, {circuits} circuits"
    ):
        circuits = _babble_tcp(running, rng, count // 2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(("127.0.0.1", running.ioc.port))
            for k in range(count // 2):
                with suppress(ConnectionRefusedError):
                    udp.send(_message(rng, 5))
                if k % 20 == 0:
                    time.sleep(0.001)
    client = running.client()
    assert 0.01 <= client.get("dt") <= 3600
    udp_answers(running)


def udp_answers(running: Bench) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.connect(("127.0.0.1", running.ioc.port))
        udp.send(ca.search("JS:STATE", 9))
        assert struct.pack(">I", 9) in udp.recv(4096)


# ---- puts

NUMBERS = (
    "dt", "ACCUM_RESET", "TRACE_SPAN", "TRACE_POINTS", "I_RANGE", "V_RANGE", "TARGET_POWER", "GPO0",
    "GPO1", "IO_VOLTAGE", "SUPPRESS", "RECORD_STOP", "RECORD_LIMIT", "RECORD_PRETRIGGER",
    "RECORD_FORMAT", "RECORD_RATE",
)  # fmt: skip
TEXTS = ("RECORD_DIR", "RECORD_NAME", "RECORD_NOTE")
BAD_NUMBERS = (math.nan, math.inf, -math.inf, 1.8e308, -1.8e308, 1e30, -1e30, -1.0, 5e-324)


def test_puts_of_every_kind_of_rubbish(
    bench: Callable[..., Bench], long: bool, figure: Figure
) -> None:
    """Every writable PV gets numbers that are none, every byte, and far too much of everything."""
    running = bench(queue_ms=KERNEL_QUEUE)
    client = running.streaming()
    everything = bytes(range(1, 256)) + b"\0"
    count = refused = 0
    with good_client(running, figure, lambda: f"{count} bad puts, {refused} of them refused"):
        for name in (*NUMBERS, *TEXTS):
            before = client.get(name)
            puts = [(ca.DOUBLE, 1, struct.pack(">d", number)) for number in BAD_NUMBERS]
            puts += [(ca.STRING, 1, everything[k : k + 39] + b"\0") for k in range(0, 256, 39)]
            puts += [
                (ca.CHAR, 256, everything),
                (ca.CHAR, 10_000, b"x" * 10_000),
                (ca.CHAR, 60_000, everything * 234 + bytes(96)),
                (ca.DOUBLE, 5000, struct.pack(">5000d", *range(5000))),
                (ca.STRING, 100, b"hello".ljust(40, b"\0") * 100),
                (ca.LONG, 1, struct.pack(">i", -(2**31))),
                (ca.ENUM, 1, struct.pack(">H", 0xFFFF)),
                (ca.DOUBLE, 0, b""),
            ]
            for put in puts:
                count += 1
                try:
                    refused += not client.put_bytes(name, *put)
                except (ConnectionError, TimeoutError):  # hanging up is an answer, too
                    refused += 1
                    client = running.client()
            after = client.get(name)
            if name not in TEXTS:
                assert math.isfinite(after), name
            if isinstance(before, str):
                client.put(name, before)
                assert client.get(name) == before
            elif before != after:
                assert client.put(name, before), name
    for name in NUMBERS:
        assert client.read(name).severity == 0, name
