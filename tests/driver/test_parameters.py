"""User parameters: the maker's names, values and packets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daq_ioc.driver.joulescope.js110.parameters import PARAMETERS, Parameters, Where
from daq_ioc.driver.joulescope.js110.protocol import Extio, PacketError, Settings, Status
from tests.conftest import VECTORS


def packet(**changes: object) -> str:
    parameters = Parameters()
    for name, value in changes.items():
        parameters.set(name, value)
    return parameters.settings(connected=True, streaming=False).pack().hex()


def test_settings_packets() -> None:
    assert packet() == "01100100000000000180c00000000000"
    assert packet(i_range="180 mA", v_range="5V") == "01100100000000000104c00200000000"
    assert packet(i_range=1, source="off", sensor_power="off") == "01100100000000000002000000000000"
    streaming = Parameters().settings(connected=True, streaming=True)
    assert streaming.pack().hex() == "01100100000000000180c00003000000"
    assert Parameters().settings(connected=False, streaming=False).select == 0


def test_extio_packet() -> None:
    parameters = Parameters()
    for name, value in (
        ("current_lsb", "gpi0"),
        ("voltage_lsb", "gpi1"),
        ("gpo0", 1),
        ("gpo1", "1"),
        ("io_voltage", "1.8V"),
    ):
        assert parameters.set(name, value) is Where.EXTIO
    assert parameters.extio().pack().hex() == "011803000000000000000203010100000000000008070000"


def test_packets_equal_those_of_the_makers_hosts() -> None:
    """Every SETTINGS and EXTIO that a recorded host sent means something here, and packs back."""
    seen = 0
    for host in "ab":
        for event in json.loads(Path(VECTORS / f"js110_transcript_host_{host}.json").read_text()):
            if event["ev"] != "ctrl" or event["bRequest"] not in (3, 9) or "out" not in event:
                continue
            data = bytes.fromhex(event["out"])
            if not data:
                continue
            kind = Settings if event["bRequest"] == 3 else Extio
            assert kind.unpack(data).pack() == data
            seen += 1
    assert seen > 10


def test_status_with_statistics() -> None:
    data = bytes.fromhex(
        "01680200000000000000000039300000020000000180c002404b4c0000000000c0bbcb2100000000d2029649"
        "00000000ea16b04c0200000040420f0040420f0080841e00e17a1400976e12002b8716009a9906007b940600"
        "b89e06004df300005f29010000000000"
    )
    status = Status.unpack(data)
    assert status.pack() == data
    assert (status.settings_result, status.fpga_frame_counter, status.fpga_discard_counter) == (
        0,
        12345,
        2,
    )
    statistics = status.statistics
    assert statistics is not None
    assert statistics.current_mean * 2**-27 == 0.009999997913837433
    assert statistics.power_mean * 2**-34 == 0.03300374373793602
    assert statistics.charge * 2**-27 == 9.198247566819191
    short = Status.unpack(bytes.fromhex("0118020000000000130000000000000000000000") + bytes(4))
    assert short.settings_result == 19
    assert short.statistics is None


@pytest.mark.parametrize("data", [b"", bytes(23), bytes(24), bytes(104), bytes(105)])
def test_replies_of_another_layout_are_refused(data: bytes) -> None:
    with pytest.raises(PacketError, match="STATUS"):
        Status.unpack(data)


def test_current_ranging_is_four_parameters() -> None:
    parameters = Parameters()
    assert parameters["current_ranging"] == "interp_1_n_1"
    assert parameters.set("current_ranging", "mean_2_7_3") is Where.HOST
    assert parameters["current_ranging_type"] == "mean"
    assert parameters["current_ranging_samples_window"] == "7"
    parameters.set("current_ranging_samples_post", 8)
    assert parameters["current_ranging"] == "mean_2_7_8"
    parameters.set("current_ranging", None)
    assert parameters["current_ranging"] == "off"
    parameters.set("current_ranging", "normal")
    assert parameters["current_ranging"] == "interp_1_n_1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("i_range", "3 A"),
        ("i_range", 7),
        ("i_range", None),
        ("i_range", []),
        ("v_range", "10V"),
        ("gpo0", 2),
        ("io_voltage", 3300),
        ("transfer_length", 3),
        ("current_ranging", "mean_9_n_1"),
        ("current_ranging_samples_pre", 9),
        ("colour", "red"),
    ],
)
def test_a_refused_value_names_the_options_and_changes_nothing(name: str, value: object) -> None:
    parameters = Parameters()
    before = {key: parameters[key] for key in PARAMETERS}
    with pytest.raises(ValueError, match=r"is one of|it has|0\.\."):
        parameters.set(name, value)
    assert {key: parameters[key] for key in PARAMETERS} == before
