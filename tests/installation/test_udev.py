"""The udev rule: its grammar, by udevadm too where that can tell; and whom it admits."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daq_ioc.driver.joulescope.js110 import protocol

RULES = Path(__file__).parents[2] / "ioc_configs" / "udev" / "72-joulescope.rules"
TERM = re.compile(r'([A-Z]+)(?:\{(\w+)\})?(==|!=|\+=|:=|=)"([^"]*)"')
MATCHES = {"SUBSYSTEM", "ENV", "ATTRS"}
ASSIGNS = {"MODE", "TAG"}


def rules() -> list[list[tuple[str, str, str, str]]]:
    """Key, attribute, operator and value of every term of every rule."""
    made = []
    for line in RULES.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            terms = [TERM.fullmatch(term) for term in line.split(", ")]
            assert all(terms), line
            made.append([(t[1], t[2] or "", t[3], t[4]) for t in terms if t])
    return made


def test_every_term_is_one_that_udev_knows() -> None:
    assert rules()
    for terms in rules():
        for key, _, operator, _ in terms:
            assert key in (MATCHES if operator in ("==", "!=") else ASSIGNS)


def test_the_instrument_and_its_bootloader_are_admitted() -> None:
    admitted = set()
    for terms in rules():
        value = {attribute or key: text for key, attribute, _, text in terms}
        assert (value["SUBSYSTEM"], value["DEVTYPE"]) == ("usb", "usb_device")
        assert value["MODE"] == "0666"
        assert value["TAG"] == "uaccess"
        admitted.add((int(value["idVendor"], 16), int(value["idProduct"], 16)))
    assert admitted == {
        (protocol.VENDOR_ID, protocol.PRODUCT_ID),
        (protocol.VENDOR_ID, protocol.PRODUCT_ID_BOOTLOADER),
    }


def test_access_of_who_sits_there_can_still_be_given() -> None:
    number = int(RULES.name.partition("-")[0])
    assert number < 73, "73-seat-late.rules gives access to what is tagged uaccess before it"


def test_udevadm_has_nothing_to_say() -> None:
    udevadm = shutil.which("udevadm")
    helps = [udevadm, "verify", "--help"] if udevadm else ["false"]
    if subprocess.run(helps, capture_output=True, timeout=30).returncode:
        pytest.skip("no udevadm here that can verify (systemd 254 or later)")
    done = subprocess.run(
        [str(udevadm), "verify", str(RULES)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
