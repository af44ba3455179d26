"""Publishes devices as EPICS process variables; never touches a driver.

`table` names and types the PVs of any device and knows no protocol; `ioc` serves them over Channel
Access through `channels`, `fields` and `corrections` (the last: what caproto gets wrong); `run`
serves an instrument by the name of its driver.
"""

from daq_ioc.server.ioc import Publication, Served, StuckError, serve
from daq_ioc.server.run import default_interfaces, run_server

__all__ = ["Publication", "Served", "StuckError", "default_interfaces", "run_server", "serve"]
