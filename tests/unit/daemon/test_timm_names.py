"""timm is asked once about a name: check-config answers at once the next time."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from daemon import config, timm_names
from daemon.config import Config


def configured(folder: Path, *overrides: str) -> Config:
    (folder / "config.toml").write_text("version = 1\n")
    return config.load(folder, overrides)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "relearn"


def test_what_was_right_is_not_asked_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm_names.find_faults(configured(tmp_path)) == []
    [wrong] = timm_names.find_faults(configured(tmp_path, 'model.architectures=["resnet18", "resnet0"]'))
    assert "model.architectures: the architecture = 'resnet0' is not known" in wrong
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        assert timm_names.find_faults(configured(tmp_path)) == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What timm would be asked, which takes seconds; all is right to it."""
    questions: list[tuple[str, ...]] = []
    monkeypatch.setattr(timm_names, "ask_timm", lambda *words: questions.append(words) or [])
    return questions


def test_a_damaged_memory_is_no_trouble(tmp_path: Path, cache: Path, asked: list[tuple[str, ...]]) -> None:
    cache.mkdir(parents=True)
    (cache / f"timm-{version('timm')}.json").write_text("{")
    for _ in range(2):
        assert timm_names.find_faults(configured(tmp_path)) == []
    assert len(asked) == 1


def test_nor_is_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, ...]]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert timm_names.find_faults(configured(tmp_path)) == []
    assert len(asked) == 2
