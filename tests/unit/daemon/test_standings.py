"""Each state that a sample may stand in; and that what is kept is what would be worked out from nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, select, update

from daemon import schema, standings
from daemon.journal import add, change, now
from policies.labels import SURE, UNLIKELY, is_sure
from tests.unit.daemon.conftest import World

CLASSES = ("cat", "dog")


def of(world: World, sample: int) -> tuple[str | None, str | None, str]:
    row = world.row(schema.standings, sample_id=sample)
    return row.class_name, row.role, row.state


def flag(world: World, sample: int, *, sure: bool) -> int:
    told = {"given": "cat", "suggested": "dog", "score": 0.001, "suggested_score": 0.99 if sure else 0.6}
    with world.journal.begin() as connection:
        return add(connection, schema.flags, sample_id=sample, model_id="m", at=1.0, state="open", **told)


def hold(world: World, drop: int, state: str = "held") -> None:
    with world.journal.begin() as connection:
        change(connection, schema.drops, drop, state=state)


def forget(world: World, sample: int, at: float | None = 3.0) -> None:
    with world.journal.begin() as connection:
        change(connection, schema.samples, sample, forgotten=at)


def review(world: World, sample: int, name: str) -> None:
    with world.journal.begin() as connection:
        about = {"source": "review", "by": "a person", "at": now()}
        add(connection, schema.labels, sample_id=sample, class_name=name, **about)


def test_a_labelled_sample_with_a_role_is_usable(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    assert of(world, sample) == ("cat", "train", "usable")


def test_one_without_a_class_is_unlabelled(world: World) -> None:
    (sample,) = world.samples(None, "train")
    assert of(world, sample) == (None, None, "unlabelled")


def test_one_without_a_group_is_ungrouped(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    with world.journal.begin() as connection:
        change(connection, schema.samples, sample, group_id=None)
    assert of(world, sample) == ("cat", None, "ungrouped")


def test_one_in_two_classes_is_in_conflict_until_one_of_them_goes(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    world.appear(sample, "dog")
    assert of(world, sample) == (None, "train", "conflict")
    world.vanish(sample)
    assert of(world, sample) == (None, "train", "gone")


def test_what_a_person_answered_of_it_counts(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    review(world, sample, "dog")
    assert of(world, sample) == ("dog", "train", "usable")
    world.move(sample, "bird")
    assert of(world, sample) == ("bird", "train", "usable")


def test_one_that_is_held_keeps_its_class_for_later(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    drop = world.row(schema.drops).id
    hold(world, drop)
    assert of(world, sample) == ("cat", "train", "held")
    hold(world, drop, "ready")
    assert of(world, sample) == ("cat", "train", "usable")


@pytest.mark.parametrize(
    ("role", "sure", "state"),
    [("train", True, "flagged"), ("train", False, "usable"), ("judge", True, "usable")],
)
def test_a_sure_flag_keeps_it_out_of_training_alone(world: World, role: str, sure: bool, state: str) -> None:
    (sample,) = world.samples("cat", role)
    number = flag(world, sample, sure=sure)
    assert of(world, sample)[2] == state
    with world.journal.begin() as connection:
        change(connection, schema.flags, number, state="withdrawn")
    assert of(world, sample) == ("cat", role, "usable")


def test_a_forgotten_one_is_used_nowhere(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    forget(world, sample)
    assert of(world, sample)[2] == "forgotten"
    forget(world, sample, None)
    assert of(world, sample)[2] == "usable"


def test_new_samples_of_a_drop_count_once_it_is_over(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    with world.journal.begin() as connection:
        drop = add(connection, schema.drops, folder=world.folder, state="reading", started=2.0)
        sha = {"sha256": b"\1" * 32, "bytes": 9, "width": 8, "height": 8, "mode": "RGB", "first_seen": 2.0}
        new = add(connection, schema.samples, **sha)
        place = {"folder": world.folder, "path": "cat/new", "class_name": "cat", "drop_id": drop}
        add(connection, schema.occurrences, sample_id=new, size=9, mtime_ns=1, first_seen=2.0, **place)
    assert [row.sample_id for row in world.rows(schema.standings)] == [sample]
    hold(world, drop, "ready")
    assert of(world, new) == ("cat", None, "ungrouped")


def test_a_known_one_that_a_drop_shows_in_another_class_is_in_conflict_at_once(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    with world.journal.begin() as connection:
        drop = add(connection, schema.drops, folder=world.folder, state="reading", started=2.0)
        place = {"folder": world.folder, "path": "dog/copy", "class_name": "dog", "drop_id": drop}
        add(connection, schema.occurrences, sample_id=sample, size=9, mtime_ns=1, first_seen=2.0, **place)
    assert of(world, sample)[2] == "conflict"


@pytest.mark.parametrize(("score", "suggested"), [(UNLIKELY, 0.99), (0.0, SURE), (UNLIKELY - 1e-9, SURE + 1e-9)])
def test_a_query_and_the_policy_agree_on_what_is_beyond_doubt(world: World, score: float, suggested: float) -> None:
    (sample,) = world.samples("cat", "train")
    number = flag(world, sample, sure=True)
    with world.journal.begin() as connection:
        change(connection, schema.flags, number, score=score, suggested_score=suggested)
    assert (of(world, sample)[2] == "flagged") is is_sure(score, suggested)


def test_what_a_transaction_changed_stands_before_it_is_committed(world: World) -> None:
    (sample,) = world.samples("cat", "train")
    with world.journal.begin() as connection:
        connection.execute(update(schema.samples).where(schema.samples.c.id == sample).values(forgotten=1.0))
        assert list(standings.usable(connection)) == []


def test_only_what_differs_counts_as_changed(world: World) -> None:
    one, other = world.samples("cat", "train", 2)
    before = world.row(schema.standings, sample_id=one).changed
    flag(world, one, sure=False)
    forget(world, other)
    assert world.row(schema.standings, sample_id=one).changed == before
    assert world.row(schema.standings, sample_id=other).changed > before


def test_what_changed_since_is_told_with_what_may_not_be_used_any_more(world: World) -> None:
    one, other, third = world.samples("cat", "train", 3)
    world.samples("dog", "train")
    with world.journal.connect() as connection:
        since = standings.latest(connection)
    forget(world, one)
    world.move(other, "dog")
    with world.journal.connect() as connection:
        unusable = list(standings.unusable_since(connection, since))
        usable = standings.usable_since(connection, since, ["cat", "dog"])
        of_other_classes = standings.usable_since(connection, standings.latest(connection), ["dog"])
    assert [(row.sample, row.name) for row in usable] == [(other, "dog")]
    assert unusable == [world.row(schema.samples, id=one).sha256]
    assert [row.sample for row in of_other_classes] == [third]


def read_again(world: World, sample: int, name: str) -> None:
    """A file of it in a drop that is still being read; that of "dog" is over a moment later."""
    with world.journal.begin() as connection:
        drop = add(connection, schema.drops, folder=world.folder, state="reading", started=now())
        place = {"folder": world.folder, "path": f"{name}/{drop} read", "class_name": name, "drop_id": drop}
        add(connection, schema.occurrences, sample_id=sample, size=9, mtime_ns=1, first_seen=now(), **place)
    if name == "dog":
        hold(world, drop, "ready")


def last_drop(world: World, sample: int) -> int:
    return int(world.rows(schema.occurrences, sample_id=sample)[-1].drop_id)


def group(world: World, sample: int, name: str) -> None:
    with world.journal.begin() as connection:
        given_ = connection.execute(select(schema.groups.c.id)).scalars().first() if name == "dog" else None
        change(connection, schema.samples, sample, group_id=given_)


def answer(world: World, sample: int) -> None:
    with world.journal.begin() as connection:
        mine = schema.flags.c.sample_id == sample
        connection.execute(update(schema.flags).where(mine).values(state="kept"))


OPERATIONS: dict[str, Callable[[World, int, str], Any]] = {
    "move": lambda world, sample, name: world.move(sample, name),
    "appear": lambda world, sample, name: world.appear(sample, name, at=now()),
    "read": read_again,
    "vanish": lambda world, sample, name: world.vanish(sample, at=now()),
    "relabel": lambda world, sample, name: world.relabel(sample, name),
    "review": review,
    "flag": lambda world, sample, name: flag(world, sample, sure=name == "dog"),
    "forget": lambda world, sample, name: forget(world, sample, now() if name == "dog" else None),
    "hold": lambda world, sample, name: hold(world, last_drop(world, sample)),
    "release": lambda world, sample, name: hold(world, last_drop(world, sample), "ready"),
    "group": group,
    "answer": lambda world, sample, name: answer(world, sample),
}


def everything(journal: Engine) -> list[tuple[Any, ...]]:
    table = schema.standings
    what = (table.c.sample_id, table.c.class_name, table.c.role, table.c.state, table.c.drop_id)
    with journal.connect() as connection:
        return [tuple(row) for row in connection.execute(select(*what).order_by(table.c.sample_id))]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 3), st.sampled_from(CLASSES))))
def test_after_anything_what_is_kept_is_what_would_be_worked_out(
    world: World, done: list[tuple[str, int, str]]
) -> None:
    mark = str(now())
    ids = [*world.samples("cat", "train", 2, mark), *world.samples("dog", "judge", 1, mark)]
    ids += world.samples(None, "train", 1, mark)
    for what, which, name in done:
        OPERATIONS[what](world, ids[which], name)
    kept = everything(world.journal)
    with world.journal.begin() as connection:
        connection.execute(delete(schema.standings))
        connection.execute(insert(schema.stale).from_select(["sample_id"], select(schema.samples.c.id)))
    assert kept == everything(world.journal)
