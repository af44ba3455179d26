"""Faults and load on the running IOC: nothing is lost unseen, nobody gets in, it goes on.

Every test runs `daq-ioc run` as a process with real sockets and files, and prints a figure, which
the end of the output repeats. Faults come from the emulated instrument or the operating system.
`pytest tests/faults` takes a few minutes; `pytest tests/faults --long` runs the full numbers.
"""
