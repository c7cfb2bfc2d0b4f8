"""What must stay in the state folder, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from daemon import pins, roots, schema
from daemon.errors import NotFound, UsageError
from daemon.journal import add, change

World = Any  # tests/unit/daemon/conftest.py


def gather(world: World, keep_versions: int = 2) -> roots.Roots:
    with world.journal.connect() as connection:
        return roots.gather(connection, keep_versions)


def pin(world: World, named: str) -> str:
    with world.journal.begin() as connection:
        return str(pins.pin(connection, named)["answer"])


def unpin(world: World, named: str) -> str:
    with world.journal.begin() as connection:
        return str(pins.unpin(connection, named)["answer"])


@pytest.fixture
def served(world: World) -> World:
    """Four versions of a target, the last of which serves, each trained on a snapshot of its own."""
    world.require()
    for version, name in enumerate(("one", "two", "three", "four"), start=1):
        world.samples("cat", "train", mark=name)
        world.samples("dog", "judge", mark=name)
        world.champion(name, version)
    with world.journal.begin() as connection:
        for row in world.rows(schema.promotions)[:-1]:
            change(connection, schema.promotions, row.id, state="retired", ended=3.0)
    return world


def test_what_is_served_stays_with_what_it_stands_on(served: World) -> None:
    found = gather(served)
    assert found.artifacts["four"] == "served by edge"
    assert found.models["four"] == "artifact four is built of it: served by edge"
    snapshot = served.row(schema.models, id="four").snapshot_id
    assert found.snapshots[snapshot].startswith("to train, prove or build model four again")


def test_the_last_versions_stay_for_a_rollback_and_no_more(served: World) -> None:
    assert set(gather(served, 2).artifacts) == {"three", "four"}
    assert set(gather(served, 3).artifacts) == {"two", "three", "four"}
    assert "relearn rollback" in gather(served, 2).artifacts["three"]


def test_what_waits_for_a_person_stays(served: World) -> None:
    said = {"answer": "promote", "reason": "", "better": True, "verdict": {}, "facts": {}, "at": 1.0}
    about = {"cycle_id": 1, "target": "edge", "artifact_id": "one", "approval": "waiting"}
    with served.journal.begin() as connection:
        id_ = add(connection, schema.verdicts, **about, **said)
    assert gather(served).artifacts["one"] == "it waits for `relearn approve edge`"
    with served.journal.begin() as connection:
        change(connection, schema.verdicts, id_, approval="refused")
    assert "one" not in gather(served).artifacts


def test_a_version_served_twice_counts_once(served: World) -> None:
    served.promote("three", 5)
    with served.journal.begin() as connection:
        change(connection, schema.promotions, served.row(schema.promotions, version=4).id, state="retired")
    found = gather(served, 2)
    assert (set(found.artifacts), found.artifacts["three"]) == ({"three", "four"}, "served by edge")


def test_what_is_being_switched_to_stays(served: World) -> None:
    served.artifact("next", served.rows(schema.cycles)[0].id)
    served.promote("next", 9, state="switching", served=None)
    assert gather(served).artifacts["next"] == "edge is being switched to it"


def test_the_anchor_stays(served: World) -> None:
    promotion = served.row(schema.promotions, version=1)
    with served.journal.begin() as connection:
        change(connection, schema.promotions, promotion.id, kind="rollback")
    assert "may not be worse" in gather(served).artifacts["one"]


def test_what_runs_stays_with_what_it_makes_and_compares(served: World) -> None:
    cycle = served.cycle()
    made = served.artifact("made", cycle)
    with served.journal.begin() as connection:
        about = {"cycle_id": cycle, "name": "prove", "state": "running", "attempts": 1}
        add(connection, schema.stages, step="prove one", **about)
        add(connection, schema.stages, step="build two onnxruntime:fp32", **about)
    found, why = gather(served), f"cycle {cycle} is running"
    assert [found.artifacts[made], found.models[made], found.artifacts["one"], found.models["two"]] == [why] * 4
    assert found.cycles == {str(cycle): why}
    assert found.snapshots[served.row(schema.cycles, id=cycle).snapshot_id] == why
    assert found.running == {cycle: 1.0}


def test_what_a_person_pinned_stays_until_it_is_unpinned(served: World) -> None:
    cycle = served.row(schema.models, id="one").cycle_id
    assert "is kept until" in pin(served, f"c{cycle}")
    found = gather(served)
    assert found.artifacts["one"].startswith("pinned by ")
    assert str(cycle) in found.cycles
    unpin(served, f"c{cycle}")
    assert "one" not in gather(served).artifacts
    with pytest.raises(UsageError, match="is not pinned"):
        unpin(served, f"c{cycle}")


def test_a_pin_of_a_model_an_artifact_and_a_snapshot(served: World) -> None:
    pin(served, "model:one")
    found = gather(served)
    assert ("one" in found.models, "one" in found.artifacts) == (True, False)
    pin(served, "artifact:two")
    assert "two" in gather(served).artifacts
    snapshot = served.row(schema.models, id="one").snapshot_id
    unpin(served, "model:one")
    pin(served, snapshot[:10])
    assert gather(served).snapshots[snapshot].startswith("pinned by ")


@pytest.mark.parametrize(
    ("named", "error", "said"),
    [
        ("one", UsageError, "write model:one or artifact:one"),
        ("nothing", NotFound, "is called 'nothing'"),
        ("c99", NotFound, "is called 'c99'"),
        ("flag:one", UsageError, "none of model, artifact, snapshot, cycle"),
    ],
)
def test_a_name_that_is_not_one_thing_is_refused(served: World, named: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        pin(served, named)


def test_what_is_gone_cannot_be_pinned(served: World) -> None:
    with served.journal.begin() as connection:
        change(connection, schema.models, "one", gone=1.0)
    with pytest.raises(UsageError, match="gone from the disk already"):
        pin(served, "model:one")


def test_the_list_of_a_snapshot_stays_while_a_stored_model_was_trained_on_it(served: World) -> None:
    snapshot = served.row(schema.models, id="one").snapshot_id
    assert "which is stored" in gather(served).snapshot_files[snapshot]
    with served.journal.begin() as connection:
        change(connection, schema.models, "one", gone=1.0)
    found = gather(served)
    assert snapshot not in found.snapshot_files
    assert snapshot not in found.snapshots


def test_an_image_is_live_while_a_file_of_it_lies_there_labelled_or_not_held_or_not(world: World) -> None:
    ids = [*world.samples("cat", "train", 3), *world.samples(None, "train", 1)]
    shas = {row.id: row.sha256 for row in world.rows(schema.samples)}
    world.vanish(ids[0])
    with world.journal.begin() as connection:
        change(connection, schema.drops, world.rows(schema.drops)[0].id, state="held")
        change(connection, schema.samples, ids[1], forgotten=1.0)
        assert roots.live(connection, shas.values()) == {shas[ids[2]], shas[ids[3]]}
