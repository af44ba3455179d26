"""Settings that survive a restart: what clients have put is kept in a file, and set again.

Only what was put is kept, so that whatever nobody has touched follows the configuration and the
program. The file is replaced as a whole, so a crash leaves the old or the new one, never a mixture.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from daq_ioc.attributes import Attribute, Kind, Value
from daq_ioc.errors import UserError

log = logging.getLogger(__name__)


class Restorable(Protocol):
    """What is needed of a device."""

    def restore(self, name: str, value: Value, /) -> None: ...


class Settings:
    """The settings of one device in the file ``<prefix>settings.json`` of ``directory``.

    The prefix is percent-encoded, so that every prefix makes a file name and no two the same one.
    ``pinned``: names the configuration decides, which are kept but not restored.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        attributes: Iterable[Attribute],
        pinned: Collection[str] = (),
    ) -> None:
        self.path = directory / f"{quote(prefix, safe='')}settings.json"
        self._attributes = {a.name: a for a in attributes if a.writable and not a.momentary}
        self.pinned = pinned
        self._kept: dict[str, Any] = {}
        self._changed = False
        self._lock = threading.Lock()
        self._saving = threading.Lock()

    def restore(self, device: Restorable) -> None:
        """Set what the file has; what cannot be set any more is told and left. Never raises."""
        for name, kept in self._read().items():
            attribute = self._attributes.get(name)
            if attribute is None:
                log.warning("%s: there is no setting %s any more", self.path, name)
                continue
            self._kept[name] = kept
            if name in self.pinned:
                log.info("%s = %r is not restored: the configuration sets it", name, kept)
                continue
            try:
                device.restore(name, attribute.checked(kept))
            except (ValueError, UserError) as error:
                log.warning("%s: %s = %r is not restored: %s", self.path, name, kept, error)
            else:
                log.info("restored %s = %r", name, kept)

    def note(self, name: str, value: Value) -> bool:
        """A client has put a value; returns whether there is something to `save`."""
        attribute = self._attributes.get(name)
        if attribute is None:
            return False
        # Words, so that the file stays right when a later version adds one.
        kept = attribute.choices[int(value)] if attribute.kind is Kind.ENUM else value
        with self._lock:
            if name not in self._kept or self._kept[name] != kept:
                self._kept[name] = kept
                self._changed = True
            return self._changed

    def save(self) -> None:
        """Write the file if something has changed. A failure is logged and tried again later."""
        with self._saving:
            with self._lock:
                if not self._changed:
                    return
                text = json.dumps(self._kept, indent=1, sort_keys=True, ensure_ascii=False)
                self._changed = False
            try:
                _replace(self.path, text + "\n")
            except OSError as error:
                with self._lock:
                    self._changed = True
                log.warning("settings cannot be kept in %s: %s", self.path, error.strerror)

    def _read(self) -> Mapping[str, Any]:
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("settings are not restored: %s: %s", self.path, error.strerror)
            return {}
        except (ValueError, TypeError) as error:  # no UTF-8, no JSON, no table
            self._set_aside(error)
            return {}

    def _set_aside(self, why: Exception) -> None:
        aside = self.path.with_suffix(time.strftime(".corrupt-%Y%m%dT%H%M%SZ", time.gmtime()))
        try:
            self.path.rename(aside)
        except OSError as error:
            log.warning("%s is corrupt (%s) and stays: %s", self.path, why, error.strerror)
        else:
            log.warning("%s is corrupt (%s); now %s, nothing restored", self.path, why, aside.name)


def _replace(path: Path, text: str) -> None:
    """Replace a file so that after a crash it is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
