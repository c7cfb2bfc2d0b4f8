"""A model that was trained elsewhere in the journal: from a person's request to the end of its cycle, and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import (
    adoption,
    cli_adopt,
    cycle_facts,
    decisions,
    evidence,
    forget,
    pauses,
    people,
    schema,
    snapshot,
    targets,
)
from daemon.config import Config
from daemon.decisions import Decided
from daemon.errors import ConfigError, UsageError
from daemon.events import Event
from daemon.ground import Ground
from daemon.journal import change
from daemon.serving import Serving
from daemon.stock import artifact_folder, model_folder

World = Any  # tests/unit/daemon/conftest.py
Ask = Callable[..., Any]


@pytest.fixture
def lay(config: Config) -> Callable[..., str]:
    """The folder of a model as `relearn adopt` makes it, as far as the daemon looks at it."""

    def make(name: str = "theirs", size: int = 32, **about: Any) -> str:
        folder = model_folder(config.state, name)
        folder.mkdir(parents=True)
        given = {"format": 1, "id": name, "architecture": "adopted:m.onnx", "classes": ["cat", "dog"], "embeds": True}
        (folder / "manifest.json").write_text(
            json.dumps({**given, "input": {"height": size, "width": size}, **about}), encoding="utf-8"
        )
        return name

    return make


@pytest.fixture
def ask(config: Config, journal: Engine, world: World) -> Ask:
    """A person asks for the adoption, and the daemon takes it; the request's row."""

    def asked(model: str = "theirs", target: str = "edge") -> Any:
        heard: list[Event] = []
        id_ = people.ask(journal, config.state, "adopt", target=target, model=model)
        list(people.take(journal, Serving(config, journal, heard.append)))
        return world.row(schema.requests, id=id_)

    return asked


def decide(config: Config, journal: Engine, world: World) -> Decided:
    return decisions.decide_all(journal, config, "someone asked", devices=world.devices)


def facts(config: Config, journal: Engine, world: World, cycle: int) -> Any:
    row = world.row(schema.cycles, id=cycle)
    _, rows = snapshot.read(config.state / "snapshots" / f"{row.snapshot_id}.snapshot")
    requirement = world.requirement()
    ground = Ground(cycle, config.state, row.settings, requirement, row.snapshot_id, len(rows.classes))
    about = {"repository_of": config.repository_of, "devices": world.devices, "confidence": 0.95}
    with journal.begin() as connection:
        return cycle_facts.gather(connection, row, ground, rows, **about)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda lay: None, "theirs/manifest.json is missing"),
        (lambda lay: lay(size=64), "takes images of 64 x 64, the clients of edge send 32 x 32"),
        (lambda lay: lay("other"), "theirs/manifest.json is missing"),
    ],
)
def test_what_cannot_be_served_is_refused(
    world: World, lay: Callable[..., str], ask: Ask, prepare: Callable[..., Any], words: str
) -> None:
    world.require()
    prepare(lay)
    row = ask()
    assert (row.state, words in row.answer) == ("refused", True), row.answer
    assert "no target 'nothing'" in ask(target="nothing").answer


def test_it_gets_a_cycle_of_its_own_and_learnt_from_nothing_that_is_known(
    config: Config, journal: Engine, world: World, lay: Callable[..., str], ask: Ask
) -> None:
    world.require()
    for name in ("cat", "dog"):
        world.samples(name, "judge", 3)
    lay()
    assert ask().state == "owed"
    cycle = world.row(schema.cycles, id=decide(config, journal, world).cycle)
    assert (cycle.trigger, cycle.state) == ("adopt", "running")
    assert world.row(schema.decisions).action == "adopt"
    model = world.row(schema.models)
    assert (model.id, bool(model.adopted), model.cycle_id) == ("theirs", True, cycle.id)
    assert model.snapshot_id != cycle.snapshot_id
    assert len(snapshot.read(config.state / "snapshots" / f"{model.snapshot_id}.snapshot")[1]) == 0
    assert len(snapshot.read(config.state / "snapshots" / f"{cycle.snapshot_id}.snapshot")[1]) == 6
    known = facts(config, journal, world, cycle.id)
    assert known.unbuilt == tuple(("theirs", variant) for variant in known.variants)
    assert known.fresh == {"theirs"}


def test_what_was_asked_for_before_a_rollback_is_not_adopted_after_it(
    config: Config, journal: Engine, world: World, lay: Callable[..., str], ask: Ask
) -> None:
    world.require()
    ask(lay("theirs"))
    with journal.begin() as connection:
        adoption.drop(connection, "edge", "edge went back to old first")
    assert decide(config, journal, world).cycle is None
    assert (world.row(schema.requests).state, world.row(schema.requests).answer) == (
        "refused",
        "edge went back to old first",
    )


def test_a_size_that_was_edited_meanwhile_is_met_before_anything_is_built(
    config: Config, journal: Engine, world: World, lay: Callable[..., str], ask: Ask
) -> None:
    world.require()
    ask(lay("theirs"))
    world.require(height=48)
    assert decide(config, journal, world).cycle is None
    request = world.row(schema.requests)
    assert (request.state, "the clients of edge send 48 x" in request.answer) == ("refused", True)


def test_while_it_is_paused_it_waits_and_says_so(
    config: Config, journal: Engine, world: World, lay: Callable[..., str], ask: Ask
) -> None:
    world.require()
    with journal.begin() as connection:
        pauses.pause(connection, None, "ann", None)
    assert "waits for `relearn resume`" in ask(lay("theirs")).answer
    assert decide(config, journal, world).cycle is None


def test_a_request_is_owed_until_its_cycle_ends_and_a_second_waits_for_its_turn(
    config: Config, journal: Engine, world: World, lay: Callable[..., str], ask: Ask
) -> None:
    world.require()
    first, second = (ask(lay(name)).id for name in ("theirs", "others"))
    cycle = decide(config, journal, world).cycle
    assert cycle is not None
    with journal.begin() as connection:
        assert people.owed(connection, "edge") is None  # it is no training
        change(connection, schema.cycles, cycle, state="interrupted")
    again = decide(config, journal, world).cycle  # the constraints were edited meanwhile, say
    assert again is not None
    assert world.row(schema.models).cycle_id == again
    with journal.begin() as connection:
        adoption.settle(connection, "edge", cycle, "kept: it is worse")
        assert adoption.owed(connection, "edge").id == first
        adoption.settle(connection, "edge", again, "kept: it is worse")
        assert adoption.owed(connection, "edge").id == second
        change(connection, schema.cycles, again, state="done")
    assert world.row(schema.requests, id=first).answer == "kept: it is worse"
    third = decide(config, journal, world).cycle
    assert {row.id: row.cycle_id for row in world.rows(schema.models)} == {"theirs": again, "others": third}


def test_a_folder_that_went_meanwhile_is_no_hot_loop(
    config: Config, journal: Engine, world: World, lay: Callable[..., str], ask: Ask
) -> None:
    world.require()
    row = ask(lay())
    (model_folder(config.state, "theirs") / "manifest.json").unlink()
    assert decide(config, journal, world).cycle is None
    assert world.row(schema.requests, id=row.id).state == "refused"
    assert decide(config, journal, world).cycle is None


@pytest.fixture
def champion(world: World) -> int:
    """An adopted champion, served before there was an image; the cycle of its adoption."""
    world.require()
    cycle: int = world.cycle(trigger="adopt", state="done", outcome="promoted", ended=2.0)
    with world.journal.begin() as connection:
        nothing = snapshot.take_nothing(connection, world.config.state / "snapshots")
    about = {"adopted": "ann", "architecture": "adopted:m.onnx", "snapshot_id": nothing, "tune_accuracy": None}
    world.artifact("old", cycle, **about)
    world.measure("old")
    world.prove("old", cycle)
    world.promote("old", cycle_id=cycle)
    return cycle


def gather(config: Config, journal: Engine, world: World) -> Any:
    with journal.begin() as connection:
        return evidence.gather(connection, config, world.requirement(), devices=world.devices)


def test_the_first_judge_samples_prove_it_once(config: Config, journal: Engine, world: World, champion: int) -> None:
    assert not gather(config, journal, world).unproven
    world.samples("cat", "train", 3)
    assert not gather(config, journal, world).unproven  # there is still nothing to judge by
    world.samples("cat", "judge", 2)
    assert gather(config, journal, world).unproven
    cycle = world.row(schema.cycles, id=decide(config, journal, world).cycle)
    assert cycle.trigger == "proof"
    assert facts(config, journal, world, cycle.id).rivals == ("old",)
    world.prove("old", cycle.id)
    known = facts(config, journal, world, cycle.id)
    assert (known.rivals, known.candidates[0].adopted) == ((), "ann")
    with journal.begin() as connection:
        change(connection, schema.cycles, cycle.id, state="done", ended=3.0)
    assert not gather(config, journal, world).unproven
    assert decide(config, journal, world).cycle is None


def test_new_samples_are_asked_of_it_and_no_training_is_made_of_its_name(
    config: Config, journal: Engine, world: World, champion: int
) -> None:
    world.samples("cat", "train", 3)
    with journal.begin() as connection:
        found = evidence.unobserved(connection, config, "edge")
    assert found is not None
    assert (found[0].artifact, len(found[1])) == ("old", 3)
    known = facts(config, journal, world, world.cycle())
    assert known.architectures == tuple(config.settings.model.architectures)


def test_a_graph_without_an_embedding_is_not_asked_for_one(world: World, journal: Engine, champion: int) -> None:
    with journal.begin() as connection:
        assert targets.embedding_model(connection) == "old"
        change(connection, schema.models, "old", embeds=False)
        assert targets.embedding_model(connection) is None


def test_it_did_not_learn_from_what_is_forgotten(config: Config, journal: Engine, world: World, champion: int) -> None:
    sample, *_ = world.samples("cat", "train", 3)
    ours = world.row(schema.cycles, id=world.cycle()).snapshot_id
    theirs = world.row(schema.models, id="old").snapshot_id
    with journal.begin() as connection:
        change(connection, schema.samples, sample, forgotten=9.0)
        assert forget.compare(connection, config.state / "snapshots", theirs, ours) == (0, 1)


def test_what_was_lost_of_it_is_built_again_on_what_it_was_built_on(
    config: Config, journal: Engine, world: World, champion: int
) -> None:
    world.samples("cat", "train", 3)
    (artifact_folder(config.state, "old") / "manifest.json").unlink()
    cycle = world.row(schema.cycles, id=decide(config, journal, world).cycle)
    assert cycle.trigger == "stock"
    assert cycle.snapshot_id == world.row(schema.cycles, id=champion).snapshot_id


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat\ndog\ncat\n", r"classes\.txt:3: 'cat' stands in line 1 too"),
        ("cat\n\ndog\n", r"classes\.txt:2: '' is no name of a class"),
        ("cat\n dog\n", r"classes\.txt:2: ' dog' is no name of a class"),
        ("cat\nd\x07g\n", r"classes\.txt:2: 'd\\x07g' is no name"),
        ("cat\n", "names one class; a classifier has two at least"),
        ("", "is no name of a class"),
        (None, "is not there; write the names of the classes"),
    ],
)
def test_a_file_of_classes_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "classes.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=words):
        cli_adopt.read_classes(file)


def test_a_file_of_classes_is_read_as_editors_write_it(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffcat\r\nnaïve café\r\n".encode())
    assert cli_adopt.read_classes(file) == ["cat", "naïve café"]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        cli_adopt.read_classes(file)


def test_numbers_have_commas_between() -> None:
    assert cli_adopt.read_numbers("--mean", "0.5, 0.25,1") == [0.5, 0.25, 1.0]
    assert cli_adopt.read_numbers("--mean", None) is None
    with pytest.raises(UsageError, match="--mean 1;2: write one number, or three"):
        cli_adopt.read_numbers("--mean", "1;2")
