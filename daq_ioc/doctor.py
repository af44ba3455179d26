"""``daq-ioc doctor``: why an instrument or a PV is not there, and what would spoil recordings.

It looks and changes nothing: no instrument is opened, since that could switch the power of its
target. What it finds is a list of findings in plain words, each with what to do about it.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import errno
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from daq_ioc import config as configuration
from daq_ioc import driver as drivers
from daq_ioc.client import Client, ClientError
from daq_ioc.errors import UsageError, UserError
from daq_ioc.server import default_interfaces

OK: Final = "ok"
NOTE: Final = "note"
PROBLEM: Final = "PROBLEM"
"""Only this makes the exit status 1."""

RAW_RATE: Final = 2e6 * 4.06
"""bytes/s of a raw recording at full rate, with its statistics."""

LEAST_SPACE: Final = 600.0
"""s of raw recording that the disk must have room for."""

SPARE_SPEED: Final = 2.0
"""How many times faster than a recording the disk must be."""

ANSWER_TIMEOUT: Final = 1.0
"""How long an IOC that runs may take to answer, s."""

_PROBE_BYTES: Final = 32 << 20
_RULE_PLACES: Final = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d")
_INSTALL_RULE: Final = (
    "cp ioc_configs/udev/72-joulescope.rules /etc/udev/rules.d/ && udevadm control --reload, "
    "then plug it in again"
)
_HIGH_SPEED: Final = 480.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``level``: OK, NOTE or PROBLEM; ``remedy``: what to do, if anything."""

    about: str
    level: str
    text: str
    remedy: str = ""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``daq-ioc``."""
    does = "say why an instrument or a PV is not there, and whether recordings would be sound"
    parser = commands.add_parser(
        "doctor",
        help=does,
        description=does[:1].upper() + does[1:] + ". Changes nothing and opens no instrument.",
        epilog=(
            "examples:\n  daq-ioc doctor\n  daq-ioc doctor ioc_configs/js110.toml\n"
            "  daq-ioc doctor my.toml --json\n\n"
            "Run it as the user, and with the EPICS_* variables, that the IOC or the client has.\n"
            "Exit status: 0 nothing is wrong, 1 something is, 2 bad usage or configuration."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run)
    parser.add_argument(
        "config", metavar="CONFIG.toml", type=Path, nargs="?", help="(default: any instrument)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"),
                        default="error", help="how much to log (default: error)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    config = None
    if args.config is not None:
        config = configuration.load(args.config)
        configuration.devices(args.config, config)  # raises what is wrong with it
    findings = [*instruments(config), *network(config), *disks(config), *clock()]
    if args.json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    else:
        _print(findings)
    return 1 if any(each.level == PROBLEM for each in findings) else 0


def _print(findings: Sequence[Finding]) -> None:
    about = ""
    for each in findings:
        if each.about != about:
            about = each.about
            print(about)
        print(f"  {each.level:8}{each.text}")
        if each.remedy:
            print(f"          -> {each.remedy}")
    problems = sum(each.level == PROBLEM for each in findings)
    print(f"{problems} problem{'' if problems == 1 else 's'} found" if problems else "all is well")


# ---- instruments


def instruments(config: configuration.Config | None, root: Path = Path("/")) -> Iterator[Finding]:
    """Are they there, and may this user have them? ``root``: where sys, dev, proc and etc are."""
    about = "instruments"
    if config is None:
        wanted = [(name, "usb", None) for name in drivers.names()]
    else:
        wanted = [
            (d.driver, str(d.options.get("backend", "usb")), d.options.get("serial"))
            for d in config.device
        ]
    seen: list[Any] = []
    looked = False
    for name, backend, serial in dict.fromkeys(wanted):
        try:
            scan = getattr(drivers.load(name), "scan", None)
        except (UsageError, ImportError) as error:
            yield Finding(about, PROBLEM, f"driver {name}: {error}", "install its package again")
            continue
        if scan is None:
            if config is not None:
                yield Finding(about, OK, f"{name}: nothing has to be plugged in")
            continue
        looked = True
        try:
            found = scan(backend=backend)
        except UserError as error:
            yield Finding(about, PROBLEM, f"{name}: {error}", "pip install --force-reinstall "
                          "libusb-package; in a container, let it have /dev/bus/usb")  # fmt: skip
            continue
        seen += found
        for each in found:
            yield from _instrument(each, backend == "usb", root)
        if serial is not None and serial not in {each.serial for each in found}:
            others = ", ".join(each.serial for each in found) or "none"
            yield Finding(about, PROBLEM, f"{name} {serial} is not there; found: {others}",
                          "plug it in, or correct device.options.serial")  # fmt: skip
    if looked and not seen:
        yield _absent(root)
    if looked and any(backend == "usb" for _, backend, _ in wanted):
        yield from _udev_rule(root)


def _absent(root: Path) -> Finding:
    if not (root / "dev/bus/usb").is_dir():
        return Finding("instruments", PROBLEM, "this computer shows no USB (/dev/bus/usb)",
                       "in a container or virtual machine, pass the USB bus through")  # fmt: skip
    return Finding("instruments", PROBLEM, "no instrument is plugged in",
                   "check power and plug; the cable must carry data, not only charge")  # fmt: skip


def _instrument(found: Any, real: bool, root: Path) -> Iterator[Finding]:
    about, name = "instruments", f"{found.model} {found.serial} at {found.location}"
    numbers = [int(text) for text in re.findall(r"\d+", found.location)]
    if not real or len(numbers) != 2:
        level = PROBLEM if found.problem else OK
        yield Finding(about, level, f"{name}: {found.problem or 'ready'}")
        return
    node = root / f"dev/bus/usb/{numbers[0]:03d}/{numbers[1]:03d}"
    if node.exists() and not os.access(node, os.R_OK | os.W_OK):
        yield Finding(about, PROBLEM, f"{name}: this user may not use it ({node})", _INSTALL_RULE)
    elif found.problem:
        yield Finding(about, PROBLEM, f"{name}: {found.problem}")
    else:
        yield Finding(about, OK, f"{name}: this user may use it")
    device = _sysfs(root, *numbers)
    if device is None:
        return
    if _held(device):
        who = _holder(node, root)
        yield Finding(about, PROBLEM, f"{name}: {who or 'another program'} is using it",
                      "stop that program; if it is the IOC, all is as it should be")  # fmt: skip
    speed = float(_read(device / "speed") or _HIGH_SPEED)
    if speed < _HIGH_SPEED:
        yield Finding(about, PROBLEM, f"{name}: connected at {speed:g} Mbit/s, needs 480",
                      "use another port, hub or cable: samples would be lost")  # fmt: skip


def _sysfs(root: Path, bus: int, address: int) -> Path | None:
    for device in (root / "sys/bus/usb/devices").glob("*"):
        if (_read(device / "busnum"), _read(device / "devnum")) == (str(bus), str(address)):
            return device
    return None


def _held(device: Path) -> bool:
    """Whether a program has claimed an interface; the kernel then says usbfs drives it."""
    drivers = (device / part.name / "driver" for part in device.glob(f"{device.name}:*"))
    return any(driver.is_symlink() and driver.readlink().name == "usbfs" for driver in drivers)


def _holder(node: Path, root: Path) -> str:
    """The program that has ``node`` open, so far as this user may know."""
    for link in (root / "proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == node:
                process = link.parent.parent
                return f"{_read(process / 'comm')} (process {process.name})"
        except OSError:  # another user's, or it has just ended
            continue
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _udev_rule(root: Path) -> Iterator[Finding]:
    rules = (rule for place in _RULE_PLACES for rule in sorted((root / place).glob("*.rules")))
    for rule in rules:
        text = _read(rule).lower()
        if "16d0" in text and "0e88" in text:
            yield Finding("instruments", OK, f"the udev rule is installed ({rule})")
            return
    yield Finding("instruments", NOTE, "the udev rule is not installed: only root may use a JS110",
                  _INSTALL_RULE)  # fmt: skip


# ---- network


def network(
    config: configuration.Config | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Could clients see the PVs: addresses, ports, and the variables that say whom to ask?"""
    about = "network"
    interfaces = default_interfaces() if config is None else config.interfaces
    addresses = (a for each in psutil.net_if_addrs().values() for a in each)
    own = {a.address for a in addresses if a.family == socket.AF_INET}
    for address in interfaces:
        if address != "0.0.0.0" and address not in own:  # noqa: S104 - compared, not bound
            yield Finding(about, PROBLEM, f"{address} is no address of this computer",
                          f"serve on some of {', '.join(sorted(own))}")  # fmt: skip
    if all(address.startswith("127.") for address in interfaces):
        yield Finding(about, NOTE, "only this computer can connect",
                      "set server.interfaces to serve others, where that is safe")  # fmt: skip
    client = environment.get("EPICS_CA_SERVER_PORT") or "5064"
    server = environment.get("EPICS_CAS_SERVER_PORT") or client
    if server != client:
        yield Finding(about, PROBLEM, f"IOCs here serve on port {server}, clients ask {client}",
                      "give EPICS_CAS_SERVER_PORT and EPICS_CA_SERVER_PORT one value")  # fmt: skip
    running = config is not None and _answers(config)
    if running:
        yield Finding(about, OK, "the IOC runs, and a client of this computer finds its PVs")
    usable = [each for each in interfaces if each in own or each == "0.0.0.0"]  # noqa: S104
    for address in usable:
        yield from () if running else _port(address, int(server))
    yield from _addresses(environment)
    yield from _array_bytes(config, environment)


def _answers(config: configuration.Config) -> bool:
    try:
        with Client(config.health, timeout=ANSWER_TIMEOUT) as client:
            client["HEARTBEAT"].read()
    except ClientError:
        return False
    return True


def _port(address: str, port: int) -> Iterator[Finding]:
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:  # connections that have ended do not count
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    yield Finding("network", PROBLEM,
                                  f"{address} port {port} ({name}) is used{_user(port)}",
                                  "two servers on one port answer by turns: serve all instruments "
                                  "by one IOC, or set EPICS_CA_SERVER_PORT")  # fmt: skip
                else:
                    yield Finding("network", PROBLEM, f"{address} port {port}: {error.strerror}",
                                  "set EPICS_CA_SERVER_PORT above 1024")  # fmt: skip
                return
    yield Finding("network", OK, f"{address} port {port} is free")


def _user(port: int) -> str:
    """Who uses a port, so far as this user may know."""
    try:
        sockets = psutil.net_connections("inet4")
    except psutil.AccessDenied:
        return ""
    for each in sockets:
        if (
            each.laddr
            and each.laddr.port == port
            and each.pid
            and each.status in ("LISTEN", "NONE")
        ):
            return f" by {psutil.Process(each.pid).name()} (process {each.pid})"
    return ""


def _addresses(environment: Mapping[str, str]) -> Iterator[Finding]:
    named = environment.get("EPICS_CA_ADDR_LIST", "").split()
    automatic = environment.get("EPICS_CA_AUTO_ADDR_LIST", "YES").upper() != "NO"
    for name in named:
        try:
            socket.getaddrinfo(name.partition(":")[0], None, socket.AF_INET)
        except OSError:
            yield Finding("network", PROBLEM, f"EPICS_CA_ADDR_LIST: there is no host {name}",
                          "correct it: a client asks none of a list it cannot read")  # fmt: skip
    if named:
        also = ", and its own networks" if automatic else " only"
        yield Finding("network", OK, f"clients here ask {' '.join(named)}{also}")
    elif automatic:
        yield Finding("network", OK, "clients here ask the networks of this computer",
                      "for an IOC behind a router or gateway set EPICS_CA_ADDR_LIST")  # fmt: skip
    else:
        yield Finding("network", PROBLEM,
                      "clients here ask nobody: EPICS_CA_AUTO_ADDR_LIST is NO, and "
                      "EPICS_CA_ADDR_LIST is empty",
                      "set EPICS_CA_ADDR_LIST to the address of the IOC")  # fmt: skip


def _array_bytes(
    config: configuration.Config | None, environment: Mapping[str, str]
) -> Iterator[Finding]:
    text = environment.get("EPICS_CA_MAX_ARRAY_BYTES", "")
    if not text or config is None:
        return
    devices = configuration.devices(Path("CONFIG"), config)
    need = 8 * max(row.attribute.length for row in config.table(devices)) + 100
    if not text.isdecimal() or int(text) < need:
        yield Finding("network", PROBLEM,
                      f"EPICS_CA_MAX_ARRAY_BYTES={text}: clients here cannot have the longest "
                      "traces", f"set it to {need}, or do not set it (EPICS 7)")  # fmt: skip


# ---- disk and clock


def disks(config: configuration.Config | None) -> Iterator[Finding]:
    """Are the disks that recordings go to large and fast enough for raw ones at full rate?"""
    if config is None:
        roots = [Path.cwd()]
    else:
        roots = [each.recording.path for each in config.device if each.recording]
    for root in dict.fromkeys(roots):
        place = next(each for each in (root, *root.parents) if each.is_dir())
        free = psutil.disk_usage(str(place)).free
        minutes = free / RAW_RATE / 60
        text = f"{root}: {free / 1e9:.1f} GB free, {minutes:.0f} min of raw recording"
        if free < LEAST_SPACE * RAW_RATE:
            yield Finding("disk", PROBLEM, text, "make room, or record elsewhere")
        else:
            yield Finding("disk", OK, text)
        yield _speed(root, place, free)


def _speed(root: Path, place: Path, free: int) -> Finding:
    size = min(_PROBE_BYTES, free // 4)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            began = time.monotonic()
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))  # not what a file system could compress
            file.flush()
            os.fsync(file.fileno())
            rate = size / (time.monotonic() - began)
    except OSError as error:
        return Finding("disk", PROBLEM, f"{root}: cannot be written: {error.strerror}",
                       "record elsewhere, or give this user the directory")  # fmt: skip
    text = f"{root}: writes {rate / 1e6:.0f} MB/s, a raw recording needs {RAW_RATE / 1e6:.0f}"
    if rate < SPARE_SPEED * RAW_RATE:
        return Finding("disk", PROBLEM, text, "use a faster disk, or a lower RECORD_RATE")
    return Finding("disk", OK, text)


def clock() -> Iterator[Finding]:
    """Is the computer's clock, which time stamps and file names are of, kept right?"""
    if time.time() < 1_700_000_000:
        yield Finding("clock", PROBLEM, f"it is not {time.strftime('%Y-%m-%d')}", "set the clock")
    elif kernel_clock_synchronised():
        yield Finding("clock", OK, "the clock is kept right by NTP or PTP")
    else:
        yield Finding("clock", PROBLEM, "nothing keeps the clock of this computer right",
                      "install chrony, or enable systemd-timesyncd")  # fmt: skip


def kernel_clock_synchronised() -> bool:
    """What adjtimex(2) says, asked without changing anything."""
    time_error = 5
    nothing_to_set = ctypes.create_string_buffer(512)  # struct timex, modes 0
    state: int = ctypes.CDLL(None).adjtimex(nothing_to_set)
    return 0 <= state < time_error
