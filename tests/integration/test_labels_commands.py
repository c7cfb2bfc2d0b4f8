"""`relearn audit` and `relearn flags` as a user runs them.

Each is started as a process once with what succeeds, and once with what does not; what else they say is asked of them
in this process. A thread does the daemon's part for `relearn flags`: the workspace is locked, and what is asked is
taken as it comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from daemon import people, schema
from daemon.config import Config, load
from daemon.journal import add, change, open_journal
from daemon.lock import locked
from tests.command import relearn_here

CHECKOUT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def relearn(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELEARN")}
    command = [str(CHECKOUT / "relearn"), *arguments]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`relearn` in this process, with the same environment."""
    for name in [name for name in os.environ if name.startswith("RELEARN")]:
        monkeypatch.delenv(name)
    return relearn_here


# --- relearn audit --------------------------------------------------------------------------------------------------


def audit(run: Run, folder: Path, labels: Any, probabilities: Any) -> subprocess.CompletedProcess[str]:
    np.save(folder / "labels.npy", labels)
    np.save(folder / "p.npy", probabilities)
    return run("audit", "--labels", str(folder / "labels.npy"), "--probabilities", str(folder / "p.npy"), "--json")


def test_wrong_labels_of_anyone_s_arrays_are_found(tmp_path: Path) -> None:
    truth = np.arange(300) % 3
    probabilities = np.full((300, 3), 0.02)
    probabilities[np.arange(300), truth] = 0.96
    labels = truth.copy()
    labels[:12] = (labels[:12] + 1) % 3
    done = audit(relearn, tmp_path, labels, probabilities)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(flag["index"] for flag in found["flagged"]) == list(range(12))
    assert all(set(flag) == {"index", "given", "suggested", "score"} for flag in found["flagged"])
    assert all(flag["suggested"] == truth[flag["index"]] for flag in found["flagged"])
    assert found["noise_rate"]["low"] < found["noise_rate"]["estimate"] == 0.04 < found["noise_rate"]["high"]


HALVES = np.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("labels", "probabilities", "said"),
    [
        ([0, 1, 1, 0], HALVES * 1.1, "does not sum to 1"),
        ([0, 1, 1, 0], np.where(np.eye(4, 2) > 0, np.nan, HALVES), "a value that is no number"),
        ([0, 1, 2, 0], HALVES, "label 2 is 2"),
        ([0, 1, -1, 0], HALVES, "label 2 is -1"),
        ([0, 1], HALVES, "labels have the shape"),
    ],
)
def test_arrays_that_cannot_be_used_are_wrong_usage(
    here: Run, tmp_path: Path, labels: list[int], probabilities: Any, said: str
) -> None:
    done = audit(here, tmp_path, np.array(labels), probabilities)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(("labels", "classes"), [([0, 0, 0, 1, 1], 2), ([1, 1], 2), ([0], 3), ([0] * 5, 2)])
def test_few_labels_have_a_defined_answer(here: Run, tmp_path: Path, labels: list[int], classes: int) -> None:
    """A class with two samples, one class alone, one label, all alike: nothing is told, and nothing fails."""
    done = audit(here, tmp_path, np.array(labels), np.full((len(labels), classes), 1 / classes))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["flagged"] == []


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = relearn("audit", "--labels", str(tmp_path / "no.npy"), "--probabilities", str(tmp_path / "no.npy"))
    assert (done.returncode, "no.npy: there is no such file" in done.stderr) == (2, True)


# --- relearn flags --------------------------------------------------------------------------------------------------


class Nobody:
    """No Triton is asked here."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def tend(self) -> None:
        pass


@pytest.fixture
def labelled(workspace: Path, eventually: Callable[..., None]) -> Iterator[Engine]:
    """Drops 1 and 2 of two cats each, which are taken for dogs, and a dog; the second drop is held."""
    config = load(workspace)
    config.state.mkdir()
    journal = open_journal(config.state, migrate=True)
    with journal.begin() as connection:
        shown = {"classes": [], "counts": {}, "left_out": {}, "file": "s.snapshot", "created": 1.0}
        add(connection, schema.snapshots, id="s", **shown)
        why = {"at": 1.0, "target": "edge", "event": "", "action": "train", "reason": "", "findings": []}
        decision = add(connection, schema.decisions, **why, evidence={}, settings={}, policy=1)
        began = {
            "target": "edge",
            "trigger": "data",
            "state": "done",
            "requirement": {},
            "settings": {},
            "started": 1.0,
        }
        cycle = add(connection, schema.cycles, decision_id=decision, **began)
        about = {"architecture": "net", "recipe": "", "classes": ["cat", "dog"], "height": 8, "width": 8}
        made = {"snapshot_id": "s", "cycle_id": cycle, "train_seconds": 1.0, "created": 1.0}
        add(connection, schema.models, id="m", **about, **made)
        for number, name in enumerate(("cat", "cat", "cat", "cat", "dog")):
            if number in (0, 2):
                folder = {"folder": str(config.folders[0]), "state": "ready", "started": 1.0}
                drop = add(connection, schema.drops, **folder)
            looks = {"bytes": 9, "width": 8, "height": 8, "mode": "RGB", "first_seen": 1.0}
            sample = add(connection, schema.samples, sha256=bytes([number] * 32), **looks)
            place = {"folder": str(config.folders[0]), "path": f"{name}/{number}.png", "class_name": name}
            seen = {"size": 9, "mtime_ns": 1, "first_seen": 1.0, "drop_id": drop}
            add(connection, schema.occurrences, sample_id=sample, **place, **seen)
            if name == "cat":
                said = {"given": "cat", "suggested": "dog", "score": 0.01, "suggested_score": 0.98, "state": "open"}
                add(connection, schema.flags, sample_id=sample, model_id="m", at=1.0, **said)
        change(connection, schema.drops, drop, state="held", reason="many are wrong")
    done = threading.Event()
    serving: Any = Nobody(config)

    def take() -> bool:
        list(people.take(journal, serving))
        return done.is_set()

    def answer() -> None:
        eventually(take, seconds=110)

    with locked(config.state):
        thread = threading.Thread(target=answer)
        thread.start()
        yield journal
        done.set()
        thread.join()
    journal.dispose()


def flags(run: Run, workspace: Path, *arguments: str) -> tuple[int, str]:
    done = run("flags", *arguments, "--workspace", str(workspace), "--json")
    return done.returncode, json.loads(done.stdout).get("answer", "") if done.stdout else done.stderr


def listed(run: Run, workspace: Path, *arguments: str) -> list[int]:
    done = run("flags", *arguments, "--workspace", str(workspace), "--json")
    assert done.returncode == 0, done.stderr
    return [flag["id"] for flag in json.loads(done.stdout)["flags"]]


def labels(journal: Engine) -> list[tuple[int, str]]:
    with journal.connect() as connection:
        return [(row.sample_id, row.class_name) for row in connection.execute(schema.labels.select())]


def test_flags_are_answered_one_by_one(here: Run, workspace: Path, labelled: Engine) -> None:
    assert listed(here, workspace) == [1, 2, 3, 4]
    assert flags(relearn, workspace, "accept", "1") == (0, "flags answered: 1, accepted")
    assert flags(here, workspace, "keep", "2") == (0, "flags answered: 1, kept")
    code, said = flags(here, workspace, "relabel", "3", "--to", "dogg")
    assert (code, "nearest: dog" in said) == (1, True)
    assert flags(here, workspace, "relabel", "3", "--to", "owl", "--new-class")[0] == 0
    assert (listed(here, workspace), labels(labelled)) == ([4], [(1, "dog"), (2, "cat"), (3, "owl")])
    code, said = flags(relearn, workspace, "keep", "3")
    assert (code, said) == (1, "there is no open flag with the number 3; `relearn flags` lists them")


def test_images_in_two_classes_are_listed_and_settled(here: Run, workspace: Path, labelled: Engine) -> None:
    with labelled.begin() as connection:
        place = {"folder": str(workspace / "images"), "path": "dog/copy.png", "class_name": "dog", "drop_id": 1}
        add(connection, schema.occurrences, sample_id=1, **place, size=9, mtime_ns=1, first_seen=2.0)
    where = ("--workspace", str(workspace), "--json")
    (found,) = json.loads(here("conflicts", *where).stdout)
    assert (found["classes"], [Path(file).name for file in found["files"]]) == (["cat", "dog"], ["0.png", "copy.png"])
    assert "1 in conflict" in here("conflicts", *where[:2]).stdout
    done = relearn("conflicts", "settle", found["sha256"][:12], "--to", "dog", *where)
    assert (done.returncode, json.loads(done.stdout)["answer"]) == (0, "conflicts settled: 1, as dog")
    assert json.loads(here("conflicts", *where).stdout) == []
    assert here("conflicts", "settle", "--pair", "cat", "--to", "dog", *where).returncode == 2


def test_flags_are_answered_in_bulk_and_a_held_drop_is_released(here: Run, workspace: Path, labelled: Engine) -> None:
    assert listed(here, workspace, "--drop", "2") == [3, 4]
    assert flags(here, workspace, "keep", "--drop", "2") == (0, "flags answered: 2, kept")
    assert flags(here, workspace, "accept", "--pair", "cat:dog") == (0, "flags answered: 2, accepted")
    assert labels(labelled) == [(3, "cat"), (4, "cat"), (1, "dog"), (2, "dog")]
    code, said = flags(here, workspace, "release", "2")
    assert (code, said.startswith("drop 2 is released")) == (0, True)
    assert flags(here, workspace, "release", "2") == (1, "drop 2 is not held")


@pytest.mark.parametrize("arguments", [("accept", "--pair", "cat"), ("relabel", "1"), ("release",), ("keep", "one")])
def test_what_cannot_be_meant_is_wrong_usage(here: Run, workspace: Path, arguments: tuple[str, ...]) -> None:
    done = here("flags", *arguments, "--workspace", str(workspace))
    assert (done.returncode, done.stdout) == (2, "")
