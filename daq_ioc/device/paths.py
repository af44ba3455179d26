"""Where a recording may be written: names from templates, and no way out of one directory."""

from __future__ import annotations

import contextlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from daq_ioc.errors import UserError

DEFAULT_NAME: Final = "%Y%m%d_%H%M%S_{serial}"
SUFFIX: Final = ".jls"

_NAME_MAX: Final = 255
_NUMBER_MAX: Final = 100_000
_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_CODE: Final = re.compile(r"%(.?)")
_CODES: Final = frozenset("YymdHMSjabABpIfUWw%")


def checked_directory(text: str, what: str = "directory") -> str:
    """A directory below the record root, as text. ValueError if it is not surely below."""
    parts = PurePosixPath(text).parts
    if "\0" in text or text.startswith("/") or ".." in parts:
        raise ValueError(f"{what} {text!r}: give a path below the record root, without '..'")
    if any(len(os.fsencode(part)) > _NAME_MAX for part in parts) or len(text) > 1000:
        raise ValueError(f"{what}: a name in it is too long")
    if not text.isprintable():
        raise ValueError(f"{what} {text!r}: it has characters that cannot be printed")
    return text


def checked_name(template: str, what: str = "name") -> str:
    """A name template. ValueError that says what is allowed.

    It may have strftime codes (UTC), ``{serial}``, and ``{n}``, the first number that is free.
    """
    if not template.isprintable():
        raise ValueError(f"{what} {template!r}: it has characters that cannot be printed")
    for code in _CODE.findall(template):
        if code not in _CODES:
            raise ValueError(f"{what} {template!r}: '%{code}' is not one of %{' %'.join(_CODES)}")
    for field in _FIELD.findall(template):
        if field not in ("serial", "n"):
            raise ValueError(f"{what} {template!r}: {{{field}}} is neither {{serial}} nor {{n}}")
    if re.search(r"[{}]", _FIELD.sub("", template)):
        raise ValueError(f"{what} {template!r}: a brace is not closed")
    try:
        _filename(template, "000000", datetime.now(UTC), 1)
    except ValueError as error:
        raise ValueError(f"{what} {template!r}: {error}") from error
    return template


def _filename(template: str, serial: str, now: datetime, number: int) -> str:
    fields = {"serial": re.sub(r"[^A-Za-z0-9_-]", "_", serial), "n": str(number)}
    name = _FIELD.sub(lambda match: fields[match[1]], now.strftime(template))
    if not name.endswith(SUFFIX):
        name += SUFFIX
    if "/" in name or not name.isprintable() or name.startswith("."):
        raise ValueError("a file name has no '/' and begins with no '.'")
    if len(os.fsencode(name)) > _NAME_MAX:
        raise ValueError(f"it gives a file name of more than {_NAME_MAX} bytes")
    return name


def create(root: Path, directory: str, template: str, serial: str) -> tuple[Path, BinaryIO]:
    """Create a new file below ``root`` and open it for writing, unbuffered.

    Directories are made as needed. No link is followed below ``root`` and no file is overwritten.
    Raises UserError that says what to do.
    """
    now = datetime.now(UTC)
    where = root / checked_directory(directory)
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = _open_directory(root, PurePosixPath(directory).parts)
    except OSError as error:
        raise UserError(f"cannot record in {where}: {error.strerror}") from error
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for number in range(1, _NUMBER_MAX):
            name = _filename(template, serial, now, number)
            try:
                file = os.open(name, flags, 0o644, dir_fd=handle)
                return where / name, os.fdopen(file, "wb", buffering=0)
            except FileExistsError:
                if "{n}" not in template:
                    break
    except OSError as error:
        raise UserError(f"cannot record in {where}: {error.strerror}") from error
    finally:
        os.close(handle)
    raise UserError(f"{where / name} exists already; choose another name, or use {{n}} in it")


def _open_directory(root: Path, parts: tuple[str, ...]) -> int:
    """A handle of the directory ``parts`` below ``root``, made as needed, reached by no link."""
    handle = os.open(root, os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=handle)
            inner = os.open(part, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle
