"""Software instruments that look like real ones to pyusb: the choice of a USB backend.

``get_backend("js110:serial=000415,seed=7")`` is a USB bus with one emulated JS110. A specification
is ``js110``, then options ``name=value`` after a colon, separated by commas; several instruments
are separated by semicolons:

=============  ==================================================================================
serial         serial number in the USB descriptor (000415)
seed           seed of the target's waveform and noise (0); same seed, same samples
pace           ``realtime``: 2 000 000 samples/s (default); ``fast``: as fast as they are read
firmware       version (1.3.2): before 1.2.0 STATUS has no statistics, before 1.1.0 INFO has the
               packet header, before 0.3 it stalls
queue_ms       what waits for a host that is late, ms (200): the transfers that a kernel would
               have queued. Later samples are lost. Before a real kernel: the instrument's own FIFO
ppm            how much faster its crystal is than this computer's clock, parts per million (0)
calibration    ``good`` (default), ``wrong-serial``, ``bad-crc``, ``garbage``, ``long`` (good, over
               4096 bytes) or ``none``
plugged        ``yes`` (default) or ``no``
fault          a command of `daq_ioc.emulator.remote`, as ``lose 5 @1000``; may be repeated
control        path of a Unix socket for such commands, a testing aid
=============  ==================================================================================
"""

from daq_ioc.emulator.spec import get_backend

__all__ = ["get_backend"]
