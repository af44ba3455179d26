"""Current, voltage and power at lower rates, as the instrument maker's software filters them.

Decimating low-pass filters behind each other, linear in phase, in float64; power is the product of
the full-rate samples. The filters are designed here from the maker's rules. `Decimator` is the
filters alone, with the maker's delay; `Downsampler` also places its output where it belongs in
time, and averages the current range and the inputs, which are not filtered.

Nothing here knows a file or a stream.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics

Array = npt.NDArray[np.float64]

FULL_RATE: Final = 2_000_000
"""Samples/s of the instrument."""

RATES: Final = (
    2_000_000, 1_000_000, 500_000, 200_000, 100_000, 50_000, 20_000, 10_000, 5_000, 2_000,
    1_000, 500, 200, 100, 50, 20, 10, 5,
)  # fmt: skip
"""Samples/s that there are filters for; the first one needs none."""

_ATTENUATION: Final = 54.0  # dB
_PASSBAND: Final = 0.8  # of the output's Nyquist frequency
_STAGE_MAX: Final = 10
_OUTPUTS_PER_ROW: Final = 32
# OpenBLAS wakes its other threads for larger products, which then spin on a core that is not ours.
_PRODUCT_MAX: Final = 1 << 18


def factors(rate: int) -> tuple[int, ...]:
    """By how much each stage reduces the rate, input first. ValueError for a rate not in RATES."""
    if rate not in RATES:
        raise ValueError(f"{rate} samples/s is not one of {', '.join(map(str, RATES))}")
    rest, stages = FULL_RATE // rate, []
    while rest > _STAGE_MAX:
        stages.append(_STAGE_MAX)
        rest //= _STAGE_MAX
    return (*stages, rest) if rest > 1 else ()


def design(factor: int, total: int) -> Array:
    """Taps float64 (N,) of a stage that reduces by ``factor``, of ``total`` from its input on.

    A Kaiser window over an ideal low-pass of unit gain; N is even. It passes 0.8 of what the last
    output can hold, and stops 54 dB of what would fold into its own.
    """
    passes, stops = _PASSBAND / total, 1 / factor
    cutoff = (passes + stops) / 2
    taps = (_ATTENUATION - 7.95) / (2.285 * np.pi * (stops - passes)) + 1
    count = 2 * math.ceil(taps / 2)
    beta = 0.1102 * (_ATTENUATION - 8.7)
    ideal = cutoff * np.sinc(cutoff * (np.arange(count) - (count - 1) / 2))
    shaped = ideal * np.kaiser(count, beta)
    scaled: Array = shaped / shaped.sum()
    return scaled


class _Stage:
    """One decimating filter over several channels: out[k] = sum of taps[j] * in[factor*(k+1)-1-j].

    Samples are laid out in rows long enough that the inputs of a row's outputs are in this row and
    the one before: two products of matrices, without a copy of what overlaps.
    """

    def __init__(self, channels: int, factor: int, taps: Array) -> None:
        outputs = max(_OUTPUTS_PER_ROW // factor, -(-(len(taps) - factor) // factor))
        self._factor, self._taps = factor, len(taps)
        self._row = row = outputs * factor
        both = np.zeros((2 * row, outputs))
        for k in range(outputs):
            stop = row + factor * (k + 1)
            both[stop - len(taps) : stop, k] = taps[::-1]
        self._before, self._now = both[:row].copy(), both[row:].copy()
        self._piece = row * max(1, _PRODUCT_MAX // (row * outputs))
        self._kept = np.zeros((channels, row))  # the row before, and what gave no output yet

    def push(self, samples: Array) -> Array:
        """Outputs (channels, m) that are complete with ``samples`` (channels, n)."""
        parts = [
            self._filter(samples[:, k : k + self._piece])
            for k in range(0, samples.shape[1], self._piece)
        ]
        return np.concatenate(parts, axis=1) if parts else samples[:, :0]

    def _filter(self, samples: Array) -> Array:
        channels, row = len(samples), self._row
        kept = self._kept.shape[1]
        count = kept + samples.shape[1]
        outputs = (count - row) // self._factor
        rows = -(-count // row)
        laid = np.zeros((channels, rows * row))
        laid[:, :kept] = self._kept
        laid[:, kept:count] = samples
        self._kept = laid[:, outputs * self._factor : count].copy()
        missing = np.isnan(laid)
        some = bool(missing.any())
        if some:
            laid[missing] = 0.0
        laid = laid.reshape(channels, rows, row)
        filtered = laid[:, 1:] @ self._now
        filtered += laid[:, :-1] @ self._before
        filtered = filtered.reshape(channels, -1)[:, :outputs]
        if some:
            filtered[self._touched(missing, outputs)] = np.nan
        return filtered

    def _touched(self, missing: npt.NDArray[np.bool_], outputs: int) -> npt.NDArray[np.bool_]:
        """Which outputs (channels, outputs) have a missing sample under their taps."""
        total = np.zeros((len(missing), missing.shape[1] + 1), np.int64)
        np.cumsum(missing, axis=1, out=total[:, 1:])
        stop = self._row + self._factor * np.arange(1, outputs + 1)
        return total[:, stop] > total[:, stop - self._taps]


class Decimator:
    """All stages from FULL_RATE to ``rate`` for ``channels`` signals, from memories of zero.

    Output k is due with input ``factor * (k + 1) - 1`` and stands for the instant ``delay`` input
    samples before that; ``span`` inputs enter it.
    """

    def __init__(self, rate: int, channels: int = 3) -> None:
        stages = factors(rate)
        self.factor = FULL_RATE // rate
        self.span = 1
        self._stages = []
        for k, factor in enumerate(stages):
            taps = design(factor, math.prod(stages[k:]))
            self._stages.append(_Stage(channels, factor, taps))
            self.span += (len(taps) - 1) * math.prod(stages[:k])

    @property
    def delay(self) -> float:
        return (self.span - 1) / 2

    def push(self, samples: Array) -> Array:
        """Outputs (channels, m) that are complete with ``samples``, float64 (channels, n).

        NaN is a missing sample, and so is every output that one enters.
        """
        for stage in self._stages:
            samples = stage.push(samples)
        return samples


_SHIFTS: Final = (40, 0, 20)
_MASKS: Final = (0x7FFFFF, 0xFFFFF, 0xFFFFF)
_PACKED: Final = np.array(
    [(b & 0x0F) << 40 | (b >> 4 & 1) | (b >> 5 & 1) << 20 for b in range(256)], np.int64
)
"""Range and both inputs of a bits byte side by side in one integer: one sum sums all three."""

_PIECE: Final = 1 << 14
"""So many samples stay in the cache, and no sum outgrows its place."""


class Means:
    """Means of current range and both inputs over every ``factor`` samples, in the order of FIELDS.

    A missing sample has range 8 and both inputs set.
    """

    def __init__(self, factor: int) -> None:
        self._factor = factor
        self._sum = 0  # of the samples of the group that is not complete
        self._count = 0

    def push(self, bits: npt.NDArray[np.uint8]) -> Array:
        """Means (3, m) of the groups that are complete with ``bits`` uint8 (n,)."""
        parts = [self._push(bits[k : k + _PIECE]) for k in range(0, len(bits), _PIECE)]
        return np.concatenate(parts, axis=1) if parts else np.empty((3, 0))

    def _push(self, bits: npt.NDArray[np.uint8]) -> Array:
        totals = np.cumsum(_PACKED[bits])
        totals += self._sum
        ends = totals[self._factor - 1 - self._count :: self._factor]
        self._count = (self._count + len(bits)) % self._factor
        self._sum = int(totals[-1] - ends[-1]) if len(ends) else int(totals[-1])
        sums = np.diff(ends, prepend=0)
        parts = [sums >> shift & mask for shift, mask in zip(_SHIFTS, _MASKS, strict=True)]
        means: Array = np.stack(parts) / self._factor
        return means


class Downsampler:
    """The six fields of a recording at ``rate``, each sample centred on the inputs it stands for.

    Sample k stands for inputs ``factor * k`` to ``factor * (k + 1) - 1``, counted from the first
    one wanted: the filters are symmetric about the middle of these, and range and inputs are means
    over them. For that the filters need to be given ``before`` inputs more than wanted first, and
    ``after`` inputs more last.
    """

    def __init__(self, rate: int) -> None:
        self._decimator = Decimator(rate)
        self.factor = self._decimator.factor
        spare = self._decimator.span - self.factor
        self.after = spare // 2 if spare > 0 else 0
        # Outputs with taps before the first input are not used: whole outputs.
        self._skipped = -(-spare // self.factor)
        self.before = self._skipped * self.factor - self.after
        self._unused = self.before  # inputs to come that no mean is of
        self._means = Means(self.factor)
        self._waiting = np.empty((3, 0))  # means whose filtered values are not complete yet

    def push(
        self,
        current: npt.NDArray[np.float32],
        voltage: npt.NDArray[np.float32],
        bits: npt.NDArray[np.uint8],
    ) -> dict[str, npt.NDArray[Any]]:
        """The samples that are complete with these inputs, each (n,): fields by name, float32 (m,).

        Where an input is missing, current, voltage and power are NaN as far as the filters reach.
        """
        values = [
            self._filtered(current[k : k + _PIECE], voltage[k : k + _PIECE])
            for k in range(0, len(current), _PIECE)
        ]
        signals = np.concatenate(values, axis=1) if values else np.empty((3, 0), np.float32)
        unused = min(self._unused, len(bits))
        self._unused -= unused
        means = np.concatenate((self._waiting, self._means.push(bits[unused:])), axis=1)
        count = signals.shape[1]
        self._waiting = means[:, count:]
        together = (*signals, *means[:, :count].astype(np.float32))
        return dict(zip(statistics.FIELDS, together, strict=True))

    def _filtered(
        self, current: npt.NDArray[np.float32], voltage: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        samples = np.empty((3, len(current)))
        samples[0], samples[1] = current, voltage
        np.multiply(samples[0], samples[1], out=samples[2])
        filtered = self._decimator.push(samples)
        skipped = min(self._skipped, filtered.shape[1])
        self._skipped -= skipped
        return filtered[:, skipped:].astype(np.float32)
