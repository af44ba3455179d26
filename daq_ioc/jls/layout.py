"""How a JLS version 1 recording is laid out: its configuration, formats and sizes.

Facts that reader and writer share; nothing here reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daq_ioc import statistics
from daq_ioc.joulescope import container

FORMAT_VERSION = "2"
RAW, FLOAT, NONE = "raw", "float32_v2", "none"
"""Data formats: the instrument's own words; six float signals; a recording without samples."""

SCALES = (None, None, None, 16, 15, 15)
"""Fractions of one by which a float recording stores each of the six fields as uint8."""


class RecordingError(ValueError):
    """The file cannot be read as a recording at all; the text says why."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many samples make a reduction, a data record and a block."""

    reduction: int = 20000
    record: int = 400000
    block: int = 2000000

    def __post_init__(self) -> None:
        if not 0 < self.reduction <= self.record <= self.block:
            raise ValueError(f"{self}: a reduction, a record and a block must grow")
        if self.record % self.reduction or self.block % self.record:
            raise ValueError(f"{self}: each size must be a multiple of the one before")

    @classmethod
    def for_rate(cls, sampling_frequency: float) -> Sizes:
        """Sizes of a recording in progress: at any rate, records of about 0.1 s and blocks of 1 s.

        A record is all that is lost in a crash. The maker's constant sizes make it 0.2 s at 2 MSPS,
        and 400 s at 1 kSPS. Below 1000 samples/s a reduction keeps 10 samples and records get
        longer.
        """
        reduction = min(20000, max(10, round(sampling_frequency / 100)))
        record = reduction * min(10, max(1, round(sampling_frequency * 0.1 / reduction)))
        return cls(reduction, record, record * max(5, 100 * reduction // record))


@dataclass(frozen=True, slots=True)
class Config:
    """What a recording says about itself, older versions included."""

    sampling_frequency: float
    sizes: Sizes | None
    data_format: str
    reduction_format: str
    reduction_fields: tuple[str, ...]

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Config:
        """From the config record. KeyError, ValueError, AttributeError as in `DataReader.open`."""
        if int(config["data_recorder_format_version"]) > int(FORMAT_VERSION):
            raise RecordingError(f"recording format {config['data_recorder_format_version']}")
        data_format = config.setdefault("data_format", RAW)
        reduction_format = config.setdefault("reduction_format", "v1")
        if data_format not in (RAW, FLOAT, NONE) or reduction_format not in ("v1", "v2"):
            raise AttributeError(f"unknown format: data {data_format}, rows {reduction_format}")
        fields = tuple(config.setdefault("reduction_fields", list(statistics.FIELDS[:3])))
        if fields != statistics.FIELDS[: len(fields)]:
            raise RecordingError(f"unknown reduction fields {fields}")
        sizes = None
        if data_format != NONE:
            names = ("samples_per_reduction", "samples_per_tlv", "samples_per_block")
            sizes = Sizes(*(int(config[name]) for name in names))
        rate = float(config["sampling_frequency"])
        return cls(rate, sizes, data_format, reduction_format, fields)


def payload_bytes(data_format: str, samples: int) -> int:
    """Payload size of the data record that holds ``samples`` samples."""
    if data_format == RAW:
        return 4 * samples
    values = 4 * samples
    padded = 3 * (values + -values % 8) + 3 * (samples + -samples % 8)
    return 16 + 8 * len(statistics.FIELDS) + padded


def record_bytes(data_format: str, samples: int) -> int:
    """Size in the file of that record."""
    return container.record_size(payload_bytes(data_format, samples))
