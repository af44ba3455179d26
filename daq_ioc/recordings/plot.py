"""``daq-ioc plot``: current, voltage and power over time, with their envelopes, as PNG or SVG."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from daq_ioc.errors import UsageError
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.recordings.common import (
    add_command,
    add_output,
    add_range,
    needs,
    new_file,
    opened,
    progress,
    report_problems,
    sample_range,
)
from daq_ioc.statistics import Rows

_EXAMPLES = """\
  daq-ioc plot run7.jls run7.png
  daq-ioc plot run7.jls start.svg --stop 0.5 --log"""

_PANELS = (("current", "A", "tab:red"), ("voltage", "V", "tab:blue"), ("power", "W", "tab:green"))
_SUFFIXES = (".png", ".svg")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    does = "draw current, voltage and power over time to a PNG or SVG file"
    parser = add_command(subparsers, "plot", does, _EXAMPLES, plot)
    add_output(parser, "OUT")
    add_range(parser)
    parser.add_argument("--points", type=int, default=1000, help="along time (default: 1000)")
    parser.add_argument("--log", action="store_true", help="logarithmic current axis")


def plot(args: argparse.Namespace) -> int:
    """Draw mean and min-to-max envelope of about --points windows."""
    suffix = args.output.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"{args.output}: the name must end in one of {', '.join(_SUFFIXES)}")
    if args.points < 2:
        raise UsageError(f"--points {args.points}: expected 2 or more")
    with opened(args.file) as reader:
        times, rows = envelope(reader, *sample_range(reader, args), args.points)
        with new_file(args.output, force=args.force) as part:
            _draw(part, suffix[1:], args.file.name, times, rows, log=args.log)
        report_problems(reader)
    return 0


def envelope(reader: DataReader, start: int, stop: int, points: int) -> tuple[Any, Rows]:
    """Times (n,) in s and rows (n, 6) of n consecutive windows, n about ``points``.

    Long windows are made of whole reductions, which needs no samples to be read.
    """
    size = max(1, (stop - start) // points)
    spr = (reader.config or {}).get("samples_per_reduction") or 1
    if size > spr:
        size -= size % spr
        start = min(-(-start // spr) * spr, stop)
    count = max(1, (stop - start) // size)
    size = min(size, stop - start)
    rows = []
    with progress(count, "reading", "points") as advance:
        for k in range(0, count, step := max(1, count // 50)):
            n = min(step, count - k)
            first = start + k * size
            rows.append(reader.data_get(first, first + n * size, size))
            advance(n)
    middle = start + size * (np.arange(count) + 0.5)
    return middle / reader.sampling_frequency, np.concatenate(rows)


def _draw(path: Path, kind: str, title: str, times: Any, rows: Rows, *, log: bool) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs("matplotlib", "plot", error) from error
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(len(_PANELS), sharex=True)
    for k, (axis, (name, unit, colour)) in enumerate(zip(axes, _PANELS, strict=True)):
        low, mean, high = (rows[member][:, k] for member in ("min", "mean", "max"))
        if log and k == 0:  # a logarithmic axis shows nothing for what is not positive
            axis.set_yscale("log")
            low, mean, high = (np.where(values > 0, values, np.nan) for values in (low, mean, high))
        axis.fill_between(times, low, high, color=colour, alpha=0.25, lw=0)
        axis.plot(times, mean, color=colour, lw=1)
        axis.set_ylabel(f"{name} ({unit})")
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_title(title)
    axes[-1].set_xlabel("time (s)")
    figure.savefig(path, format=kind, dpi=150)
