"""``daq-ioc run`` in a process of its own, on loopback with a port nobody else uses.

    with running_ioc(config) as ioc:
        subprocess.run([...], env=ioc.environment)

Leaving the block stops it by SIGTERM and checks that it ended in order.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTUP = 60.0
"""Longest time until an IOC serves, s: generous, for busy computers."""

STOP = 40.0
"""Longest time from a signal to the end of the process, s."""


def free_port() -> int:
    """A port that is free for UDP and TCP on loopback."""
    for _ in range(100):
        with (
            closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as udp,
            closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as tcp,
        ):
            udp.bind(("127.0.0.1", 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def client_environment(port: int) -> dict[str, str]:
    """Variables by which servers and clients of any make meet on this port of loopback only."""
    return {
        "EPICS_CA_SERVER_PORT": str(port),
        "EPICS_CAS_SERVER_PORT": str(port),
        "EPICS_CA_ADDR_LIST": "127.0.0.1",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_BEACON_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
    }


@dataclass
class IocProcess:
    """A running IOC."""

    process: subprocess.Popen[str]
    port: int
    ready_line: str
    environment: dict[str, str]
    log: Path
    """What it wrote to stderr."""

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait until it has ended; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8")


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is read; it ends with the test, or if it hangs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    guard = threading.Timer(STARTUP, process.kill)
    guard.start()
    try:
        yield process
    finally:
        guard.cancel()
        process.kill()
        process.communicate()


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[IocProcess]:
    """Run a command that prints one line when it serves; see the module."""
    port = free_port()
    environment = os.environ | client_environment(port)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
    assert process.stdout is not None
    guard = threading.Timer(STARTUP, process.kill)
    guard.start()
    try:
        line = process.stdout.readline().strip()
        guard.cancel()
        assert line, f"the IOC did not start:\n{log.read_text()}"
        ioc = IocProcess(process, port, line, environment, log)
        yield ioc
        if process.poll() is None:
            assert ioc.stop() == 0, ioc.log_text()
    finally:
        guard.cancel()
        if process.poll() is None:
            process.kill()
        process.wait(STOP)
        process.stdout.close()


@contextmanager
def running_ioc(config: Path, *options: str) -> Iterator[IocProcess]:
    """``daq-ioc run CONFIG OPTIONS...``; its log is beside the configuration."""
    command = [sys.executable, "-m", "daq_ioc", "run", str(config), *options]
    with running(command, config.with_suffix(".log")) as ioc:
        yield ioc


DEMO = """\
[server]
interfaces = ["127.0.0.1"]

[device]
prefix = "{prefix}"
driver = "js110"
dt = 0.1
buffer_span = 3.0

[device.options]
backend = "emulator:js110:seed=1"

[device.recording]
root = "recordings"
"""


def write_demo(directory: Path, prefix: str = "JS:") -> Path:
    """A configuration with an emulated instrument and a small buffer."""
    config = directory / "demo.toml"
    config.write_text(DEMO.format(prefix=prefix), encoding="utf-8")
    return config
