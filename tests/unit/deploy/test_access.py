"""Whose files become, and who may read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.access import Access, find_ids


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "edge"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_text("weights")
    (folder / "latest").symlink_to("/nowhere")
    return folder


def test_all_that_is_somebody_else_s_is_given_and_no_link_is_followed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may give files away: what would be asked of the system is looked at."""
    given: list[tuple[str, int, int, bool]] = []

    def chown(path: Path, user: int, group: int, *, follow_symlinks: bool) -> None:
        given.append((path.name, user, group, follow_symlinks))

    monkeypatch.setattr(os, "chown", chown)
    Access("4321:8765").give(model)
    assert sorted(given) == [(name, 4321, 8765, False) for name in ("1", "edge", "latest", "model.onnx")]
    given.clear()
    Access(f"{os.getuid()}:{model.stat().st_gid}").give(model)
    assert given == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_they_are_whose_they_are_to_be(model: Path) -> None:
    Access("4321:8765", 0o640).give(model)
    paths = [model, *model.rglob("*")]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in paths} == {(4321, 8765)}
    assert model.joinpath("1", "model.onnx").stat().st_mode & 0o777 == 0o640
    assert model.stat().st_mode & 0o777 == 0o750


def test_names_are_known_by_their_numbers() -> None:
    assert find_ids("root:root") == (0, 0)
    assert find_ids("7:9") == (7, 9)
