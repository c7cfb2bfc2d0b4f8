"""Models and artifacts that go from the disk, come back, or are damaged there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from daemon import schema, stock, targets
from daemon.stock import artifact_folder, model_folder
from deploy.artifact import MANIFEST

World = Any  # tests/unit/daemon/conftest.py
FolderOf = Callable[[Path, str], Path]


@pytest.fixture
def stored(world: World) -> World:
    """One model with its artifact, measured."""
    world.samples("cat", "train", 2)
    world.artifact("a", world.cycle())
    world.measure("a")
    return world


def look(stored: World) -> list[str]:
    with stored.journal.begin() as connection:
        return stock.take_stock(connection, stored.config.state)


def damage(stored: World) -> str | None:
    with stored.journal.begin() as connection:
        return stock.find_damage(connection, stored.config.state, "a")


def candidates(stored: World) -> list[str]:
    with stored.journal.connect() as connection:
        found = targets.candidates(connection, stored.requirement(), {"cat"}, stored.devices)
    return [candidate.artifact for candidate in found]


def test_what_lies_where_it_was_made_is_not_spoken_of(stored: World) -> None:
    assert look(stored) == []
    assert candidates(stored) == ["a"]


@pytest.mark.parametrize(("folder_of", "table"), [(model_folder, schema.models), (artifact_folder, schema.artifacts)])
def test_a_folder_that_is_gone_is_noticed_once_and_so_is_its_return(
    stored: World, tmp_path: Path, folder_of: FolderOf, table: Any
) -> None:
    folder = folder_of(stored.config.state, "a")
    folder.rename(tmp_path / "away")
    assert look(stored) == [f"{folder} is gone: it is made again where it is needed"]
    assert stored.row(table).gone is not None
    assert look(stored) == []
    (tmp_path / "away").rename(folder)
    assert look(stored) == [f"{folder} is back"]
    assert stored.row(table).gone is None


def test_an_artifact_that_is_gone_is_no_candidate(stored: World) -> None:
    shutil.rmtree(artifact_folder(stored.config.state, "a"))
    look(stored)
    assert candidates(stored) == []


def test_a_folder_without_its_manifest_is_gone(stored: World) -> None:
    """It is written last and removed first: without it the folder is not whole."""
    (artifact_folder(stored.config.state, "a") / MANIFEST).unlink()
    assert len(look(stored)) == 1


def test_a_workspace_that_was_moved_has_lost_nothing(stored: World, tmp_path: Path, journal: Engine) -> None:
    moved = tmp_path / "moved"
    stored.config.state.rename(moved)
    with journal.begin() as connection:
        assert stock.take_stock(connection, moved) == []


def test_a_damaged_model_is_named_and_trained_again_where_it_is_needed(stored: World) -> None:
    folder = model_folder(stored.config.state, "a")

    def damage() -> str | None:
        with stored.journal.begin() as connection:
            return stock.find_model_damage(connection, stored.config.state, "a")

    assert damage() is None
    part = {"file": "model.onnx", "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "graph": part}))
    (folder / "model.onnx").write_bytes(b"other than")
    assert f"{folder / 'model.onnx'} is damaged" in str(damage())
    assert look(stored) == []  # its folder is there, and is not whole
    assert stored.row(schema.models).gone is not None


def test_decoded_images_are_there_with_all_their_arrays(tmp_path: Path) -> None:
    index = tmp_path / "one.npz"
    assert not stock.has_pixels(index)
    np.savez(index, shards=["0.npy", "1.npy"])
    for name in ("0.npy", "1.npy"):
        assert not stock.has_pixels(index)
        (tmp_path / name).touch()
    assert stock.has_pixels(index)
    index.write_bytes(index.read_bytes()[:40])
    assert not stock.has_pixels(index)


def test_a_damaged_artifact_is_named_and_is_no_candidate(stored: World) -> None:
    assert damage(stored) is None
    folder = artifact_folder(stored.config.state, "a")
    (folder / "model.onnx").write_bytes(b"other than")
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": {"model.onnx": {"sha256": "0" * 64}}}))
    found = damage(stored)
    assert found is not None
    assert f"{folder / 'model.onnx'} is damaged" in found
    assert candidates(stored) == []
    assert look(stored) == []  # that its folder lies there does not make it whole
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": {}}))
    assert look(stored) == [f"{folder} is back"]
