"""The Phoebus panels: files that Phoebus would load without complaint, on PVs that an IOC serves.

What a widget may have is that of Display Builder's model (Phoebus 4 and later), of which only what
the panels use is listed here: a misspelt property is silently ignored by Phoebus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from caproto import ChannelType
from caproto.threading.client import Context, SharedBroadcaster

from daq_ioc import config as configuration
from tests.ioc import client_environment, running_ioc

PANELS = Path(__file__).parents[2] / "ioc_configs" / "phoebus"
FILES = sorted(path.name for path in PANELS.glob("*.bob"))
SCREEN = (1366, 768)
PHOEBUS_BARS = 176
"""Height of Phoebus' title, menu, tool bars, tabs and status, measured in Phoebus 5.0.5."""

INSTRUMENT, COMPUTER = "PANEL:JS:", "PANEL:PC:"
PREFIX = {"simple_daq.bob": COMPUTER}
"""Of the IOC below; of panels not named here it is INSTRUMENT."""

OFF_PANEL = {
    "STATS": "an array for programs; every number of it is on statistics.bob",
    "LIST": "an array for programs; every number of it is on simple_daq.bob",
    "TIME": "TIME_TEXT is for people",
}

PLACED = {"x", "y", "width", "height"}
WIDGETS = {
    "label": ("2.0.0", {"text", "font", "vertical_alignment"}),
    "textupdate": (
        "2.0.0", {"pv_name", "font", "format", "precision", "vertical_alignment"}
    ),
    "textentry": ("3.0.0", {"pv_name", "format"}),
    "combo": ("2.0.0", {"pv_name"}),
    "progressbar": ("2.0.0", {"pv_name", "limits_from_pv"}),
    "bool_button": (
        "2.0.0", {"pv_name", "labels_from_pv", "show_confirm_dialog", "confirm_message"}
    ),
    "action_button": (
        "3.0.0", {"pv_name", "text", "actions", "show_confirm_dialog", "confirm_message"}
    ),
    "xyplot": ("3.0.0", {"show_legend", "x_axis", "y_axes", "traces"}),
}  # fmt: skip
PARTS = {
    "x_axis": {"title", "autoscale"},
    "y_axis": {"title", "autoscale", "show_grid"},
    "trace": {"name", "x_pv", "y_pv", "color"},
    "y_axes": {"y_axis"},
    "traces": {"trace"},
    "actions": {"action"},
}
ACTIONS = {
    "open_display": {"file", "target", "description"},
    "write_pv": {"pv_name", "value", "description"},
}
FORMULA = re.compile(r"=scale\(`([^`]+)`, -1\)")
"""Of Phoebus' formulas, in place of a PV, the one in use: an array with the opposite sign."""
STRING_FORMAT = "6"
"""Of ``<format>``: shows arrays of characters as text."""


@dataclass(frozen=True)
class Panel:
    """A parsed file, its macros expanded."""

    name: str
    root: ET.Element

    @property
    def size(self) -> tuple[int, int]:
        return number(self.root, "width"), number(self.root, "height")

    @property
    def widgets(self) -> list[ET.Element]:
        return self.root.findall("widget")


@dataclass(frozen=True)
class Served:
    """What a client is told of a PV when it connects."""

    kind: ChannelType
    count: int
    choices: tuple[str, ...]
    writable: bool


def number(element: ET.Element, tag: str) -> int:
    return int(element.findtext(tag) or "missing")


def load(name: str) -> Panel:
    macros = {"P": PREFIX.get(name, INSTRUMENT), "TITLE": "Title"}
    text = (PANELS / name).read_text(encoding="utf-8")
    expanded = re.sub(r"\$[({](\w+)[)}]", lambda match: macros[match[1]], text)
    assert "$" not in expanded
    return Panel(name, ET.fromstring(expanded))  # noqa: S314 - our own file


def pvs(widget: ET.Element) -> Iterator[tuple[str, str]]:
    """Every PV a widget names, and the tag that names it."""
    for tag in ("pv_name", "x_pv", "y_pv"):
        for element in widget.iter(tag):
            assert element.text
            formula = FORMULA.fullmatch(element.text)
            yield (formula[1] if formula else element.text), tag


@pytest.fixture(params=FILES)
def panel(request: pytest.FixtureRequest) -> Panel:
    return load(request.param)


CONFIG = f"""
[server]
interfaces = ["127.0.0.1"]

[[device]]
prefix = "{INSTRUMENT}"
driver = "js110"
buffer_span = 3.0
options = {{ backend = "emulator:js110:seed=1" }}
recording = {{ root = "recordings" }}

[[device]]
prefix = "{COMPUTER}"
driver = "onboard"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("panels") / "ioc.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def served(config: Path) -> Iterator[Mapping[str, Served]]:
    """Every PV that a panel names or the table has, as a running IOC serves it."""
    loaded = configuration.load(config)
    named = {row.pv for row in loaded.table(configuration.devices(config, loaded))}
    for name in FILES:
        named |= {pv for widget in load(name).widgets for pv, _ in pvs(widget)}
    with pytest.MonkeyPatch.context() as patch, running_ioc(config) as ioc:
        for name, value in client_environment(ioc.port).items():
            patch.setenv(name, value)
        context = Context(SharedBroadcaster())
        try:
            yield {pv: told for pv, told in asked(context, named).items() if told}
        finally:
            context.disconnect()


def asked(context: Any, names: set[str]) -> dict[str, Served | None]:
    found: dict[str, Served | None] = {}
    for pv in context.get_pvs(*sorted(names)):
        try:
            pv.wait_for_connection(timeout=10)
        except TimeoutError:
            found[pv.name] = None
            continue
        channel = pv.channel
        kind = channel.native_data_type
        words: tuple[bytes, ...] = ()
        if kind is ChannelType.ENUM:
            words = pv.read(data_type="control").metadata.enum_strings
        choices = tuple(word.decode() for word in words)
        writable = bool(channel.access_rights & 2)
        found[pv.name] = Served(kind, channel.native_data_count, choices, writable)
    return found


def test_the_panels_are_there() -> None:
    wanted = {"joulescope", "recording", "statistics", "ioc_health", "simple_daq"}
    assert {f"{name}.bob" for name in wanted} == set(FILES)


def test_macros_are_p_and_title_and_nothing_is_fixed(panel: Panel) -> None:
    text = (PANELS / panel.name).read_text(encoding="utf-8")
    assert set(re.findall(r"\$[({](\w+)[)}]", text)) == {"P", "TITLE"}
    for pv in re.findall(r"<(?:pv_name|[xy]_pv)>(.*?)</", text):
        assert pv.removeprefix("=scale(`").startswith("$(P)")
    for file in re.findall(r"<file>(.*?)</file>", text):
        assert Path(file).name == file, "a relative path beside the panel"
        assert (PANELS / file).is_file()


def test_widgets_and_properties_are_known(panel: Panel) -> None:
    assert panel.root.tag == "display"
    assert panel.root.get("version") == "2.0.0"
    assert {child.tag for child in panel.root} == {"name", "width", "height", "widget"}
    for widget in panel.widgets:
        version, properties = WIDGETS[widget.get("type", "")]
        assert widget.get("version") == version
        tags = [child.tag for child in widget]
        assert len(tags) == len(set(tags)), tags
        assert set(tags) <= properties | PLACED, widget.get("type")
        assert set(tags) >= PLACED
        for part in widget.iter():
            if part.tag in PARTS:
                assert {child.tag for child in part} <= PARTS[part.tag]
            if part.tag == "action":
                assert {child.tag for child in part} == ACTIONS[part.get("type", "")]


def test_a_panel_fits_the_screen_and_nothing_overlaps(panel: Panel) -> None:
    width, height = panel.size
    assert width <= SCREEN[0]
    assert height <= SCREEN[1] - PHOEBUS_BARS
    boxes = [
        (number(w, "x"), number(w, "y"), number(w, "width"), number(w, "height"))
        for w in panel.widgets
    ]
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width, (x, y, w, h)
        assert y + h <= height, (x, y, w, h)
    for one, other in combinations(boxes, 2):
        (x, y, w, h), (u, v, k, m) = one, other
        assert x + w <= u or u + k <= x or y + h <= v or v + m <= y, (one, other)


def test_labels_have_room(panel: Panel) -> None:
    for label in (w for w in panel.widgets if w.get("type") == "label"):
        font = label.find("font/font")
        size = 14.0 if font is None else float(font.get("size", "14"))
        lines = number(label, "height") // (1.3 * size)
        text = label.findtext("text") or ""
        # Sans serif letters are about half as wide as they are high.
        assert len(text) * 0.5 * size <= lines * number(label, "width"), text


def test_every_pv_is_served_with_a_fitting_type(panel: Panel, served: Mapping[str, Served]) -> None:
    for widget in panel.widgets:
        for name, tag in pvs(widget):
            assert name in served, f"{panel.name}: {name} is not served"
            unfit = misfit(widget, tag, served[name])
            assert not unfit, f"{panel.name}: {widget.get('type')} of {name}: {unfit}"


def misfit(widget: ET.Element, tag: str, pv: Served) -> str:
    """What keeps a widget from working with a PV."""
    kind = widget.get("type")
    if kind in ("textentry", "combo", "bool_button", "action_button") and not pv.writable:
        return "cannot be written"
    if tag in ("x_pv", "y_pv"):
        return "" if pv.kind is ChannelType.DOUBLE and pv.count > 1 else "is no array of numbers"
    if kind == "combo":
        return "" if pv.choices else "is no enum"
    if kind == "bool_button":
        return "" if len(pv.choices) == 2 else "has not two states"
    if kind in ("textupdate", "textentry"):
        if pv.count > 1 and pv.kind is not ChannelType.CHAR:
            return "is an array"
        text = pv.kind in (ChannelType.CHAR, ChannelType.STRING)
        if pv.kind is ChannelType.CHAR and widget.findtext("format") != STRING_FORMAT:
            return "would show characters as numbers"
        if not text and widget.findtext("format") == STRING_FORMAT:
            return "is no text"
    if kind == "progressbar" and pv.kind is not ChannelType.DOUBLE:
        return "is no number"
    return ""


def test_every_public_pv_is_on_a_panel_or_said_not_to_be(
    config: Path, served: Mapping[str, Served]
) -> None:
    loaded = configuration.load(config)
    rows = loaded.table(configuration.devices(config, loaded))
    shown = {pv for name in FILES for widget in load(name).widgets for pv, _ in pvs(widget)}
    missing = {row.attribute.name for row in rows if row.pv not in shown}
    assert missing == set(OFF_PANEL)
    assert {row.pv for row in rows} == set(served)


def test_power_of_the_target_asks_before_it_switches() -> None:
    (button,) = (
        w for w in load("joulescope.bob").widgets
        if w.findtext("pv_name") == INSTRUMENT + "TARGET_POWER"
    )  # fmt: skip
    both_ways = "1"
    assert button.findtext("show_confirm_dialog") == both_ways


def test_every_panel_but_the_overviews_can_be_reached_and_left() -> None:
    links = {name: {e.text for e in load(name).root.iter("file")} for name in FILES}
    assert links["joulescope.bob"] == {"recording.bob", "statistics.bob", "ioc_health.bob"}
    assert links["simple_daq.bob"] == {"ioc_health.bob"}
    assert links["recording.bob"] == links["statistics.bob"] == {"joulescope.bob"}
