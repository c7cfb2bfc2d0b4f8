"""Images that stand in two classes at once: listed, and settled by a person's word."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import conflicts, labels, schema
from daemon.errors import NotFound, UsageError

World = Any  # tests/unit/daemon/conftest.py


@pytest.fixture
def odd(world: World) -> list[int]:
    """Two cats that lie among the dogs too, and one among the dogs and the owls; a dog in two places is none."""
    world.samples("owl", "train", 1)
    (dog,) = world.samples("dog", "train", 1)
    world.appear(dog, "dog")
    found = world.samples("cat", "train", 3)
    for sample in found:
        world.appear(sample, "dog")
    world.appear(found[2], "owl")
    return list(found)


def listed(journal: Engine) -> dict[str, list[str]]:
    with journal.connect() as connection:
        return {view["sha256"]: view["classes"] for view in conflicts.find(connection)}


def settle(
    journal: Engine, *named: str, pair: list[str] | None = None, to: str = "cat", new_class: bool = False
) -> str:
    with journal.begin() as connection:
        return conflicts.settle(connection, named, pair, to, "ann", new_class=new_class)


def test_each_is_listed_with_its_classes_and_files(journal: Engine, odd: list[int]) -> None:
    assert list(listed(journal).values()) == [["cat", "dog"], ["cat", "dog"], ["cat", "dog", "owl"]]
    with journal.connect() as connection:
        assert [len(view["files"]) for view in conflicts.find(connection)] == [2, 2, 3]


def test_what_a_person_says_settles_it_until_a_file_says_another(journal: Engine, world: World, odd: list[int]) -> None:
    first, second, _ = listed(journal)
    assert settle(journal, first[:8].upper(), to="dog") == "conflicts settled: 1, as dog"
    assert first not in listed(journal)
    with journal.connect() as connection:
        rows = connection.execute(labels.current().select()).all()
    assert {row.class_name for row in rows if row.sample_id == odd[0]} == {"dog"}
    (row,) = world.rows(schema.labels, source="review")
    assert (row.sample_id, row.class_name, row.source, row.by) == (odd[0], "dog", "review", "ann")
    world.move(odd[0], "owl")  # a later act
    with journal.connect() as connection:
        rows = connection.execute(labels.current().select()).all()
    assert {row.class_name for row in rows if row.sample_id == odd[0]} == {"owl"}
    assert second in listed(journal)


def test_a_pair_of_classes_is_settled_in_bulk(journal: Engine, odd: list[int]) -> None:
    assert settle(journal, pair=["dog", "cat"]) == "conflicts settled: 2, as cat"
    assert list(listed(journal).values()) == [["cat", "dog", "owl"]]


@pytest.mark.parametrize(
    ("order", "error", "said"),
    [
        ({}, UsageError, "which images"),
        ({"named": ["ab"]}, UsageError, "too short"),
        ({"named": ["f" * 64]}, NotFound, "no image in conflict has a hash"),
        ({"pair": ["cat", "owl"]}, NotFound, "no image stands in cat and owl alone"),
        ({"pair": ["cat", "dog"], "to": "dgo"}, UsageError, "nearest: dog"),
        ({"pair": ["cat", "dog"], "to": "a/b"}, UsageError, "no folder of a class is called so"),
    ],
)
def test_an_order_that_names_nothing_writes_nothing(
    journal: Engine, world: World, odd: list[int], order: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        settle(journal, *order.pop("named", ()), **order)
    assert world.rows(schema.labels, source="review") == []


def test_a_class_may_be_new(journal: Engine, odd: list[int]) -> None:
    settle(journal, pair=["cat", "dog"], to="fox", new_class=True)
    assert len(listed(journal)) == 1
