"""The circuit under test: its true current, voltage and input pins at every instant.

A battery-powered radio node as one meets it on the bench: it sleeps at a few µA, wakes every
100 ms for some mA, and sends about once a second with up to 100 mA. The waveform repeats after
``PERIOD_SAMPLES`` and follows from the seed alone. This module knows physics only: no ADC, no
ranges, no words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from daq_ioc.driver.joulescope.js110.protocol import FRAME_SAMPLES, SAMPLE_RATE

Floats = npt.NDArray[np.float32]

PERIOD_FRAMES: Final = 31_746
PERIOD_SAMPLES: Final = PERIOD_FRAMES * FRAME_SAMPLES
"""3 999 996 samples: the whole number of USB frames that is nearest to two seconds."""

SUPPLY: Final = 3.3  # V, open circuit
SUPPLY_RESISTANCE: Final = 0.8  # ohm, makes the voltage sag with load
INRUSH: Final = 0.35  # A, peak of the charging of the target's capacitors
TRANSIENT_TIME: Final = 1.5e-3  # s, of the inrush and of the discharge after disconnecting
TRANSIENT_FRAMES: Final = 476
"""30 ms: after so many frames nothing of a transient (< 1 nA) is left."""


@dataclass(frozen=True, slots=True)
class Waveform:
    """Consecutive samples of the target: current A and voltage V float32 (n,), gpi uint8 (n,).

    ``gpi``: bit 0 GPI0, high while the radio is on; bit 1 GPI1, toggled by every wake-up.
    """

    current: Floats
    voltage: Floats
    gpi: npt.NDArray[np.uint8]

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> Waveform:
        return Waveform(self.current[index], self.voltage[index], self.gpi[index])


def join(first: Waveform, second: Waveform) -> Waveform:
    """``second`` right after ``first``."""
    return Waveform(
        np.concatenate((first.current, second.current)),
        np.concatenate((first.voltage, second.voltage)),
        np.concatenate((first.gpi, second.gpi)),
    )


class Target:
    """The waveform of one seed, and the noise that everything else draws from.

    ``noise`` float32: standard normal deviates, taken by sample index so that the same sample
    always gets the same noise.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        current, gpi = _load(rng)
        noise = rng.standard_normal(PERIOD_SAMPLES, dtype=np.float32)
        current += (np.float32(2e-3) * current + np.float32(5e-8)) * noise
        voltage = np.float32(SUPPLY) - np.float32(SUPPLY_RESISTANCE) * current
        # The same deviates in another order: as good as new ones, at no price.
        voltage += np.float32(5e-4) * noise[::-1]
        self._connected = Waveform(current, voltage, gpi)
        self.noise = noise[:65_521].copy()

    def samples(self, first: int, count: int, *, connected: bool = True) -> Waveform:
        """``count`` samples from sample ``first`` (any integer) of the settled target."""
        index = np.arange(first, first + count)
        if connected:
            return self._connected[index % PERIOD_SAMPLES]
        noise = self.noise[index % len(self.noise)]
        zeros = np.zeros(count, dtype=np.float32)
        return Waveform(zeros, np.float32(5e-4) * noise, np.zeros(count, dtype=np.uint8))

    def switched(self, first: int, count: int, *, connected: bool) -> Waveform:
        """``count`` samples right after the target was connected, or disconnected, at ``first``."""
        settled = self.samples(first, count, connected=connected)
        rest = np.exp(-np.arange(count) / (TRANSIENT_TIME * SAMPLE_RATE)).astype(np.float32)
        if not connected:
            voltage = settled.voltage + np.float32(SUPPLY) * rest
            return Waveform(settled.current, voltage, settled.gpi)
        current = settled.current * (1 - rest) + np.float32(INRUSH) * rest
        return Waveform(current, settled.voltage * (1 - rest), settled.gpi)


def _load(rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Noise-free current (A) and pins over one period."""
    phase = np.linspace(0, 2 * np.pi, PERIOD_SAMPLES, endpoint=False, dtype=np.float32)
    current = np.float32(3e-6) + np.float32(0.8e-6) * np.sin(3 * phase)
    gpi = np.zeros(PERIOD_SAMPLES, dtype=np.uint8)
    woken = 0
    for k in range(20):
        start = int((0.037 + 0.1 * k + rng.uniform(0, 2e-3)) * SAMPLE_RATE)
        _pulse(current, start, rng.uniform(2e-3, 8e-3), rng.uniform(1e-3, 4e-3))
        if k % 2:  # even number of toggles: the period closes
            gpi[woken:start] |= 2
        woken = start
    for second in range(2):
        start = int((0.61 + second + rng.uniform(0, 0.05)) * SAMPLE_RATE)
        stop = _burst(current, start, rng)
        gpi[start:stop] |= 1
    return current, gpi


def _pulse(current: Floats, start: int, height: float, seconds: float) -> int:
    """Add a pulse with a 50 µs ramp and a 200 µs tail; returns where it has ended."""
    ramp, flat = int(50e-6 * SAMPLE_RATE), int(seconds * SAMPLE_RATE)
    tail = int(3e-3 * SAMPLE_RATE)
    shape = np.concatenate(
        (
            np.arange(ramp) / ramp,
            np.ones(flat),
            np.exp(-np.arange(tail) / (200e-6 * SAMPLE_RATE)),
        )
    )
    current[start : start + len(shape)] += (height * shape).astype(np.float32)
    return start + ramp + flat


def _burst(current: Floats, start: int, rng: np.random.Generator) -> int:
    """Add one exchange of the radio: oscillator, three packets, listening; returns its end."""
    step = int(5e-3 * SAMPLE_RATE)
    _pulse(current, start, 6e-3, 25e-3)
    for k in range(3):
        _pulse(current, start + (k + 1) * step, rng.uniform(70e-3, 92e-3), 2.5e-3)
    return _pulse(current, start + 4 * step, 9e-3, 5e-3)
