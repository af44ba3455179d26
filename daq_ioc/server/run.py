"""Serving an instrument in one line, without a configuration file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from daq_ioc.device import Device
from daq_ioc.server.ioc import serve

LOOPBACK = "127.0.0.1"


def default_interfaces() -> list[str]:
    """IPv4 addresses to serve on: those of EPICS_CAS_INTF_ADDR_LIST, else loopback only."""
    named = os.environ.get("EPICS_CAS_INTF_ADDR_LIST", "").split()
    return [address.partition(":")[0] for address in named] or [LOOPBACK]


def run_server(
    name: str = "simple_daq",
    *,
    prefix: str | None = None,
    interfaces: Sequence[str] | None = None,
    dt: float = 1.0,
    on_ready: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve the instrument of the driver ``name`` until SIGINT or SIGTERM; call in the main thread.

    ``prefix``: what PV names begin with, else the driver's name and a colon. ``interfaces``: as in
    a configuration. ``dt``: publish period, s. ``on_ready`` gets one line when clients can
    connect. ``options`` are the driver's. Raises UserError.
    """
    device = Device.named(name, options, dt=dt)
    serve(
        [(f"{name}:" if prefix is None else prefix, device)],
        default_interfaces() if interfaces is None else interfaces,
        on_ready,
    )
