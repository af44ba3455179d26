"""The PV table: names, record types, listings."""

from __future__ import annotations

import csv
import io

import pytest

from daq_ioc.attributes import Attribute, Kind
from daq_ioc.errors import UsageError
from daq_ioc.server import table
from tests.server.stub import ATTRIBUTES


def test_record_types_follow_kind_length_and_access() -> None:
    types = {row.attribute.name: row.record_type for row in table.rows("P:", ATTRIBUTES)}
    assert types == {
        "CURRENT": "ai", "VOLTAGE": "ai", "STATS": "waveform", "TRACE": "waveform",
        "NOTHING": "waveform", "FILE2": "waveform",
        "COUNT": "longin", "TIME_TEXT": "stringin", "FILE": "waveform", "STATE": "mbbi",
        "GPI0": "bi", "dt": "ao", "POINTS": "longout", "I_RANGE": "mbbo", "START": "bo",
        "NOTE": "waveform", "FRAGILE": "ao",
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "JS:", "XF:07ID1-ES{JS:1}", "simple_daq:", "a+b;<c>[0]"])
def test_prefixes_of_every_facility(prefix: str) -> None:
    assert table.rows(prefix, ATTRIBUTES)[0].pv == f"{prefix}CURRENT"


@pytest.mark.parametrize("prefix", ["JS.", "J S:", "JS:\n", "$(P)", "µ:", '"', "JS:CURRENT.VAL"])
def test_prefixes_that_cannot_be_names(prefix: str) -> None:
    with pytest.raises(UsageError, match="is not allowed: PV names have letters"):
        table.rows(prefix, ATTRIBUTES)


def test_names_longer_than_base_keeps_are_refused() -> None:
    attributes = [Attribute("CURRENT_TRACE", Kind.DOUBLE, "x"), Attribute("dt", Kind.DOUBLE, "x")]
    assert len(table.rows("P" * 47, attributes)[0].pv) == 60
    with pytest.raises(UsageError, match=r"PPCURRENT_TRACE has 61 characters of at most 60; .* 47"):
        table.rows("P" * 48, attributes)


def test_two_devices_cannot_have_one_prefix() -> None:
    with pytest.raises(UsageError, match="two PVs are named P:CURRENT"):
        table.joined([table.rows("P:", ATTRIBUTES), table.rows("P:", ATTRIBUTES)])
    assert len(table.joined([table.rows(p, ATTRIBUTES) for p in ("P:", "Q:")])) == 2 * len(
        ATTRIBUTES
    )


def test_csv_has_every_row_and_its_limits() -> None:
    rows = list(csv.DictReader(io.StringIO(table.as_csv(table.rows("P:", ATTRIBUTES)))))
    by_name = {row["name"]: row for row in rows}
    assert len(rows) == len(ATTRIBUTES)
    assert by_name["P:dt"] == {
        "name": "P:dt", "type": "ao", "access": "rw", "units": "s", "precision": "3", "length": "",
        "takes": "0.05 .. 10", "description": "publish period",
    }  # fmt: skip
    assert by_name["P:I_RANGE"]["takes"] == "auto | 10 A | 2 A | off"
    assert by_name["P:TRACE"]["length"] == "10000"


def test_text_has_one_aligned_line_each() -> None:
    head, *lines = table.as_text(table.rows("P:", ATTRIBUTES)).splitlines()
    assert len(lines) == len(ATTRIBUTES)
    column = head.index("description")
    assert lines[0][column:] == "mean current over dt"
    assert lines[11][column:] == "publish period"
