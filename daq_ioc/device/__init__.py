"""A device: acquisition thread, circular buffer, statistics and recorder around one driver."""

from daq_ioc.device.device import Device, NotRecordableError, State

__all__ = ["Device", "NotRecordableError", "State"]
