"""Turn the data records of a recording into samples, piece by piece, in bounded memory.

`RawDecoder` converts the instrument's words with the calibration and the range-switch suppression,
`FloatDecoder` reads samples stored as values. Both yield pieces: dicts of arrays of equal length,
one after the other, exactly covering the samples asked for. Samples of damaged records come out as
missing: words 0xFFFF, NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.jls import arrays
from daq_ioc.jls.layout import SCALES
from daq_ioc.jls.recording import Block, DataRecord, Recording
from daq_ioc.jls.reduction import from_bits
from daq_ioc.joulescope.calibration import Calibration
from daq_ioc.joulescope.suppression import DEFAULT_MODE, RawProcessor, Samples, SuppressMode
from daq_ioc.joulescope.words import as_words, decode_steady, steady_range
from daq_ioc.samples import MISSING_WORD

Piece = dict[str, npt.NDArray[Any]]

PIECE = 65536
"""Most samples of a raw piece: few enough to stay in the processor's cache."""

_NONE = np.empty((0, 2), np.uint16)

MARGIN = 64
"""Samples before and after a stretch that the suppression of the stretch may depend on."""


def _spans(
    recording: Recording, first: int, stop: int
) -> Iterator[tuple[Block | None, DataRecord | None, int, int]]:
    """Consecutive stretches of samples within one data record; without one where it is lost."""
    sizes = recording.sizes
    while first < stop:
        number = first // sizes.block
        end = min(stop, (number + 1) * sizes.block)
        block = recording.block(number)
        if block is not None:
            for record in recording.records(block, first, min(end, block.stop)):
                high = min(end, record.stop)
                yield block, record, first, high
                first = high
        if first < end:
            recording.problem(f"samples {first} to {end} are lost")
        while first < end:
            high = min(end, first + sizes.record)
            yield block, None, first, high
            first = high


class RawProcessorSettings:
    """How raw words are converted; ``suppress_mode`` may be set at any time (ValueError)."""

    def __init__(self) -> None:
        self._suppress_mode: str | None = DEFAULT_MODE

    @property
    def suppress_mode(self) -> str | None:
        return self._suppress_mode

    @suppress_mode.setter
    def suppress_mode(self, mode: str | None) -> None:
        SuppressMode.parse(mode)
        self._suppress_mode = mode

    def reset(self) -> None:
        """Nothing: every query starts afresh. For scripts that call it."""


class RawDecoder:
    """Samples of a raw recording: ``raw`` uint16 (n, 2), ``current``, ``voltage`` float32 (n,),
    ``bits`` uint8 (n,).
    """

    def __init__(
        self, recording: Recording, calibration: Calibration, settings: RawProcessorSettings
    ) -> None:
        self._recording = recording
        self._calibration = calibration
        self._settings = settings

    def words(
        self, first: int, stop: int, edge: int = 0, step: int = PIECE
    ) -> Iterator[tuple[npt.NDArray[np.uint16], int | None]]:
        """Raw words in pieces, each with its voltage range.

        They end where data records end, and every ``step`` samples from sample ``edge`` on.
        """
        for block, record, start, high in _spans(self._recording, first, stop):
            while start < high:
                end = min(high, edge + step * max(1, (start - edge) // step + 1))
                yield self._raw(record, start, end), block.voltage_range if block else 0
                start = end

    def _raw(self, record: DataRecord | None, first: int, stop: int) -> npt.NDArray[np.uint16]:
        words = self._recording.raw(record, first, stop) if record else None
        return np.full((stop - first, 2), MISSING_WORD, np.uint16) if words is None else words

    def pieces(self, first: int, stop: int, window: int = 1) -> Iterator[Piece]:
        """Samples ``first`` to ``stop``, converted from a little before them to a little behind.

        Most pieces hold whole windows of ``window`` samples, if it is short.
        """
        step = max(1, PIECE // window) * window if window < PIECE else PIECE
        position = max(0, first - MARGIN)
        stream = _Stream(self._calibration, self._settings.suppress_mode, inside=position > 0)
        for words, voltage_range in self._words_for(stream, position, first, stop, step):
            samples = stream.convert(words, voltage_range)
            low, high = max(0, first - position), min(len(samples), stop - position)
            position += len(samples)
            if low < high:
                yield _piece(samples if high - low == len(samples) else samples[low:high])
        if position < stop:
            yield _piece(stream.flush()[max(0, first - position) : stop - position])

    def together(self, stretches: Sequence[tuple[int, int]]) -> list[Piece]:
        """The samples of a few short stretches (first, stop), as one piece if they are alike."""
        pieces: list[Piece] = []
        alike: dict[tuple[int, int], list[npt.NDArray[np.uint16]]] = {}
        for first, stop in stretches:
            begin = max(0, first - MARGIN)
            words, setting = next(self.words(begin, stop, begin), (_NONE, None))
            kind = None
            if len(words) == stop - first + MARGIN:
                kind = steady_range(as_words(words))
            if kind is None or setting is None:
                pieces += self.pieces(first, stop)
            else:
                alike.setdefault((kind, setting), []).append(words[MARGIN:])
        for (kind, setting), parts in alike.items():
            raw = np.concatenate(parts)
            pieces.append(_piece(_steady(raw, kind, self._calibration, setting)))
        return pieces

    def _words_for(
        self, stream: _Stream, begin: int, first: int, stop: int, step: int
    ) -> Iterator[tuple[npt.NDArray[np.uint16], int | None]]:
        """Words up to ``stop``, and a little behind if the last samples depend on them."""
        yield from self.words(begin, stop, first, step)
        if stream.is_suppressing:
            yield from self.words(stop, min(stop + MARGIN, self._recording.size))


class _Stream:
    """Converts consecutive words; where the current range does not change, with the least effort.

    Only near changes there is something to suppress, and samples may be held back until it is known
    what they become. ``inside``: the recording begins before the first words, `MARGIN` of which
    only tell what was before.
    """

    def __init__(self, calibration: Calibration, mode: str | None, *, inside: bool) -> None:
        self._calibration = calibration
        self._mode = mode
        self._processor: RawProcessor | None = None
        self._last: tuple[npt.NDArray[np.uint16], int] | None = None
        self._may_be_steady = inside

    @property
    def is_suppressing(self) -> bool:
        """Whether samples may be held back."""
        return self._processor is not None

    def convert(self, raw: npt.NDArray[np.uint16], voltage_range: int | None) -> Samples:
        """The samples that are final now; voltages are NaN if their range is not known (None)."""
        known = self._calibration
        if voltage_range is None:
            known = replace(known, voltage_gain=np.full_like(known.voltage_gain, np.nan))
        setting = voltage_range or 0
        kind = self._steady_range(raw) if len(raw) >= MARGIN else None
        self._may_be_steady = len(raw) >= MARGIN
        if kind is not None:
            self._processor = None
            samples = _steady(raw, kind, known, setting)
        else:
            samples = self._started(known).process(raw, setting)
        self._last = raw[-MARGIN:], setting
        return samples

    def _steady_range(self, raw: npt.NDArray[np.uint16]) -> int | None:
        """The one range of ``raw`` and the `MARGIN` samples before it, if that is so."""
        if not self._may_be_steady:
            return None
        kind = steady_range(as_words(raw))
        if self._last is not None and steady_range(as_words(self._last[0])) != kind:
            return None
        return kind

    def _started(self, calibration: Calibration) -> RawProcessor:
        """The processor, to convert by ``calibration`` what comes next."""
        if self._processor is None:
            self._processor = RawProcessor(calibration, self._mode)
            if self._last is not None:  # a steady stretch, which leaves nothing held back
                self._processor.process(*self._last)
        self._processor.calibration = calibration
        return self._processor

    def flush(self) -> Samples:
        """The samples still held back at the end of the recording."""
        return self._started(self._calibration).flush()


def _steady(
    raw: npt.NDArray[np.uint16], kind: int, calibration: Calibration, voltage_range: int
) -> Samples:
    """Samples that all have one current range."""
    return Samples(raw, *decode_steady(as_words(raw), kind, calibration, voltage_range))


def _piece(samples: Samples) -> Piece:
    return {
        "raw": samples.raw,
        "current": samples.current,
        "voltage": samples.voltage,
        "bits": samples.bits,
    }


class FloatDecoder:
    """Samples of a float recording: the six fields, float32 (n,)."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._last: tuple[int, arrays.Arrays | None] = (0, None)

    def pieces(
        self, first: int, stop: int, names: tuple[str, ...] = statistics.FIELDS
    ) -> Iterator[Piece]:
        """Samples ``first`` to ``stop`` of the fields in ``names``, a piece per data record."""
        for _, record, low, high in _spans(self._recording, first, stop):
            stored = self._stored(record) if record else None
            piece = {}
            for name in names:
                k = statistics.FIELDS.index(name)
                if stored is None or record is None:
                    piece[name] = np.full(high - low, np.nan, np.float32)
                else:
                    values = stored[k << 4 | 1][low - record.first : high - record.first]
                    piece[name] = _scaled(values, SCALES[k])
            yield piece

    def together(self, stretches: Sequence[tuple[int, int]]) -> list[Piece]:
        """The samples of a few short stretches (first, stop)."""
        return [piece for stretch in stretches for piece in self.pieces(*stretch)]

    def _stored(self, record: DataRecord) -> arrays.Arrays | None:
        """Arrays of a data record; the last one is kept. Their own lengths count, not the header's
        sample count, which the maker's software writes wrongly in short records.
        """
        if self._last[0] == record.offset:
            return self._last[1]
        payload = self._recording.payload(record)
        stored = None
        if payload is not None:
            try:
                stored, _ = arrays.unpack(payload)
            except arrays.ArrayStorageError as error:
                self._recording.problem(f"data record at offset {record.offset}: {error}")
        count = record.stop - record.first
        if stored and any(
            len(stored.get(k << 4 | 1, ())) != count for k in range(len(statistics.FIELDS))
        ):
            self._recording.problem(f"data record at offset {record.offset} lacks samples")
            stored = None
        self._last = record.offset, stored
        return stored


def _scaled(values: npt.NDArray[Any], scale: int | None) -> npt.NDArray[np.float32]:
    if scale is None:
        return values.astype(np.float32)
    return values.astype(np.float32) * np.float32(1 / scale)


def all_fields(piece: Piece) -> Piece:
    """Every field that can be asked of a raw piece."""
    raw = piece["raw"]
    fields = from_bits(piece["current"], piece["voltage"], piece["bits"])
    return {**fields, "raw": raw, "raw_current": raw[:, 0] >> 2, "raw_voltage": raw[:, 1] >> 2,
            "bits": piece["bits"]}  # fmt: skip
