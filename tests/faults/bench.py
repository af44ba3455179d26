"""A running IOC with an instrument that can be harmed, and the truth about that instrument."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from daq_ioc.driver.joulescope.js110 import Driver
from daq_ioc.emulator import get_backend
from daq_ioc.jls.data_recorder import DataReader
from tests.faults.ca import Client
from tests.ioc import IocProcess, running

STREAMING: Final = 2
RATE: Final = 2_000_000
FRAME: Final = 126
SEED: Final = 1
_CHUNK: Final = 4_000_000

CONFIG = """\
[server]
interfaces = ["127.0.0.1"]

[device]
prefix = "JS:"
driver = "js110"
dt = 0.1
buffer_span = {buffer_span}

[device.options]
backend = "emulator:js110:seed={seed},control={control},queue_ms={queue_ms}{emulator}"
{options}

[device.recording]
root = "recordings"
"""


@cache
def truth() -> Any:
    """An instrument of the same seed and settings that streams: its samples are the same."""
    backend = get_backend(f"js110:seed={SEED},pace=fast")
    driver = Driver(backend=backend)
    driver.open()
    driver.start()
    return backend.instruments[0]


@dataclass
class Bench:
    """An IOC, and ways to harm its instrument."""

    ioc: IocProcess
    root: Path
    control: Path
    used: list[Client] = field(default_factory=list)

    @classmethod
    @contextmanager
    def running(
        cls,
        directory: Path,
        *,
        before: Sequence[str] = (),
        buffer_span: float = 3.0,
        queue_ms: int = 2000,
        emulator: str = "",
        options: str = "",
        arguments: Sequence[str] = (),
    ) -> Iterator[Bench]:
        """Run it below ``directory``; ``before`` is a command that runs it.

        Computers that run tests stand still at times; with a long queue of the instrument only
        losses that are meant are seen.
        """
        # Names of Unix sockets are short; that of a test's directory may not be.
        control = Path(tempfile.gettempdir()) / f"daq_ioc_faults_{os.getpid()}.sock"
        config = directory / "faults.toml"
        config.write_text(
            CONFIG.format(
                buffer_span=buffer_span, seed=SEED, control=control, queue_ms=queue_ms,
                emulator="," + emulator if emulator else "", options=options,
            ),
            encoding="utf-8",
        )  # fmt: skip
        command = [*before, sys.executable, "-m", "daq_ioc", "run", str(config), *arguments]
        try:
            with running(command, directory / "faults.log") as ioc:
                bench = cls(ioc, directory / "recordings", control)
                try:
                    yield bench
                finally:
                    for client in bench.used:
                        client.close()
        finally:
            control.unlink(missing_ok=True)

    def client(self, timeout: float = 30.0) -> Client:
        made = Client(self.ioc.port, timeout=timeout)
        self.used.append(made)
        return made

    def streaming(self) -> Client:
        """A client of the IOC, once that measures."""
        client = self.client()
        client.wait("STATE", STREAMING)
        client.wait_more("SAMPLES", 0)
        return client

    def instrument(self, command: str) -> str:
        """Do a command of `daq_ioc.emulator.remote`; its answer."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(str(self.control))
            control.sendall(command.encode() + b"\n")
            answer = control.makefile("r").readline().strip()
        assert answer.startswith("ok"), f"{command}: {answer}"
        return answer.removeprefix("ok").strip()

    @property
    def process(self) -> psutil.Process:
        """The IOC itself, not a command that runs it."""
        return psutil.Process(self.ioc.process.pid)

    def kill(self) -> None:
        self.ioc.process.send_signal(signal.SIGKILL)
        self.ioc.process.wait(20)

    def footprint(self) -> tuple[int, int, float]:
        """Threads, open files and sockets, and MB of memory of the IOC."""
        process = self.process
        return process.num_threads(), process.num_fds(), process.memory_info().rss / 1e6

    def no_traceback(self) -> None:
        log = self.ioc.log_text()
        assert "Traceback" not in log, log[-5000:]


@dataclass(frozen=True)
class Recorded:
    """What a recording holds, held against the truth."""

    first: int
    """Sample of the stream that the recording begins with."""
    samples: int
    missing: npt.NDArray[np.int64]
    """Samples of the recording that are marked missing."""
    wrong: int
    """Samples that are neither missing nor what the instrument took."""


def recorded(path: Path) -> Recorded:
    """Read a whole recording and compare every sample of it."""
    reader = DataReader().open(str(path))
    try:
        assert reader.user_data is not None
        first = int(reader.user_data["first_sample"])
        count = int(reader.sample_id_range[1])
        missing, wrong = [], 0
        for begin in range(0, count, _CHUNK):
            end = min(count, begin + _CHUNK)
            data: Any = reader.samples_get(begin, end, fields=["raw"])
            raw = data["signals"]["raw"]["value"]
            assert raw.shape == (end - begin, 2)
            gone = (raw == 0xFFFF).all(axis=1)
            missing.append(begin + np.flatnonzero(gone))
            same = (raw == truth().truth(first + begin, first + end)).all(axis=1)
            wrong += int(np.count_nonzero(~same & ~gone))
    finally:
        reader.close()
    return Recorded(first, count, np.concatenate([np.zeros(0, np.int64), *missing]), wrong)
