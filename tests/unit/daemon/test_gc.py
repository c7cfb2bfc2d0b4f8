"""Garbage collection on real files: what goes, in which order, and that a kill anywhere leaves a consistent state."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import disk, gc, pins, roots, schema, snapshot, stock, store
from daemon.config import Config, load
from daemon.journal import add, change

World = Any  # tests/unit/daemon/conftest.py
DAY = 86_400.0
OLD = 1_000_000_000.0  # of a file that nobody has touched for years


def lay(path: Path, size: int = 10, at: float = OLD) -> Path:
    """A file of so many bytes, last written then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (at, at))
    return path


def with_store(world: World, **settings: float) -> Config:
    return load(world.config.workspace, [f"store.{key}={value}" for key, value in settings.items()])


def keep_copies(world: World) -> dict[int, Path]:
    """The copy in the store of each sample."""
    place = {row.id: store.place(world.config.state / "store", row.sha256.hex()) for row in world.rows(schema.samples)}
    for path in place.values():
        lay(path)
    return place


def plan(world: World, **settings: float) -> list[tuple[str, str]]:
    config = with_store(world, **settings)
    with world.journal.connect() as connection:
        return [(item.found.kind, item.found.name) for item in gc.plan(connection, config).items]


def sweep(world: World, **settings: float) -> str:
    """As the lane does it, one after another."""
    config = with_store(world, **settings)
    with world.journal.begin() as connection:
        planned = gc.plan(connection, config)
        number, items = gc.claim(connection, config, planned, "a test")
    gc.delete(gc.set_aside(items))
    gc.finish(world.journal, number)
    with world.journal.connect() as connection:
        return gc.tell(gc.last(connection) or {})


@pytest.fixture
def full(world: World) -> World:
    """A champion, an older model that lost, and all else that a state folder holds of ended cycles."""
    state = world.config.state
    world.require()
    world.samples("cat", "train", 2)
    gone = world.samples("dog", "judge", 2)
    lost = world.cycle(state="done", ended=2.0)
    world.artifact("lost", lost)
    world.vanish(gone[1])
    world.champion("served")
    keep_copies(world)
    for name in ("lost", "served"):
        for folder in ("models", "artifacts"):
            for file in (state / folder / name).iterdir():
                os.utime(file, (OLD, OLD))
            os.utime(state / folder / name, (OLD, OLD))
    lay(state / "runs" / "abc" / "last.ckpt", 5000)
    lay(state / "runs" / "abc" / "recipe.json").write_text(json.dumps({"snapshot": "another"}))
    lay(state / "tunings" / "def" / "tuning.json").write_text("{}")
    lay(state / "cycles" / str(lost) / "jobs" / "job.json")
    lay(state / "pixels" / "32x32-stretch" / "0.npy", 9000)
    lay(state / "pixels" / "32x32-stretch" / "0.json")
    lay(state / "pixels" / "64x64-stretch" / "0.npy")
    lay(state / "pixels" / "64x64-stretch" / "0.json")
    lay(state / "embeddings" / "lost" / "000001.samples.npy")
    lay(state / "embeddings" / "served" / "000001.samples.npy")
    lay(state / "store" / "incoming" / "7")
    lay(state / "artifacts" / ".build-x" / "half")
    lay(state / "observations" / "lost.json")
    lay(state / "wandb" / "offline-run-1" / "run-1.wandb")
    lay(state / "wandb" / "offline-run-1" / "run-1.wandb.synced")
    lay(state / "wandb" / "offline-run-2" / "run-2.wandb")
    for path in state.rglob("*"):
        if path.name != "journal.db":
            os.utime(path, (OLD, OLD))
    return world


def test_without_a_bound_what_is_old_and_needed_by_nothing_goes(full: World) -> None:
    kinds = dict.fromkeys(kind for kind, _ in plan(full))
    names = {name for _, name in plan(full)}
    expected = {"leftover", "observation", "pixels", "embeddings", "run", "tuning", "cycle", "wandb"}
    assert set(kinds) == expected | {"artifact", "model", "sample"}
    assert {"lost", "64x64-stretch/0", "offline-run-1", "abc", ".build-x"} <= names
    assert names.isdisjoint({"served", "32x32-stretch/0", "offline-run-2"})  # the next training reads those pixels


def test_nothing_young_goes_without_a_bound(full: World) -> None:
    with full.journal.begin() as connection:
        for table in (schema.models, schema.artifacts):
            change(connection, table, "lost", created=time.time())
    run = full.config.state / "runs" / "abc" / "last.ckpt"
    os.utime(run, (time.time(), time.time()))
    names = {name for _, name in plan(full)}
    assert "abc" not in names
    assert [kind for kind, name in plan(full) if name == "lost"] == ["observation", "embeddings"]


def test_a_model_that_was_proven_lately_is_young(full: World) -> None:
    with full.journal.begin() as connection:
        of = full.row(schema.models, id="lost")
        about = {"snapshot_id": of.snapshot_id, "cycle_id": of.cycle_id, "at": time.time()}
        add(connection, schema.proofs, artifact_id="lost", **about)
    assert ("model", "lost") not in plan(full)


def test_under_a_bound_it_goes_in_the_defined_order_until_it_fits(full: World) -> None:
    everything = [kind for kind, _ in plan(full, max_gb=0.000001, keep_days=1e6)]
    ranks = [["leftover", "observation"], ["pixels", "embeddings"], ["run", "tuning", "cycle", "wandb"]]
    ranks += [["artifact", "model"], ["snapshot"], ["sample"]]
    rank = {kind: at for at, kinds in enumerate(ranks) for kind in kinds}
    assert [rank[kind] for kind in everything] == sorted(rank[kind] for kind in everything)
    assert set(everything) == set(rank) - {"snapshot"}  # the list of a model stays as long as the model
    total = disk.look(full.config.state).bytes
    freed = sum(thing.bytes for thing in disk.look(full.config.state).things if thing.kind in ("leftover", "pixels"))
    fits = (total - freed) / 1e9
    kinds = {kind for kind, _ in plan(full, max_gb=fits, keep_days=1e6)}
    assert kinds <= {"leftover", "observation", "pixels", "embeddings"}


def test_the_copy_of_an_image_whose_file_was_deleted_goes_once_no_needed_snapshot_has_it(full: World) -> None:
    gone = next(row for row in full.rows(schema.occurrences) if row.gone is not None)
    sha = full.row(schema.samples, id=gone.sample_id).sha256.hex()
    assert ("sample", sha) in plan(full)
    pinned = full.row(schema.models, id="lost").snapshot_id
    with full.journal.begin() as connection:
        pins.pin(connection, pinned)
    assert ("sample", sha) not in plan(full)
    with full.journal.begin() as connection:
        pins.unpin(connection, pinned)
    said = sweep(full)
    assert "its file left the watched folders" in said
    left = {thing.name for thing in disk.look(full.config.state).things if thing.kind == "sample"}
    assert left == {row.sha256.hex() for row in full.rows(schema.samples)} - {sha}


def test_the_copies_of_a_needed_snapshot_stay_whatever_became_of_their_files(world: World) -> None:
    world.require()
    ids = [*world.samples("cat", "train", 2), *world.samples("dog", "judge", 2)]
    world.champion("served")
    world.vanish(*ids)
    copies = keep_copies(world)
    sweep(world, max_gb=0.000001)
    assert all(path.exists() for path in copies.values())


def test_where_a_needed_snapshot_cannot_be_read_no_copy_goes(world: World) -> None:
    world.require()
    ids = world.samples("cat", "train", 2)
    world.champion("served")
    world.vanish(*ids)
    extra = world.samples("dog", "train")
    world.vanish(*extra)
    copies = keep_copies(world)
    assert [kind for kind, _ in plan(world)] == ["sample"]
    (file,) = (world.config.state / "snapshots").glob("*.snapshot")
    file.unlink()
    assert plan(world) == []
    assert copies[extra[0]].exists()


def test_what_a_running_cycle_reads_stays(full: World) -> None:
    cycle = full.cycle(started=1.0)
    snapshot_id = full.row(schema.cycles, id=cycle).snapshot_id
    (full.config.state / "runs" / "abc" / "recipe.json").write_text(json.dumps({"snapshot": snapshot_id}))
    kinds = {kind for kind, _ in plan(full, max_gb=0.000001)}
    assert kinds.isdisjoint({"pixels", "index", "run", "tuning", "leftover"})  # a leftover may be what it writes


def test_what_has_become_needed_since_it_was_planned_stays(full: World) -> None:
    config = with_store(full)
    with full.journal.connect() as connection:
        planned = gc.plan(connection, config)
    full.promote("lost", 7)
    with full.journal.begin() as connection:
        _, items = gc.claim(connection, config, planned, "a test")
    assert [item.found.kind for item in items if item.found.name == "lost"] == []
    assert full.row(schema.artifacts, id="lost").gone is None


def test_what_was_removed_counts_as_gone_and_is_written_down(full: World) -> None:
    said = sweep(full)
    assert full.row(schema.models, id="lost").gone is not None
    assert full.row(schema.artifacts, id="lost").gone is not None
    assert not stock.model_folder(full.config.state, "lost").exists()
    assert stock.model_folder(full.config.state, "served").exists()
    row = full.rows(schema.sweeps)[-1]
    assert (row.freed > 0, row.ended is not None) == (True, True)
    assert {line["kind"] for line in row.removed} >= {"model", "artifact", "run"}
    assert "not served, none of the last versions" in said
    with full.journal.begin() as connection:
        assert stock.take_stock(connection, full.config.state) == []
    assert "nothing is removed" in sweep(full, keep_days=1e6)


def test_what_was_removed_leaves_no_answers_behind(full: World) -> None:
    full.answer("answers", "lost", full.truth())
    sweep(full)
    assert {row.artifact_id for row in full.rows(schema.answers)} == {"served"}


def test_where_what_is_needed_exceeds_the_bound_it_says_so_and_removes_none_of_it(full: World) -> None:
    sweep(full, max_gb=0.000001)
    sweep(full, max_gb=0.000001)
    config = with_store(full, max_gb=0.000001)
    with full.journal.connect() as connection:
        said = gc.explain_over(gc.plan(connection, config), config)
    assert said is not None
    assert "for what is needed alone" in said
    assert "Raise store.max_gb" in said
    assert stock.artifact_folder(full.config.state, "served").exists()
    assert len([t for t in disk.look(full.config.state).things if t.kind == "sample"]) == 3


def test_watched_folders_are_never_touched(world: World) -> None:
    folder = world.config.state / "runs"
    lay(folder / "mine" / "cat" / "1.png")
    assert disk.look(world.config.state, [folder]).things == []
    assert disk.look(world.config.state, [folder / "mine"]).things == []
    assert len(disk.look(world.config.state, [world.config.workspace / "images"]).things) == 1


def test_a_link_is_removed_and_not_what_it_points_to(world: World, tmp_path: Path) -> None:
    mine = lay(tmp_path / "mine" / "file")
    (world.config.state / "runs").mkdir()
    (world.config.state / "runs" / "link").symlink_to(mine.parent)
    os.utime(world.config.state / "runs" / "link", (OLD, OLD), follow_symlinks=False)
    sweep(world)
    assert not (world.config.state / "runs" / "link").is_symlink()
    assert mine.exists()


class Killed(BaseException):
    """The daemon is gone at this instant."""


def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """The process ends before the so-many-th change of the disk; returns how many came."""
    count = 0

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def step(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            return real(*given, **named)

        monkeypatch.setattr(owner, name, step)

    wrap(os, "rmdir")
    wrap(os, "unlink")
    wrap(Path, "rename")
    wrap(Path, "unlink")
    return lambda: count


def test_a_kill_at_any_instant_leaves_nothing_half_that_is_taken_for_whole(full: World, tmp_path: Path) -> None:
    journal = full.config.state / "journal.db"
    spare = tmp_path / "spare"
    full.journal.dispose()
    shutil.copytree(full.config.state, spare)
    at, went_on = 1, True
    while went_on:
        full.journal.dispose()
        shutil.rmtree(full.config.state)
        shutil.copytree(spare, full.config.state)
        assert journal.exists()
        with pytest.MonkeyPatch.context() as broken:
            count = killing(broken, at)
            try:
                sweep(full)
                went_on = False
            except Killed:
                pass
        check_consistent(full)
        sweep(full)  # after a restart: whatever was begun is finished
        check_consistent(full)
        names = [path.name for path in full.config.state.rglob("*")]
        assert not [name for name in names if name.endswith(disk.ASIDE)]
        assert (full.config.state / "models" / "lost").exists() is False
        assert count() >= at - 1
        at += 1
    assert at > 20


def check_consistent(world: World) -> None:
    """A folder under its own name is whole; a shard that is listed has its array; what is needed is there."""
    state = world.config.state
    for folder in [*(state / "models").iterdir(), *(state / "artifacts").iterdir()]:
        if not folder.name.startswith("."):
            assert (folder / "manifest.json").exists(), folder
    for about in state.glob("pixels/*/*.json"):
        assert about.with_suffix(".npy").exists()
    assert (state / "runs" / "abc").exists() is (state / "runs" / "abc" / "last.ckpt").exists()
    with world.journal.connect() as connection:
        for id_ in roots.gather(connection, 3).snapshots:
            snapshot.read(state / "snapshots" / f"{id_}.snapshot")
