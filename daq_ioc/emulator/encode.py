"""From the target's true waveform to the frames that a JS110 sends of it.

Current ranging, glitches of a range switch, the ADCs and the words of the wire. Everything is a
function of the sample's place in the period and of the settings, so the frames of one period are
made once, block by block as they are needed, and then only copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from daq_ioc.driver.joulescope.js110 import protocol
from daq_ioc.driver.joulescope.js110.protocol import FRAME_SAMPLES
from daq_ioc.emulator.target import (
    PERIOD_FRAMES,
    PERIOD_SAMPLES,
    TRANSIENT_FRAMES,
    Target,
    Waveform,
    join,
)
from daq_ioc.joulescope import words

Words = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

RANGE_OFF: Final = 7

CURRENT_OFFSET: Final = np.array(
    [-2806.7, -2822.7, -2820.9, -2822.6, -2820.5, -2820.6, -2818.7], dtype=np.float32
)
CURRENT_GAIN: Final = np.array(
    [6.829e-4, 1.638e-4, 1.463e-5, 1.494e-6, 1.497e-7, 1.498e-8, 1.498e-9], dtype=np.float32
)
VOLTAGE_OFFSET: Final = np.array([-1150.6, -2041.7], dtype=np.float32)
VOLTAGE_GAIN: Final = np.array([9.468e-4, 2.934e-4], dtype=np.float32)
"""Calibration of the emulated instrument: codes, A per code and V per code, by range."""

BLOCK_FRAMES: Final = 429
HALO_FRAMES: Final = 9
"""Frames before a block that the ranging has to know: its dwell, its delay and one glitch."""

DWELL: Final = 1024
"""Samples that the current must have fitted a finer range before autoranging takes it."""
DELAY: Final = 2
"""Samples between the current that asks for another range and the switch."""
HEADROOM: Final = 0.9
"""Part of a range's span that autoranging uses."""

HEADER_WORDS: Final = 4
FRAME_WORDS: Final = protocol.FRAME_BYTES // 2
TYPE_WORD, LENGTH_WORD, INDEX_WORD, USB_INDEX_WORD = range(HEADER_WORDS)

# Longest glitch, row = new range, column = old one: the suppression windows that the host
# software has for this instrument, since they were made to cover what it does.
_GLITCH: Final = np.array(
    [
        [0, 5, 7, 7, 7, 7, 7, 8],
        [3, 0, 7, 7, 7, 7, 7, 8],
        [5, 5, 0, 7, 7, 7, 7, 8],
        [5, 5, 5, 0, 7, 7, 7, 8],
        [5, 5, 5, 5, 0, 7, 7, 8],
        [5, 5, 5, 5, 5, 0, 7, 8],
        [5, 5, 5, 5, 5, 5, 0, 8],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
_GLITCH_DECAY: Final = 4000 * np.exp(-np.arange(8) / 3).astype(np.float32)

# By range index, off included: it shows the zero code whatever flows.
_OFFSET: Final = np.append(CURRENT_OFFSET, np.float32(-2820)).astype(np.float32)
_GAIN: Final = np.append(CURRENT_GAIN, np.float32(0)).astype(np.float32)
_INVERSE_GAIN: Final = np.append(1 / CURRENT_GAIN, np.float32(0)).astype(np.float32)
_TOP: Final = HEADROOM * (words.CODE_MAX + CURRENT_OFFSET) * CURRENT_GAIN


@dataclass(frozen=True, slots=True)
class Wire:
    """The settings that decide what words the target's samples become."""

    select: int
    options: int
    current_lsb: int = protocol.LSB_NORMAL
    voltage_lsb: int = protocol.LSB_NORMAL

    @property
    def connected(self) -> bool:
        """Whether current can flow to the target."""
        return self.select != protocol.SELECT_OFF

    @property
    def voltage_range(self) -> int:
        """0: 15 V, 1: 5 V."""
        return int(bool(self.options & protocol.OPTION_VOLTAGE_RANGE))


@dataclass(frozen=True, slots=True)
class Block:
    """Frames with what they sum up to.

    ``frames`` uint16 (n, 256): as on the wire, both index words 0.
    ``sums`` float64 (n, 3): of current A, voltage V and power W over each frame's samples.
    ``least``, ``most`` float32 (n, 3): their extremes.
    """

    frames: Words
    sums: npt.NDArray[np.float64]
    least: npt.NDArray[np.float32]
    most: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, frames: int) -> Block:
        return cls(
            np.zeros((frames, FRAME_WORDS), dtype=np.uint16),
            np.zeros((frames, 3)),
            np.zeros((frames, 3), dtype=np.float32),
            np.zeros((frames, 3), dtype=np.float32),
        )

    def __getitem__(self, rows: slice) -> Block:
        return Block(self.frames[rows], self.sums[rows], self.least[rows], self.most[rows])

    def __setitem__(self, rows: slice, other: Block) -> None:
        self.frames[rows], self.sums[rows] = other.frames, other.sums
        self.least[rows], self.most[rows] = other.least, other.most


def words_of(frames: Words) -> Words:
    """The raw samples uint16 (n, 2) in frames uint16 (m, 256)."""
    return frames[:, HEADER_WORDS:].reshape(-1, 2)


def calibrate(raw: Words, voltage_range: int) -> npt.NDArray[np.float32]:
    """Current (A), voltage (V) and power (W), float32 (3, n), of raw samples uint16 (n, 2).

    The host's arithmetic (float32, offset then gain), without range-switch suppression; written
    anew here, so that what is tested against the emulator is not tested against itself.
    """
    ranges = (raw[:, 0] & 3) | ((raw[:, 1] & 1) << 2)
    out = np.empty((3, len(raw)), dtype=np.float32)
    out[0] = ((raw[:, 0] >> 2).astype(np.float32) + _OFFSET[ranges]) * _GAIN[ranges]
    out[1] = (raw[:, 1] >> 2).astype(np.float32) + VOLTAGE_OFFSET[voltage_range]
    out[1] *= VOLTAGE_GAIN[voltage_range]
    np.multiply(out[0], out[1], out=out[2])
    return out


class Period:
    """One period of frames under one set of settings, made as it is asked for."""

    def __init__(self, target: Target, wire: Wire) -> None:
        self._target = target
        self._wire = wire
        self._all = Block.empty(PERIOD_FRAMES)
        self._made = [False] * (PERIOD_FRAMES // BLOCK_FRAMES)

    def run(self, first: int, count: int) -> Block:
        """Up to ``count`` frames from frame ``first``: ends early where the period ends."""
        first %= PERIOD_FRAMES
        stop = min(first + count, PERIOD_FRAMES)
        for number in range(first // BLOCK_FRAMES, -(-stop // BLOCK_FRAMES)):
            if not self._made[number]:
                start = number * BLOCK_FRAMES
                self._all[start : start + BLOCK_FRAMES] = self._make(start)
                self._made[number] = True
        return self._all[first:stop]

    def _make(self, frame: int) -> Block:
        first = (frame - HALO_FRAMES) * FRAME_SAMPLES
        count = (BLOCK_FRAMES + HALO_FRAMES) * FRAME_SAMPLES
        waveform = self._target.samples(first, count, connected=self._wire.connected)
        return encode(waveform, first, self._wire, self._target.noise)


def switched(target: Target, frame: int, wire: Wire, before: Wire | None, last_range: int) -> Block:
    """The frames right after the settings became ``wire`` at frame ``frame`` of the period.

    ``before`` are the settings until then, None if nothing was sampled, and ``last_range`` the
    range of the last sample. Connecting shows the inrush, disconnecting the discharge.
    """
    was_connected = before is not None and before.connected
    first, halo = frame * FRAME_SAMPLES, HALO_FRAMES * FRAME_SAMPLES
    if was_connected == wire.connected:
        after = target.samples(first, FRAME_SAMPLES, connected=wire.connected)
    else:
        count = TRANSIENT_FRAMES * FRAME_SAMPLES
        after = target.switched(first, count, connected=wire.connected)
    history = target.samples(first - halo, halo, connected=was_connected)
    return encode(join(history, after), first - halo, wire, target.noise, last_range)


def encode(
    waveform: Waveform,
    first: int,
    wire: Wire,
    noise: npt.NDArray[np.float32],
    last_range: int | None = None,
) -> Block:
    """The frames of a waveform whose sample 0 is sample ``first`` of the period.

    The first ``HALO_FRAMES`` are history and not returned; ``last_range`` is the range throughout
    the history where that does not follow from ``wire``.
    """
    halo = HALO_FRAMES * FRAME_SAMPLES
    ranges = _ranges(waveform.current, wire.select)
    if last_range is not None:
        ranges[:halo] = last_range
    code = waveform.current * _INVERSE_GAIN[ranges] - _OFFSET[ranges]
    index = np.arange(first % PERIOD_SAMPLES, first % PERIOD_SAMPLES + len(ranges))
    _add_glitches(code, ranges, noise, index)
    voltage_range = wire.voltage_range
    volts = waveform.voltage / VOLTAGE_GAIN[voltage_range] - VOLTAGE_OFFSET[voltage_range]
    raw = _words(code[halo:], volts[halo:], ranges[halo:], waveform.gpi[halo:], wire)
    return _frames(raw, voltage_range)


def _ranges(current: npt.NDArray[np.float32], select: int) -> Bytes:
    """Range index of every sample: forced, off, or autoranging."""
    if select == protocol.SELECT_OFF:
        return np.full(len(current), RANGE_OFF, dtype=np.uint8)
    if not select & protocol.SELECT_AUTO:
        forced = (select & -select).bit_length() - 1
        return np.full(len(current), forced, dtype=np.uint8)
    fits = np.zeros(len(current), dtype=np.uint8)
    for top in _TOP[1:]:
        fits += current < top
    # Coarser at once, finer only after the dwell: the coarsest that was needed meanwhile.
    span = 1
    while span < DWELL:
        step = min(span, DWELL - span)
        fits[step:] = np.minimum(fits[step:], fits[:-step])
        span += step
    fits[DELAY:] = fits[:-DELAY].copy()
    return fits


def _add_glitches(
    code: npt.NDArray[np.float32],
    ranges: Bytes,
    noise: npt.NDArray[np.float32],
    index: npt.NDArray[np.int64],
) -> None:
    """Let the current code ring for 3 to 8 samples after each change of range."""
    at = np.flatnonzero(ranges[1:] != ranges[:-1]) + 1
    longest = _GLITCH[ranges[at], ranges[at - 1]]
    at, longest = at[longest > 0], longest[longest > 0]
    draw = np.abs(noise[index[at] % len(noise)] * 1000).astype(np.int64)
    length = 3 + draw % (longest - 2)
    for k in range(8):
        hit = at[(length > k) & (at + k < len(code))] + k
        code[hit] += _GLITCH_DECAY[k] * noise[index[hit] % len(noise)]


def _words(
    current: npt.NDArray[np.float32],
    voltage: npt.NDArray[np.float32],
    ranges: Bytes,
    gpi: Bytes,
    wire: Wire,
) -> Words:
    """Raw samples uint16 (n, 2) of ADC codes that may lie outside the ADC's span."""
    codes: list[npt.NDArray[np.integer]] = []
    for ideal, source in ((current, wire.current_lsb), (voltage, wire.voltage_lsb)):
        code: npt.NDArray[np.integer] = np.clip(np.rint(ideal), 0, words.CODE_MAX).astype(np.uint16)
        if source in (protocol.LSB_GPI0, protocol.LSB_GPI1):
            code = (code & 0xFFFE) | ((gpi >> (source - protocol.LSB_GPI0)) & 1)
        elif wire.options & protocol.OPTION_OVERFLOW_TO_LSB:
            code = (code & 0xFFFE) | ((ideal < 0) | (ideal > words.CODE_MAX))
        codes.append(code)
    return words.encode(codes[0], codes[1], ranges)


def _frames(raw: Words, voltage_range: int) -> Block:
    """Whole frames of raw samples, with their sums."""
    block = Block.empty(len(raw) // FRAME_SAMPLES)
    frames = block.frames
    frames[:, TYPE_WORD] = protocol.FRAME_RAW
    frames[:, LENGTH_WORD] = protocol.FRAME_BYTES
    if voltage_range:
        frames[:, LENGTH_WORD] |= protocol.FRAME_VOLTAGE_RANGE
    frames[:, HEADER_WORDS:] = raw.reshape(len(frames), -1)
    values = calibrate(raw, voltage_range).reshape(3, -1, FRAME_SAMPLES)
    block.sums[:] = values.sum(axis=2, dtype=np.float64).T
    block.least[:] = values.min(axis=2).T
    block.most[:] = values.max(axis=2).T
    return block


def pattern(first: int, count: int) -> Words:
    """Test pattern frames uint16 (count, 256), index words 0, from frame ``first`` of a stream.

    Payload: u32 words, in turn a counter (its complement in the high half) and a shifted bit.
    """
    step = np.arange(first * FRAME_SAMPLES // 2, (first + count) * FRAME_SAMPLES // 2)
    counter = (step & 0xFFFF).astype(np.uint32)
    shift = (step % 33).astype(np.uint64)
    payload = np.empty((len(step), 2), dtype=np.uint32)
    payload[:, 0] = counter | (~counter << 16)
    payload[:, 1] = (np.uint64(1) << shift) >> np.uint64(1)
    frames = np.zeros((count, FRAME_WORDS), dtype=np.uint16)
    frames[:, TYPE_WORD] = protocol.FRAME_PATTERN
    frames[:, LENGTH_WORD] = protocol.FRAME_BYTES
    frames[:, HEADER_WORDS:] = payload.view(np.uint16).reshape(count, -1)
    return frames
