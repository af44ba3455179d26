"""Circular buffer of rows: the only queue between acquisition and everything else.

One thread appends; any number of threads read by id. A reader never blocks the writer: one that
comes too late is told which rows it lost. Rows are identified by a counter that never goes back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One array of the buffer: ``shape`` and ``dtype`` of a row, ``fill`` where there is no row."""

    dtype: npt.DTypeLike
    fill: object
    shape: tuple[int, ...] = ()


class OverrunError(LookupError):
    """Rows that were asked for have been overwritten; ``start_id`` is the oldest still there."""

    def __init__(self, wanted: int, start_id: int) -> None:
        super().__init__(f"row {wanted} is no longer in the buffer, which starts at {start_id}")
        self.start_id = start_id


class RingBuffer:
    """The last ``capacity`` rows of ``columns``; memory is taken as it fills.

    ``pointer`` is the index of the newest row in the circular arrays, -1 while there is none. Rows
    ``start_id`` to ``stop_id - 1`` are there.
    """

    def __init__(self, columns: Mapping[str, Column], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a buffer of {capacity} rows: at least one is needed")
        self.columns = dict(columns)
        self.capacity = capacity
        self._arrays = {
            name: np.empty((capacity, *column.shape), column.dtype)
            for name, column in self.columns.items()
        }
        self._start_id = self._stop_id = 0
        self._changed = threading.Condition()

    @property
    def start_id(self) -> int:
        return self._start_id

    @property
    def stop_id(self) -> int:
        return self._stop_id

    @property
    def pointer(self) -> int:
        return (self._stop_id - 1) % self.capacity if self._stop_id > self._start_id else -1

    def __len__(self) -> int:
        return self._stop_id - self._start_id

    @property
    def row_bytes(self) -> int:
        return sum(array[:1].nbytes for array in self._arrays.values())

    def append(self, first_id: int, rows: Mapping[str, Array]) -> None:
        """Add rows with ids ``first_id`` and on; ids that were left out are filled as missing.

        Raises ValueError if ``first_id`` is before the newest row, and changes nothing then.
        """
        if first_id < self._stop_id:
            raise ValueError(f"row {first_id} comes after row {self._stop_id - 1}: ids only grow")
        count = len(next(iter(rows.values())))
        if first_id > self._stop_id:
            self._fill_to(first_id)
        skip = max(0, count - self.capacity)
        stop = first_id + count
        # Readers check start_id after they copied: it moves before anything is overwritten.
        self._start_id = max(self._start_id, stop - self.capacity)
        done = skip
        for part in self._parts(first_id + skip, stop):
            length = part.stop - part.start
            for name, values in rows.items():
                self._arrays[name][part] = values[done : done + length]
            done += length
        self._publish(stop)

    def _fill_to(self, first_id: int) -> None:
        begin = max(self._stop_id, first_id - self.capacity)
        if len(self) == 0:
            # Nothing was there before: a stream may begin at any id.
            self._start_id = self._stop_id = first_id
            return
        self._start_id = max(self._start_id, first_id - self.capacity)
        for name, column in self.columns.items():
            for part in self._parts(begin, first_id):
                self._arrays[name][part] = column.fill
        self._stop_id = first_id

    def _publish(self, stop_id: int) -> None:
        with self._changed:
            self._stop_id = stop_id
            self._changed.notify_all()

    def wake(self) -> None:
        """Let all that wait look again, for instance because the thing they follow ends."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, stop_id: int, timeout: float) -> bool:
        """Wait for rows up to ``stop_id``, a `wake`, or ``timeout`` s; true if they are there."""
        deadline = time.monotonic() + timeout
        with self._changed:
            if self._stop_id < stop_id:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
            return self._stop_id >= stop_id

    def _parts(self, start_id: int, stop_id: int) -> Iterator[slice]:
        """The one or two slices of the circular arrays that hold these rows."""
        while start_id < stop_id:
            begin = start_id % self.capacity
            length = min(stop_id - start_id, self.capacity - begin)
            yield slice(begin, begin + length)
            start_id += length

    def read(self, start_id: int, stop_id: int, *names: str) -> dict[str, Array]:
        """Copies of rows [start_id, stop_id) of the named columns, or of all of them.

        Raises OverrunError if some are overwritten already, IndexError if some have not come yet.
        """
        if stop_id > self._stop_id:
            raise IndexError(f"row {stop_id - 1} has not come yet")
        if start_id < self._start_id:
            raise OverrunError(start_id, self._start_id)
        parts = list(self._parts(start_id, stop_id))
        copies = {
            name: np.concatenate([self._arrays[name][part] for part in parts])
            if parts
            else self._arrays[name][:0].copy()
            for name in names or self.columns
        }
        if start_id < self._start_id:
            raise OverrunError(start_id, self._start_id)
        return copies

    def view(self, start_id: int, stop_id: int, name: str) -> Array:
        """Rows of one column without a copy, where they are in one piece; else a copy.

        For the thread that appends: for any other the rows can change underneath.
        """
        parts = list(self._parts(start_id, stop_id))
        if len(parts) == 1:
            return self._arrays[name][parts[0]]
        return self.read(start_id, stop_id, name)[name]

    def last(self, count: int, *names: str) -> dict[str, Array]:
        """Copies of the newest ``count`` rows, or as many as there are."""
        while True:
            stop_id = self._stop_id
            try:
                return self.read(max(self._start_id, stop_id - count), stop_id, *names)
            except OverrunError:
                continue
