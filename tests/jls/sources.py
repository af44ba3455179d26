"""Stream buffers for recorder tests: what a recorder needs of one, with given contents."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from daq_ioc.jls.reduction import reduce_windows
from daq_ioc.statistics import FIELDS, Rows


class Source:
    """A stream buffer over prepared samples, of which the first ``filled`` have arrived.

    ``signals``: the six fields (n,), and ``raw`` (n, 2) if it has raw words. ``rows`` are its
    statistics of every ``spr`` samples, computed from the fields unless given.
    """

    def __init__(
        self,
        rate: float,
        signals: dict[str, npt.NDArray[Any]],
        *,
        first: int = 0,
        voltage_range: int = 0,
        rows: Rows | None = None,
    ) -> None:
        self.output_sampling_frequency = rate
        self.signals = signals
        self.first = first
        self.voltage_range = voltage_range
        self.rows = rows
        self.filled = 0

    @property
    def has_raw(self) -> bool:
        return "raw" in self.signals

    @property
    def sample_id_range(self) -> tuple[int, int]:
        return self.first, self.first + self.filled

    def __len__(self) -> int:
        return 1 << 40

    def samples_get(self, start: int, stop: int, fields: Any) -> Any:
        part = slice(start - self.first, stop - self.first)
        if fields == "raw":
            return self.signals["raw"][part]
        return {"signals": {name: {"value": self.signals[name][part]} for name in fields}}

    def data_get(self, start: int, stop: int, increment: int, out: Rows) -> None:
        low, high = start - self.first, stop - self.first
        if self.rows is None:
            part = {name: self.signals[name][low:high] for name in FIELDS}
            reduce_windows(part, increment, out)
        else:
            out[:] = self.rows[low // increment : high // increment]
