"""The folder of one training: what it keeps of the same recipe, and clears of another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.durable import read_json
from pipeline.run_folder import Recipe, RunFolder, training_of
from pipeline.settings import AugmentSettings, TrainSettings
from policies.job import StageError

RECIPE = Recipe(
    "test_vit", "none", 32, 48, "crop", ("cat", "dög"), "abc", TrainSettings(augment=AugmentSettings(flip=False))
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "runs" / "run")
    assert made.begin(RECIPE) is None
    return made


def test_a_recipe_is_written_and_read_as_the_same(folder: RunFolder) -> None:
    found, recipe = training_of({"train": {"run": str(folder.path)}})
    assert (found.path, recipe) == (folder.path, RECIPE)
    assert recipe.size == (32, 48)


def test_the_same_recipe_keeps_what_is_there(folder: RunFolder) -> None:
    folder.checkpoint.write_text("state")
    assert folder.begin(RECIPE) is None
    assert folder.checkpoint.read_text() == "state"


def test_who_would_race_counts_only_where_there_is_a_race(folder: RunFolder) -> None:
    folder.result.write_text("{}")
    edited = dataclasses.replace(RECIPE.settings, optimizers={"sgd": 1.0, "adan": 1.0})
    assert folder.begin(dataclasses.replace(RECIPE, settings=edited)) is None
    assert folder.result.exists()
    racing = dataclasses.replace(RECIPE, settings=dataclasses.replace(RECIPE.settings, optimizer="auto"))
    assert folder.begin(racing) is not None
    folder.result.write_text("{}")
    assert folder.begin(dataclasses.replace(racing, settings=dataclasses.replace(edited, optimizer="auto"))) is not None
    assert not folder.result.exists()


CHANGES: list[dict[str, Any]] = [
    {"architecture": "test_resnet"},
    {"weights": "/a.safetensors"},
    {"height": 48},
    {"width": 32},
    {"resize": "stretch"},
    {"classes": ("dög", "cat")},
    {"snapshot": "abd"},
    {"settings": dataclasses.replace(RECIPE.settings, epochs=21)},
    {"settings": dataclasses.replace(RECIPE.settings, augment=AugmentSettings())},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_recipe_clears_the_folder_and_says_so(folder: RunFolder, change: dict[str, Any]) -> None:
    for file in (folder.checkpoint, folder.history, folder.result, folder.weights):
        file.write_text("{}")
    other = dataclasses.replace(RECIPE, **change)
    said = folder.begin(other)
    assert said is not None and str(folder.path) in said and "starting anew" in said
    assert [file.name for file in folder.path.iterdir()] == ["recipe.json"]
    assert read_json(folder.recipe) == other.plain()


def test_what_is_left_of_an_interrupted_clearing_is_cleared(folder: RunFolder) -> None:
    folder.result.write_text('{"outputs": {"epochs": 9}}')
    folder.checkpoint.write_text("state")
    folder.recipe.unlink()
    folder.begin(dataclasses.replace(RECIPE, snapshot="abd"))
    assert not folder.result.exists() and not folder.checkpoint.exists()


def test_attempts_are_counted_and_keep_the_epochs(folder: RunFolder) -> None:
    assert folder.begin_attempt() == 1
    folder.write_history(1, [{"epoch": 1}])
    assert folder.begin_attempt() == 2
    assert read_json(folder.history) == {"format": 1, "attempts": 2, "epochs": [{"epoch": 1}]}
    assert folder.begin_attempt() == 3


@pytest.mark.parametrize("earlier", [{}, {"train": {"stop": "unfit"}}])
def test_without_a_training_the_later_stages_say_so(earlier: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="needs the outputs of the stage train"):
        training_of(earlier)


def test_a_recipe_that_cannot_be_read_is_told(folder: RunFolder) -> None:
    folder.recipe.write_text("{")
    with pytest.raises(StageError, match=r"recipe\.json cannot be read"):
        training_of({"train": {"run": str(folder.path)}})
