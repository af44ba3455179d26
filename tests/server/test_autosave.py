"""Settings in a file: kept, restored, set aside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from daq_ioc.server.autosave import Settings
from tests.server.stub import ATTRIBUTES, StubDevice


def settings(directory: Path, *pinned: str, prefix: str = "XF:1{JS:1}") -> Settings:
    return Settings(directory, prefix, ATTRIBUTES, pinned)


def restored(kept: Settings) -> dict[str, object]:
    device = StubDevice()
    kept.restore(device)
    return dict(device.restored)


def test_what_was_put_is_set_again_and_commands_are_not(tmp_path: Path) -> None:
    kept = settings(tmp_path / "state")
    assert restored(kept) == {}
    assert kept.note("dt", 0.25)
    assert kept.note("I_RANGE", 2)
    assert kept.note("NOTE", "größer")
    assert kept.note("dt", 0.5)
    kept.save()
    assert not kept.note("START", 1)
    assert not kept.note("dt", 0.5), "nothing new"
    assert json.loads(kept.path.read_text()) == {"dt": 0.5, "I_RANGE": "2 A", "NOTE": "größer"}
    assert restored(settings(tmp_path / "state")) == {"dt": 0.5, "I_RANGE": 2, "NOTE": "größer"}


def test_what_the_configuration_sets_is_not_restored_but_stays_kept(tmp_path: Path) -> None:
    first = settings(tmp_path)
    first.note("dt", 0.25)
    first.note("I_RANGE", 1)
    first.save()
    second = settings(tmp_path, "dt")
    assert restored(second) == {"I_RANGE": 1}
    second.note("I_RANGE", 2)
    second.save()
    assert restored(settings(tmp_path)) == {"dt": 0.25, "I_RANGE": 2}


def test_every_prefix_has_a_file_of_its_own_in_the_directory(tmp_path: Path) -> None:
    prefixes = ("", "A:", "A_", "a:", "A/../:", "XF:1{JS:1}")
    paths = {settings(tmp_path, prefix=prefix).path for prefix in prefixes}
    assert len(paths) == len(prefixes)
    assert {path.parent for path in paths} == {tmp_path}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"5", b'{"dt": 0.5'])
def test_a_corrupt_file_is_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    kept = settings(tmp_path)
    kept.path.write_bytes(text)
    assert restored(kept) == {}
    (aside,) = tmp_path.iterdir()
    assert ".corrupt-" in aside.name
    assert aside.read_bytes() == text
    assert "is corrupt" in caplog.text
    kept.note("dt", 1.0)
    kept.save()
    assert restored(settings(tmp_path)) == {"dt": 1.0}


def test_values_that_cannot_be_set_any_more_do_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = settings(tmp_path)
    wrong = {"gone": 1, "I_RANGE": "7 A", "FRAGILE": 2.0, "POINTS": "many", "dt": 0.5, "START": 1}
    kept.path.write_text(json.dumps(wrong))
    assert restored(kept) == {"dt": 0.5}
    for name in ("gone", "I_RANGE", "FRAGILE", "POINTS", "START"):
        assert name in caplog.text


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = settings(tmp_path)
    kept.note("dt", 0.5)
    kept.save()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    kept.note("dt", 1.5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        kept.save()
    assert "No space left" in caplog.text
    assert json.loads(kept.path.read_text()) == {"dt": 0.5}
    kept.save()
    assert json.loads(kept.path.read_text()) == {"dt": 1.5}
