"""A server in a thread of the test, on a port of its own, and clients for it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daq_ioc.server.corrections import Context
from daq_ioc.server.ioc import Ioc, Publication, Served
from tests.server.stub import StubDevice

CLIENTS = Path(__file__).parent / "clients"


class ServerThread:
    """`Ioc` on an event loop in a thread."""

    def __init__(
        self, *devices: tuple[str, Served] | Publication, health: str | None = None
    ) -> None:
        self._devices = [Publication(*each) for each in devices]
        self._health = health
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if not self._ready.wait(20) or self._failure:
            self._thread.join(20)
            raise RuntimeError("the server did not start") from self._failure

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.ioc = Ioc(self._devices, ["127.0.0.1"], self._health)
            await self.ioc.run(lambda _: self._ready.set())

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised where the test waits
            self._failure = error
            self._ready.set()

    @property
    def context(self) -> Context:
        assert self.ioc.context is not None
        return self.ioc.context

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.ioc.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._failure:
            raise self._failure


@pytest.fixture
def device() -> StubDevice:
    return StubDevice()


@pytest.fixture
def server(epics: int, device: StubDevice) -> Iterator[ServerThread]:
    """A server of `device` under ``T:``."""
    running = ServerThread(("T:", device))
    yield running
    running.stop()


@pytest.fixture
def serve(
    epics: int, device: StubDevice, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], ServerThread]]:
    """Start a server of `device` under ``T:`` with a class of contexts."""
    running = []

    def start(context: Any) -> ServerThread:
        monkeypatch.setattr("daq_ioc.server.ioc.Context", context)
        running.append(ServerThread(("T:", device)))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def client(epics: int) -> Iterator[Any]:
    """caproto's own client."""
    from caproto.threading.client import Context as Client

    made = Client()
    yield made
    made.disconnect()


@pytest.fixture
def pv(client: Any) -> Callable[[str], Any]:
    """A connected PV by name."""

    def connected(name: str) -> Any:
        (made,) = client.get_pvs(name)
        made.wait_for_connection(timeout=10)
        return made

    return connected


def until(condition: Callable[[], Any], what: str, timeout: float = 15.0) -> None:
    """Wait for a condition, and fail saying what it was."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.01)


def run_client(program: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """Run a client program of the folder ``clients`` and return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, str(CLIENTS / program), *arguments],
        env=environment or dict(os.environ), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
