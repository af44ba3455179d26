"""``daq-ioc stats``: statistics over a stretch of a recording."""

from __future__ import annotations

import argparse
import math
from typing import Any

from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.recordings.common import (
    add_command,
    add_json,
    add_range,
    engineering,
    opened,
    print_json,
    report_problems,
    sample_range,
)

_EXAMPLES = """\
  daq-ioc stats run7.jls
  daq-ioc stats run7.jls --start 10 --stop 12.5
  daq-ioc stats run7.jls --start -60 --json      the last minute"""

_COLUMNS = ("mean", "std", "min", "max", "p2p")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    does = "print statistics, charge and energy over a stretch of a recording"
    parser = add_command(subparsers, "stats", does, _EXAMPLES, stats)
    add_range(parser)
    add_json(parser)


def stats(args: argparse.Namespace) -> int:
    """Print mean, std, min, max and p2p of current, voltage and power; charge and energy."""
    with opened(args.file) as reader:
        facts = statistics(reader, *sample_range(reader, args))
        report_problems(reader)
    if args.json:
        print_json(facts)
        return 0
    start, stop = facts["start"], facts["stop"]
    print(f"{start:.6g} s to {stop:.6g} s: {facts['samples']} samples, {facts['missing']} missing")
    print(f"{'':8}" + "".join(f"{column:>16}" for column in _COLUMNS))
    for name, unit in (("current", "A"), ("voltage", "V"), ("power", "W")):
        cells = (engineering(facts[name][column], unit) for column in _COLUMNS)
        print(f"{name:8}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"charge {engineering(facts['charge'], 'C')}, energy {engineering(facts['energy'], 'J')}")
    return 0


def statistics(reader: DataReader, start: int, stop: int) -> dict[str, Any]:
    """SI values over samples ``start`` to ``stop``; ``samples`` counts those used."""
    result = reader.statistics_get(start, stop)
    samples = result["time"]["samples"]["value"]
    facts: dict[str, Any] = {
        "start": result["time"]["range"]["value"][0],
        "stop": result["time"]["range"]["value"][1],
        "samples": samples,
        "missing": stop - start - samples,
    }
    for name in ("current", "voltage", "power"):
        signal = {key: item["value"] for key, item in result["signals"][name].items()}
        facts[name] = {
            "mean": signal["µ"],
            "std": math.sqrt(signal["σ2"]),
            "min": signal["min"],
            "max": signal["max"],
            "p2p": signal["p2p"],
        }
    facts["charge"] = result["signals"]["current"]["∫"]["value"]
    facts["energy"] = result["signals"]["power"]["∫"]["value"]
    return facts
