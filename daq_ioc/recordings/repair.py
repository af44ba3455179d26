"""``daq-ioc repair``: a proper file from a recording that was not closed, was cut or is damaged."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from daq_ioc.errors import UsageError, UserError
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.jls.recording import Block, DataRecord
from daq_ioc.jls.rows import RowReader
from daq_ioc.jls.writer import RAW, Writer
from daq_ioc.recordings.common import add_command, add_output, new_file, opened, progress
from daq_ioc.samples import MISSING_WORD
from daq_ioc.statistics import FIELDS

_EXAMPLES = """\
  daq-ioc repair broken.jls whole.jls"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    does = "write a whole recording from an unfinished, cut or damaged one, which stays as it is"
    parser = add_command(subparsers, "repair", does, _EXAMPLES, repair)
    add_output(parser, "OUT.jls")


def repair(args: argparse.Namespace) -> int:
    """Copy every sample of every whole data record; lost ones between them become missing."""
    with opened(args.file) as reader:
        if args.output.exists() and args.output.samefile(args.file):
            raise UsageError("the original is never modified: OUT must be another file")
        if reader.sample_id_range[1] == 0:
            raise UserError(f"{args.file}: no samples to recover")
        with new_file(args.output, force=args.force) as part:
            written = copy(reader, part)
        problems = reader.problems
    for text in problems or ["nothing was missing"]:
        print(text)
    print(f"{args.output}: {written} samples, {written / reader_rate(args.output):.6g} s")
    return 0


def reader_rate(path: Path) -> float:
    """Samples per second of the file that was written, which is thereby seen to open."""
    with opened(path) as reader:
        return reader.sampling_frequency


def copy(reader: DataReader, path: Path) -> int:
    """Write the samples of ``reader`` to a new file; return their number."""
    recording, source = reader.recording, _Source(reader)
    writer = Writer(path, calibration=recording.calibration or None, user_data=reader.user_data)
    try:
        rate = (reader.config or {})["sampling_frequency"]
        writer.start(rate, recording.config.data_format, recording.sizes)
        base = None
        with progress(recording.size, "repairing") as advance:
            for number in range(recording.block_count):
                block = recording.block(number)
                if base is None:
                    base = (block.sample_id if block else None) or 0
                for first, stop, data, rows, voltage_range in source.records(number, block):
                    writer.write_record(base + first, data, rows, voltage_range)
                    advance(stop - first)
    finally:
        writer.close(reader.footer_user_data)
    return writer.samples


class _Source:
    """Data records of a recording, whole ones as they are, lost ones filled."""

    def __init__(self, reader: DataReader) -> None:
        self._reader = reader
        self._recording = reader.recording
        self._rows: RowReader = reader.rows

    def records(self, number: int, block: Block | None) -> Any:
        """First and last sample, contents, rows and voltage range of each record of a block."""
        sizes, size = self._recording.sizes, self._recording.size
        begin, end = number * sizes.block, min((number + 1) * sizes.block, size)
        voltage_range = self._voltage_range(number, block)
        known = block.stop if block and voltage_range is not None else begin
        for first in range(begin, end, sizes.record):
            stop = min(first + sizes.record, end)
            low, high = first // sizes.reduction, stop // sizes.reduction
            rows = self._rows.rows(low, high)
            record = None
            if block and stop <= known:
                record = self._recording.records(block, first, stop)[0]
            yield first, stop, self._contents(record, first, stop), rows, voltage_range or 0

    def _voltage_range(self, number: int, block: Block | None) -> int | None:
        """That of the block, or of the blocks beside it if they agree."""
        if block is None or block.voltage_range is not None:
            return block.voltage_range if block else 0
        count = self._recording.block_count
        near = [self._recording.block(k) for k in (number - 1, number + 1) if 0 <= k < count]
        beside = {b.voltage_range for b in near if b is not None}
        found = beside.pop() if len(beside) == 1 else None
        text = "so are its samples" if found is None else f"taken as {found}, as beside it"
        self._recording.problem(f"voltage range of block {number} is lost; {text}")
        return found

    def _contents(self, record: DataRecord | None, first: int, stop: int) -> Any:
        if self._recording.config.data_format == RAW:
            words = self._recording.raw(record, first, stop) if record else None
            if words is None:
                words = np.full((stop - first, 2), MISSING_WORD, np.uint16)
            return words
        got = self._reader.samples_get(first, stop, fields=FIELDS)
        return {name: signal["value"] for name, signal in got["signals"].items()} if got else {}
