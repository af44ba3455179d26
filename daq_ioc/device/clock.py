"""When a sample was taken: from sample ids to UTC.

A block cannot arrive before its last sample was taken, and some blocks arrive at once. So the
earliest arrivals, seen over a minute, show the instrument's clock: its offset and, slowly, how much
its crystal differs from this computer's. Arrivals are on the monotonic clock, which nobody sets;
where that stands in UTC is asked again and again, so a corrected computer clock is followed.

Published stamps never go back, since archives refuse what does: see `Forward`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

BUCKET: Final = 1.0
"""Arrivals of so many seconds give one earliest one."""

BUCKETS: Final = 60
MAX_DRIFT: Final = 300e-6
"""No crystal is worse; what seems to be more is latency."""

_DRIFT_AFTER: Final = 20


def utc_offset() -> float:
    """UTC minus the monotonic clock, s, read so that being interrupted in between does not show."""
    readings = []
    for _ in range(3):
        before = time.monotonic()
        now = time.time()
        after = time.monotonic()
        readings.append((after - before, now - (before + after) / 2))
    return min(readings)[1]


@dataclass(slots=True)
class _Bucket:
    until: float  # nominal time at which the bucket ends
    at: float  # nominal time of the earliest arrival
    lead: float  # its arrival minus its nominal time


class SampleClock:
    """The clock of one stream, of ``rate`` samples/s, whose ids begin at ``first_id``."""

    def __init__(self, rate: float, first_id: int = 0) -> None:
        self._rate = rate
        self._first_id = first_id
        self._buckets: deque[_Bucket] = deque(maxlen=BUCKETS)
        self._drift = 0.0
        self._base = 0.0  # lead at nominal time 0 on the fitted line
        self._utc_offset = utc_offset()

    def _nominal(self, sample_id: float) -> float:
        return (sample_id - self._first_id) / self._rate

    def update(self, stop_id: int, arrival: float) -> None:
        """All samples before ``stop_id`` had come at ``arrival`` (``time.monotonic()``)."""
        nominal = self._nominal(stop_id)
        lead = arrival - nominal
        newest = self._buckets[-1] if self._buckets else None
        if newest is None or nominal >= newest.until:
            self._buckets.append(_Bucket(nominal + BUCKET, nominal, lead))
            self._utc_offset = utc_offset()
            self._fit()
        elif lead < newest.lead:
            newest.at, newest.lead = nominal, lead
            self._base = min(self._base, lead - self._drift * nominal)

    def _fit(self) -> None:
        """The line of given slope below all arrivals; the slope is that between two halves."""
        buckets = list(self._buckets)
        if len(buckets) >= _DRIFT_AFTER:
            half = len(buckets) // 2
            early = min(buckets[:half], key=lambda b: b.lead)
            late = min(buckets[half:], key=lambda b: b.lead)
            if late.at > early.at:
                drift = (late.lead - early.lead) / (late.at - early.at)
                self._drift = min(MAX_DRIFT, max(-MAX_DRIFT, drift))
        self._base = min(b.lead - self._drift * b.at for b in buckets)

    def time_of(self, sample_id: float) -> float:
        """UTC of a sample, or of an instant between two, as Unix time, s."""
        nominal = self._nominal(sample_id)
        return nominal + self._base + self._drift * nominal + self._utc_offset


STEP: Final = 1e-6
"""s by which time goes on at least, that which TIME_TEXT shows."""


class Forward:
    """Times that only go on.

    A computer clock that is set forward is followed at once. After one that is set back, by a leap
    second too, each time is STEP later than the one before, until UTC has caught up: right again
    after as long as the clock was set back by. So a minute is over in a minute; after an hour it is
    quicker to start the IOC again.
    """

    def __init__(self) -> None:
        self._last = 0.0
        self._held = False

    def __call__(self, utc: float) -> float:
        """``utc``, Unix time in s, or as little after the time before as can be."""
        back = self._last - utc
        if back > 1 and not self._held:
            log.warning("the clock was set back %.0f s; time stamps wait for it", back)
        self._held = back > 0
        self._last = max(utc, self._last + STEP)
        return self._last
