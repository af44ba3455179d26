"""Errors whose text is meant for the user: one line that says what is wrong and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something failed that the user can do something about; a command ends with status 1."""


class UsageError(UserError):
    """A wrong argument or configuration, which changed nothing; a command ends with status 2."""
