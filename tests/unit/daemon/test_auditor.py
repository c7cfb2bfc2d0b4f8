"""The lane that audits labels; the child stands in for pipeline, the journal is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import update

from daemon import data_views, flags, schema, standings, views
from daemon.auditor import Auditor
from daemon.config import load
from daemon.errors import NotFound, UsageError
from daemon.events import ChildEnded, ChildSpoke, Event
from daemon.flags import Chosen
from daemon.journal import now
from daemon.stock import model_folder

World = Any  # tests/unit/daemon/conftest.py
StandIn = Any


class Lane:
    """An auditor with its queue."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.auditor = Auditor(world.config, world.journal, self.queue.put)

    def work(self) -> None:
        """What is due, to its end."""
        self.auditor.want()
        while self.auditor.step() or self.auditor.child:
            if self.auditor.child:
                self.pass_on(self.queue.get(timeout=60))

    def pass_on(self, event: Event) -> None:
        if isinstance(event, ChildSpoke):
            self.auditor.hear(event.line)
        elif isinstance(event, ChildEnded):
            self.auditor.bury(event.status, event.last_words)

    def usable(self) -> dict[int, str]:
        with self.world.journal.connect() as connection:
            return {row.sample: row.name for row in standings.usable(connection)}

    def answer(self, how: str, to: str | None = None, **chosen: Any) -> str:
        with self.world.journal.begin() as connection:
            return flags.answer(connection, how, Chosen(**chosen), to, "ann")

    def open(self) -> list[int]:
        return [row.id for row in self.world.rows(schema.flags, state="open")]

    def shas(self, *samples: int) -> list[bytes]:
        return [self.world.row(schema.samples, id=sample).sha256 for sample in samples]


@pytest.fixture
def lane(world: World, stand_in: StandIn) -> Iterator[Lane]:
    """A target with a champion; what there is, is audited and clean."""
    for name in ("cat", "dog"):
        world.samples(name, "train", 15)
        world.samples(name, "judge", 15)
    world.require()
    world.champion()
    lane = Lane(world)
    lane.work()
    yield lane
    if lane.auditor.child:
        lane.auditor.child.kill()


def test_each_drop_is_audited_once(lane: Lane, stand_in: StandIn) -> None:
    runs = len(stand_in.runs)
    lane.work()
    assert len(stand_in.runs) == runs == 1
    assert all(row.audited for row in lane.world.rows(schema.drops))
    inputs = stand_in.runs[0]["inputs"]
    assert inputs["model"] == str(model_folder(lane.world.config.state, "old"))
    lane.world.samples("cat", "train", 2, mark="new")
    lane.work()
    assert len(stand_in.runs) == 2
    assert lane.world.rows(schema.drops)[-1].reason.endswith("2 of its labels could be audited, it takes 20")


def test_without_a_champion_drops_wait(world: World, stand_in: StandIn) -> None:
    world.samples("cat", "train", 2)
    world.require()
    lane = Lane(world)
    lane.work()
    assert stand_in.runs == []
    assert lane.world.rows(schema.drops)[0].audited is None
    world.samples("dog", "judge", 2)
    world.samples("cat", "judge", 2)
    world.champion()
    lane.work()
    assert lane.world.rows(schema.drops)[0].audited is not None


def test_unlabelled_images_alone_are_not_audited(lane: Lane, stand_in: StandIn) -> None:
    lane.world.samples(None, "", 3)
    lane.work()
    assert len(stand_in.runs) == 1


def test_flagged_labels_are_left_out_of_training_and_never_of_judge(lane: Lane, stand_in: StandIn) -> None:
    train = lane.world.samples("cat", "train", 30, mark="new")
    judge = lane.world.samples("dog", "judge", 30, mark="new")
    stand_in.flag(*lane.shas(train[0], judge[0]))
    lane.work()
    assert train[0] not in lane.usable()
    assert lane.usable()[judge[0]] == "dog"
    assert {(row.sample_id, row.given, row.suggested, row.score) for row in lane.world.rows(schema.flags)} == {
        (train[0], "cat", "dog", 0.01),
        (judge[0], "dog", "cat", 0.01),
    }
    assert all(row.state == "ready" for row in lane.world.rows(schema.drops))


def test_flags_that_are_not_sure_are_listed_and_leave_nothing_out(lane: Lane, stand_in: StandIn) -> None:
    """Of a weak model most flags are mistakes of its own."""
    new = lane.world.samples("cat", "train", 30, mark="new")
    stand_in.flag(*lane.shas(*new), sure=False)
    lane.work()
    assert len(lane.open()) == 30
    assert set(new) <= lane.usable().keys()
    drop = lane.world.rows(schema.drops)[-1]
    assert (drop.state, drop.reason.startswith(f"drop {drop.id}: 0 of 30 labels")) == ("ready", True)


def test_a_drop_of_many_wrong_labels_is_held_until_it_is_released(lane: Lane, stand_in: StandIn) -> None:
    new = lane.world.samples("cat", "train", 30, mark="new")
    stand_in.flag(*lane.shas(*new[:10]))
    lane.work()
    drop = lane.world.rows(schema.drops)[-1]
    assert (drop.state, drop.reason.startswith(f"drop {drop.id}: 10 of 30 labels are flagged")) == ("held", True)
    assert not set(new) & lane.usable().keys()
    decision = lane.world.rows(schema.decisions)[-1]
    assert decision.action == "hold"
    with lane.world.journal.connect() as connection:
        assert views.explain(connection, f"d{decision.id}")["replayed"] == "the same"
        shown = data_views.flags(connection, drop.id)
        assert data_views.data(connection)["held"] == 30
    assert len(shown["flags"]) == 10
    assert shown["held"][0]["drop"] == drop.id
    assert "dog has a probability of 0.98, cat of 0.01" in shown["flags"][0]["why"]
    with lane.world.journal.begin() as connection:
        assert flags.release(connection, drop.id, "ann").startswith(f"drop {drop.id} is released")
        with pytest.raises(UsageError, match="is not held"):
            flags.release(connection, drop.id, "ann")
        with pytest.raises(NotFound):
            flags.release(connection, 999, "ann")
    assert set(new) & lane.usable().keys() == set(new[10:])  # the others are still asked about
    lane.work()
    assert lane.world.row(schema.drops, id=drop.id).state == "ready"


def test_answers_are_labels_and_are_not_asked_again(lane: Lane, stand_in: StandIn) -> None:
    new = lane.world.samples("cat", "train", 30, mark="new")
    stand_in.flag(*lane.shas(*new[:3]))
    lane.work()
    number = {row.sample_id: row.id for row in lane.world.rows(schema.flags)}
    first, second, third = (number[sample] for sample in new[:3])
    assert lane.answer("accept", ids=[first]) == "flags answered: 1, accepted"
    assert lane.answer("keep", ids=[second]) == "flags answered: 1, kept"
    assert lane.answer("relabel", to="owl", ids=[third], new_class=True) == "flags answered: 1, relabelled to owl"
    assert [lane.usable()[sample] for sample in new[:3]] == ["dog", "cat", "owl"]
    states = {row.id: row.state for row in lane.world.rows(schema.flags)}
    assert [states[number] for number in (first, second, third)] == ["accepted", "kept", "relabelled"]
    assert [(row.source, row.by) for row in lane.world.rows(schema.labels, source="review")[-3:]] == [
        ("review", "ann")
    ] * 3
    stand_in.flag(*lane.shas(*new))
    lane.world.samples("cat", "train", 1, mark="newest")
    lane.work()
    asked = {row.sample_id for row in lane.world.rows(schema.flags, state="open")}
    assert not asked & set(new[:3])


def test_flags_are_answered_in_bulk(lane: Lane, stand_in: StandIn) -> None:
    cats = lane.world.samples("cat", "train", 30, mark="new")
    dogs = lane.world.samples("dog", "train", 30, mark="new")
    stand_in.flag(*lane.shas(*cats[:2], *dogs[:2]))
    lane.work()
    lane.answer("accept", pair=("cat", "dog"))
    assert [lane.usable().get(sample) for sample in (*cats[:2], *dogs[:2])] == ["dog", "dog", None, None]
    lane.answer("keep", drop=lane.world.rows(schema.drops)[-1].id)
    assert lane.usable()[dogs[0]] == "dog"
    assert lane.open() == []


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, "which flags"),
        ({"ids": [99]}, "no open flag with the number 99"),
        ({"pair": ("cat", "owl")}, "no open flag of cat taken for owl"),
    ],
)
def test_an_answer_to_nothing_is_refused(lane: Lane, chosen: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, NotFound), match=said):
        lane.answer("keep", **chosen)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("catt", "no sample is of this class; nearest: cat. --new-class makes it one"),
        ("xyz", "nearest: cat, dog"),
        ("a/b", "no folder of a class is called so"),
        (".hidden", "no folder of a class is called so"),
        ("two\nlines", "no folder of a class is called so"),
    ],
)
def test_a_class_that_cannot_be_meant_is_refused(lane: Lane, stand_in: StandIn, to: str, said: str) -> None:
    (sample,) = lane.world.samples("cat", "train", 1, mark="new")
    stand_in.flag(*lane.shas(sample))
    lane.work()
    with pytest.raises(UsageError, match=said):
        lane.answer("relabel", to=to, ids=lane.open())
    assert len(lane.open()) == 1
    new = "no folder" not in said
    if new:
        lane.answer("relabel", to=to, ids=lane.open(), new_class=True)
        assert lane.usable()[sample] == to


def test_flags_of_files_that_are_gone_are_not_counted(lane: Lane, stand_in: StandIn) -> None:
    first, second = lane.world.samples("cat", "train", 2, mark="new")
    lane.world.appear(first, "cat")  # a sample in two places is one flag
    stand_in.flag(*lane.shas(first, second))
    lane.work()
    lane.world.vanish(second)
    with lane.world.journal.connect() as connection:
        assert data_views.data(connection)["flagged"] == 1
        assert len(data_views.flags(connection)["flags"]) == 1


def test_a_class_is_needed_to_relabel(lane: Lane) -> None:
    with pytest.raises(UsageError, match="--to CLASS"):
        lane.answer("relabel", ids=[1])


def test_a_sample_in_several_places_is_one_flag(lane: Lane, stand_in: StandIn) -> None:
    new = lane.world.samples("cat", "train", 30, mark="new")
    lane.world.appear(new[0], "cat")
    stand_in.flag(*lane.shas(new[0]))
    lane.work()
    with lane.world.journal.connect() as connection:
        assert [flag["id"] for flag in data_views.flags(connection)["flags"]] == lane.open()


def test_what_is_no_longer_flagged_is_withdrawn(lane: Lane, stand_in: StandIn) -> None:
    new = lane.world.samples("cat", "train", 30, mark="new")
    stand_in.flag(*lane.shas(new[0]))
    lane.work()
    stand_in.flag()
    lane.world.samples("cat", "train", 30, mark="newest")
    lane.work()
    assert [row.state for row in lane.world.rows(schema.flags)] == ["withdrawn"]
    assert new[0] in lane.usable()


def test_of_a_small_drop_only_its_own_flags_are_withdrawn(lane: Lane, stand_in: StandIn) -> None:
    one, other = lane.world.samples("cat", "train", 2, mark="new")
    stand_in.flag(*lane.shas(one, other))
    lane.work()
    stand_in.flag()
    lane.world.move(one, "cat")
    lane.work()
    states = {row.sample_id: row.state for row in lane.world.rows(schema.flags)}
    assert states == {one: "withdrawn", other: "open"}


def test_what_is_gone_or_in_two_classes_keeps_its_flag_when_all_is_audited(lane: Lane, stand_in: StandIn) -> None:
    gone, twice, seen = lane.world.samples("cat", "train", 3, mark="new")
    stand_in.flag(*lane.shas(gone, twice, seen))
    lane.work()
    lane.world.vanish(gone)
    lane.world.appear(twice, "dog")
    stand_in.flag()
    lane.world.samples("cat", "train", 30, mark="newest")
    lane.work()
    assert stand_in.runs[-1]["inputs"]["whole"]
    states = {row.sample_id: row.state for row in lane.world.rows(schema.flags)}
    assert states == {gone: "open", twice: "open", seen: "withdrawn"}


def asked(lane: Lane) -> set[bytes]:
    """The samples that the last job names."""
    rows = (lane.world.config.state / "audits" / "rows").read_bytes()
    return {rows[start : start + 32] for start in range(0, len(rows), 35)}


def test_the_job_of_a_small_drop_names_its_samples_alone(lane: Lane, stand_in: StandIn) -> None:
    assert (stand_in.runs[0]["inputs"]["whole"], len(asked(lane))) == (True, 60)
    first = lane.world.samples("cat", "train", 3, mark="first")
    second = lane.world.samples("owl", "judge", 3, mark="second")  # a class that nothing can be fitted on yet
    lane.world.appear(first[0], "dog")  # in conflict: used nowhere
    lane.work()
    assert not stand_in.runs[-1]["inputs"]["whole"]
    assert asked(lane) == set(lane.shas(*first[1:], *second))
    assert sorted(stand_in.runs[-1]["inputs"]["classes"]) == ["cat", "owl"]
    assert all(row.audited for row in lane.world.rows(schema.drops))


def test_a_small_drop_is_compared_with_all_that_was_audited(lane: Lane, stand_in: StandIn) -> None:
    old = lane.world.samples("cat", "train", 40, mark="old")
    stand_in.flag(*lane.shas(*old[:4]))
    lane.work()
    lane.world.vanish(old[0])  # no longer one of the others
    new = lane.world.samples("cat", "train", 20, mark="new")
    stand_in.flag(*lane.shas(*new[:3]))
    lane.work()
    assert not stand_in.runs[-1]["inputs"]["whole"]
    drop = lane.world.rows(schema.drops)[-1].id
    with lane.world.journal.begin() as connection:
        connection.execute(update(schema.drops).where(schema.drops.c.id == drop).values(audited=None))  # as it was
        (audit,) = flags.count(connection, [drop], new, 120)
    assert (audit.samples, audit.flagged, audit.others, audit.others_flagged, audit.doubtful) == (20, 3, 100, 3, 0)


def add_owls(lane: Lane) -> None:
    lane.world.samples("owl", "train", 2)


def add_many(lane: Lane) -> None:
    lane.world.samples("dog", "train", 13, mark="new")


def take_away(lane: Lane) -> None:
    with lane.world.journal.begin() as connection:
        connection.execute(update(schema.drops).where(schema.drops.c.id == 1).values(gone=12))
    lane.world.samples("dog", "train", 1, mark="new")


def damage(lane: Lane) -> None:
    (kept,) = (lane.world.config.state / "embeddings").glob("*/audit/about.json")
    kept.write_text("{")
    lane.world.samples("dog", "train", 1, mark="new")


def promote_another(lane: Lane) -> None:
    lane.world.champion("newer", 2)
    lane.world.samples("dog", "train", 1, mark="new")


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (add_owls, "owl is new"),
        (add_many, "13 have come or changed since 60 were"),
        (take_away, "13 have come or changed since 60 were"),
        (damage, "nothing was audited by this network yet"),
        (promote_another, "nothing was audited by this network yet"),
    ],
)
def test_all_labels_are_audited_where_a_drop_alone_would_not_do(
    lane: Lane, stand_in: StandIn, happens: Callable[[Lane], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    happens(lane)
    with caplog.at_level("INFO", logger="relearn"):
        lane.work()
    assert f"all labels are audited: {why}" in caplog.messages
    assert stand_in.runs[-1]["inputs"]["whole"]
    assert len(asked(lane)) > 60
    lane.world.samples("dog", "train", 1, mark="newest")
    lane.work()
    assert not stand_in.runs[-1]["inputs"]["whole"]


def test_a_child_that_needs_all_labels_is_asked_again_with_them(lane: Lane, stand_in: StandIn) -> None:
    new = lane.world.samples("cat", "train", 2, mark="new")
    stand_in.say("audit", folds="because")
    lane.auditor.want()
    lane.auditor.step()
    while lane.auditor.child:
        lane.pass_on(lane.queue.get(timeout=60))
    assert lane.auditor.busy
    assert lane.world.rows(schema.drops)[-1].audited is None
    stand_in.say("audit")
    lane.work()
    assert [run["inputs"]["whole"] for run in stand_in.runs] == [True, False, True]
    assert asked(lane) >= set(lane.shas(*new))
    assert lane.world.rows(schema.drops)[-1].audited is not None


def test_a_label_is_not_taken_for_a_class_that_is_gone(lane: Lane, stand_in: StandIn) -> None:
    dogs = {row.sample_id for row in lane.world.rows(schema.occurrences, class_name="dog")}
    new = lane.world.samples("cat", "train", 2, mark="new")
    stand_in.flag(*lane.shas(new[0]))  # as a dog
    lane.world.vanish(*dogs)
    lane.work()
    assert [run["inputs"]["whole"] for run in stand_in.runs] == [True, False, True]
    assert len(asked(lane)) == 32


def test_an_audit_that_was_killed_is_done_again(lane: Lane, stand_in: StandIn) -> None:
    new = lane.world.samples("cat", "train", 30, mark="new")[:1] + lane.world.samples("cat", "train", 2, mark="more")
    stand_in.flag(*lane.shas(*new))
    stand_in.behave(audit=["ok", "die without a word", "ok"])
    lane.work()
    assert lane.open() == []
    successor = Lane(lane.world)  # a daemon that knows nothing of it
    successor.work()
    assert len(lane.open()) == 3
    assert all(row.audited for row in lane.world.rows(schema.drops))


def test_a_move_after_the_review_is_a_newer_act(lane: Lane, stand_in: StandIn) -> None:
    (sample,) = lane.world.samples("cat", "train", 1, mark="new")
    stand_in.flag(*lane.shas(sample))
    lane.work()
    lane.answer("accept", ids=lane.open())
    assert lane.usable()[sample] == "dog"
    lane.world.move(sample, "owl")
    assert lane.usable()[sample] == "owl"


def test_an_answer_outlasts_a_file_that_is_touched_renamed_or_gone_and_back(lane: Lane, stand_in: StandIn) -> None:
    first, second = lane.world.samples("cat", "train", 2, mark="new")
    stand_in.flag(*lane.shas(first, second))
    lane.work()
    lane.answer("accept", ids=lane.open()[:1])
    lane.answer("keep", ids=lane.open())
    for sample in (first, second):
        lane.world.move(sample, "cat")  # the same content at another path, or again at the same
        lane.world.move(sample, "cat")
    lane.work()
    assert (lane.usable()[first], lane.usable()[second], lane.open()) == ("dog", "cat", [])
    lane.world.vanish(first, at=now())
    lane.work()
    assert first not in lane.usable()
    lane.world.appear(first, "cat", at=now())
    assert (lane.usable()[first], lane.open()) == ("dog", [])
    lane.world.move(first, "owl")
    lane.world.move(second, "dog")
    assert (lane.usable()[first], lane.usable()[second]) == ("owl", "dog")


def test_a_copy_in_another_class_is_a_conflict_whatever_was_answered_before(lane: Lane, stand_in: StandIn) -> None:
    (sample,) = lane.world.samples("cat", "train", 1, mark="new")
    stand_in.flag(*lane.shas(sample))
    lane.work()
    lane.answer("keep", ids=lane.open())
    lane.world.appear(sample, "cat", at=now())
    assert lane.usable()[sample] == "cat"
    lane.world.appear(sample, "dog", at=now())
    assert sample not in lane.usable()


def test_an_audit_that_fails_holds_nothing_up(lane: Lane, stand_in: StandIn) -> None:
    stand_in.behave(audit=["ok", "fail", "ok"])
    lane.world.samples("cat", "train", 2, mark="new")
    lane.work()
    assert not lane.auditor.busy
    assert lane.world.rows(schema.drops)[-1].audited is None
    lane.work()
    assert lane.world.rows(schema.drops)[-1].audited is not None


def test_a_backbone_audits_what_comes_before_there_is_a_champion(world: World, stand_in: StandIn) -> None:
    world.config = load(world.config.workspace, ["audit.backbone=tf_efficientnet_lite0", "audit.size=64"])
    cats = world.samples("cat", "train", 15)
    world.samples("dog", "train", 15)
    world.require()
    lane = Lane(world)
    stand_in.flag(*lane.shas(*cats[:1]))
    lane.work()
    assert [run["stage"] for run in stand_in.runs] == ["sketch", "audit"]
    drawn, audit = (run["inputs"] for run in stand_in.runs)
    assert (drawn["architecture"], drawn["weights"], drawn["height"]) == ("tf_efficientnet_lite0", "timm", 64)
    assert drawn["model"] == audit["model"]
    (flag,) = world.rows(schema.flags)
    assert flag.model_id == Path(drawn["model"]).name == Path(audit["embeddings"]).name
    (Path(drawn["model"]) / "manifest.json").parent.mkdir(parents=True)
    (Path(drawn["model"]) / "manifest.json").touch()
    world.samples("cat", "train", 2, mark="new")
    lane.work()
    assert [run["stage"] for run in stand_in.runs][2:] == ["audit"]  # it is there
