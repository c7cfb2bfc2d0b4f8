"""What people took away stays away: what a rollback went back behind, what was refused, until a person chooses it."""

from __future__ import annotations

from typing import Any

import pytest

from daemon import schema
from daemon.declined import declined
from daemon.journal import add

World = Any  # tests/unit/daemon/conftest.py
Act = tuple[str, str, str]  # kind, artifact, by


@pytest.fixture
def history(world: World) -> Any:
    """What is declined after these promotions, each at its own moment."""
    world.samples("cat", "train")
    cycle = world.cycle()

    def happened(*acts: Act, served: float | None = 1.0, state: str = "retired", error: str | None = None) -> list[str]:
        for version, (kind, artifact, by) in enumerate(acts, start=1):
            if not world.rows(schema.artifacts, id=artifact):
                world.artifact(artifact, cycle)
            last = version == len(acts)
            how = {"served": served if last else 1.0, "state": state if last else "retired"}
            how |= {"error": error} if last else {}
            world.promote(artifact, version, kind=kind, by=by, started=float(version), **how)
        with world.journal.connect() as connection:
            return sorted(declined(connection, "edge"))

    return happened


def policy(*artifacts: str) -> list[Act]:
    return [("promotion", artifact, "policy") for artifact in artifacts]


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        (policy("a", "b"), []),
        ([*policy("a", "b"), ("rollback", "a", "ann")], ["b"]),
        ([*policy("a", "b", "c"), ("rollback", "a", "ann")], ["b", "c"]),  # all that came since
        ([*policy("a", "b", "a", "c"), ("rollback", "a", "ann")], ["c"]),  # b had gone by itself
        ([*policy("a", "b"), ("rollback", "a", "ann"), ("rollback", "b", "ann")], ["a"]),  # back and forth
        ([*policy("a", "b"), ("rollback", "a", "ann"), ("promotion", "b", "ann")], []),  # approved after all
        ([*policy("a"), ("forced", "b", "ann")], ["a"]),
        ([*policy("a", "b"), ("rollback", "c", "ann")], ["b"]),  # to what never served
        ([*policy("a", "b"), ("rollback", "a", "ann"), *policy("c")], ["b"]),  # new data: another model may come
    ],
)
def test_what_a_person_took_away_is_no_candidate(history: Any, acts: list[Act], expected: list[str]) -> None:
    assert history(*acts) == expected


def test_a_rollback_that_came_to_nothing_takes_nothing_away(history: Any) -> None:
    acts = [*policy("a", "b"), ("rollback", "a", "ann")]
    assert history(*acts, served=None, state="failed") == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (("forced", "b", "ann"), ["b"]),  # what serves was not replaced by it
        (("promotion", "b", "policy"), ["b"]),
        (("settings", "a", "policy"), []),  # the champion's own renewal
        (("move", "a", "policy"), []),
    ],
)
def test_what_was_taken_back_before_it_served_is_all_that_was_taken_away(
    history: Any, last: Act, expected: list[str]
) -> None:
    assert history(*policy("a"), last, served=None, state="failed", error="taken back by ann") == expected


def test_a_rollback_counts_from_the_moment_it_is_asked_for(history: Any) -> None:
    assert history(*policy("a", "b"), ("rollback", "a", "ann"), served=None, state="switching") == ["b"]


def test_the_same_model_in_another_precision_stays_away_too(history: Any, world: World) -> None:
    history(*policy("a", "b"))
    with world.journal.begin() as connection:
        built = {"engine": "onnxruntime", "precision": "int8", "artifact_mb": 1.0, "created": 1.0}
        add(connection, schema.artifacts, id="b of int8", model_id="b", **built)
    world.promote("a", 3, kind="rollback", by="ann", started=3.0)
    with world.journal.connect() as connection:
        assert sorted(declined(connection, "edge")) == ["b", "b of int8"]
    world.promote("b of int8", 4, kind="forced", by="ann", started=4.0, state="retired")
    world.promote("b", 5, kind="rollback", by="ann", started=5.0)  # of the same model: the precision was at fault
    with world.journal.connect() as connection:
        assert sorted(declined(connection, "edge")) == ["a", "b of int8"]
        assert declined(connection, "other") == {}


def test_what_was_refused_says_who_and_why(history: Any, world: World) -> None:
    history(*policy("a"))
    cycle = world.rows(schema.cycles)[0].id
    world.artifact("b", cycle)
    said = {"answer": "promote", "reason": "", "better": True, "verdict": {}, "facts": {}, "at": 1.0}
    refused = {"approval": "refused", "answered": 86_400.0 * 2, "answered_by": "ann", "because": "not now"}
    with world.journal.begin() as connection:
        add(connection, schema.verdicts, cycle_id=cycle, target="edge", artifact_id="b", **said, **refused)
        (found,) = declined(connection, "edge").values()
    assert found.startswith("ann refused b on 1970-01-0")
    assert found.endswith(" (not now)")
