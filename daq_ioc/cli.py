"""The ``daq-ioc`` command: its arguments, its exit status and how it reports errors.

Exit status 0 is success, 2 bad usage or configuration, 1 failure. Errors are one clear line each on
stderr; a traceback comes only with ``--log-level debug``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import daq_ioc
from daq_ioc import config as configuration
from daq_ioc import doctor, gui, systemd
from daq_ioc import driver as drivers
from daq_ioc.errors import UsageError, UserError
from daq_ioc.server import StuckError, serve, table

LOG_LEVELS = ("debug", "info", "warning", "error")

RECORDING_COMMANDS = ("record", "info", "stats", "export", "plot", "repair")
"""Modules of `daq_ioc.recordings`, each with an ``add_parser(subparsers)``."""

_RUN_EXAMPLES = """\
examples:
  daq-ioc run ioc_configs/demo.toml                  an emulated JS110, PVs under JS:
  daq-ioc run ioc_configs/js110.toml --prefix LAB1:  the same configuration, another prefix
  daq-ioc run ioc_configs/demo.toml --list-pvs       what would be served
  daq-ioc run ioc_configs/demo.toml --list-pvs --format csv > pvs.csv

Ctrl-C and SIGTERM stop it in order: a recording is finalised first. A second one ends it at once.
Port and addresses: EPICS_CAS_SERVER_PORT or EPICS_CA_SERVER_PORT, and EPICS_CAS_INTF_ADDR_LIST
where the configuration names no interfaces.
"""


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments; ``args.func(args)`` does one and returns its status."""
    top = argparse.ArgumentParser(
        prog="daq-ioc",
        description="EPICS IOC for Joulescope USB energy analyzers, and tools for its recordings.",
        epilog="'daq-ioc COMMAND --help' tells more, with examples.",
    )
    top.add_argument("--version", action="version", version=f"daq-ioc {daq_ioc.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_pvs(commands)
    _add_scan(commands)
    _add_check(commands)
    doctor.add_parser(commands)
    gui.add_parser(commands)
    if find_spec("daq_ioc.recordings"):
        for name in RECORDING_COMMANDS:
            importlib.import_module(f"daq_ioc.recordings.{name}").add_parser(commands)
    return top


def _add(commands: Any, name: str, does: str, examples: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does,
        description=does[:1].upper() + does[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="how much to log (default: info)"
    )
    return made


def _add_run(commands: Any) -> None:
    run = _add(
        commands, "run", "serve the instruments of a configuration over EPICS", _RUN_EXAMPLES
    )
    run.set_defaults(func=_run)
    run.add_argument("config", metavar="CONFIG.toml", type=Path)
    run.add_argument("--prefix", metavar="PREFIX", help="what PV names begin with")
    run.add_argument(
        "--interfaces", metavar="ADDRESS", nargs="+",
        help="IPv4 addresses of this computer to serve on; 0.0.0.0 is all of them",
    )  # fmt: skip
    run.add_argument(
        "--record-root", metavar="DIR", type=Path,
        help="the directory that recordings go below; made if it is not there",
    )  # fmt: skip
    run.add_argument("--list-pvs", action="store_true", help="print the PVs and serve nothing")
    run.add_argument(
        "--format", choices=tuple(table.FORMATS), default="text",
        help="of --list-pvs (default: text)",
    )  # fmt: skip


def _add_pvs(commands: Any) -> None:
    examples = (
        "examples:\n"
        "  daq-ioc pvs ioc_configs/js110.toml\n"
        "  daq-ioc pvs ioc_configs/js110.toml --format csv > pvs.csv\n"
        "  daq-ioc pvs ioc_configs/js110.toml --format archiver > archive.json\n\n"
        "The last is what the EPICS Archiver Appliance takes:\n"
        "  curl -H 'Content-Type: application/json' --data @archive.json "
        "http://HOST:17665/mgmt/bpl/archivePV"
    )
    pvs = _add(commands, "pvs", "list the PVs of a configuration; opens no instrument", examples)
    pvs.set_defaults(func=_pvs)
    pvs.add_argument("config", metavar="CONFIG.toml", type=Path)
    pvs.add_argument("--prefix", metavar="PREFIX", help="what PV names begin with")
    pvs.add_argument(
        "--format", choices=tuple(table.FORMATS), default="text", help="(default: text)"
    )


def _add_scan(commands: Any) -> None:
    examples = "examples:\n  daq-ioc scan\n  daq-ioc scan --backend emulator:js110"
    scan = _add(commands, "scan", "list the instruments that are plugged in", examples)
    scan.set_defaults(func=_scan)
    scan.add_argument(
        "--backend", default="usb", help="usb, or emulator:SPEC for software ones (default: usb)"
    )


def _add_check(commands: Any) -> None:
    examples = "examples:\n  daq-ioc check ioc_configs/js110.toml"
    check = _add(commands, "check", "validate a configuration; opens no instrument", examples)
    check.set_defaults(func=_check)
    check.add_argument("config", metavar="CONFIG.toml", type=Path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    args = parser().parse_args(argv)
    os.umask(os.umask(0o022) | 0o002)  # nothing that it makes is writable for everybody
    level = getattr(args, "log_level", "info")
    _log(level)
    try:
        status: int = args.func(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as `daq-ioc ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except StuckError as error:
        # Threads that do not end would hold the process up for ever.
        print(f"daq-ioc: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except Exception as error:
        if level == "debug":
            logging.getLogger(__name__).debug("traceback of the error below", exc_info=True)
        known = isinstance(error, UserError)
        for line in (str(error) if known else f"internal error: {error!r}").splitlines():
            print(f"daq-ioc: {line}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return status


def _log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    # caproto tells of every client and search.
    logging.getLogger("caproto").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def _pvs(args: argparse.Namespace) -> int:
    config = configuration.load(args.config, _overrides(args))
    devices = configuration.devices(args.config, config)
    print(table.FORMATS[args.format](config.table(devices)), end="")
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.list_pvs:
        return _pvs(args)
    config = configuration.load(args.config, _overrides(args))
    devices = configuration.devices(args.config, config)
    for section in config.device:
        if section.recording:
            _make(section.recording.path)
    if config.state is None:
        logging.getLogger(__name__).info(
            "what clients set is not kept over a restart; [server] state = DIRECTORY keeps it"
        )
    fed: list[asyncio.Task[None]] = []  # the loop itself keeps no task

    def on_ready(line: str) -> None:
        print(line, flush=True)
        systemd.notify("READY=1")
        fed.append(asyncio.create_task(systemd.feed_watchdog([each for _, each in devices])))

    try:
        serve(config.publications(devices), config.interfaces, on_ready, config.health)
    finally:
        systemd.notify("STOPPING=1")
    return 0


def _overrides(args: argparse.Namespace) -> dict[str, configuration.Override]:
    given: Path | None = getattr(args, "record_root", None)
    root = None if given is None else str(given.expanduser().absolute())
    places: dict[str, configuration.Override] = {
        "--prefix": (("device", 0, "prefix"), args.prefix),
        "--interfaces": (("server", "interfaces"), getattr(args, "interfaces", None)),
        "--record-root": (("device", 0, "recording", "root"), root),
    }
    return {option: place for option, place in places.items() if place[1] is not None}


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the record root {root} cannot be made: {error.strerror}") from error


def _scan(args: argparse.Namespace) -> int:
    rows = []
    for name in drivers.names():
        try:
            driver = drivers.load(name)
        except (UsageError, ImportError) as error:  # it must not hide the others
            logging.getLogger(__name__).warning("driver %s cannot be used: %s", name, error)
            continue
        scan = getattr(driver, "scan", None)
        if scan is not None:
            rows += [
                (name, found.model, found.serial, found.location, found.problem or "ready")
                for found in scan(backend=args.backend)
            ]
    if not rows:
        print(
            "no instrument found; check that it is plugged in and powered, that its cable carries\n"
            "data, that the udev rule of ioc_configs/udev is installed, and that no other program\n"
            "has it open"
        )
        return 0
    _print_columns([("DRIVER", "MODEL", "SERIAL", "LOCATION", "STATE"), *rows])
    return 0


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _check(args: argparse.Namespace) -> int:
    config = configuration.load(args.config)
    devices = configuration.devices(args.config, config)
    print(f"{args.config}: ok, to be served on {', '.join(config.interfaces)}")
    for section, (prefix, device) in zip(config.device, devices, strict=True):
        options = ", ".join(f"{key} = {value!r}" for key, value in section.options.items())
        print(f"  {prefix} {section.driver}{f' ({options})' if options else ''}")
        print(
            f"    {len(device.attributes)} PVs, dt {section.dt:g} s, "
            f"buffer {section.buffer_span:g} s, {_recordings(section)}"
        )
    return 0


def _recordings(section: configuration.DeviceSection) -> str:
    if section.recording is None:
        return "no recordings"
    root = section.recording.path
    return f"recordings below {root}{'' if root.exists() else ' (will be made)'}"
