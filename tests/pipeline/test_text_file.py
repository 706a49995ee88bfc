import os

import pytest

from forebay.pipeline.text_file import replace_text


def test_a_text_is_put_in_the_place_of_another_at_once(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    replace_text(path, "old")
    real, seen = os.replace, []

    def replace(source, target):
        seen.append((source.read_text(encoding="utf-8"), target.read_text(encoding="utf-8")))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    replace_text(path, "newer: é")
    assert seen == [("newer: é", "old")]
    assert path.read_text(encoding="utf-8") == "newer: é"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_when_the_system_refuses(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    replace_text(path, "old")
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
