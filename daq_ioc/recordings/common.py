"""What the commands on recordings share: their arguments, opening a file, time ranges, progress."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from daq_ioc.errors import UsageError, UserError
from daq_ioc.jls.data_recorder import DataReader

Command = Callable[[argparse.Namespace], int]


def add_command(
    subparsers: Any, name: str, does: str, examples: str, command: Command
) -> argparse.ArgumentParser:
    """A subparser for a command on a recording, FILE being its first argument."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=does,
        description=does[:1].upper() + does[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=command)
    parser.add_argument("file", metavar="FILE.jls", type=Path)
    add_log_level(parser)
    return parser


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """Option --log-level."""
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="error",
        help="how much to log (default: error)",
    )  # fmt: skip


def add_range(parser: argparse.ArgumentParser) -> None:
    """Options --start and --stop."""
    text = "s from the start of the recording, from its end if negative (default: its {})"
    parser.add_argument("--start", type=float, metavar="S", help=text.format("start"))
    parser.add_argument("--stop", type=float, metavar="S", help=text.format("end"))


def add_json(parser: argparse.ArgumentParser) -> None:
    """Option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_output(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Argument OUT and option --force."""
    parser.add_argument("output", metavar=metavar, type=Path)
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


@contextmanager
def opened(path: Path) -> Iterator[DataReader]:
    """A reader on a recording; what goes wrong becomes one line for the user."""
    try:
        reader = DataReader().open(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a recording: {error}") from error
    with reader:
        yield reader


def sample_range(reader: DataReader, args: argparse.Namespace) -> tuple[int, int]:
    """The samples that --start and --stop mean. UsageError if there are none."""
    size, rate = reader.sample_id_range[1], reader.sampling_frequency
    if size == 0:
        raise UserError(f"{args.file}: the recording holds no samples")

    def sample(seconds: float | None, default: int) -> int:
        if seconds is None:
            return default
        found = round(seconds * rate)
        return found + size if seconds < 0 else found

    start, stop = sample(args.start, 0), sample(args.stop, size)
    if not 0 <= start < stop <= size:
        raise UsageError(
            f"from {start / rate} s to {stop / rate} s: not within the recording, which lasts "
            f"{reader.duration} s"
        )
    return start, stop


@contextmanager
def progress(total: int | None, does: str, unit: str = "S") -> Iterator[Callable[[int], Any]]:
    """A bar on a terminal's stderr; call what it yields with how much more is done."""
    with tqdm(
        total=total, desc=does, unit=unit, unit_scale=True, disable=not sys.stderr.isatty(),
        leave=False, file=sys.stderr,
    ) as bar:  # fmt: skip
        yield bar.update


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place only when all went well."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such directory")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def report_problems(reader: DataReader) -> None:
    """Tell on stderr what the recording has lost, so far as it was read."""
    for text in reader.problems:
        print(f"daq-ioc: {text}", file=sys.stderr)


def needs(package: str, extra: str, error: ImportError) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"this needs {package}: pip install 'daq-ioc[{extra}]' ({error})")


def print_json(value: Any) -> None:
    """Strict JSON on stdout; what is not a number (NaN) becomes null."""
    print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def engineering(value: float, unit: str) -> str:
    """A number with an SI prefix: ``12.3456 mA``."""
    size = abs(value)
    for prefix, scale in (("", 1.0), ("m", 1e-3), ("µ", 1e-6), ("n", 1e-9), ("p", 1e-12)):
        if size >= scale:
            return f"{value / scale:.6g} {prefix}{unit}"
    return f"{value:.6g} {unit}"
