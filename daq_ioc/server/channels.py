"""Channel Access channels made from rows of the PV table, one class per kind of value.

They hold the policy that caproto's own PVs do not have: an alarm of their own, which only the
device sets; undefined until the first reading; puts that change nothing themselves but are handed
to the device; updates only for those who asked for that kind of event. What an alarm and what an
event is, `alarms` decides, and who may write `access`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import caproto
import numpy as np
import numpy.typing as npt
from caproto import AccessRights, AlarmSeverity, AlarmStatus, ChannelType, SubscriptionType

from daq_ioc.attributes import Attribute, Kind, Reading, Value
from daq_ioc.errors import UserError
from daq_ioc.server import corrections, fields
from daq_ioc.server.access import Client
from daq_ioc.server.alarms import Event, Judge
from daq_ioc.server.table import Row

log = logging.getLogger(__name__)

Put: TypeAlias = Callable[[str, Value], Awaitable[None]]
"""Hands a value to the device and returns when it is done; ValueError or UserError refuse it."""

Refusal: TypeAlias = Callable[[Client, Attribute], str]
"""Why a client may not write an attribute; empty if it may."""

_EVENTS = {
    Event.VALUE: SubscriptionType.DBE_VALUE,
    Event.LOG: SubscriptionType.DBE_LOG,
    Event.ALARM: SubscriptionType.DBE_ALARM,
}

_TEXTS = {kind for kind in ChannelType if kind.name == "STRING" or kind.name.endswith("_STRING")}
_TEXTS -= {ChannelType.STSACK_STRING}

BACKLOG_SCALAR = 10
BACKLOG_ARRAY = 3
"""Updates kept per subscription for a client that is late; older ones are replaced.

Trap: caproto keeps 1000, which is 80 MB per subscriber of 10 000 points.
"""

REASON_LENGTH = 300
"""Bytes of the reason for which a put is refused; a value that it quotes may be of any length."""

CLAIM_LENGTH = 256
"""Characters taken of the names of users and hosts."""


class PutRefusedError(Exception):
    """Sent to the client as the reason why its put failed."""


class Channel(corrections.Data):
    """One PV, whatever its type; mixed into caproto's class for the type."""

    row: Row

    def __init__(self, row: Row, put: Put, refusal: Refusal, **kwargs: Any) -> None:
        scalar = row.record_type != "waveform"
        super().__init__(
            # Trap: PVs that share an alarm (caproto's default in a group) set and clear it for
            # each other; and caproto starts with NO_ALARM, as if 0 had been measured.
            alarm=caproto.ChannelAlarm(
                status=AlarmStatus.UDF, severity=AlarmSeverity.INVALID_ALARM
            ),
            reported_record_type=row.record_type,
            max_subscription_backlog=BACKLOG_SCALAR if scalar else BACKLOG_ARRAY,
            **kwargs,
        )
        self.row = row
        self.reading: Reading | None = None
        self._judge = Judge(row.alarms)
        self._put = put
        self._refusal = refusal
        self._fields: dict[str, Any] = {}
        self._event = SubscriptionType(0)

    def native(self, value: Value) -> Any:
        """The value as the caproto class keeps it."""
        raise NotImplementedError

    async def show(self, reading: Reading) -> None:
        """Publish a reading, with the alarm that the configured limits make of it.

        Trap: `write` as it is normally called computes alarms from limits and overrides the given
        severity whenever it differs, so that equal writes alternate between INVALID and NO_ALARM,
        and refuses NaN. With ``verify_value=False`` it takes what it is given.
        """
        reading, events = self._judge.judge(reading)
        status, severity = AlarmStatus[reading.status.name], AlarmSeverity(reading.severity)
        flags = SubscriptionType(0)
        for event in events:
            flags |= _EVENTS[event]
        value = self.native(reading.value)
        self.reading = reading
        await self.write(
            value, flags=flags, verify_value=False, update_fields=False,
            status=status, severity=severity, timestamp=corrections.time_stamp(reading.time),
        )  # fmt: skip
        live = self._live_fields()
        for name in self._fields.keys() & live.keys():
            if self._fields[name].value != live[name]:
                await self._fields[name].write(live[name], verify_value=False)

    async def publish(self, flags: Any) -> None:
        """Send the present value to those who asked for one of these events.

        Trap: caproto ignores the event mask; a client that adds a subscription for DBE_PROPERTY (to
        learn of new units) then gets every waveform twice.
        """
        self._event = flags
        await super().publish(flags)

    def _is_eligible(self, ss: Any) -> bool:
        return bool(ss.mask & self._event) and bool(super()._is_eligible(ss))

    def get_field(self, name: str | None) -> Any:
        """The channel of a record field, ``VAL`` being this one. Raises KeyError."""
        if name in (None, "", "VAL"):
            return self
        if name not in self._fields:
            now = self._live_fields().get(str(name))
            self._fields[str(name)] = fields.field(self.row, str(name), now)
        return self._fields[str(name)]

    def _live_fields(self) -> dict[str, Any]:
        return {
            "SEVR": fields.SEVERITIES[self.alarm.severity],
            "STAT": AlarmStatus(self.alarm.status).name,
            "UDF": int(self.reading is None or self.alarm.status == AlarmStatus.UDF),
            "NORD": self.length,
        }

    def check_access(self, hostname: str, username: str) -> Any:
        """What a client may do, told to it when it connects."""
        client = _client(username, hostname, corrections.peer.get())
        refused = self._refusal(client, self.row.attribute)
        return AccessRights.READ if refused else AccessRights.READ | AccessRights.WRITE

    async def auth_write(
        self, hostname: str, username: str, data: Any, data_type: Any, metadata: Any, *,
        flags: int = 0, user_address: tuple[str, int] | None = None,  # noqa: ARG002
    ) -> Any:  # fmt: skip
        """Take a client's put: have the device do it, and say who did what.

        The value itself is not written here; the device's next reading says what it really is.
        Trap: a put that fails leaves a caproto PV in MAJOR/WRITE; here it touches no alarm.
        """
        client = _client(username, hostname, user_address[0] if user_address else "")
        old = None if self.reading is None else self.reading.value
        value: Any = data_type.name
        try:
            acknowledges = data_type in (ChannelType.PUT_ACKT, ChannelType.PUT_ACKS)
            if not acknowledges:
                value = decoded(self.row.attribute, data, data_type)
            if refused := self._refusal(client, self.row.attribute):
                raise PutRefusedError(refused)  # noqa: TRY301
            if acknowledges:
                await self.write_from_dbr(data, data_type, metadata)
            else:
                await self._put(self.row.attribute.name, self.row.attribute.checked(value))
        except (ValueError, UserError, PutRefusedError) as error:
            reason = _cut(str(error), REASON_LENGTH)
            log.warning(
                "refused %s = %s from %s; is %s: %s",
                self.row.pv, _short(value), client, _short(old), reason,
            )  # fmt: skip
            raise PutRefusedError(reason) from None
        except Exception:
            log.exception("failed %s = %s from %s", self.row.pv, _short(value), client)
            raise
        log.info("put %s = %s from %s; was %s", self.row.pv, _short(value), client, _short(old))
        return None


def _client(user: str | None, host: str | None, address: str) -> Client:
    """A client by what it claims to be, which may be nothing, or of any length."""
    return Client((user or "")[:CLAIM_LENGTH], (host or "")[:CLAIM_LENGTH], address)


def _short(value: Any) -> str:
    """A value for a log line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def decoded(attribute: Attribute, data: Any, data_type: Any) -> Any:
    """What a client sent, as a number or text.

    Raises ValueError if it is neither, not UTF-8, or more than the PV holds.
    """
    native = caproto.native_type(data_type)
    if native not in caproto.native_types:
        raise ValueError(f"{attribute.name} cannot be put as {data_type.name}")
    if len(data) == 0 and native is not ChannelType.CHAR:
        raise ValueError(f"{attribute.name} takes a value, none was sent")
    letters = native is ChannelType.CHAR and attribute.kind in (Kind.STRING, Kind.TEXT)
    most = fields.TEXT_LENGTH if letters else attribute.length
    if len(data) > most:
        raise ValueError(f"{attribute.name} takes at most {most} elements, {len(data)} were sent")
    if native is ChannelType.STRING:
        return _text(bytes(data[0]))
    if letters:
        return _text(bytes(data))
    if attribute.length > 1:
        return np.asarray(data, np.float64)
    if len(data) == 0:
        raise ValueError(f"{attribute.name} takes a value, none was sent")
    return np.asarray(data)[0].item()


def _text(data: bytes) -> str:
    try:
        return data.split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("text must be UTF-8") from None


def _cut(text: str, size: int) -> str:
    """As much of a text as fits ``size`` bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def as_text(value: float, precision: int) -> str:
    """A double as EPICS base writes it for clients that want text (``cvtDoubleToString``)."""
    if precision > 8 or abs(value) > 1e16:
        return f"{value:.{min(precision, 17)}e}"
    return f"{value:.{min(precision, 3) if abs(value) > 1e7 else precision}f}"


def as_texts(values: float | npt.NDArray[np.float64], precision: int) -> list[bytes]:
    """`as_text` of one or many; of many that are written alike all at once, for its speed."""
    numbers: list[float] = np.atleast_1d(values).tolist()
    if precision > 8 and len(numbers) > 1:
        return (b"%%.%de " % min(precision, 17) * len(numbers) % tuple(numbers)).split()
    return [as_text(number, precision).encode() for number in numbers]


class DoubleChannel(Channel, caproto.ChannelDouble):  # type: ignore[misc]
    """A double, or an array of doubles.

    An empty array is shown as one NaN: on the wire an update without elements is the answer to a
    cancelled subscription.
    """

    _texts: tuple[Any, list[bytes]] = (None, [])
    """The last value that somebody wanted as text, and its texts."""

    async def _converted(self, data_type: Any) -> Any:
        """What clients get.

        Traps: as text caproto sends all digits, not those of ``.PREC``; and for a long array it
        takes so long to make text of it that one client who asks for that delays all others.
        """
        if data_type not in _TEXTS:
            return await super()._converted(data_type)
        if self._texts[0] is not self.value:
            self._texts = self.value, as_texts(self.value, self.row.attribute.precision)
        metadata: Any = b""
        if data_type is not ChannelType.STRING:
            metadata = caproto.DBR_TYPES[data_type]()
            self._read_metadata(metadata)
            metadata.status, metadata.severity = self.alarm.status, self.alarm.severity
        return metadata, self._texts[1]

    def native(self, value: Value) -> Any:
        if self.row.attribute.length == 1:
            return float(value)
        array = np.atleast_1d(np.asarray(value, np.float64))
        return array if len(array) else np.array([np.nan])


class LongChannel(Channel, caproto.ChannelInteger):  # type: ignore[misc]
    """A 32-bit integer; values beyond are shown as the nearest one."""

    def native(self, value: Value) -> Any:
        return min(max(int(value), -(2**31)), 2**31 - 1)


class EnumChannel(Channel, caproto.ChannelEnum):  # type: ignore[misc]
    """One of up to 16 words."""

    def native(self, value: Value) -> Any:
        return self.row.attribute.choices[int(value)]


class StringChannel(Channel, caproto.ChannelString):  # type: ignore[misc]
    """Up to 39 bytes of text: with 40 there is no room for the end mark clients expect."""

    def native(self, value: Value) -> Any:
        return _cut(str(value), 39)


class TextChannel(Channel, caproto.ChannelChar):  # type: ignore[misc]
    """A long string, as an array of characters; an empty one is its end mark alone."""

    def native(self, value: Value) -> Any:
        return _cut(str(value), fields.TEXT_LENGTH - 1) or "\0"


def channel(row: Row, put: Put, refusal: Refusal) -> Channel:
    """The channel of a row, undefined until its first reading."""
    item = row.attribute
    if item.kind is Kind.ENUM:
        return EnumChannel(row, put, refusal, value=item.choices[0], enum_strings=item.choices)
    if item.kind is Kind.STRING:
        return StringChannel(row, put, refusal, value="", string_encoding="utf-8")
    if item.kind is Kind.TEXT:
        length = fields.TEXT_LENGTH
        return TextChannel(
            row, put, refusal, value="\0", max_length=length, string_encoding="utf-8"
        )
    # Limits of one side only cannot be told to clients; they are checked all the same.
    limits = _alarm_limits(row)
    if item.low is not None and item.high is not None:
        for name in ("disp", "ctrl"):
            limits |= {f"lower_{name}_limit": item.low, f"upper_{name}_limit": item.high}
    if item.kind is Kind.LONG:
        limits = {name: int(limit) for name, limit in limits.items()}
        return LongChannel(row, put, refusal, value=0, units=item.units, **limits)
    value = 0.0 if item.length == 1 else np.array([np.nan])
    return DoubleChannel(
        row, put, refusal, value=value, max_length=item.length, units=item.units,
        precision=item.precision, **limits,
    )  # fmt: skip


def _alarm_limits(row: Row) -> dict[str, float]:
    """Alarm limits as clients are told them with the value; 0 where there is none, as for base's
    integers (its NaN for doubles cannot be converted to other types)."""
    alarms = row.alarms
    return {
        "upper_alarm_limit": alarms.hihi or 0.0,
        "upper_warning_limit": alarms.high or 0.0,
        "lower_warning_limit": alarms.low or 0.0,
        "lower_alarm_limit": alarms.lolo or 0.0,
    }


def channels(rows: Iterable[Row], put: Put, refusal: Refusal) -> dict[str, Channel]:
    """Channels of one device by attribute name."""
    return {row.attribute.name: channel(row, put, refusal) for row in rows}
