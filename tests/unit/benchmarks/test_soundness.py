"""A workspace in which something is lost, done twice or left lying is called so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, update

from benchmarks import soundness
from benchmarks.soundness import Dropped
from daemon import schema
from daemon.config import Config
from daemon.journal import add
from daemon.store import place
from tests.unit.daemon.conftest import ReadIn, World, config, configs, journal, read_in, world

__all__ = ["config", "configs", "journal", "read_in", "world"]  # fixtures


@pytest.fixture
def dropped(config: Config, read_in: ReadIn, png: Callable[..., Path]) -> list[Dropped]:
    """Four images of two classes, as an intake leaves them."""
    [folder] = config.folders
    files = [(png(folder / name / f"{seed}.png", seed), name) for seed, name in enumerate(["cat", "dog"] * 2)]
    read_in()
    return [soundness.note(file, name) for file, name in files]


def test_what_was_read_once_is_neither_lost_nor_doubled(config: Config, dropped: list[Dropped]) -> None:
    assert soundness.find_lost(config, dropped) == []
    assert soundness.find_doubled(config) == []
    assert soundness.find_unsound(config) == []
    assert soundness.find_left_lying(config, "edge") == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c, i: i.file.unlink(), "is not the file that was dropped"),
        (lambda c, i: i.file.write_bytes(b"another"), "is not the file that was dropped"),
        (lambda c, i: os.utime(i.file), "is not the file that was dropped"),
        (lambda c, i: place(c.state / "store", i.sha256).unlink(), "the store has no whole copy"),
        (lambda c, i: place(c.state / "store", i.sha256).write_bytes(b"half"), "the store has no whole copy"),
    ],
    ids=["gone", "edited", "touched", "no copy", "half a copy"],
)
def test_a_lost_file_or_copy_is_seen(
    config: Config, dropped: list[Dropped], spoil: Callable[[Config, Dropped], object], words: str
) -> None:
    spoil(config, dropped[2])
    assert [words in fault for fault in soundness.find_lost(config, dropped)] == [True]


def test_a_lost_occurrence_and_a_lost_label_are_seen(config: Config, journal: Engine, dropped: list[Dropped]) -> None:
    occurrences, labels = schema.occurrences, schema.labels
    with journal.begin() as connection:
        connection.execute(update(occurrences).where(occurrences.c.path == "cat/0.png").values(gone=1.0))
        connection.execute(update(occurrences).where(occurrences.c.path == "dog/1.png").values(class_name="cat"))
        connection.execute(delete(labels).where(labels.c.class_name == "cat"))
    found = soundness.find_lost(config, dropped)
    assert len(found) == 3
    assert "is not in the journal" in found[0]
    assert "of class cat" in found[1]
    assert "labels None" in found[2]


def test_what_was_done_twice_is_seen(config: Config, journal: Engine, world: World, dropped: list[Dropped]) -> None:
    cycle = world.cycle(known=["cat", "dog"])
    world.artifact("one", cycle, recipe="same")
    world.artifact("two", cycle, recipe="same")
    world.promote("one", 1)
    world.promote("two", 2)
    with journal.begin() as connection:
        said = {"source": "folder", "by": "folder", "at": 1.0}
        add(connection, schema.labels, sample_id=1, class_name="cat", **said)
        decided = {"at": 1.0, "target": "edge", "action": "train", "reason": "", "findings": [], "evidence": {}}
        for _ in range(2):
            event = "drop 7: 4 images, 0 gone, 0 rejected"
            add(connection, schema.decisions, **decided, event=event, settings={}, policy=1)
        stage = {"cycle_id": cycle, "step": "train net", "name": "build", "state": "done"}
        id_ = add(connection, schema.stages, **stage, attempts=2)
        for number in (1, 2):
            add(connection, schema.attempts, stage_id=id_, number=number, token="", started=1.0, outcome="done")
    found = "\n".join(soundness.find_doubled(config))
    for what in ("label", "end of a stage", "training by a recipe", "champion of a target", "decision on drop 7"):
        assert found.count(what) == 1, (what, found)


def test_an_epoch_trained_twice_is_seen(config: Config, journal: Engine, world: World, dropped: list[Dropped]) -> None:
    run = config.state / "runs" / "r"
    run.mkdir(parents=True)
    (run / "history.json").write_text(json.dumps({"epochs": [{"epoch": 1}, {"epoch": 2}, {"epoch": 2}]}))
    with journal.begin() as connection:
        stage = {"cycle_id": world.cycle(known=["cat", "dog"]), "step": "train net", "name": "train"}
        add(connection, schema.stages, **stage, state="done", attempts=1, outputs={"run": str(run)})
    assert [fault.endswith("[1, 2, 2]") for fault in soundness.find_doubled(config)] == [True]


def test_what_is_left_in_the_repository_is_seen(config: Config, world: World, dropped: list[Dropped]) -> None:
    world.artifact("one", world.cycle(known=["cat", "dog"]))
    world.promote("one", 2)
    for place_ in ("edge/1", "edge-candidate/1"):
        (config.repository / place_).mkdir(parents=True)
    staged = config.repository.with_name("triton.staging") / "edge" / "3"
    staged.mkdir(parents=True)
    (staged / "model.py").touch()
    found = soundness.find_left_lying(config, "edge")
    assert [fault.rsplit("/", 2)[-2:] for fault in found] == [
        ["edge", "1 is left lying"],
        ["triton", "edge-candidate is left lying"],
        ["edge-candidate", "1 is left lying"],
        ["3", "model.py is left lying"],
        ["edge", "2 is missing"],
    ]
