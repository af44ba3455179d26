"""Who may write what. Everyone who reaches the server may read everything.

Knows no protocol: it is told of a client, and of the attribute that is to be written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from daq_ioc.attributes import Attribute


@dataclass(frozen=True, slots=True)
class Client:
    """Who puts. ``user`` and ``host`` are what the client claims and nobody can check; ``address``
    (IPv4) is where its connection really comes from."""

    user: str
    host: str
    address: str

    def __str__(self) -> str:
        return f"{self.user!r} on {self.host!r} ({self.address or '?'})"


def _network(text: str) -> str:
    try:
        return str(IPv4Network(text))
    except ValueError as error:
        raise ValueError(f"expected an IPv4 address or network like 10.1.2.0/24: {error}") from None


_Names = Annotated[tuple[str, ...] | None, Field(min_length=1, strict=False)]
_Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...] | None, Field(min_length=1, strict=False)
]
Writable = Literal["setting", "recording", "target"]


class Rule(BaseModel):
    """Lets clients write some groups of PVs.

    A client is meant if it is among ``users``, among ``hosts`` and in one of ``networks``; a list
    that is not given means everyone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    write: tuple[Writable, ...] = Field(strict=False)
    users: _Names = None
    hosts: _Names = None
    networks: _Networks = None

    def means(self, client: Client) -> bool:
        """Whether a client is meant. An address that is none is in no network."""
        if self.users is not None and client.user not in self.users:
            return False
        if self.hosts is not None and client.host not in self.hosts:
            return False
        if self.networks is None:
            return True
        try:
            address = IPv4Address(client.address)
        except AddressValueError:
            return False
        return any(address in IPv4Network(network) for network in self.networks)


@dataclass(frozen=True)
class Access:
    """The rules of a server for one device; a client may do what any rule lets it do.

    Without rules (None) everyone may write. ``locked``: names nobody may write.
    """

    rules: Sequence[Rule] | None = None
    locked: Collection[str] = ()

    def refusal(self, client: Client, attribute: Attribute) -> str:
        """Why a client may not write an attribute; empty if it may."""
        if not attribute.writable:
            return f"{attribute.name} is read only"
        if attribute.name in self.locked:
            return f"{attribute.name} is locked by the configuration"
        group = attribute.group.value
        if self.rules is None or any(
            group in rule.write and rule.means(client) for rule in self.rules
        ):
            return ""
        return f"no access rule lets {client} write PVs of the group {group!r}"


EVERYONE = Access()
