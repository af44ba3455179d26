"""The configuration of an IOC: a TOML file, checked, and the devices made from it.

Every problem is one line that names the file (or the option of the command), the key, the value
given and what is allowed; all problems are reported at once. What a driver's options may be only
the driver knows: they are handed to it, and what it refuses is reported in the same form.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from daq_ioc import driver as drivers
from daq_ioc.device import Device, NotRecordableError
from daq_ioc.errors import UsageError, UserError
from daq_ioc.server import Publication, alarms, default_interfaces, table
from daq_ioc.server.access import Access, Rule
from daq_ioc.server.alarms import Limits
from daq_ioc.server.autosave import Settings
from daq_ioc.server.health import ATTRIBUTES, LIMITS


class ConfigError(UsageError):
    """What is wrong with a configuration, a line for each problem."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise ValueError(
            "expected an IPv4 address of this computer such as 127.0.0.1, or 0.0.0.0 for all"
        ) from None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _directory(text: str) -> str:
    """The path of a directory that is there or can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ValueError("there is something else of this name; give a directory")
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} is not a directory this user may write to")
    return text


class ServerSection(_Section):
    """``[server]``"""

    interfaces: tuple[Annotated[str, AfterValidator(_address)], ...] | None = Field(
        default=None, min_length=1, strict=False
    )
    state: Annotated[str, AfterValidator(_directory)] | None = Field(default=None, min_length=1)
    health: Annotated[str, AfterValidator(table.checked_prefix)] | None = None


class RecordingSection(_Section):
    """``[device.recording]``"""

    root: Annotated[str, AfterValidator(_directory)] = Field(min_length=1)

    @property
    def path(self) -> Path:
        """The directory that all recordings of the device go below."""
        return Path(self.root)


class DeviceSection(_Section):
    """``[device]``, or one of several ``[[device]]``"""

    prefix: Annotated[str, AfterValidator(table.checked_prefix)]
    driver: str
    dt: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    buffer_span: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    options: dict[str, Any] = {}
    recording: RecordingSection | None = None
    locked: tuple[str, ...] = Field(default=(), strict=False)
    limits: dict[str, Limits] = {}


class Config(_Section):
    """A whole file."""

    server: ServerSection = ServerSection()
    device: tuple[DeviceSection, ...] = Field(min_length=1, strict=False)
    access: tuple[Rule, ...] | None = Field(default=None, strict=False)

    @property
    def interfaces(self) -> list[str]:
        """IPv4 addresses to serve on: of the file, else of the environment, else loopback."""
        if self.server.interfaces is not None:
            return list(self.server.interfaces)
        return default_interfaces()

    @property
    def state(self) -> Path | None:
        """The directory settings are kept in: of the file, else systemd's; None keeps none."""
        named = self.server.state or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        return Path(named) if named else None

    @property
    def health(self) -> str:
        """Prefix of the PVs that tell how the IOC itself is."""
        return self.device[0].prefix if self.server.health is None else self.server.health

    def table(self, devices: Sequence[tuple[str, Device]]) -> list[table.Row]:
        """All PVs of these devices, those of the IOC's health included. Raises UsageError."""
        tables = [
            table.rows(prefix, device.attributes, section.limits)
            for section, (prefix, device) in zip(self.device, devices, strict=True)
        ]
        return table.joined([*tables, table.rows(self.health, ATTRIBUTES, LIMITS)])

    def publications(self, devices: Sequence[tuple[str, Device]]) -> list[Publication]:
        """These devices with the rules they are served by."""
        made = []
        for section, (prefix, device) in zip(self.device, devices, strict=True):
            settings = None
            if self.state is not None:
                settings = Settings(self.state, prefix, device.attributes, _pinned(section, device))
            access = Access(self.access, section.locked)
            made.append(Publication(prefix, device, section.limits, access, settings))
        return made


def _pinned(section: DeviceSection, device: Device) -> set[str]:
    """Settings that the file says: what it says holds at every start."""
    option_of = device.driver.option_of
    pinned = {name for name, option in option_of.items() if option in section.options}
    return pinned | ({"dt"} if "dt" in section.model_fields_set else set())


Override = tuple[tuple[str | int, ...], Any]
"""Where a value goes in the file's structure, and the value."""


def load(path: Path, overrides: Mapping[str, Override] | None = None) -> Config:
    """Read a configuration file; ``overrides`` by the name of the option that gave each.

    Relative directories are relative to the file. Raises ConfigError.
    """
    raw = _read(path)
    several = isinstance(raw.get("device"), list)
    if isinstance(raw.get("device"), dict):
        raw["device"] = [raw["device"]]
    for section in _dicts(raw.get("device")):
        recording = section.get("recording")
        if isinstance(recording, dict) and isinstance(recording.get("root"), str):
            root = Path(recording["root"]).expanduser()
            recording["root"] = str((path.parent / root).resolve()) if recording["root"] else ""
    server = raw.get("server")
    if isinstance(server, dict) and isinstance(server.get("state"), str) and server["state"]:
        server["state"] = str((path.parent / Path(server["state"]).expanduser()).resolve())
    options = dict(overrides or {})
    for option, (where, value) in options.items():
        _insert(raw, option, where, value)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        origins = {where: option for option, (where, _) in options.items()}
        errors = error.errors()
        # Of a list whose entries are wrong pydantic also says that it is empty.
        wrong = {each["loc"][:n] for each in errors for n in range(len(each["loc"]))}
        errors = [e for e in errors if e["type"] != "too_short" or e["loc"] not in wrong]
        raise ConfigError([_line(path, each, origins, several) for each in errors]) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not a text file in UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from None


def _dicts(sections: Any) -> list[dict[str, Any]]:
    return [each for each in sections or () if isinstance(each, dict)]


def _insert(raw: dict[str, Any], option: str, where: tuple[str | int, ...], value: Any) -> None:
    """Put an option's value where the file would have it; the check comes later."""
    if where[0] == "device" and len(_dicts(raw.get("device"))) > 1:
        raise ConfigError([f"{option}: there are several devices; set it in the file"])
    level: Any = raw
    for key, following in pairwise(where):
        if isinstance(level, dict):
            level = level.setdefault(key, [{}] if isinstance(following, int) else {})
        elif isinstance(level, list) and level:
            level = level[0]
    if isinstance(level, dict):
        level[where[-1]] = value


def _key(where: Sequence[str | int], several: bool) -> str:
    """A key as people write it: ``device.dt``, or ``device[1].dt`` where there are several."""
    text = ""
    for part in where:
        if isinstance(part, int):
            # An index says nothing where the file has a single table.
            text += f"[{part}]" if several or not text.startswith("device") else ""
        else:
            text += f".{part}" if text else part
    return text


def _line(
    path: Path, error: ErrorDetails, origins: Mapping[tuple[str | int, ...], str], several: bool
) -> str:
    where = error["loc"]
    origin = next(
        (origins[where[:n]] for n in range(len(where), 0, -1) if where[:n] in origins), ""
    )
    place = origin or f"{path}: {_key(where, several)}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    if error["type"] == "too_short":
        return f"{place}: is empty; give at least one"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_known(where[:-1]))
        return f"{place}: there is no such key; known are: {known}"
    reason = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return f"{place}: {error['input']!r} is not allowed: {reason}"


def _known(where: Sequence[str | int]) -> list[str]:
    """Keys of the section at a place."""
    sections: dict[tuple[str, ...], type[BaseModel]] = {
        (): Config,
        ("server",): ServerSection,
        ("device",): DeviceSection,
        ("device", "recording"): RecordingSection,
        ("device", "limits"): Limits,
        ("access",): Rule,
    }
    # What follows `limits` is the name of a PV.
    keys = tuple(part for part in where if isinstance(part, str))[:2]
    return list(sections[keys].model_fields)


def devices(path: Path, config: Config) -> list[tuple[str, Device]]:
    """Prefix and device of every device section. Opens no instrument and makes no directory.

    Raises ConfigError for what only driver and device can judge: names, options, the PV names.
    """
    made: list[tuple[str, Device]] = []
    problems: list[str] = []
    for index, section in enumerate(config.device):
        place = f"{path}: {_key(('device', index), len(config.device) > 1)}"
        try:
            device = _device(section)
        except (UserError, ValueError) as error:
            problems.append(f"{place}{error}")
        else:
            made.append((section.prefix, device))
            problems += [f"{place}{problem}" for problem in _wrong_names(section, device)]
    if not problems:
        try:
            config.table(made)
        except UsageError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ConfigError(problems)
    return made


def _wrong_names(section: DeviceSection, device: Device) -> list[str]:
    """What names PVs the device does not have or that cannot be meant."""
    known = {attribute.name: attribute for attribute in device.attributes}
    problems = []
    for name in section.limits:
        try:
            alarms.checked(name, known.get(name))
        except ValueError as error:
            problems.append(f".limits.{name}: {error}")
    for index, name in enumerate(section.locked):
        if name not in known or not known[name].writable:
            names = ", ".join(each.name for each in known.values() if each.writable)
            problems.append(f".locked[{index}]: {name!r} is not allowed: writable are: {names}")
    return problems


def _device(section: DeviceSection) -> Device:
    """One device. Raises UsageError whose text begins with the key within the section."""
    try:
        make = drivers.load(section.driver)
    except UsageError as error:
        raise UsageError(f".driver: {error}") from None
    except ImportError as error:
        raise UsageError(f".driver: {section.driver!r} cannot be loaded: {error}") from error
    _check_arguments(make, section.options)
    try:
        driver = make(**section.options)
    except (UserError, ValueError) as error:
        raise UsageError(f".options: {error}") from error
    except Exception as error:  # somebody else's code
        raise UsageError(f".driver: {section.driver!r} cannot be made: {error!r}") from error
    try:
        device = Device(
            driver,
            dt=section.dt,
            buffer_span=section.buffer_span,
            record_root=section.recording.path if section.recording else None,
        )
        next(item for item in device.attributes if item.name == "dt").checked(section.dt)
    except NotRecordableError as error:
        remedy = "leave this section, or --record-root, out"
        raise UsageError(f".recording: {error}; {remedy}") from error
    except (UserError, ValueError) as error:
        raise UsageError(f": {error}") from error
    except Exception as error:  # what the driver declares is somebody else's, too
        raise UsageError(f".driver: {section.driver!r} cannot be used: {error!r}") from error
    return device


def _check_arguments(make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise UsageError if the driver has no such options, saying which it has."""
    signature = inspect.signature(make)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise UsageError(f".options: {error}; options of this driver are: {known}") from None
