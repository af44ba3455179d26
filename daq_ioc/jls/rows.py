"""Statistics over any stretch of a recording, from its stored reductions wherever they cover it.

A pyramid stands on the reduction rows: groups of rows, blocks, and ever larger spans of blocks. It
is filled as far as queries need it; once filled, a stretch of any length is put together from a
few hundred rows at most. Rows that the file lost, or never had, are computed from the samples.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import numpy as np

from daq_ioc import statistics
from daq_ioc.jls.decode import FloatDecoder, Piece, RawDecoder, all_fields
from daq_ioc.jls.recording import Block, Recording
from daq_ioc.jls.reduction import reduce_windows
from daq_ioc.jls.reductions import unpack_v1, unpack_v2
from daq_ioc.statistics import FIELDS, Rows, combine

_RADIX = 16
_CACHED_BLOCKS = 512
_TOGETHER = 65536  # samples
_BATCH = 6400  # rows combined at once: their arrays stay in the cache


class RowReader:
    """Reduction rows and statistics of a recording, given the decoder of its samples."""

    def __init__(self, recording: Recording, decoder: RawDecoder | FloatDecoder) -> None:
        self._recording = recording
        self._decoder = decoder
        sizes = recording.sizes
        self.samples = sizes.reduction
        self.per_block = sizes.block // sizes.reduction
        self.count = recording.size // sizes.reduction
        self._blocks: OrderedDict[int, Rows] = OrderedDict()
        # Level 0 is the rows themselves; above, each node spans so many rows.
        group = _group(self.per_block)
        self._spans = [1, group, self.per_block]
        while self._spans[-1] * _RADIX <= self.count:
            self._spans.append(self._spans[-1] * _RADIX)
        counts = [self.count // span for span in self._spans]
        self._nodes = [np.empty((n if k else 0, 6), statistics.ROW) for k, n in enumerate(counts)]
        self._filled = [np.zeros(n if k else 0, np.bool_) for k, n in enumerate(counts)]

    def rows(self, first: int, stop: int) -> Rows:
        """Rows ``first`` to ``stop`` (n, 6), as stored; ``stop`` is at most `count`."""
        rows = np.empty((max(0, stop - first), len(FIELDS)), statistics.ROW)
        done = 0
        while done < len(rows):
            number, low = divmod(first + done, self.per_block)
            part = self._block(number)[low : low + len(rows) - done]
            rows[done : done + len(part)] = part
            done += len(part)
        return rows

    def _block(self, number: int) -> Rows:
        """All rows of a block."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        rows = self._load(number)
        self._blocks[number] = rows
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return rows

    def _load(self, number: int) -> Rows:
        first = number * self.per_block
        due = min(self.per_block, self.count - first)
        block = self._recording.block(number)
        if block is not None:
            rows = self._stored(block)
            if rows is not None and len(rows) >= due:
                return rows[:due]
        start = first * self.samples
        rows = statistics.empty((due,))
        windows(self._decoder.pieces(start, start + due * self.samples), self.samples, rows)
        return rows

    def _stored(self, block: Block) -> Rows | None:
        payload = self._recording.reductions(block)
        if payload is None:
            return None
        try:
            if self._recording.config.reduction_format == "v1":
                fields = len(self._recording.config.reduction_fields)
                return unpack_v1(payload, fields, self.samples)
            return unpack_v2(payload)
        except ValueError as error:
            self._recording.problem(f"reductions of block {block.number}: {error}")
            return None

    def combined(self, first: int, stop: int) -> Rows:
        """The row (6,) of rows ``first`` to ``stop`` together."""
        return _joined(list(self._parts(first, stop)))

    def _parts(self, first: int, stop: int) -> Iterator[Rows]:
        """Nodes that tile a span of rows: few, and each as large as fits."""
        level = 0
        while first < stop:
            up = level + 1
            above = self._spans[up] if up < len(self._spans) else 0
            if above and first % above == 0 and first + above <= stop:
                level = up
                continue
            span = self._spans[level]
            if first + span > stop:
                level -= 1
                continue
            end = stop - stop % span
            if above:
                end = min(end, first - first % above + above)
            yield self._level(level, first // span, end // span)
            first = end

    def _level(self, level: int, first: int, stop: int) -> Rows:
        """Nodes ``first`` to ``stop`` of a level, made of the level below where not yet known."""
        if level == 0:
            return self.rows(first, stop)
        filled = self._filled[level]
        if not filled[first:stop].all():
            below, span = self._spans[level - 1], self._spans[level]
            step = max(1, _BATCH // span)
            for k in range(first, stop, step):
                part = slice(k, min(k + step, stop))
                if not filled[part].all():
                    low, high = part.start * span // below, part.stop * span // below
                    children = self._level(level - 1, low, high)
                    self._nodes[level][part] = combine(children.reshape(-1, span // below, 6), 1)
                    filled[part] = True
        return self._nodes[level][first:stop]

    def grouped(self, first: int, count: int, size: int) -> Rows:
        """Rows (count, 6), each of ``size`` stored rows, from row ``first`` on."""
        level = 0
        for k, span in enumerate(self._spans):
            if first % span == 0 and size % span == 0:
                level = k
        span = self._spans[level]
        if size // span > 4 * self.per_block:
            return np.stack(
                [self.combined(k, k + size) for k in range(first, first + count * size, size)]
            )
        out = statistics.empty((count,))
        step = max(1, 65536 * span // size)
        for k in range(0, count, step):
            n = min(step, count - k)
            low = (first + k * size) // span
            nodes = self._level(level, low, low + n * size // span)
            out[k : k + n] = combine(nodes.reshape(n, size // span, 6), 1) if size > span else nodes
        return out

    def statistics(self, first: int, stop: int) -> Rows:
        """The row (6,) of samples ``first`` to ``stop``: stored rows, and samples at the edges."""
        low, high = -(-first // self.samples), min(stop // self.samples, self.count)
        if low >= high:
            return _joined(_direct(self._decoder.pieces(first, stop)))
        ends = (first, low * self.samples), (high * self.samples, stop)
        edges = [(start, end) for start, end in ends if start < end]
        rows = list(self._parts(low, high))
        return _joined(rows + _direct(self._decoder.together(edges))) if edges else _joined(rows)


def _direct(pieces: Iterable[Piece]) -> list[Rows]:
    """Rows (1, 6) of pieces; short ones together, for a row costs more than its samples."""
    parts = [_fields(piece) for piece in pieces]
    if len(parts) > 1 and sum(len(piece["current"]) for piece in parts) < _TOGETHER:
        parts = [{name: np.concatenate([p[name] for p in parts]) for name in parts[0]}]
    return [reduce_windows(piece, len(piece["current"])) for piece in parts]


def _fields(piece: Piece) -> Piece:
    return {name: values for name, values in piece.items() if name != "raw"}


def _joined(parts: list[Rows]) -> Rows:
    """The row (6,) of several arrays of rows (n, 6)."""
    rows = np.empty((sum(map(len, parts)), len(FIELDS)), statistics.ROW)
    done = 0
    for part in parts:
        rows[done : done + len(part)] = part
        done += len(part)
    return combine(rows)


def _group(per_block: int) -> int:
    """Rows in a group: the divisor of a block's rows that is nearest its square root."""
    divisors = [k for k in range(1, per_block + 1) if per_block % k == 0]
    return min(divisors, key=lambda k: abs(math.log(k) - math.log(per_block) / 2))


def windows(pieces: Iterable[Piece], size: int, out: Rows) -> None:
    """Rows of consecutive windows of ``size`` samples; the pieces may end anywhere."""
    done, left = 0, Piece()
    for piece in pieces:
        signals = _fields(piece)
        if left:
            signals = {name: np.concatenate((left[name], signals[name])) for name in left}
        length = len(signals["current"])
        count = length // size
        reduce_windows(signals, size, out[done:])
        done += count
        left = {name: values[count * size :] for name, values in signals.items()}
        if count * size == length:
            left = {}


def single(pieces: Iterable[Piece], rows: Rows) -> None:
    """Rows of single samples: the values as they are."""
    done = 0
    for piece in pieces:
        part = rows[done : done + len(piece["current"])]
        piece = all_fields(piece) if "bits" in piece else piece
        for k, name in enumerate(FIELDS):
            for member in ("mean", "min", "max"):
                part[member][:, k] = piece[name]
        part["variance"] = 0.0
        part["length"] = np.isfinite(piece["current"])[:, np.newaxis]
        done += len(part)
