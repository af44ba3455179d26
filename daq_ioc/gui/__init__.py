"""``daq-ioc gui``: a desktop window on the PVs of a Joulescope IOC, for places without Phoebus.

A client like any other: it knows the PVs' names and Channel Access, and nothing of instruments.
Needs the extra ``gui``; nothing of Qt is imported before the window is wanted.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from daq_ioc.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``daq-ioc``."""
    does = "show the PVs of a Joulescope IOC in a window"
    parser = commands.add_parser(
        "gui",
        help=does,
        description=does[:1].upper() + does[1:] + "; needs: pip install 'daq-ioc[gui]'.",
        epilog="examples:\n  daq-ioc gui JS:\n  EPICS_CA_ADDR_LIST=10.0.0.5 daq-ioc gui LAB:JS1:",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run)
    parser.add_argument("prefix", metavar="PREFIX", help="what the PV names begin with")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"),
                        default="error", help="how much to log (default: error)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Show the window until it is closed; returns the exit status."""
    prepare()
    try:
        from daq_ioc.gui import window
    except ImportError as error:
        raise UserError(f"this needs PyDM and Qt: pip install 'daq-ioc[gui]' ({error})") from error
    return window.show(args.prefix)


def prepare() -> None:
    """What has to be in the environment before Qt and Channel Access are loaded."""
    os.environ.setdefault("QT_API", "pyside6")
    # An IOC that serves this computer only hears no broadcasts.
    os.environ.setdefault("EPICS_CA_ADDR_LIST", "127.0.0.1")
