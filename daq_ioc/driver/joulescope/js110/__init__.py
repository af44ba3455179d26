"""The Joulescope JS110."""

from daq_ioc.driver.joulescope.js110.driver import Driver

__all__ = ["Driver"]
