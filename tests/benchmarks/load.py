"""Monitors under load: what reaches the clients, how late, and what it costs the server.

    python -m tests.benchmarks.load [--clients 100] [--pvs 20] [--period 0.1] [--seconds 60]

Each client monitors every PV. The same PVs are served by ours and by ``softioc`` (EPICS base's own
server under Python), one after the other, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.ioc import client_environment, free_port

EPICS_EPOCH = 631_152_000
_HEADER = struct.Struct(">HHHHII")
_TIME_DOUBLE = struct.Struct(">HHIIId")
VERSION, EVENT_ADD, HOST, CREATE, USER = 0, 1, 21, 18, 20

SERVERS = {
    "daq_ioc": """
import sys, threading, time
from daq_ioc.attributes import Attribute, Kind
from daq_ioc.server import serve
from tests.server.stub import StubDevice
count, period = int(sys.argv[1]), float(sys.argv[2])
names = [f"V{i}" for i in range(count)]
device = StubDevice(attributes=tuple(Attribute(n, Kind.DOUBLE, "x") for n in names))
def run():
    number, due = 0, time.monotonic()
    while True:
        number += 1
        device.show_all(dict.fromkeys(names, float(number)))
        due += period
        time.sleep(max(0, due - time.monotonic()))
threading.Thread(target=run, daemon=True).start()
serve([("L:", device)], ["127.0.0.1"], on_ready=lambda line: print(line, flush=True))
""",
    "softioc": """
import sys, threading, time
from softioc import asyncio_dispatcher, builder, softioc
count, period = int(sys.argv[1]), float(sys.argv[2])
builder.SetDeviceName("L")
pvs = [builder.aIn(f"V{i}", MDEL=-1, ADEL=-1) for i in range(count)]
builder.LoadDatabase()
softioc.iocInit(asyncio_dispatcher.AsyncioDispatcher(), enable_pva=False)
print("serving", flush=True)
number, due = 0, time.monotonic()
while True:
    number += 1
    for pv in pvs:
        pv.set(float(number))
    due += period
    time.sleep(max(0, due - time.monotonic()))
""",
}


def request(
    command: int, name: str = "", kind: int = 0, count: int = 0, a: int = 0, b: int = 0
) -> bytes:
    """A message of the Channel Access protocol, with text as its payload."""
    text = name.encode() + b"\0" if name else b""
    payload = text.ljust(-(-len(text) // 8) * 8, b"\0")
    return _HEADER.pack(command, len(payload), kind, count, a, b) + payload


@dataclass
class Client:
    """One client: a connection that monitors every PV. Counts what comes."""

    port: int
    pvs: int
    updates: int = 0
    lost: int = 0
    backward: int = 0
    delays: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.last = [0.0] * self.pvs
        self.rest = b""
        self.counting = False
        hello = request(VERSION, kind=0, count=13) + request(HOST, "bench") + request(USER, "bench")
        channels = (request(CREATE, f"L:V{i}", a=i, b=13) for i in range(self.pvs))
        self.socket.sendall(hello + b"".join(channels))

    def receive(self) -> None:
        data = self.rest + self.socket.recv(1 << 18)
        now = time.time()
        at = 0
        while at + 16 <= len(data):
            command, size, _, _, a, b = _HEADER.unpack_from(data, at)
            if at + 16 + size > len(data):
                break
            if command == CREATE:
                mask = struct.pack(">fffHH", 0, 0, 0, 1, 0)
                self.socket.sendall(_HEADER.pack(EVENT_ADD, 16, 20, 1, b, a) + mask)
            elif command == EVENT_ADD:
                _, _, seconds, nanoseconds, _, value = _TIME_DOUBLE.unpack_from(data, at + 16)
                self.update(b, value, now - seconds - EPICS_EPOCH - nanoseconds * 1e-9)
            at += 16 + size
        self.rest = data[at:]

    def update(self, pv: int, value: float, delay: float) -> None:
        step, self.last[pv] = value - self.last[pv], value
        if self.counting:
            self.updates += 1
            self.lost += max(0, int(step) - 1)
            self.backward += step <= 0
            self.delays.append(delay)


def measure(server: str, args: argparse.Namespace) -> dict[str, float]:
    """Run a server and its clients; returns what is printed."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVERS[server], str(args.pvs), str(args.period)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | client_environment(port),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if not any(line.startswith("serving") for line in process.stdout):
            raise RuntimeError(f"{server} did not start")
        time.sleep(1.0)
        return _measure(psutil.Process(process.pid), port, args)
    finally:
        process.kill()
        process.wait()


def _measure(server: Any, port: int, args: argparse.Namespace) -> dict[str, float]:
    selector = selectors.DefaultSelector()
    clients = [Client(port, args.pvs) for _ in range(args.clients)]
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)

    def receive(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for key, _ in selector.select(0.1):
                key.data.receive()

    receive(3.0)
    for client in clients:
        client.counting = True
    began, cpu = time.monotonic(), sum(server.cpu_times()[:2])
    receive(args.seconds)
    took, used = time.monotonic() - began, sum(server.cpu_times()[:2]) - cpu
    memory = server.memory_info().rss
    for client in clients:
        client.socket.close()
    delays = np.concatenate([client.delays for client in clients])
    updates = sum(client.updates for client in clients)
    lost = sum(client.lost for client in clients)
    return {
        "updates/s": updates / took,
        "replaced by newer, %": 100 * lost / max(1, updates + lost),
        "out of order": sum(client.backward for client in clients),
        "clients served": sum(client.updates > 0 for client in clients),
        "delay median, ms": float(np.median(delays)) * 1e3,
        "delay worst, ms": float(delays.max()) * 1e3,
        "server CPU, % of a core": 100 * used / took,
        "server memory, MB": memory / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Channel Access monitors under load")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--pvs", type=int, default=20)
    parser.add_argument("--period", type=float, default=0.1, help="s")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--server", choices=tuple(SERVERS), nargs="+", default=tuple(SERVERS))
    args = parser.parse_args()
    print(f"{args.clients} clients x {args.pvs} monitors, one update each {args.period:g} s")
    results = {name: measure(name, args) for name in args.server}
    print(f"{'':26}" + "".join(f"{name:>12}" for name in results))
    for what in next(iter(results.values())):
        print(f"{what:26}" + "".join(f"{result[what]:12.1f}" for result in results.values()))


if __name__ == "__main__":
    main()
