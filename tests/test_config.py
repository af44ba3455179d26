"""Configurations: what is accepted, and that each problem is one line saying where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from daq_ioc import config as configuration
from daq_ioc.config import ConfigError

GOOD = """\
[server]
interfaces = ["127.0.0.1"]
[device]
prefix = "JS:"
driver = "js110"
buffer_span = 3.0
[device.options]
backend = "emulator:js110:seed=1"
[device.recording]
root = "recordings"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.toml"


def problems(path: Path, text: str) -> list[str]:
    """Lines that loading this text and making its devices is refused with, without the path."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        configuration.devices(path, configuration.load(path))
    return str(raised.value).replace(f"{path}: ", "").splitlines()


def test_a_single_device_and_its_defaults(path: Path) -> None:
    path.write_text(GOOD)
    config = configuration.load(path)
    (section,) = config.device
    assert config.interfaces == ["127.0.0.1"]
    assert (section.prefix, section.driver, section.dt) == ("JS:", "js110", 0.5)
    assert section.options == {"backend": "emulator:js110:seed=1"}
    assert section.recording is not None
    assert section.recording.path == path.parent / "recordings"
    ((prefix, device),) = configuration.devices(path, config)
    assert prefix == "JS:"
    assert device.dt == pytest.approx(0.5)
    assert "RECORD_START" in {attribute.name for attribute in device.attributes}
    assert not section.recording.path.exists(), "reading a configuration makes nothing"


def test_without_a_recording_section_there_is_no_recorder(path: Path) -> None:
    path.write_text(GOOD.partition("[device.recording]")[0])
    ((_, device),) = configuration.devices(path, configuration.load(path))
    assert not any(item.name.startswith("RECORD_") for item in device.attributes)


def test_a_list_of_devices(path: Path) -> None:
    text = '[[device]]\nprefix = "{}:"\ndriver = "js110"\nbuffer_span = 1\n'
    path.write_text(text.format("A") + text.format("B"))
    made = configuration.devices(path, configuration.load(path))
    assert [prefix for prefix, _ in made] == ["A:", "B:"]
    assert problems(path, text.format("A") * 2)[0].startswith("two PVs are named A:")


@pytest.mark.parametrize(
    ("environment", "interfaces"),
    [("", ["127.0.0.1"]), ("10.1.2.3 10.1.2.4:5066", ["10.1.2.3", "10.1.2.4"])],
)
def test_without_interfaces_the_environment_decides_and_else_loopback(
    path: Path, monkeypatch: pytest.MonkeyPatch, environment: str, interfaces: list[str]
) -> None:
    monkeypatch.setenv("EPICS_CAS_INTF_ADDR_LIST", environment)
    path.write_text(GOOD.partition("[device]")[1] + GOOD.partition("[device]")[2])
    assert configuration.load(path).interfaces == interfaces


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"JS:"', "5", "device.prefix: 5 is not allowed: it should be a valid string"),
        (
            '"JS:"', '"J S"',
            "device.prefix: 'J S' is not allowed: PV names have letters, digits and "
            "_ - + : [ ] < > ; { } only",
        ),
        ("3.0", "0", "device.buffer_span: 0 is not allowed: it should be greater than 0"),
        ("3.0", "nan", "device.buffer_span: nan is not allowed: it should be"),
        ("3.0", '"3"', "device.buffer_span: '3' is not allowed: it should be a valid number"),
        ('driver = "js110"\n', "", "device.driver: is missing"),
        ('"js110"', '"js111"', "device.driver: there is no driver 'js111'; drivers are: js110"),
        (
            "buffer_span = 3.0", "dt = 1e6",
            "device: dt takes 0.01 to 3600.0, not 1e+06",
        ),
        (
            "buffer_span = 3.0", "spam = 1",
            "device.spam: there is no such key; known are: prefix, driver, dt, buffer_span, "
            "options, recording",
        ),
        (
            "root =", "rot =",
            "device.recording.root: is missing",
        ),
        ("[device.options]", '[device.options]\ni_range = "7 A"', "device.options: i_range is"),
        ("[device.options]", "[device.options]\nspam = 1", "device.options: a JS110 has no"),
        ("[device.options]", "[device.options]\nserial = 5", "device.options: serial is text"),
        (
            '"127.0.0.1"', '"localhost"',
            "server.interfaces[0]: 'localhost' is not allowed: expected an IPv4 address of this "
            "computer such as 127.0.0.1, or 0.0.0.0 for all",
        ),
        ('"127.0.0.1"', "", "server.interfaces: is empty; give at least one"),
        ("[server]", "x = 1\n[server]", "x: there is no such key; known are: server, device"),
        ("[server]", "x = \n[server]", "is not valid TOML: "),
        ('"recordings"', '""', "device.recording.root: '' is not allowed: "),
        (
            "[device.options]", "[device.limits.CURENT]\nhigh = 1\n[device.options]",
            "device.limits.CURENT: there is no such PV; 'daq-ioc pvs CONFIG' lists them",
        ),
        (
            "[device.options]", "[device.limits.STATS]\nhigh = 1\n[device.options]",
            "device.limits.STATS: STATS is not a single number, so it has no limits",
        ),
        (
            "[device.options]", "[device.limits.CURRENT]\nhi = 1\n[device.options]",
            "device.limits.CURRENT.hi: there is no such key; known are: hihi, high, low, lolo,",
        ),
        (
            "[device.options]", "[device.limits.CURRENT]\nlow = 1\nhigh = 0\n[device.options]",
            "device.limits.CURRENT: {'low': 1, 'high': 0} is not allowed: limits must rise",
        ),
        (
            "buffer_span = 3.0", 'locked = ["dt", "CURRENT"]',
            "device.locked[1]: 'CURRENT' is not allowed: writable are: dt, ",
        ),
        (
            "[server]", '[[access]]\nwrite = ["all"]\n[server]',
            "access[0].write[0]: 'all' is not allowed: it should be 'setting', 'recording' or",
        ),
        (
            "[server]", '[[access]]\nwrite = ["setting"]\nnetworks = ["10.1.2.3/8"]\n[server]',
            "access[0].networks[0]: '10.1.2.3/8' is not allowed: expected an IPv4 address or net",
        ),
        ("[server]", "[[access]]\nuser = 1\n[server]", "access[0].write: is missing"),
        ("[server]", '[server]\nhealth = "A B:"', "server.health: 'A B:' is not allowed: PV names"),
    ],
)  # fmt: skip
def test_each_problem_names_the_key_the_value_and_what_is_allowed(
    path: Path, old: str, new: str, line: str
) -> None:
    assert old in GOOD
    assert problems(path, GOOD.replace(old, new, 1))[0].startswith(line)


def test_settings_are_kept_beside_the_file_or_where_systemd_says(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    path.write_text(GOOD)
    assert configuration.load(path).state is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/daq-ioc:/else")
    assert configuration.load(path).state == Path("/var/lib/daq-ioc")
    path.write_text(GOOD.replace("[server]", '[server]\nstate = "state"'))
    assert configuration.load(path).state == path.parent / "state"


def test_what_the_file_says_is_not_restored(path: Path) -> None:
    text = GOOD.replace("seed=1\"", 'seed=1"\ni_range = "2 A"').replace("[server]", "[server]\n"
        'state = "s"')  # fmt: skip
    for line, pinned in (("", {"I_RANGE"}), ("dt = 0.1\n", {"I_RANGE", "dt"})):
        path.write_text(text.replace("[device.options]", f"{line}[device.options]"))
        config = configuration.load(path)
        (published,) = config.publications(configuration.devices(path, config))
        assert published.settings is not None
        assert published.settings.pinned == pinned


def test_the_iocs_own_pvs_have_a_prefix_of_their_own_if_wanted(path: Path) -> None:
    path.write_text(GOOD)
    assert configuration.load(path).health == "JS:"
    path.write_text(GOOD.replace("[server]", '[server]\nhealth = "IOC:"'))
    config = configuration.load(path)
    names = {row.pv for row in config.table(configuration.devices(path, config))}
    assert {"JS:CURRENT", "IOC:HEARTBEAT"} <= names


def test_all_problems_are_told_at_once(path: Path) -> None:
    lines = problems(path, '[server]\ninterfaces = ["x", "y"]\n[device]\ndt = -1\n')
    assert [line.partition(": ")[0] for line in lines] == [
        "server.interfaces[0]", "server.interfaces[1]", "device.prefix", "device.driver",
        "device.dt",
    ]  # fmt: skip


def test_in_a_list_problems_name_the_device(path: Path) -> None:
    lines = problems(path, '[[device]]\nprefix = "A:"\ndriver = "js110"\n[[device]]\ndt = 1\n')
    assert lines == ["device[1].prefix: is missing", "device[1].driver: is missing"]


def test_files_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test\.toml: cannot be read: No such file"):
        configuration.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"test\.toml: is not a text file in UTF-8"):
        configuration.load(path)


@pytest.mark.parametrize("root", ["here.toml", "here.toml/below"])
def test_a_record_root_that_cannot_be_a_directory(path: Path, root: str) -> None:
    path.with_name("here.toml").write_text("")
    (line,) = problems(path, GOOD.replace('"recordings"', f'"{root}"'))
    assert line.startswith(f"device.recording.root: '{path.parent / root}' is not allowed: ")
    assert "directory" in line


def test_options_of_the_command_come_before_the_file_and_are_named_in_problems(path: Path) -> None:
    path.write_text(GOOD)
    overrides: dict[str, configuration.Override] = {
        "--prefix": (("device", 0, "prefix"), "LAB:"),
        "--record-root": (("device", 0, "recording", "root"), str(path.parent / "other")),
    }
    (section,) = configuration.load(path, overrides).device
    assert section.prefix == "LAB:"
    assert section.recording is not None
    assert section.recording.path == path.parent / "other"
    with pytest.raises(ConfigError, match=r"^--interfaces: 'x' is not allowed: expected an IPv4"):
        configuration.load(path, {"--interfaces": (("server", "interfaces"), ["x"])})
    path.write_text('[[device]]\nprefix = "A:"\n[[device]]\nprefix = "B:"\n')
    with pytest.raises(ConfigError, match=r"^--prefix: there are several devices"):
        configuration.load(path, overrides)


@pytest.mark.parametrize("name", ["demo", "js110", "simple_daq"])
def test_our_own_configurations_are_good(name: str) -> None:
    path = Path(__file__).parents[1] / "ioc_configs" / f"{name}.toml"
    config = configuration.load(path)
    assert config.interfaces == ["127.0.0.1"]
    assert len(configuration.devices(path, config)) == 1
