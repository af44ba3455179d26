"""What flows from a driver upwards: samples in blocks, with their identity and their time.

A sample is one simultaneous pair of current and voltage. Its ``sample_id`` counts every sample the
instrument took since streaming began, lost ones included, so equal ids mean equal instants. This
module holds data only; it knows no instrument and computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MISSING_WORD = 0xFFFF
"""Both raw words of a sample that was lost on its way (a real sample never has both)."""

MISSING_RANGE = 8
"""Current range of a missing sample in ``bits``; real ranges are 0 to 7."""

RANGE_MASK = np.uint8(0x0F)
"""The current range in ``bits``."""

INPUT_BITS = np.uint8(0x10), np.uint8(0x20)
"""The two inputs in ``bits``: the least significant bits of the raw current and voltage."""

MISSING_BITS = 0x38
"""``bits`` of a missing sample: range 8, and both input bits set as in its raw words."""


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Consecutive samples of one stream; row k of every array is sample ``sample_id + k``.

    ``raw`` uint16 (n, 2): the instrument's own words, current then voltage.
    ``current`` float32 (n,) A and ``voltage`` float32 (n,) V: calibrated, NaN where missing.
    ``bits`` uint8 (n,): current range in bits 3:0 (8 is missing), input bits 4 and 5.
    ``voltage_range``: the range all samples of the block were taken with.
    ``arrival``: ``time.monotonic()`` at which sample ``arrival_id`` had reached this computer; the
    arrays may end earlier, since samples next to a range switch are held back until they are final.
    ``lost``: how many samples of the block are missing. ``overflow``: how many currents, and how
    many voltages, are beyond what their range can tell, so that their values are only limits.
    """

    sample_id: int
    raw: npt.NDArray[np.uint16]
    current: npt.NDArray[np.float32]
    voltage: npt.NDArray[np.float32]
    bits: npt.NDArray[np.uint8]
    voltage_range: int
    arrival: float
    arrival_id: int
    lost: int = 0
    overflow: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.raw)
