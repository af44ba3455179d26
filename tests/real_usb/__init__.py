"""The driver before a real Linux kernel, usbfs and libusb, as with a real instrument.

`test_real_usb` boots a small Linux machine, in which the emulated JS110 is an enumerated USB
device, and runs each program of ``guest`` in there.
"""
