"""What happens is noted by the transaction that makes it so, of each kind; and how it is put into words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from daemon import flags, schema
from daemon.journal import add, change
from daemon.notices import KINDS, Notice, message

World = Any  # tests/unit/daemon/conftest.py
SAID = {"event": "", "findings": [], "evidence": {}, "settings": {}, "policy": 1}


def noted(world: World) -> list[tuple[str, str | None, str, str, str, str]]:
    rows = world.rows(schema.notices)
    return [(row.kind, row.target, row.about, row.what, row.reason, row.see) for row in rows]


def decide(connection: Connection, action: str) -> int:
    return add(connection, schema.decisions, at=5.0, target="edge", action=action, reason="120 new samples", **SAID)


def switch(world: World, artifact: str, version: int, **columns: Any) -> int:
    """A promotion that is under way."""
    with world.journal.begin() as connection:
        values = {"kind": "promotion", "reason": "better by 2 points", "by": "policy", "started": 1.0, **columns}
        row = {"target": "edge", "artifact_id": artifact, "version": version, "state": "switching"}
        return add(connection, schema.promotions, **row, **values)


def update(world: World, table: Any, row: int, **values: Any) -> None:
    with world.journal.begin() as connection:
        change(connection, table, row, **values)


def test_a_decision(world: World) -> None:
    with world.journal.begin() as connection:
        decide(connection, "train")
    assert noted(world) == [("decision", "edge", "d1", "train", "120 new samples", "explain d1")]
    assert world.row(schema.notices).at == 5.0


def test_a_verdict_and_what_was_promoted_by_it(world: World) -> None:
    cycle = world.champion()
    about = {"cycle_id": cycle, "target": "edge", "artifact_id": "old", "better": True, "verdict": {}, "facts": {}}
    with world.journal.begin() as connection:
        id_ = add(connection, schema.verdicts, answer="promote", reason="better by 2 points", at=6.0, **about)
    promotion = switch(world, "old", 2, verdict_id=id_, cycle_id=cycle)
    update(world, schema.promotions, promotion, step="probe")
    update(world, schema.promotions, promotion, state="serving")
    update(world, schema.promotions, promotion, state="retired")
    assert noted(world)[1:] == [
        ("verdict", "edge", "v1", "promote", "better by 2 points", "explain v1"),
        ("promotion", "edge", "edge/2", "version 2 is served", "better by 2 points", "explain v1"),
    ]


def test_a_rollback(world: World) -> None:
    world.champion()
    update(world, schema.promotions, switch(world, "old", 2, kind="rollback", reason="ann asked"), state="serving")
    assert noted(world)[1:] == [("rollback", "edge", "edge/2", "version 2 is served", "ann asked", "status")]


def test_a_promotion_that_failed_but_none_that_was_withdrawn(world: World) -> None:
    cycle = world.champion()
    for version, error in (
        (2, "Triton refused it"),
        (3, "withdrawn: the constraints changed"),
        (4, "taken back by ann"),
    ):
        promotion = switch(world, "old", version, cycle_id=cycle)
        update(world, schema.promotions, promotion, state="undoing", error=error)
        update(world, schema.promotions, promotion, state="failed")
    failed = ("trouble", "edge", "edge/2", "version 2 could not be served", "Triton refused it", f"explain c{cycle}")
    assert noted(world)[1:] == [failed]


def test_trouble_with_what_is_served_and_its_end(world: World) -> None:
    world.champion()
    (row,) = world.rows(schema.promotions)
    for error in ("its folder is gone", "its folder is still gone", None):
        update(world, schema.promotions, row.id, error=error)
    assert [(kind, what, reason) for kind, _, _, what, reason, _ in noted(world)[1:]] == [
        ("trouble", "version 1 is not served as it should be", "its folder is gone"),
        ("trouble", "version 1 is served as it should be again", "it is over: its folder is still gone"),
    ]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("ask", ("approval", "a person is asked")),
        ("violated", ("violated", "nothing meets the constraints")),
        ("failed", ("trouble", "cycle 1 failed")),
        ("promoted", None),
        ("kept", None),
        ("interrupted", None),
    ],
)
def test_a_cycle_that_ends(world: World, outcome: str, expected: tuple[str, str] | None) -> None:
    cycle = world.cycle()
    state = {"failed": "failed", "interrupted": "interrupted"}.get(outcome, "done")
    update(world, schema.cycles, cycle, state=state, outcome=outcome, reason="because", ended=7.0)
    new = [(kind, what) for kind, _, about, what, _, see in noted(world) if (about, see) == ("c1", "explain c1")]
    assert new == ([expected] if expected else [])


def test_a_held_drop_once_and_again_when_it_is_held_again(world: World) -> None:
    world.require()
    held = ("hold", None, "drop 1", "drop 1 is held", "30% of its labels are wrong", "flags --drop 1")
    with world.journal.begin() as connection:
        drop = add(connection, schema.drops, folder="/images", state="ready", started=1.0)
        change(connection, schema.drops, drop, audited=2.0, reason="30% of its labels are wrong")
        change(connection, schema.drops, drop, state="held")
        decide(connection, "hold")  # one for each target
    assert noted(world) == [held]
    with world.journal.begin() as connection:
        flags.release(connection, drop, "ann")
        change(connection, schema.drops, drop, state="held")
    assert [row[:4] for row in noted(world)] == [held[:4], held[:4]]


def test_a_constraint_file_that_is_refused(world: World) -> None:
    world.require()
    with world.journal.begin() as connection:
        add(connection, schema.constraint_files, target="edge", at=1.0, text="", error="edge.toml:3: unknown key")
    refused = ("trouble", "edge", "edge.toml", "the constraint file is refused")
    assert noted(world) == [(*refused, "edge.toml:3: unknown key", "check-config")]


def test_what_is_rolled_back_was_never_noted(journal: Engine, world: World) -> None:
    with pytest.raises(InterruptedError), journal.begin() as connection:
        decide(connection, "train")
        raise InterruptedError
    assert noted(world) == []


def test_a_message_says_what_why_and_how_to_learn_more() -> None:
    notice = Notice(7, "verdict", "edge", "v12", "keep", "worse by 3 points\n(p = 0.01)", "explain v12", 86_400.0)
    told = message(notice, Path("/srv/line"))
    assert told["title"] == "edge: verdict: keep"
    assert told["body"].startswith("worse by 3 points\n(p = 0.01)\n\n1970-01-02 00:00:00 UTC on ")
    assert told["body"].endswith("relearn explain v12 --workspace /srv/line")
    fields = told["fields"]
    assert (fields["id"], fields["kind"], fields["target"], fields["about"]) == ("7", "verdict", "edge", "v12")
    assert (fields["at"], fields["explain"]) == (
        "1970-01-02T00:00:00+00:00",
        "relearn explain v12 --workspace /srv/line",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_title_is_one_line(kind: str) -> None:
    told = message(Notice(1, kind, "a\nb", "x", "some\nthing", "why", "status", 1.0), Path("/srv"))
    assert told["title"].startswith("a b: ") and "\n" not in told["title"]
    assert all(isinstance(value, str) for value in told["fields"].values())
