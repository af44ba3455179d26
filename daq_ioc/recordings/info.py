"""``daq-ioc info``: what a recording is, and whether it is whole."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.recordings.common import add_command, add_json, opened, print_json, progress

_EXAMPLES = """\
  daq-ioc info run7.jls
  daq-ioc info run7.jls --check       read everything, verify every checksum
  daq-ioc info run7.jls --json"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    does = "tell what a recording holds, and whether it is whole"
    parser = add_command(subparsers, "info", does, _EXAMPLES, info)
    parser.add_argument("--check", action="store_true", help="verify every record of the file")
    add_json(parser)


def info(args: argparse.Namespace) -> int:
    """Print what is known of the recording; status 1 if it is damaged."""
    with opened(args.file) as reader:
        if args.check:
            _check(reader)
        facts = _facts(args, reader)
    if args.json:
        print_json(facts)
    else:
        _print(facts)
    return 1 if facts["problems"] else 0


def _check(reader: DataReader) -> None:
    """Look at every record; the reader notes what is wrong."""
    recording = reader.recording
    with progress(recording.size, "checking") as advance:
        for number in range(recording.block_count):
            block = recording.block(number)
            if block is None:
                break
            recording.reductions(block)
            for record in recording.records(block, block.first, block.stop):
                recording.verified(record)
            advance(block.stop - block.first)


def _facts(args: argparse.Namespace, reader: DataReader) -> dict[str, Any]:
    config, calibration = reader.config or {}, reader.calibration
    stat = args.file.stat()
    facts: dict[str, Any] = {
        "file": str(args.file),
        "bytes": stat.st_size,
        "modified": datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds"),
        "format": f"JLS 1 {config.get('data_format')}",
        "samples": reader.sample_id_range[1],
        "sampling_frequency": reader.sampling_frequency,
        "duration": reader.duration,
        "samples_per_reduction": config.get("samples_per_reduction"),
        "samples_per_record": config.get("samples_per_tlv"),
        "samples_per_block": config.get("samples_per_block"),
        "finished": reader.recording.finished,
        "problems": reader.problems,
        "user_data": reader.user_data,
        "footer_user_data": reader.footer_user_data,
        "calibration": None,
    }
    if calibration is not None and reader.recording.calibration:
        facts["calibration"] = {
            "serial_number": calibration.serial_number,
            "time": calibration.time,
            "signed": calibration.signed,
        }
    return facts


def _print(facts: dict[str, Any]) -> None:
    facts = dict(facts)
    problems, calibration = facts.pop("problems"), facts.pop("calibration")
    facts["duration"] = f"{facts['duration']:.6g} s"
    facts["sampling_frequency"] = f"{facts['sampling_frequency']:.6g} Hz"
    if calibration is None:
        facts["calibration"] = "none"
    else:
        signed = "signed by the maker" if calibration["signed"] else "signature not verified"
        serial, when = calibration["serial_number"], calibration["time"]
        facts["calibration"] = f"instrument {serial}, {when}, {signed}"
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{name.replace('_', ' '):>22}: {text}")
    for text in problems or ["nothing missing"]:
        print(f"{'health':>22}: {text}")
