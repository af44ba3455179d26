"""``daq-ioc record``: capture to a file without an IOC."""

from __future__ import annotations

import argparse
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daq_ioc import driver as drivers
from daq_ioc.device import Device, State
from daq_ioc.errors import UsageError, UserError
from daq_ioc.recordings.common import add_log_level, progress

CONNECT_TIMEOUT: Final = 10.0
"""How long to wait for an instrument's first samples, s."""

_EXAMPLES = """\
examples:
  daq-ioc record -o run.jls --duration 10                   the first instrument found
  daq-ioc record -o run.jls --duration 10 --serial 000415
  daq-ioc record -o run.jls --backend emulator:js110        the software instrument, until Ctrl-C"""


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError("give a positive number of seconds")
    return value


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "record",
        help="record from an instrument to a file, without an IOC",
        description="Record from an instrument to a new file, without an IOC.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=record)
    parser.add_argument("-o", "--output", metavar="FILE.jls", type=Path, required=True)
    parser.add_argument(
        "--duration", type=_seconds, metavar="S", help="stop after S seconds (default: at Ctrl-C)"
    )
    parser.add_argument("--driver", default="js110", help="kind of instrument (default: js110)")
    parser.add_argument("--serial", help="serial number (default: the first instrument found)")
    parser.add_argument(
        "--backend", help="usb (default), or emulator:SPEC for a software instrument"
    )
    parser.add_argument("--note", default="", help="text to store with the recording")
    add_log_level(parser)


def record(args: argparse.Namespace) -> int:
    """Record until the time is over, or SIGINT or SIGTERM; the file is finished in any case."""
    path: Path = args.output.absolute()
    if path.exists():
        raise UsageError(f"{args.output} exists; recordings are never overwritten")
    if path.suffix != ".jls" or set("{}") & set(path.name):
        raise UsageError(f"{args.output}: give a name without braces that ends with .jls")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such directory")
    driver: Any = drivers.load(args.driver)
    options = {"serial": args.serial, "backend": args.backend}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        device = Device(driver(**given), buffer_span=10, record_root=path.parent)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{args.driver}: {error}") from error
    with _stop_signals() as stop:
        device.start()
        try:
            _connected(device, stop)
            _record(device, path.name, args, stop)
        finally:
            device.stop()
    values = {name: reading.value for name, reading in device.snapshot().items()}
    print(
        f"{args.output}: {values['RECORD_SAMPLES']:.0f} samples, "
        f"{values['RECORD_DURATION']:.6g} s, {values['RECORD_DROPPED']:.0f} missing"
    )
    if values["RECORD_MESSAGE"] not in ("time limit reached", "stopped"):
        raise UserError(f"the recording ended early: {values['RECORD_MESSAGE']}")
    return 0


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set instead of ending the process."""
    stop = threading.Event()
    old = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _connected(device: Device, stop: threading.Event) -> None:
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while device.state is not State.STREAMING:
        if stop.wait(0.02):
            raise UserError("stopped before the instrument was there; nothing is recorded")
        if time.monotonic() > deadline:
            message = device.snapshot()["MESSAGE"].value
            raise UserError(f"{message or 'the instrument does not answer'}; see 'daq-ioc scan'")


def _record(device: Device, name: str, args: argparse.Namespace, stop: threading.Event) -> None:
    device.put("RECORD_NAME", name.replace("%", "%%"))
    device.put("RECORD_NOTE", args.note)
    device.put("RECORD_LIMIT", args.duration or 0)
    device.put("RECORD_START", 1)
    total = None if args.duration is None else round(args.duration * 1000)
    done = 0
    with progress(total, "recording", "ms") as advance:
        while device.snapshot()["RECORD_STATE"].value == 1 and not stop.wait(0.1):
            recorded = device.snapshot()["RECORD_DURATION"].value
            advance(round(float(recorded) * 1000) - done)
            done = round(float(recorded) * 1000)
    device.put("RECORD_STOP", 1)
