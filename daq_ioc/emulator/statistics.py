"""The statistics that the instrument makes itself and tells in STATUS replies."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from daq_ioc.driver.joulescope.js110.protocol import (
    FRAME_SAMPLES,
    SAMPLE_RATE,
    SensorStatistics,
)
from daq_ioc.emulator.timeline import Timeline, Totals

WINDOW: Final = 1_000_000  # samples


class SensorCounter:
    """Windows of ``WINDOW`` samples that tile the timeline while it samples.

    Charge and energy are kept since power-on. A window that the end of sampling cuts is dropped.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._counted = 0  # samples of the timeline that were counted, or never will be
        self._charge = self._energy = 0.0

    def restart(self, frame: int) -> None:
        """Begin the next window at ``frame``."""
        self._counted = frame * FRAME_SAMPLES

    def collect(self, frame: int) -> Totals | None:
        """Count the windows that are complete at ``frame``; the newest one's totals if any."""
        windows = (frame * FRAME_SAMPLES - self._counted) // WINDOW
        if self._timeline.wire is None or windows < 1:
            return None
        last = self._counted + (windows - 1) * WINDOW
        self._add(self._timeline.totals(self._counted, last))
        newest = self._timeline.totals(last, last + WINDOW)
        self._add(newest)
        self._counted = last + WINDOW
        return newest

    def _add(self, totals: Totals) -> None:
        self._charge += float(totals.sums[0]) / SAMPLE_RATE
        self._energy += float(totals.sums[2]) / SAMPLE_RATE

    def report(self, frame: int) -> SensorStatistics:
        """The newest window, once; then zeros until the next is complete."""
        totals = self.collect(frame)
        running = SensorStatistics(
            samples_total=self._counted,
            charge=round(self._charge * 2**27),
            energy=round(self._energy * 2**27),
        )
        if totals is None:
            return running
        mean = totals.sums / totals.samples
        least, most = totals.least, totals.most
        return replace(
            running,
            samples_this=WINDOW,
            power_mean=round(mean[2] * 2**34),
            current_mean=round(mean[0] * 2**27),
            current_min=round(least[0] * 2**27),
            current_max=round(most[0] * 2**27),
            voltage_mean=round(mean[1] * 2**17),
            voltage_min=round(least[1] * 2**17),
            voltage_max=round(most[1] * 2**17),
            power_min=round(least[2] * 2**21),
            power_max=round(most[2] * 2**21),
        )
