"""EPICS IOC for Joulescope USB energy analyzers."""

__version__ = "0.1.0"
