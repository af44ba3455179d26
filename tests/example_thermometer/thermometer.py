"""A made-up thermometer: the file that stands for its serial port holds the temperature as text."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daq_ioc.attributes import Attribute, Group, Kind, Value
from daq_ioc.driver import NotConnectedError, RowDriver


class Thermometer(RowDriver):
    name = "thermometer"
    columns = (
        Attribute("TEMPERATURE", Kind.DOUBLE, "Temperature of the sensor", "degC", precision=2),
    )
    averaged = ("TEMPERATURE",)  # served as TEMPERATURE_MEAN, too
    settings = (
        Attribute(
            "OFFSET", Kind.DOUBLE, "Added to every reading", "K", precision=2,
            writable=True, group=Group.SETTING, low=-5.0, high=5.0,
        ),
    )  # fmt: skip

    def __init__(self, port: str) -> None:  # its arguments are the keys of [device.options]
        self.port = Path(port)
        self.offset = 0.0

    def read(self) -> npt.NDArray[np.float64]:
        try:
            text = self.port.read_text()
        except OSError as error:
            raise NotConnectedError(f"no thermometer at {self.port}") from error
        return np.array([[time.time(), float(text) + self.offset]])

    def values(self) -> Mapping[str, Value]:
        return {"OFFSET": self.offset}

    def put(self, name: str, value: Value) -> None:
        self.offset = float(value)

    restore = put  # a value saved before the IOC was restarted
