"""Takes a stream from the driver and holds every sample against what the instrument sampled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.driver import Driver
from daq_ioc.driver.joulescope.js110.protocol import Request, Settings
from daq_ioc.emulator.js110 import JS110
from daq_ioc.joulescope import words

PAUSE = 0.1
"""For how long `stopped_now_and_then` stops unless it is told otherwise, s."""

_STOPPER = """
for _ in $(seq {times}); do
    sleep {run}; kill -STOP {pid}; sleep {pause}; kill -CONT {pid}
done
"""


@dataclass
class Took:
    """What came: ``samples``, ``lost`` ones among them, ``wrong`` ones of those that came.

    ``pauses``: how often `PAUSE` or more passed between two arrivals.
    """

    samples: int = 0
    lost: int = 0
    wrong: int = 0
    pauses: int = 0


def twin() -> JS110:
    """An instrument as that on the bus, streaming as that does: what it samples is the truth."""
    instrument = JS110()
    for settings in (Settings(), Settings(streaming=protocol.STREAM_ON)):
        data = settings.pack()
        instrument.control(protocol.REQUEST_OUT, Request.SETTINGS, 0, 0, data)
    return instrument


def take(driver: Driver, seconds: float) -> Took:
    """Read ``seconds`` of samples from the beginning of a stream, compared one by one."""
    took, truth, arrival = Took(), twin(), 0.0
    while took.samples < seconds * protocol.SAMPLE_RATE:
        block = driver.read()
        assert block.sample_id == took.samples
        stop = block.sample_id + len(block)
        differs = words.as_words(block.raw) != words.as_words(truth.truth(block.sample_id, stop))
        missing = words.is_missing(words.as_words(block.raw))
        if missing is not None:
            differs &= ~missing
        took.samples = stop
        took.lost += block.lost
        took.wrong += int(np.count_nonzero(differs))
        took.pauses += arrival > 0 and block.arrival - arrival >= PAUSE
        arrival = block.arrival
    return took


@contextlib.contextmanager
def stopped_now_and_then(times: int, run: float = 0.9, pause: float = PAUSE) -> Iterator[None]:
    """Another process lets this one run for ``run`` s and then stops it, so many times."""
    script = _STOPPER.format(times=times, pid=os.getpid(), run=run, pause=pause)
    with subprocess.Popen(["/bin/sh", "-c", script]) as stopper:
        yield
        stopper.terminate()
