"""What the journal knows of a target: requirement, champion, anchor, candidates, and its judge set."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import schema, snapshot, targets, variants
from daemon.config import Config
from daemon.constraint_file import take_in
from daemon.journal import change
from daemon.targets import Champion, JudgeSet
from policies.facts import ClassCount, ClassTally

World = Any  # tests/unit/daemon/conftest.py


def ask(journal: Engine, what: Any, *arguments: Any, **named: Any) -> Any:
    with journal.connect() as connection:
        return what(connection, *arguments, **named)


# --- requirements ---------------------------------------------------------------------------------------------------


def test_without_constraint_files_there_is_no_target(journal: Engine) -> None:
    assert ask(journal, targets.requirements) == {}


def test_the_last_valid_requirement_of_each_target_stands(config: Config, journal: Engine) -> None:
    edge = config.constraints / "edge.toml"
    valid = edge.read_text()

    def edit(text: str) -> Any:
        edge.write_text(text)
        with journal.begin() as connection:
            take_in(connection, config.constraints)
        return ask(journal, targets.requirements)

    (config.constraints / "phone.toml").write_text(valid)
    assert list(edit(valid)) == ["edge", "phone"]
    assert edit(valid.replace("= 50", "= 7"))["edge"].artifact_max_mb == 7
    assert edit("version = 2")["edge"].artifact_max_mb == 7
    edge.unlink()
    with journal.begin() as connection:
        take_in(connection, config.constraints)
    assert list(ask(journal, targets.requirements)) == ["phone"]
    assert edit(valid)["edge"].artifact_max_mb == 50


def test_a_target_that_was_never_valid_is_not_managed(config: Config, journal: Engine) -> None:
    (config.constraints / "edge.toml").write_text("version = 2")
    with journal.begin() as connection:
        take_in(connection, config.constraints)
    assert ask(journal, targets.requirements) == {}


# --- champion and anchor --------------------------------------------------------------------------------------------


def test_the_champion_is_what_the_target_serves(journal: Engine, world: World) -> None:
    assert ask(journal, targets.champion, "edge") is None
    cycle = world.cycle()
    for name in ("a", "b", "c", "d"):
        world.artifact(name, cycle, classes=["dog", "cat"])
    world.promote("a", 1, state="retired")
    serving = world.promote("b", 2)
    world.promote("c", 3, state="switching", served=None)
    world.promote("d", 9, target="other")
    found = ask(journal, targets.champion, "edge")
    assert found == Champion(serving, "b", 2, ("dog", "cat"), world.row(schema.cycles).snapshot_id)


def anchored(world: World, *history: tuple[str, str, bool, float | None]) -> None:
    """Promotions, the oldest first: artifact, kind, whether it was called better, when it was served."""
    cycle = world.cycle()
    for version, (name, kind, better, served) in enumerate(history, start=1):
        if not world.rows(schema.artifacts, id=name):
            world.artifact(name, cycle)
        verdict = verdict_row(world, cycle, name, better) if kind == "promotion" else None
        world.promote(name, version, kind=kind, verdict_id=verdict, served=served, state="retired")


def verdict_row(world: World, cycle: int, name: str, better: bool) -> int:
    with world.journal.begin() as connection:
        said = {"answer": "promote", "reason": "", "better": better, "verdict": {}, "facts": {}, "at": 1.0}
        values = {"cycle_id": cycle, "target": "edge", "artifact_id": name, **said}
        return int(connection.execute(schema.verdicts.insert().values(**values)).inserted_primary_key[0])


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], None),
        ([("a", "promotion", True, 1.0)], "a"),
        ([("a", "promotion", True, 1.0), ("b", "promotion", False, 1.0)], "a"),  # no worse is no new measure
        ([("a", "promotion", True, 1.0), ("b", "promotion", True, 1.0)], "b"),
        ([("a", "promotion", True, 1.0), ("b", "promotion", True, None)], "a"),  # never served
        ([("a", "promotion", True, 1.0), ("b", "promotion", True, 1.0), ("a", "rollback", False, 1.0)], "a"),
        ([("a", "promotion", False, 1.0)], None),
    ],
)
def test_the_anchor_is_the_last_called_better_or_chosen_by_a_person(
    journal: Engine, world: World, history: list[tuple[str, str, bool, float | None]], expected: str | None
) -> None:
    anchored(world, *history)
    assert ask(journal, targets.anchor, "edge") == expected
    assert ask(journal, targets.anchor, "other") is None


# --- candidates -----------------------------------------------------------------------------------------------------


def test_candidates_have_the_input_size_and_know_the_classes(journal: Engine, world: World) -> None:
    cycle = world.cycle()
    world.artifact("fits", cycle, classes=["dog", "cat", "newt"], tune_accuracy=0.75)
    world.artifact("large", cycle, height=64)
    world.artifact("wide", cycle, width=64)
    world.artifact("poor", cycle, classes=["cat"])
    (found,) = ask(journal, targets.candidates, world.requirement(), ["cat", "dog"], world.devices)
    assert (found.artifact, found.model, found.classes) == ("fits", "fits", ("dog", "cat", "newt"))
    assert (found.tune_accuracy, found.artifact_mb, found.measurement, found.proof) == (0.75, 1.0, None, None)
    names = [c.artifact for c in ask(journal, targets.candidates, world.requirement(), [], world.devices)]
    assert names == ["fits", "poor"]


@pytest.mark.parametrize(
    ("kind", "gpu", "fits"),
    [
        ("sm89", None, True),
        ("sm75", None, False),
        ("cuda", None, True),
        ("cuda", "sm89", True),
        ("cuda", "sm75", False),  # plans are for another GPU by now
        ("cpu", None, False),
    ],
)
def test_a_plan_is_offered_to_its_own_kind_of_gpu_alone(
    journal: Engine, world: World, kind: str, gpu: str | None, fits: bool
) -> None:
    lay_plan(journal, world, importlib.metadata.version("tensorrt-rtx-cu13-bindings"))
    asked = world.requirement(accelerator=kind)
    found = ask(journal, targets.candidates, asked, [], variants.devices(1, gpu))
    assert [(c.variant, c.unverified) for c in found] == ([("tensorrt_rtx:fp32", "no GPU")] if fits else [])


@pytest.mark.parametrize(("version", "fits"), [("1.7.1", True), ("1.6.0", False), (None, False)])
def test_a_plan_is_offered_to_its_own_version_alone(
    journal: Engine, world: World, version: str | None, fits: bool
) -> None:
    lay_plan(journal, world, version)
    devices = {"tensorrt_rtx": "sm89, no GPU, a processor, 2 cores, tensorrt_rtx 1.7.1, 1 thread"}
    found = ask(journal, targets.candidates, world.requirement(accelerator="sm89"), [], devices)
    assert [c.artifact for c in found] == (["plan"] if fits else [])


def test_a_class_that_no_image_is_of_is_named_with_the_nearest(journal: Engine, world: World) -> None:
    asked = world.requirement(recall_min={"dgo": 0.9, "cat": 0.9})
    assert ask(journal, targets.unknown_classes, asked) == []  # before there are images
    world.samples("cat", "train", 1)
    world.samples("dog", "train", 1)
    (said,) = ask(journal, targets.unknown_classes, asked)
    assert said.startswith("require.recall_min.dgo: no labelled image is of this class")
    assert said.endswith("did you mean 'dog'?")


def lay_plan(journal: Engine, world: World, version: str | None) -> None:
    world.artifact("plan", world.cycle())
    bound = {"engine": "tensorrt_rtx", "device": "sm89", "engine_version": version, "unverified": "no GPU"}
    with journal.begin() as connection:
        change(connection, schema.artifacts, "plan", **bound)


@pytest.mark.parametrize(
    ("kind", "gpu", "names"),
    [
        ("cpu", None, ("onnxruntime:int8", "openvino:fp32")),
        ("cuda", None, ("tensorrt_rtx:fp16",)),
        ("sm89", "sm89", ("tensorrt_rtx:fp16",)),
        ("sm75", "sm89", ()),  # build.compute_capability says that plans are for another
    ],
)
def test_a_target_could_take_what_runs_on_its_accelerator(
    world: World, kind: str, gpu: str | None, names: tuple[str, ...]
) -> None:
    configured = ("onnxruntime:int8", "tensorrt_rtx:fp16", "openvino")
    assert variants.wanted(configured, world.requirement(accelerator=kind), gpu) == names


def test_the_engine_s_own_accuracy_on_tune_counts_where_it_is_proven(journal: Engine, world: World) -> None:
    cycle = world.cycle()
    world.artifact("a", cycle, tune_accuracy=0.9)
    world.prove("a", cycle)
    with journal.begin() as connection:
        connection.execute(schema.proofs.update().values(tune_accuracy=0.25))
    (found,) = ask(journal, targets.candidates, world.requirement(), [], world.devices)
    assert found.tune_accuracy == 0.25


def test_one_stored_artifact_as_a_candidate(journal: Engine, world: World) -> None:
    world.artifact("a", world.cycle())
    assert ask(journal, targets.known, world.requirement(), "a", world.devices).artifact == "a"
    assert ask(journal, targets.known, world.requirement(height=64), "a", world.devices) is None
    assert ask(journal, targets.known, world.requirement(), "nonesuch", world.devices) is None


# --- feasible -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "counts", "expected"),
    [
        ({}, (90, 100), True),
        ({"latency_p95_ms": 1.0}, (90, 100), False),
        ({"artifact_max_mb": 0.5}, (90, 100), False),
        ({"height": 64}, (90, 100), False),  # another input size: it cannot serve what is asked
        ({"accuracy_min": 0.92}, (90, 100), True),  # below by the estimate, not by the bound
        ({"accuracy_min": 0.99}, (90, 100), False),
        ({"accuracy_min": 0.92}, (900, 1000), False),  # the same share of more samples says more
        ({"recall_min": {"cat": 0.99}}, (90, 100), False),
        ({"recall_min": {"newt": 0.99}}, (90, 100), True),  # no sample says nothing against it
        ({"batch_size": 8, "latency_p95_ms": 1.0}, (90, 100), True),  # not measured under this load yet
    ],
)
def test_whether_a_champion_meets_its_constraints(
    journal: Engine, world: World, limits: dict[str, Any], counts: tuple[int, int], expected: bool
) -> None:
    world.champion("a")
    champion = ask(journal, targets.champion, "edge")
    judge = (ClassCount("cat", counts[1], counts[0]),)
    named = {"devices": world.devices, "confidence": 0.95}
    requirement = world.requirement(**limits)
    assert ask(journal, targets.feasible, requirement, champion, judge, **named) is expected


# --- judge set ------------------------------------------------------------------------------------------------------


def judge_set(world: World, cycle: int) -> JudgeSet:
    file = world.config.state / "snapshots" / f"{world.row(schema.cycles, id=cycle).snapshot_id}.snapshot"
    _, rows = snapshot.read(file)
    found: JudgeSet = ask(world.journal, targets.judge_set, rows)
    return found


def test_the_judge_set_is_that_of_the_snapshot(world: World) -> None:
    world.samples("cat", "train", 3)
    world.samples("cat", "tune", 3)
    cats = world.samples("cat", "judge", 2)
    dogs = world.samples("dog", "judge", 1)
    cycle = world.cycle()
    later = world.samples("cat", "judge", 1, mark="later")
    shas = {row.id: row.sha256 for row in world.rows(schema.samples)}
    assert judge_set(world, cycle).truth == {shas[cats[0]]: "cat", shas[cats[1]]: "cat", shas[dogs[0]]: "dog"}
    assert shas[later[0]] in judge_set(world, world.cycle()).truth


def test_answers_count_by_class(journal: Engine, world: World) -> None:
    cats, dogs = world.samples("cat", "judge", 3), world.samples("dog", "judge", 2)
    cycle = world.cycle()
    judge = judge_set(world, cycle)
    world.artifact("a", cycle)
    assert ask(journal, judge.counts, "a", ("cat", "dog")) == ()
    assert not ask(journal, judge.covered, "a")
    world.prove("a", cycle, wrong=[cats[0]], only=[*cats, dogs[0]])
    assert ask(journal, judge.counts, "a", ("cat", "dog")) == (ClassCount("cat", 3, 2), ClassCount("dog", 1, 1))
    assert not ask(journal, judge.covered, "a")
    world.answer("answers", "a", {dogs[1]: "cat"})
    assert ask(journal, judge.counts, "a", ("cat", "dog")) == (ClassCount("cat", 3, 2), ClassCount("dog", 2, 1))
    assert ask(journal, judge.covered, "a")


def test_answers_to_samples_outside_the_set_do_not_count(journal: Engine, world: World) -> None:
    world.samples("cat", "judge", 1)
    cycle = world.cycle()
    judge = judge_set(world, cycle)
    world.samples("cat", "judge", 1, mark="later")
    world.artifact("a", cycle)
    world.prove("a", cycle)
    assert ask(journal, judge.counts, "a", ("cat", "dog")) == (ClassCount("cat", 1, 1),)


def test_paired_answers_fall_into_four_cells(journal: Engine, world: World) -> None:
    """Both right, the champion alone, the challenger alone, neither; a sample that one lacks is in none."""
    cats = world.samples("cat", "judge", 11)
    dogs = world.samples("dog", "judge", 1)
    cycle = world.cycle()
    for name in ("new", "old"):
        world.artifact(name, cycle)
    world.prove("new", cycle, wrong=[*cats[1:3], *cats[6:10]], only=[*cats, *dogs])
    world.prove("old", cycle, wrong=[*cats[3:6], *cats[6:10]], only=[*cats[:10], *dogs])
    judge = judge_set(world, cycle)
    assert ask(journal, judge.tallies, "new", "old", ["cat"]) == (ClassTally("cat", 1, 2, 3, 4),)
    both = ask(journal, judge.tallies, "new", "old", ["dog", "cat", "newt"])
    assert [(t.name, t.samples) for t in both] == [("cat", 10), ("dog", 1), ("newt", 0)]
