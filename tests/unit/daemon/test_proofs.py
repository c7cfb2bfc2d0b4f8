"""What an artifact has answered: kept sample by sample, asked once, and not used where it may be another now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import jobs, outcomes, proofs, schema, snapshot, targets
from daemon.config import Config, dump
from daemon.ground import Ground
from daemon.journal import add, change, get
from policies.facts import ClassTally
from policies.steps import Prove

World = Any  # tests/unit/daemon/conftest.py
HERE = "this machine"


class Judging:
    """An artifact `a` of a first cycle on two cats and a dog of judge."""

    def __init__(self, config: Config, journal: Engine, world: World, folder: Path) -> None:
        self.config, self.journal, self.world, self.folder = config, journal, world, folder
        world.samples("cat", "train", 2)
        self.cats, self.dogs = world.samples("cat", "judge", 2), world.samples("dog", "judge", 1)
        self.ground = self.begin()
        world.artifact("a", self.ground.cycle)

    def begin(self, **settings: Any) -> Ground:
        """What a cycle stands on that begins now."""
        cycle = self.world.cycle(known=("cat", "dog"))
        row = self.world.row(schema.cycles, id=cycle)
        given = {**dump(self.config), **settings}
        return Ground(cycle, self.config.state, given, self.world.requirement(), row.snapshot_id, classes=2)

    def known(self, ground: Ground) -> Any:
        """What the stage is told, as the file with what it is to ask for: the samples' ids."""
        with self.journal.connect() as connection:
            stages = jobs.plan(Prove("a", measure=False), ground, connection, self.world.devices)
        (prove,) = (stage for stage in stages if stage.name == "prove")
        found = prove.inputs["known"]
        if found is None:
            return None
        ids = {row.sha256: row.id for row in self.world.rows(schema.samples)}
        packed = Path(found["ask"]).read_bytes()
        return {**found, "ask": {ids[packed[at : at + 32]] for at in range(0, len(packed), 32)}}

    def prove(self, ground: Ground, said: dict[int, str], by: str | None = HERE, **outputs: Any) -> None:
        """The stage has ended: it asked for these samples, and this was answered."""
        shas = {row.id: row.sha256 for row in self.world.rows(schema.samples)}
        file = self.folder / "answers.json"
        told = {"samples": [shas[s].hex() for s in said], "predicted": list(said.values())}
        file.write_text(json.dumps({**told, "confidence": [0.75] * len(said)}))
        with self.journal.begin() as connection:
            about = {"step": "prove a", "name": "prove", "state": "running", "attempts": 1}
            stage = add(connection, schema.stages, cycle_id=ground.cycle, **about)
            answered = {"artifact": "a", "answers": str(file), "tune_accuracy": 0.8, "parity": None, "answered_by": by}
            outcomes.record(connection, ground, get(connection, schema.stages, stage), {**answered, **outputs})

    def prove_all(self, ground: Ground, **outputs: Any) -> None:
        self.prove(ground, dict.fromkeys(self.world.truth(), "cat"), **outputs)

    @property
    def stored(self) -> dict[int, str]:
        return {row.sample_id: row.predicted for row in self.world.rows(schema.answers)}

    def judge(self, ground: Ground) -> targets.JudgeSet:
        _, rows = snapshot.read(ground.state / "snapshots" / f"{ground.snapshot}.snapshot")
        with self.journal.connect() as connection:
            return targets.judge_set(connection, rows)

    def counts(self, ground: Ground) -> dict[str, tuple[int, int]]:
        """Of each class its judge samples and how many `a` answers rightly, as the cycle's verdict counts them."""
        with self.journal.connect() as connection:
            found = self.judge(ground).counts(connection, "a", ("cat", "dog"))
        return {count.name: (count.samples, count.correct) for count in found}


@pytest.fixture
def judging(config: Config, journal: Engine, world: World, tmp_path: Path) -> Judging:
    return Judging(config, journal, world, tmp_path)


def test_a_proof_is_a_row_with_its_answers(judging: Judging) -> None:
    first, second = judging.cats
    judging.prove(judging.ground, {first: "cat", second: "dog"}, parity={"agreement": 1.0})
    proof = judging.world.row(schema.proofs)
    assert (proof.snapshot_id, proof.cycle_id) == (judging.ground.snapshot, judging.ground.cycle)
    assert (proof.tune_accuracy, proof.parity) == (0.8, {"agreement": 1.0})
    assert (proof.answered_by, proof.resize) == (HERE, "stretch")
    rows = {row.sample_id: (row.predicted, row.confidence) for row in judging.world.rows(schema.answers)}
    assert rows == {first: ("cat", 0.75), second: ("dog", 0.75)}


def test_many_answers_are_all_recorded(judging: Judging) -> None:
    ids = judging.world.samples("cat", "judge", 1203, mark="many")
    judging.prove(judging.ground, dict.fromkeys(ids, "cat"))
    assert list(judging.stored) == ids


# --- what is asked ------------------------------------------------------------------------------------------------


def test_what_was_never_proven_is_asked_for_all(judging: Judging) -> None:
    assert judging.known(judging.ground) is None


def test_of_a_judge_set_that_has_grown_only_the_new_is_asked(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    (new,) = judging.world.samples("dog", "judge", 1, mark="later")
    ground = judging.begin()
    assert judging.known(ground) == {"answered_by": HERE, "ask": {new}, "tune": None}
    judging.prove(ground, {new: "dog"})
    assert judging.stored == {**dict.fromkeys((*judging.cats, *judging.dogs), "cat"), new: "dog"}
    assert judging.known(judging.begin())["ask"] == set()


def test_of_tune_it_is_asked_once_on_the_same_images(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    assert judging.known(judging.begin())["tune"] == {"tune_accuracy": 0.8, "parity": None}
    judging.world.samples("cat", "tune", 1)
    assert judging.known(judging.begin()) == {"answered_by": HERE, "ask": set(), "tune": None}


def test_after_an_upgrade_all_is_asked_anew_and_nothing_of_before_counts(
    judging: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging.prove_all(judging.ground)
    monkeypatch.setattr("daemon.proofs.answerer", lambda _engine: "a newer engine")
    ground = judging.begin()
    assert judging.known(ground) is None
    judging.prove(ground, {judging.cats[0]: "dog"}, by="a newer engine")
    assert judging.stored == {judging.cats[0]: "dog"}
    assert judging.known(ground)["ask"] == {judging.cats[1], *judging.dogs}
    monkeypatch.setattr("daemon.proofs.answerer", lambda _engine: HERE)
    assert judging.known(judging.begin()) is None  # back again: what it had answered is no longer there


def test_other_pixels_are_other_images(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    cropped = judging.begin(input={"resize": "crop"})
    assert judging.known(cropped) is None
    judging.prove(cropped, {judging.cats[0]: "dog"})
    assert judging.stored == {judging.cats[0]: "dog"}
    assert judging.known(judging.begin()) is None


def test_what_a_stand_in_answers_is_never_used_again(judging: Judging) -> None:
    judging.prove_all(judging.ground, by=None)
    assert judging.known(judging.ground) is None
    judging.prove_all(judging.begin())
    assert judging.known(judging.ground) is not None
    with judging.journal.begin() as connection:  # its engine does not answer here
        change(connection, schema.artifacts, "a", unverified="no NVIDIA GPU answers here")
    assert judging.known(judging.ground) is None


def test_answers_that_an_older_version_recorded_are_asked_again(judging: Judging) -> None:
    """It did not write down who gave them."""
    judging.prove_all(judging.ground)
    with judging.journal.begin() as connection:
        connection.execute(schema.proofs.update().values(answered_by=None, resize=None))
    assert judging.known(judging.ground) is None


def test_of_what_was_dropped_nothing_is_left(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    with judging.journal.begin() as connection:
        proofs.drop_answers(connection, "a")
        assert proofs.find_valid(connection, judging.ground) == {}
    assert judging.stored == {}


# --- people change the judge set ------------------------------------------------------------------------------------


def test_a_relabel_changes_what_is_right_and_asks_for_nothing(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    assert judging.counts(judging.ground) == {"cat": (2, 2), "dog": (1, 0)}
    judging.world.relabel(judging.dogs[0], "cat")
    ground = judging.begin()
    assert judging.known(ground)["ask"] == set()
    assert judging.counts(ground) == {"cat": (3, 3)}
    assert judging.counts(judging.ground) == {"cat": (2, 2), "dog": (1, 0)}  # a cycle that runs judges by its own


def test_a_relabel_changes_what_two_artifacts_are_compared_on(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    judging.world.artifact("b", judging.ground.cycle)
    judging.world.answer("answers", "b", dict.fromkeys((*judging.cats, *judging.dogs), "dog"))

    def tallies(ground: Ground) -> tuple[ClassTally, ...]:
        with judging.journal.connect() as connection:
            return judging.judge(ground).tallies(connection, "b", "a", ("cat", "dog"))

    assert tallies(judging.ground) == (ClassTally("cat", 0, 2, 0, 0), ClassTally("dog", 0, 0, 1, 0))
    judging.world.relabel(judging.cats[0], "dog")
    assert tallies(judging.begin()) == (ClassTally("cat", 0, 1, 0, 0), ClassTally("dog", 0, 0, 2, 0))


def test_a_sample_that_is_forgotten_counts_nowhere_and_is_not_asked_for(judging: Judging) -> None:
    (new,) = judging.world.samples("dog", "judge", 1, mark="later")
    ground = judging.begin()
    judging.prove(ground, dict.fromkeys((*judging.cats, *judging.dogs), "cat"))
    with judging.journal.begin() as connection:
        for sample in (judging.cats[0], new):
            change(connection, schema.samples, sample, forgotten=2.0)
    assert judging.known(ground)["ask"] == set()
    assert judging.counts(ground) == {"cat": (1, 1), "dog": (1, 0)}


def test_a_sample_whose_file_comes_back_is_known_already(judging: Judging) -> None:
    judging.prove_all(judging.ground)
    judging.world.vanish(judging.dogs[0])
    assert judging.counts(judging.begin()) == {"cat": (2, 2)}
    judging.world.appear(judging.dogs[0], "dog")
    assert judging.known(judging.begin())["ask"] == set()
    assert judging.counts(judging.begin()) == {"cat": (2, 2), "dog": (1, 0)}
