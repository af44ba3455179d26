"""The raw words of a JS110 sample: packing, and decoding to A, V and the bits byte.

A sample is two uint16, current then voltage. Bits 15:2 of each are the 14-bit ADC code. Bits 1:0 of
the current word and bit 0 of the voltage word are the current range (0 is 10 A ... 6 is 18 uA, 7 is
off); bit 1 of the voltage word alternates from sample to sample. Bit 2 of each word, the least
significant bit of its code, can carry an input pin. Both words 0xFFFF mark a missing sample.

Range-switch suppression is not done here: see `daq_ioc.joulescope.suppression`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.samples import MISSING_RANGE, MISSING_WORD, RANGE_MASK

Words = npt.NDArray[np.uint32]

MISSING: Final = np.uint32(MISSING_WORD << 16 | MISSING_WORD)
TOGGLE: Final = np.uint32(1 << 17)
CODE_MAX: Final = 0x3FFF

_RANGE_BITS: Final = np.uint32(1 << 16 | 3)
_CURRENT_CODE: Final = np.uint32(0xFFFC)
_OFF: Final = 7
_FIRST: Final = np.zeros(1, np.intp)
_KINDS: Final = np.arange(8, dtype=np.uint8)
_FOUR: Final = np.float32(4)
_LONG: Final = 4096
"""Stretches of one range this long on average are scaled one by one, shorter ones together."""

"""Fields of the bits byte."""


def as_words(raw: npt.NDArray[np.uint16]) -> Words:
    """The samples of ``raw`` uint16 (n, 2) as uint32 (n,), current in the low half; no copy if
    ``raw`` is contiguous.
    """
    return np.ascontiguousarray(raw, dtype="<u2").view("<u4").ravel()


def encode(
    current_code: npt.NDArray[np.integer],
    voltage_code: npt.NDArray[np.integer],
    current_range: npt.NDArray[np.integer] | int,
    first_id: int = 0,
) -> npt.NDArray[np.uint16]:
    """Raw words uint16 (n, 2) of 14-bit codes and current ranges 0..7, for software instruments.

    ``first_id`` sets the phase of the alternating bit: it is 0 for even sample ids.
    """
    raw = np.empty((len(current_code), 2), np.uint16)
    ranges = np.asarray(current_range, np.uint16)
    toggle = (np.arange(first_id, first_id + len(raw)) & 1).astype(np.uint16)
    raw[:, 0] = current_code.astype(np.uint16) << 2 | ranges & 3
    raw[:, 1] = voltage_code.astype(np.uint16) << 2 | toggle << 1 | ranges >> 2
    return raw


def is_missing(words: Words) -> npt.NDArray[np.bool_] | None:
    """Which samples are missing, bool (n,), or None when none is: the usual case, found cheaply."""
    if not len(words) or words.max() != MISSING:
        return None
    missing: npt.NDArray[np.bool_] = words == MISSING
    return missing


class Decoded(NamedTuple):
    """Samples in A and V, without suppression.

    ``current``, ``voltage`` float32 (n,) and ``bits`` uint8 (n,): range in bits 3:0 (8 is missing),
    current LSB in bit 4, voltage LSB in bit 5. ``starts`` are the indices, 0 first, at which a
    stretch of one range begins, and ``kinds`` those ranges. ``missing``: which samples are, or
    None. ``turned``: the bits of each word but the first that differ from the word before.
    """

    current: npt.NDArray[np.float32]
    voltage: npt.NDArray[np.float32]
    bits: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.intp]
    kinds: npt.NDArray[np.uint8]
    missing: npt.NDArray[np.bool_] | None
    turned: Words


def decode_words(words: Words, calibration: Calibration, voltage_range: int) -> Decoded:
    """Decode samples, at least one; currents and voltages in the maker's order of float32
    operations: (code + offset) * gain.
    """
    turned = words[1:] ^ words[:-1]
    kind = _range_of(words[0])
    if kind != _OFF and not np.bitwise_or.reduce(turned) & _RANGE_BITS:
        steady = decode_steady(words, kind, calibration, voltage_range)
        return Decoded(*steady, _FIRST, _KINDS[kind : kind + 1], None, turned)
    starts, kinds, missing = _stretches(words, turned)
    current, bits = _current_codes(words), _lsb_bits(words)
    stops = np.concatenate((starts[1:], (len(words),)))
    if len(starts) * _LONG > len(words):
        lengths = stops - starts
        current += np.repeat(calibration.current_offset[kinds] * _FOUR, lengths)
        current *= np.repeat(calibration.current_gain[kinds] / _FOUR, lengths)
        bits |= np.repeat(kinds, lengths)
    else:
        for start, stop, kind in zip(starts.tolist(), stops.tolist(), kinds.tolist(), strict=True):
            _scale(current[start:stop], bits[start:stop], kind, calibration)
    voltage = _voltage(words, calibration, voltage_range)
    if missing is not None:
        voltage[missing] = np.nan
    return Decoded(current, voltage, bits, starts, kinds, missing, turned)


def decode_steady(
    words: Words, kind: int, calibration: Calibration, voltage_range: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """`decode` of words that all have current range ``kind``, 0..6: the same with less effort."""
    current, bits = _current_codes(words), _lsb_bits(words)
    _scale(current, bits, kind, calibration)
    return current, _voltage(words, calibration, voltage_range), bits


def steady_range(words: Words) -> int | None:
    """The current range of all of the words, 0..6; None if it changes, is off, or some are missing.

    Words: at least one.
    """
    common, some = int(np.bitwise_and.reduce(words)), int(np.bitwise_or.reduce(words))
    if (common ^ some) & int(_RANGE_BITS):
        return None
    kind = (common & 3) | (common >> 14 & 4)
    return kind if kind != _OFF else None


def overflows(words: Words, bits: npt.NDArray[np.uint8], *, auto: bool) -> tuple[int, int]:
    """How many currents and voltages are at an end of their ADC, where they may be anything beyond.

    With autoranging a current there only makes the range switch, unless the range is the largest.
    """
    present = bits & RANGE_MASK
    current = _at_ends(words, np.uint32(0xFFFC), present == 0 if auto else present < _OFF)
    return current, _at_ends(words, np.uint32(0xFFFC_0000), present <= _OFF)


def _at_ends(words: Words, mask: np.uint32, counts: npt.NDArray[np.bool_]) -> int:
    """How many of the codes under ``mask``, where ``counts``, are the lowest or the highest one."""
    codes = words & mask
    if codes.max(initial=0) < mask and codes.min(initial=mask) > 0:
        return 0
    return int(np.count_nonzero(((codes == mask) | (codes == 0)) & counts))


def _range_of(word: np.uint32) -> int:
    """Current range 0..7 of a word, also of a missing one."""
    return int(word) & 3 | int(word) >> 14 & 4


def _ranges_of(words: Words) -> npt.NDArray[np.uint8]:
    """`_range_of` each."""
    both = words & _RANGE_BITS
    both |= both >> np.uint32(14)
    ranges: npt.NDArray[np.uint8] = both.astype(np.uint8)
    return ranges


def _stretches(
    words: Words, turned: Words
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
    """``starts``, ``kinds`` and ``missing`` of `Decoded`."""
    starts = np.concatenate((_FIRST, ((turned & _RANGE_BITS) != 0).nonzero()[0] + 1))
    kinds = _ranges_of(words[starts])
    missing = is_missing(words) if kinds.max() == _OFF else None
    if missing is not None:
        ranges = _ranges_of(words)
        ranges[missing] = MISSING_RANGE
        starts = np.concatenate((_FIRST, np.flatnonzero(ranges[1:] != ranges[:-1]) + 1))
        kinds = ranges[starts]
    return starts, kinds, missing


def _lsb_bits(words: Words) -> npt.NDArray[np.uint8]:
    """The current LSB in bit 4 and the voltage LSB in bit 5."""
    # The product brings bits 2 and 18 of a word to its bits 28 and 29, and to none below 24 but 13.
    both = words & np.uint32(1 << 2 | 1 << 18)
    both *= np.uint32(1 << 26 | 1 << 11)
    both >>= np.uint32(24)
    bits: npt.NDArray[np.uint8] = both.astype(np.uint8)
    return bits


def _current_codes(words: Words) -> npt.NDArray[np.float32]:
    """Four times the codes of the current: as they stand in the words, which saves a shift.

    Offset and gain are scaled instead; a power of two leaves the rounding of float32 as it is.
    """
    return (words & _CURRENT_CODE).view(np.int32).astype(np.float32)


def _scale(
    current: npt.NDArray[np.float32],
    bits: npt.NDArray[np.uint8],
    kind: int,
    calibration: Calibration,
) -> None:
    """Make, in place, codes of one range A, and say so in the bits."""
    current += calibration.current_offset[kind] * _FOUR
    current *= calibration.current_gain[kind] / _FOUR
    bits |= np.uint8(kind)


def _voltage(words: Words, calibration: Calibration, voltage_range: int) -> npt.NDArray[np.float32]:
    voltage = (words >> np.uint32(18)).view(np.int32).astype(np.float32)
    voltage += calibration.voltage_offset[voltage_range]
    voltage *= calibration.voltage_gain[voltage_range]
    return voltage


def decode(
    raw: npt.NDArray[np.uint16], calibration: Calibration, voltage_range: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Current (A), voltage (V) and bits, each (n,), of ``raw`` uint16 (n, 2); no suppression."""
    if len(raw) == 0:
        none = np.empty(0, np.float32)
        return none, none.copy(), np.empty(0, np.uint8)
    decoded = decode_words(as_words(raw), calibration, voltage_range)
    return decoded.current, decoded.voltage, decoded.bits
