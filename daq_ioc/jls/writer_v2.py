"""Write a JLS version 2 recording: current, voltage and power, through the maker's pyjls.

pyjls is optional. It opens files by path and by itself, and its writing thread only logs what goes
wrong; here it is made to write into a file that is open already, and its errors are raised.

A process that is killed leaves a file that is not finished. pyjls opens short ones, without their
last chunk; on long ones its reader (0.17) can crash. Version 1 files do not have that problem.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from daq_ioc.errors import UserError

SIGNALS: Final = (("current", "A"), ("voltage", "V"), ("power", "W"))
"""Signals 1, 2 and 3."""

MISSING: Final = "JLS2 needs the package pyjls: pip install 'daq-ioc[jls2]'"

_SOURCE: Final = 1
_CHUNK_MAX: Final = 8192
_CHUNK_MIN: Final = 16
_REDUCED: Final = 128
_LOGGER: Final = "pyjls.c"


def available() -> bool:
    """Whether pyjls is installed."""
    return importlib.util.find_spec("pyjls") is not None


class _Errors(logging.Handler):
    """Keeps the first error that pyjls logs; from any of its files, they are not told apart."""

    first = ""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


class WriterV2:
    """A recording at ``rate`` samples/s in ``file``, which is empty, open, and not closed here.

    ``identity``: ``model``, ``serial``, ``firmware``, ``hardware`` of the instrument.
    ``user_data``: anything JSON can express. UserError if pyjls is missing, OSError of any write.
    """

    def __init__(
        self, file: BinaryIO, rate: int, identity: Mapping[str, str], user_data: Any
    ) -> None:
        if not available():
            raise UserError(MISSING)
        self._descriptor = file.fileno()
        self._errors = _Errors()
        self.samples = 0
        with ExitStack() as undo:
            logger = logging.getLogger(_LOGGER)
            logger.addHandler(self._errors)
            undo.callback(logger.removeHandler, self._errors)
            from pyjls import Writer

            # The open file itself: whatever happens to its name, nothing else is written.
            try:
                self._writer = Writer(f"/proc/self/fd/{self._descriptor}")
            except RuntimeError as error:
                raise OSError(errno.EIO, f"pyjls: {error}") from error
            undo.callback(self._writer.close)
            self._define(rate, identity)
            self._writer.user_data(0, user_data)
            self._check()
            undo.pop_all()

    def _define(self, rate: int, identity: Mapping[str, str]) -> None:
        from pyjls import SignalType

        self._writer.source_def(
            _SOURCE,
            name=f"{identity.get('model', 'instrument')}-{identity.get('serial', '')}",
            vendor="Jetperch",
            model=identity.get("model", ""),
            version=identity.get("hardware", ""),
            serial_number=identity.get("serial", ""),
        )
        chunk = _chunk(rate)
        for number, (name, units) in enumerate(SIGNALS, 1):
            self._writer.signal_def(
                signal_id=number,
                source_id=_SOURCE,
                signal_type=SignalType.FSR,
                data_type="f32",
                sample_rate=rate,
                samples_per_data=chunk,
                sample_decimate_factor=min(chunk, _REDUCED),
                name=name,
                units=units,
            )

    @property
    def bytes(self) -> int:
        """Size of the file so far."""
        return os.fstat(self._descriptor).st_size

    def append(self, signals: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Write the samples that follow, float32 (n,) by name; NaN is a missing sample."""
        for number, (name, _) in enumerate(SIGNALS, 1):
            self._writer.fsr_f32(number, self.samples, np.ascontiguousarray(signals[name]))
        self.samples += len(signals[SIGNALS[0][0]])
        self._check()

    def mark(self, unix_time: float) -> None:
        """Say when the next sample was, is or will be taken, and hand over what was written."""
        from pyjls import utc_to_jls

        for number in range(1, len(SIGNALS) + 1):
            self._writer.utc(number, self.samples, utc_to_jls(unix_time))
        self._writer.flush()
        self._check()

    def close(self, user_data: Any) -> None:
        """Finish the file. OSError if it could not be finished."""
        try:
            try:
                self._writer.user_data(0, user_data)
            finally:
                self._writer.close()
            self._check()
            (length,) = struct.unpack("<Q", os.pread(self._descriptor, 8, 16))
            if length != self.bytes:
                raise OSError(errno.EIO, "the file was not finished")
        finally:
            logging.getLogger(_LOGGER).removeHandler(self._errors)

    def _check(self) -> None:
        if self._errors.first:
            disk = os.fstatvfs(self._descriptor)
            full = disk.f_bavail * disk.f_frsize < 1 << 20
            raise OSError(errno.ENOSPC if full else errno.EIO, f"pyjls: {self._errors.first}")


def _chunk(rate: int) -> int:
    """Samples that are written together: about half a second of them, a power of two."""
    wanted = 1 << max(0, rate // 2).bit_length()
    return max(_CHUNK_MIN, min(_CHUNK_MAX, wanted))
