"""Who may write what."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from daq_ioc.attributes import Attribute, Group, Kind
from daq_ioc.server.access import EVERYONE, Access, Client, Rule


def attribute(group: Group) -> Attribute:
    writable = group is not Group.READING
    return Attribute(group.name, Kind.DOUBLE, "x", writable=writable, group=group)


READING, SETTING, RECORDING, TARGET = map(attribute, Group)
BOB = Client("bob", "console", "10.1.2.3")


def allowed(client: Client, **rule: Any) -> list[str]:
    """Names of the groups that a client may write by one rule."""
    access = Access([Rule(**rule)])
    every = (READING, SETTING, RECORDING, TARGET)
    return [item.name for item in every if not access.refusal(client, item)]


def test_without_rules_everyone_may_write_what_is_writable() -> None:
    assert EVERYONE.refusal(BOB, TARGET) == ""
    assert EVERYONE.refusal(BOB, READING) == "READING is read only"


def test_without_a_rule_that_fits_nobody_may() -> None:
    assert Access([]).refusal(BOB, SETTING) == (
        "no access rule lets 'bob' on 'console' (10.1.2.3) write PVs of the group 'setting'"
    )


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({}, True),
        ({"users": ["bob", "eve"]}, True),
        ({"users": ["eve"]}, False),
        ({"hosts": ["console"]}, True),
        ({"hosts": ["10.1.2.3"]}, False),
        ({"networks": ["10.1.0.0/16"]}, True),
        ({"networks": ["10.1.2.3"]}, True),
        ({"networks": ["10.1.3.0/24", "192.168.0.0/16"]}, False),
        ({"users": ["bob"], "networks": ["10.2.0.0/16"]}, False),
        ({"users": ["bob"], "hosts": ["console"], "networks": ["10.0.0.0/8"]}, True),
    ],
)
def test_a_rule_fits_whom_all_of_it_names(rule: dict[str, Any], fits: bool) -> None:
    assert allowed(BOB, write=["setting", "recording"], **rule) == (
        ["SETTING", "RECORDING"] if fits else []
    )


def test_an_address_that_is_none_is_in_no_network() -> None:
    assert allowed(Client("bob", "x", ""), write=["target"], networks=["0.0.0.0/0"]) == []


def test_rules_add_up() -> None:
    access = Access([Rule(write=("recording",)), Rule(write=("setting", "target"), users=("bob",))])
    assert access.refusal(BOB, TARGET) == access.refusal(BOB, RECORDING) == ""
    eve = Client("eve", "console", "10.1.2.3")
    assert access.refusal(eve, TARGET)
    assert not access.refusal(eve, RECORDING)


def test_what_is_locked_nobody_may_write() -> None:
    access = Access([Rule(write=("target",))], ("TARGET",))
    assert access.refusal(BOB, TARGET) == "TARGET is locked by the configuration"


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({}, "Field required"),
        ({"write": ["everything"]}, "'setting', 'recording' or 'target'"),
        ({"write": ["target"], "networks": ["10.1.2.3/8"]}, "expected an IPv4 address or network"),
        ({"write": ["target"], "networks": ["localhost"]}, "expected an IPv4 address or network"),
        ({"write": ["target"], "users": []}, "at least 1"),
        ({"write": ["target"], "user": ["bob"]}, "Extra inputs"),
    ],
)
def test_rules_that_cannot_be_meant(rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Rule.model_validate(rule)
