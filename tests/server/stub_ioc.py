"""Serves a stub device under ``T:``; arguments: seconds that its stop, and its puts, take."""

from __future__ import annotations

import sys

from daq_ioc.server import serve
from tests.server.stub import StubDevice

if __name__ == "__main__":
    serve(
        [("T:", StubDevice(stop_delay=float(sys.argv[1]), delay=float(sys.argv[2])))],
        ["127.0.0.1"],
        on_ready=lambda line: print(line, flush=True),
    )
