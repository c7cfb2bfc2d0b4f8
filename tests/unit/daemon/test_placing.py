"""Which group a sample joins: by key, by likeness, and none where it is near to two roles."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

import pytest
from sqlalchemy import select

from daemon import data_report, placing, schema
from daemon.journal import add
from policies.facts import Role

World = Any  # tests/unit/daemon/conftest.py
SHARES: dict[Role, float] = {"train": 0.8, "tune": 0.1, "judge": 0.1}


def come(world: World, names: list[str], keys: list[str | None] | None = None, mark: str = "") -> tuple[int, list[int]]:
    """A drop of new samples of these classes, not placed yet; its id and theirs."""
    with world.journal.begin() as connection:
        drop = add(connection, schema.drops, folder=world.folder, state="ready", started=1.0)
        ids = []
        for number, name in enumerate(names):
            sha = hashlib.sha256(f"{mark} {number}".encode()).digest()
            looks = {"bytes": 9, "width": 8, "height": 8, "mode": "RGB", "first_seen": 1.0}
            ids.append(add(connection, schema.samples, sha256=sha, **looks))
            add(
                connection, schema.occurrences, sample_id=ids[-1], folder=world.folder, path=f"{name}/{mark}{number}",
                class_name=name, group_key=keys[number] if keys else None, size=9, mtime_ns=1, drop_id=drop,
                first_seen=1.0,
            )  # fmt: skip
    return drop, ids


def place(world: World, drop: int, *pairs: tuple[int, int]) -> None:
    with world.journal.begin() as connection:
        placing.remember(connection, pairs)
        placing.place(connection, drop, SHARES)


def role(world: World, sample: int) -> str | None:
    group = world.row(schema.samples, id=sample).group_id
    return None if group is None else str(world.row(schema.groups, id=group).role)


def test_each_sample_of_its_own_gets_a_group_of_its_own(world: World) -> None:
    drop, ids = come(world, ["cat"] * 20)
    place(world, drop)
    assert len({world.row(schema.samples, id=id_).group_id for id_ in ids}) == 20
    assert Counter(role(world, id_) for id_ in ids) == {"train": 16, "tune": 2, "judge": 2}


def test_near_duplicates_share_a_group_also_by_way_of_others(world: World) -> None:
    drop, (a, b, c, d) = come(world, ["cat"] * 4)
    place(world, drop, (a, b), (c, b))
    groups = [world.row(schema.samples, id=id_).group_id for id_ in (a, b, c, d)]
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_a_near_duplicate_that_comes_later_joins_its_twin(world: World) -> None:
    drop, ids = come(world, ["cat"] * 20)
    place(world, drop)
    judged = next(id_ for id_ in ids if role(world, id_) == "judge")
    later, (twin,) = come(world, ["dog"], mark="later")
    place(world, later, (twin, judged))
    assert world.row(schema.samples, id=twin).group_id == world.row(schema.samples, id=judged).group_id


def test_what_is_near_to_two_roles_is_used_nowhere_and_shown(world: World) -> None:
    drop, ids = come(world, ["cat"] * 20)
    place(world, drop)
    one, other = (next(id_ for id_ in ids if role(world, id_) == name) for name in ("train", "judge"))
    later, (between, beside) = come(world, ["cat", "cat"], mark="later")
    place(world, later, (between, one), (between, other))
    assert (role(world, between), role(world, beside) is None) == (None, False)
    with world.journal.connect() as connection:
        (shown,) = data_report.report(connection, world.config)["near_two_roles"]
    assert shown["sha256"] == world.row(schema.samples, id=between).sha256.hex()
    assert {twin["role"] for twin in shown["near"]} == {"train", "judge"}


def test_an_unlabelled_image_links_those_on_its_two_sides(world: World) -> None:
    _, (unlabelled,) = come(world, ["cat"], mark="unlabelled")
    world.relabel(unlabelled, None)
    drop, (a, b) = come(world, ["cat", "cat"])
    place(world, drop, (a, unlabelled), (b, unlabelled))
    assert world.row(schema.samples, id=a).group_id == world.row(schema.samples, id=b).group_id
    assert role(world, unlabelled) is None


def test_the_users_key_makes_the_group_now_and_later(world: World) -> None:
    drop, ids = come(world, ["cat"] * 6, ["p1", "p1", "p2", "p2", "p3", None])
    place(world, drop, (ids[0], ids[2]))  # that two parts look alike is the user's matter
    later, (more,) = come(world, ["dog"], ["p1"], mark="later")
    place(world, later)
    groups = [world.row(schema.samples, id=id_).group_id for id_ in (*ids, more)]
    assert groups[0] == groups[1] == groups[6]
    assert len(set(groups)) == 4


@pytest.mark.parametrize("together", [True, False])
def test_near_duplicates_lie_in_one_role_where_only_one_has_a_key(world: World, together: bool) -> None:
    for number in range(20):
        if together:
            drop, (one, other) = come(world, ["cat"] * 2, [None, f"part-{number}"], mark=f"of {number}")
        else:
            first, (one,) = come(world, ["cat"], mark=f"of {number}")
            place(world, first)
            drop, (other,) = come(world, ["cat"], [f"part-{number}"], mark=f"later {number}")
        place(world, drop, (one, other))
        assert role(world, one) == role(world, other) is not None
    with world.journal.connect() as connection:
        used = select(schema.samples.c.group_id)
        assert connection.execute(select(schema.groups.c.id).where(schema.groups.c.id.not_in(used))).all() == []


def test_near_duplicates_under_two_new_keys_lie_in_one_role(world: World) -> None:
    for number in range(20):
        keys = [f"{side}-{number}" for side in ("left", "right")]
        drop, (one, other) = come(world, ["cat"] * 2, keys, mark=f"of {number}")
        place(world, drop, (one, other))
        assert role(world, one) == role(world, other) is not None


def test_what_its_key_and_its_twin_would_put_in_two_roles_is_used_nowhere(world: World) -> None:
    drop, ids = come(world, ["cat"] * 20, [f"part-{number}" for number in range(20)])
    place(world, drop)
    judged = next(id_ for id_ in ids if role(world, id_) == "judge")
    trained = next(number for number, id_ in enumerate(ids) if role(world, id_) == "train")
    later, (odd, even) = come(world, ["cat"] * 2, [f"part-{trained}"] * 2, mark="later")
    place(world, later, (odd, judged))
    assert role(world, odd) is None
    assert world.row(schema.samples, id=even).group_id == world.row(schema.samples, id=ids[trained]).group_id


@pytest.mark.parametrize("size", [1, 3, 10])
def test_shares_hold_by_class_as_far_as_groups_allow(world: World, size: int) -> None:
    """Ten groups of one size: eight, one and one; by a hash alone a third of such classes had no judge."""
    names = [name for name in ("cat", "dog") for _ in range(10 * size)]
    keys: list[str | None] = [f"{name} {number // size}" for number, name in enumerate(names)]
    drop, ids = come(world, names, keys)
    place(world, drop)
    found: dict[str, Counter[str | None]] = defaultdict(Counter)
    for id_, name in zip(ids, names, strict=True):
        found[name][role(world, id_)] += 1
    assert all(counts == {"train": 8 * size, "tune": size, "judge": size} for counts in found.values())


def test_a_role_once_given_stays(world: World) -> None:
    drop, ids = come(world, ["cat"] * 20)
    place(world, drop)
    before = [role(world, id_) for id_ in ids]
    place(world, drop, (ids[0], ids[1]))
    assert [role(world, id_) for id_ in ids] == before
    with world.journal.connect() as connection:
        assert len(connection.execute(select(schema.near_duplicates)).all()) == 1
