"""Raw words to A and V with range-switch suppression, for any division of the stream into blocks.

When a JS110 changes its current range, the first few samples in the new range are wrong.
Suppression replaces their current: a switch opens a window, switches inside a window extend it, and
what a whole such group of samples becomes is decided when its last sample is there. Samples of an
open group are held back until then, so what comes out is final.

The results equal the maker's software bit for bit, but for groups of 64 and more samples: there it
emits one sample too many, while here every sample comes out exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from daq_ioc.joulescope import words
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.samples import MISSING_RANGE

F32 = npt.NDArray[np.float32]

DEFAULT_MODE: Final = "interp_1_n_1"
POWER_UP_RANGE: Final = 7
"""The range before the first sample; so a stream begins with a window, as the maker's does."""

HELD_MAX: Final = 63
"""Most samples a group keeps; those before them become missing in current and voltage."""

OVERFLOW_BITS: Final = 0xFF
HELD_BITS: Final = MISSING_RANGE
"""Bits of samples that an overlong group gives up, and of those held when a stream ends."""

_HISTORY: Final = 8
_STEPS: Final = np.arange(HELD_MAX)
_WINDOW_MAX: Final = 12
_EDGE_MAX: Final = 8

# Samples to replace, by [new range][previous range]; 7 is off and 8 is missing.
_WINDOW_N: Final = (
    (0, 5, 7, 7, 7, 7, 7, 8, 0),
    (3, 0, 7, 7, 7, 7, 7, 8, 0),
    (5, 5, 0, 7, 7, 7, 7, 8, 0),
    (5, 5, 5, 0, 7, 7, 7, 8, 0),
    (5, 5, 5, 5, 0, 7, 7, 8, 0),
    (5, 5, 5, 5, 5, 0, 7, 8, 0),
    (5, 5, 5, 5, 5, 5, 0, 8, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 0),
)
_WINDOW_M: Final = (
    (0, 5, 5, 5, 5, 5, 6, 6, 0),
    (3, 0, 5, 5, 5, 6, 7, 8, 0),
    (4, 4, 0, 6, 6, 7, 7, 8, 0),
    (4, 4, 4, 0, 6, 6, 7, 7, 0),
    (4, 4, 4, 4, 0, 6, 7, 6, 0),
    (4, 4, 4, 4, 4, 0, 7, 6, 0),
    (4, 4, 4, 4, 4, 4, 0, 6, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 0),
)


@dataclass(frozen=True, slots=True)
class SuppressMode:
    """How current is replaced after a range switch.

    ``kind`` off, nan, mean or interp; ``window`` [new range][previous range] in samples; ``pre``
    and ``post`` samples before and after the window that mean and interp take their values from.
    """

    kind: str
    pre: int
    window: npt.NDArray[np.intp]
    post: int

    @classmethod
    def parse(cls, text: str | None) -> SuppressMode:
        """From ``off``, ``normal``, or ``kind_pre_window_post``, where window is n, m or 0..12.

        Raises ValueError that names the allowed values.
        """
        name = (text or "off").lower()
        parts = ("interp_1_n_1" if name == "normal" else name).split("_")
        if parts == ["off"]:
            parts = ["off", "0", "0", "0"]
        if len(parts) != 4:
            raise ValueError(
                f"suppression mode {text!r}: expected 'off', 'normal' or kind_pre_window_post"
            )
        kind = {"interpolate": "interp"}.get(parts[0], parts[0])
        if kind not in ("off", "nan", "mean", "interp"):
            raise ValueError(f"suppression kind {parts[0]!r}: expected off, nan, mean or interp")
        pre, post = (cls._edge(parts[k], text) for k in (1, 3))
        if kind == "interp" or (kind == "mean" and pre == post == 0):
            pre = post = 1
        elif kind in ("nan", "off"):
            pre = post = 0
        window = cls._window(parts[2], text)
        return cls(kind, pre, window if kind != "off" else np.zeros_like(window), post)

    @staticmethod
    def _edge(part: str, text: str | None) -> int:
        try:
            count = max(0, int(part))
        except ValueError:
            count = _EDGE_MAX + 1
        if count > _EDGE_MAX:
            raise ValueError(f"suppression mode {text!r}: pre and post are 0..{_EDGE_MAX} samples")
        return count

    @staticmethod
    def _window(part: str, text: str | None) -> npt.NDArray[np.intp]:
        if part in ("n", "m"):
            return np.array(_WINDOW_N if part == "n" else _WINDOW_M, np.intp)
        if not part.isdecimal() or int(part) > _WINDOW_MAX:
            raise ValueError(f"suppression mode {text!r}: window is n, m or 0..{_WINDOW_MAX}")
        window = np.full((9, 9), int(part), np.intp)
        np.fill_diagonal(window, 0)
        return window


@dataclass(slots=True)
class Counters:
    """What a stream went through since its reset, counted as the maker's software does.

    ``missing`` samples; ``skips``: runs of missing samples, plus toggle errors; ``toggle_errors``:
    present samples whose alternating bit did not alternate; ``contiguous`` samples since the last
    missing one.
    """

    missing: int = 0
    skips: int = 0
    toggle_errors: int = 0
    contiguous: int = 0


@dataclass(frozen=True, slots=True)
class Samples:
    """Aligned samples: raw uint16 (n, 2), current float32 (n,) A, voltage float32 (n,) V, bits
    uint8 (n,).
    """

    raw: npt.NDArray[np.uint16]
    current: F32
    voltage: F32
    bits: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, rows: slice) -> Samples:
        return Samples(self.raw[rows], self.current[rows], self.voltage[rows], self.bits[rows])

    def copy(self) -> Samples:
        return Samples(self.raw.copy(), self.current.copy(), self.voltage.copy(), self.bits.copy())

    def followed_by(self, other: Samples) -> Samples:
        return Samples(
            np.concatenate((self.raw, other.raw)),
            np.concatenate((self.current, other.current)),
            np.concatenate((self.voltage, other.voltage)),
            np.concatenate((self.bits, other.bits)),
        )


_NONE: Final = Samples(
    np.empty((0, 2), np.uint16),
    np.empty(0, np.float32),
    np.empty(0, np.float32),
    np.empty(0, np.uint8),
)


class RawProcessor:
    """Converts one stream of raw words; feed it consecutive blocks of any length.

    ``suppress_mode``: see `SuppressMode.parse`. ``counters`` tells what the stream went through.
    """

    def __init__(self, calibration: Calibration, suppress_mode: str | None = DEFAULT_MODE) -> None:
        self.reset(calibration, suppress_mode)

    def reset(self, calibration: Calibration, suppress_mode: str | None = DEFAULT_MODE) -> None:
        """Forget the stream so far, samples held back included."""
        self.calibration = calibration
        self.suppress_mode = suppress_mode
        self._mode = SuppressMode.parse(suppress_mode)
        self.counters = Counters()
        self._range = POWER_UP_RANGE
        self._word: np.uint32 | None = None
        self._held = _NONE
        self._held_end = -1  # index into held of the open group's last sample
        self._history = np.full(_HISTORY, np.nan, np.float32)  # current before held

    def process(self, raw: npt.NDArray[np.uint16], voltage_range: int) -> Samples:
        """The samples that are final now that ``raw`` uint16 (n, 2) has come.

        They start with those that were held back. All of ``raw`` was taken in ``voltage_range``
        (0 is 15 V, 1 is 5 V).
        """
        if len(raw) == 0:
            return _NONE
        block = words.as_words(raw)
        decoded = words.decode_words(block, self.calibration, voltage_range)
        self._count(block, decoded)
        starts, ends = self._windows(decoded.starts, decoded.kinds)
        self._range = int(decoded.kinds[-1])
        current = decoded.current
        samples = Samples(raw, current, decoded.voltage, decoded.bits)
        if len(starts) == 0 and len(self._held) == 0:
            self._history = _last(self._history, current)
            return samples
        return self._release(samples, starts, ends)

    def change_mode(self, suppress_mode: str | None) -> Samples:
        """Convert what comes next in another mode; the samples that were held back, as `flush`."""
        if suppress_mode == self.suppress_mode:
            return _NONE
        self._mode, self.suppress_mode = SuppressMode.parse(suppress_mode), suppress_mode
        return self.flush()

    def flush(self) -> Samples:
        """The samples still held back, never to be completed: current and voltage NaN, range 8."""
        held, self._held = self._held, _NONE
        self._history = _last(self._history, held.current)
        held.current[:] = np.nan
        held.voltage[:] = np.nan
        held.bits[:] = HELD_BITS
        return held

    def _windows(
        self, changes: npt.NDArray[np.intp], kinds: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """First and last sample of the window that each range change opens, post samples included.

        From ``changes`` on the range is ``kinds``. The ends do not decrease: a window that ends
        before an earlier one adds nothing.
        """
        if len(changes) == 1 and kinds[0] == self._range:
            return changes[:0], changes[:0]
        before = np.empty_like(kinds)
        before[0], before[1:] = self._range, kinds[:-1]
        lengths = self._mode.window[kinds, before]
        opens = lengths > 0
        ends = changes + lengths + (self._mode.post - 1)
        return changes[opens], np.maximum.accumulate(ends[opens])

    def _release(
        self, new: Samples, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
    ) -> Samples:
        """Close the groups whose last sample is there; hold back the one that is still open."""
        samples = new
        if n_held := len(self._held):
            samples = self._held.followed_by(new)
            starts = np.concatenate(([0], starts + n_held))
            ends = np.maximum.accumulate(np.concatenate(([self._held_end], ends + n_held)))
        n = len(samples)
        if len(starts) > 1:
            apart = starts[1:] > ends[:-1]
            starts = np.concatenate((starts[:1], starts[1:][apart]))
            ends = np.concatenate((ends[:-1][apart], ends[-1:]))

        n_final = n
        if ends[-1] >= n:
            # Whatever comes, a group that is already too long gives up its oldest samples.
            n_final = max(int(starts[-1]), n - HELD_MAX)
        held_end = int(ends[-1]) - n_final
        before_held = _last(self._history, samples.current[:n_final])
        if n_final < n:
            _give_up(samples[int(starts[-1]) : n_final])
            starts, ends = starts[:-1], ends[:-1]
        if len(starts):
            self._suppress(samples, starts, ends)
        self._history = before_held
        if n_final == n:
            self._held = _NONE
            return samples
        # A copy, because the caller may use the memory of raw again.
        self._held, self._held_end = samples[n_final:].copy(), held_end
        return samples[:n_final]

    def _earlier(self, current: F32, rows: npt.NDArray[np.intp]) -> F32:
        """Currents at ``rows``, which ascend; the negative ones lie in the history."""
        if rows[0] >= 0:
            return current[rows]
        return np.where(rows < 0, self._history[rows % _HISTORY], current.take(rows, mode="clip"))

    def _suppress(
        self, samples: Samples, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
    ) -> None:
        """Replace the currents of whole groups, given by their first and last samples."""
        lengths = ends + 1 - starts
        if lengths.max() > HELD_MAX:
            overlong = lengths > HELD_MAX
            for start, end in zip(starts[overlong], ends[overlong], strict=True):
                _give_up(samples[int(start) : int(end) + 1 - HELD_MAX])
            lengths = np.minimum(lengths, HELD_MAX)
            starts = ends + 1 - lengths
        replaced = lengths - self._mode.post
        steps = _STEPS[: max(0, replaced.max())]
        inside = steps < replaced[:, np.newaxis]
        rows = (starts[:, np.newaxis] + steps)[inside]
        if self._mode.kind == "nan":
            samples.current[rows] = samples.voltage[rows] = np.nan
            return
        fill = self._ramps if self._mode.kind == "interp" else self._means
        samples.current[rows] = fill(samples.current, starts, lengths, len(steps))[inside]

    def _ramps(
        self,
        current: F32,
        starts: npt.NDArray[np.intp],
        lengths: npt.NDArray[np.intp],
        count: int,
    ) -> F32:
        """Ramps (groups, ``count``) from the sample before each group to the group's last one."""
        last = current[starts + (lengths - 1)]
        pre = self._earlier(current, starts - 1)
        pre = np.where(np.isfinite(pre), pre, last)
        values = np.empty((len(starts), count + 1), np.float32)
        values[:, 0] = pre
        values[:, 1:] = ((last - pre) / lengths.astype(np.float32))[:, np.newaxis]
        # accumulate adds one column after the other in float32, as the maker's loop does
        return np.add.accumulate(values, axis=1)[:, 1:]

    def _means(
        self,
        current: F32,
        starts: npt.NDArray[np.intp],
        lengths: npt.NDArray[np.intp],
        count: int,
    ) -> F32:
        """Means of ``pre`` samples before each group and its last ``post`` ones, as `_ramps`."""
        total = np.zeros(len(starts), np.float32)
        for k in range(self._mode.pre, 0, -1):
            total += self._earlier(current, starts - k)
        known = np.isfinite(total)
        total[~known] = 0
        for k in range(self._mode.post):
            total += current[starts + (lengths - 1 - k)]
        used = np.where(known, self._mode.pre, 0) + self._mode.post
        with np.errstate(invalid="ignore"):
            mean: F32 = np.divide(total, used, dtype=np.float32)
        mean[used == 0] = np.nan
        return np.broadcast_to(mean[:, np.newaxis], (len(starts), count))

    def _count(self, block: words.Words, decoded: words.Decoded) -> None:
        """Update the counters; `Counters` says what each of them means."""
        counters, missing, turned = self.counters, decoded.missing, decoded.turned
        before = block[0] ^ words.TOGGLE if self._word is None else self._word
        # The state before a stream counts as a run of missing samples, but not as toggle 1.
        was_missing = self._word is None or self._word == words.MISSING
        self._word = block[-1]
        kept_toggle = (block[0] ^ before) & words.TOGGLE == 0
        if missing is None:
            errors = int(kept_toggle)
            if not np.bitwise_and.reduce(turned, initial=words.TOGGLE):
                errors += int(np.count_nonzero(turned & words.TOGGLE == 0))
            counters.contiguous += len(block)
        else:
            errors = int(kept_toggle and not missing[0])
            errors += int(np.count_nonzero((turned & words.TOGGLE == 0) & ~missing[1:]))
            counters.missing += int(np.count_nonzero(missing))
            counters.skips += int(np.count_nonzero(missing[1:] & ~missing[:-1]))
            counters.skips += int(missing[0] and not was_missing)
            counters.contiguous = int(np.argmax(missing[::-1]))
        counters.toggle_errors += errors
        counters.skips += errors


def _last(history: F32, current: F32) -> F32:
    """The last ``_HISTORY`` currents of a stream, of which ``history`` are those before."""
    if len(current) >= _HISTORY:
        return current[-_HISTORY:].copy()
    return np.concatenate((history[len(current) :], current))


def _give_up(samples: Samples) -> None:
    """Mark samples of an overlong group as unknown."""
    samples.current[:] = np.nan
    samples.voltage[:] = np.nan
    samples.bits[:] = OVERFLOW_BITS
