"""Forgetting on real files: who is meant, what is said, that every byte goes, and that a kill anywhere is finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from daemon import consequences, erase, forget, named_images, people, schema, snapshot, standings, stock, store, targets
from daemon.config import Config
from daemon.decisions import _is_whole
from daemon.errors import NotFound, UsageError
from daemon.journal import add, change, get
from daemon.serving import Serving
from deploy import artifact
from pipeline import pixels
from pipeline.embedding_cache import Cache
from pipeline.images import decode

World = Any  # tests/unit/daemon/conftest.py
Png = Callable[..., Path]
SIZE = (8, 8)


@pytest.fixture
def images(config: Config, world: World, png: Png, read_in: Callable[..., object]) -> list[Path]:
    """Cats and dogs that were read, and two unlabelled images."""
    folder = config.folders[0]
    world.require()
    paths = [png(folder / name / f"{n}.png", seed=10 * n + len(name)) for name in ("cat", "ducks") for n in range(24)]
    paths += [png(folder / f"{n}.png", seed=900 + n) for n in range(2)]
    read_in()
    return paths


@pytest.fixture
def served(images: list[Path], world: World) -> World:
    """A champion that was trained on them, with all that a cycle leaves on the disk."""
    world.champion("served")
    state = world.config.state
    (file,) = (state / "snapshots").glob("*.snapshot")
    common = {"snapshot": str(file), "store": str(state / "store"), "cache": str(state / "pixels"), "threads": 1}
    pixels.run({**common, "height": 8, "width": 8, "resize": "stretch"}, {}, lambda *_: None)
    shas = [row.sha256 for row in world.rows(schema.samples)]
    Cache(state / "embeddings" / "served").add(shas, np.ones((len(shas), 4), np.float32))
    lay_golden(world)
    return world


def lay_golden(world: World) -> None:
    """The artifact is compared on one tune image of each class, as deploy/build.py has it."""
    folder = stock.artifact_folder(world.config.state, "served")
    shown = np.stack([picture(world, sha) for sha in golden(world)])
    np.savez(folder / artifact.GOLDEN, images=shown, probabilities=np.eye(2, dtype=np.float32)[: len(shown)])
    files = artifact.describe_files(folder, [artifact.GOLDEN])
    (folder / artifact.MANIFEST).write_text(json.dumps({"format": 1, "files": files}))


def golden(world: World) -> list[bytes]:
    with world.journal.connect() as connection:
        rows = list(standings.usable(connection))
    return [next(row.sha256 for row in rows if row.name == name and row.role == "tune") for name in ("cat", "ducks")]


def picture(world: World, sha: bytes) -> Any:
    return decode(store.place(world.config.state / "store", sha.hex()).read_bytes(), SIZE, "stretch")


def find(world: World, what: str) -> set[int]:
    with world.journal.connect() as connection:
        return set(named_images.find(connection, what, world.config.folders))


def ask(world: World, kind: str = "forget", **arguments: Any) -> tuple[str, str]:
    """As the command line asks and the daemon answers, before any byte is removed."""
    request = people.ask(world.journal, world.config.state, kind, **arguments)
    list(people.take(world.journal, Serving(world.config, world.journal, lambda event: None)))
    with world.journal.connect() as connection:
        row = get(connection, schema.requests, request)
    return row.state, row.answer


def remove(world: World) -> list[str]:
    """As the lane does it."""
    with world.journal.connect() as connection:
        shas = forget.unerased(connection)
    lost = erase.erase(world.config.state, shas)
    with world.journal.begin() as connection:
        forget.settle(connection, shas)
    return lost


def sha_of(world: World, path: Path) -> bytes:
    place = world.row(schema.occurrences, path=str(path.relative_to(world.config.folders[0])))
    return bytes(world.row(schema.samples, id=place.sample_id).sha256)


# --- who is meant -------------------------------------------------------------------------------------------------


def test_a_path_names_the_image_that_lies_there(images: list[Path], world: World) -> None:
    one = find(world, "cat/3.png")
    assert len(one) == 1
    assert find(world, str(images[3])) == find(world, "images/cat/3.png") == one
    assert find(world, "cat/") == find(world, str(images[0].parent))
    assert len(find(world, "cat/")) == 24
    assert len(find(world, str(world.config.folders[0]))) == 50


def test_a_path_whose_file_was_deleted_names_what_was_last_seen_there(images: list[Path], world: World) -> None:
    one = find(world, "cat/3.png")
    world.vanish(*one)
    assert find(world, "cat/3.png") == one
    assert len(find(world, "cat/")) == 23  # of a folder, what lies there


def test_a_hash_names_one_image_by_its_first_signs(images: list[Path], world: World) -> None:
    sha = sha_of(world, images[0]).hex()
    assert find(world, sha) == find(world, sha[:12].upper()) == find(world, "cat/0.png")
    with pytest.raises(NotFound, match="no image has"):
        find(world, sha[:5])


def test_a_class_names_its_images(images: list[Path], world: World) -> None:
    assert find(world, "class:cat") == find(world, "cat")
    with pytest.raises(NotFound, match="did you mean class:ducks"):
        find(world, "class:duck")


def test_a_name_that_is_a_class_and_a_path_of_other_images_is_refused(images: list[Path], world: World) -> None:
    with world.journal.begin() as connection:
        about = {"class_name": "cat", "source": "review", "by": "anna", "at": 9e9}
        add(connection, schema.labels, sample_id=next(iter(find(world, "ducks/0.png"))), **about)
    with pytest.raises(UsageError, match=r"class:cat \(the class, 25 images\) or cat/ \(the path, 24 images\)"):
        find(world, "cat")
    assert len(find(world, "class:cat")) == 25


def test_an_image_in_two_classes_is_in_neither(images: list[Path], world: World) -> None:
    world.appear(next(iter(find(world, "cat/0.png"))), "ducks")
    assert len(find(world, "class:cat")) == 23
    assert len(find(world, "class:ducks")) == 24


# --- what is said -------------------------------------------------------------------------------------------------


def test_it_says_which_models_learnt_from_it_and_what_becomes_of_the_served_one(served: World) -> None:
    with served.journal.connect() as connection:
        view = consequences.foresee(connection, served.config, find(served, "cat/0.png"))
    (model,) = view["models"]
    assert (model["model"], model["serves"], sum(model[r] for r in ("train", "tune", "judge"))) == (
        "served",
        ["edge"],
        1,
    )
    said = "\n".join(consequences.tell(view))
    assert "1 image: each copy" in said
    assert "model served (net)" in said
    assert "what was trained on 1 snapshot with some of them cannot be reproduced any more" in said


def test_the_served_model_is_trained_anew(served: World) -> None:
    train = next(row.sha256 for row in usable(served) if row.role == "train")
    state, said = ask(served, what=train.hex())
    assert (state, "that training is asked for now" in said) == ("working", True)
    with served.journal.connect() as connection:
        assert "had images forgotten that served learnt from" in str(people.owed(connection, "edge"))


def test_where_too_little_is_left_no_training_is_asked_for(served: World) -> None:
    state, said = ask(served, what="class:cat")
    assert (state, "none can be trained in its place yet" in said) == ("working", True)
    with served.journal.connect() as connection:
        assert people.owed(connection, "edge") is None


def test_a_training_that_was_owed_is_no_more_where_too_little_is_left(served: World) -> None:
    with served.journal.begin() as connection:
        about = {"by": "anna", "at": 1.0, "state": "owed", "arguments": {"target": "edge"}}
        request = add(connection, schema.requests, kind="retrain", **about)
    ask(served, what="class:cat")
    row = served.row(schema.requests, id=request)
    assert (row.state, "a training takes two classes" in row.answer) == ("refused", True)


def test_more_images_than_a_person_agreed_to_are_not_forgotten(served: World) -> None:
    assert ask(served, what="class:cat", images=20) == (
        "refused",
        "class:cat names 24 images by now, and not 20: look at it again",
    )
    assert all(row.forgotten is None for row in served.rows(schema.samples))


# --- what it does -------------------------------------------------------------------------------------------------


def usable(world: World) -> list[standings.Labelled]:
    with world.journal.connect() as connection:
        return list(standings.usable(connection))


def test_a_forgotten_image_is_used_nowhere_and_its_file_stays(
    served: World, images: list[Path], read_in: Callable[..., object]
) -> None:
    sha = sha_of(served, images[0])
    before = images[0].read_bytes()
    ask(served, what="cat/0.png")
    remove(served)
    assert sha not in {row.sha256 for row in usable(served)}
    assert images[0].read_bytes() == before
    (refused,) = served.rows(schema.rejections)
    assert (refused.path, "was forgotten on" in refused.reason, refused.gone) == ("cat/0.png", True, None)
    assert f"relearn forget --undo {sha.hex()[:12]}" in refused.reason
    assert read_in() is None  # it is known as it is
    with served.journal.connect() as connection:
        assert forget.is_forgotten(connection, [sha, bytes(32)]) == {sha}
        assert forget.why_refused(connection, sha) == refused.reason


def test_what_was_answered_about_it_counts_no_more(served: World) -> None:
    judge = next(row for row in usable(served) if row.role == "judge")
    snap = served.row(schema.models, id="served").snapshot_id
    _, rows = snapshot.read(served.config.state / "snapshots" / f"{snap}.snapshot")
    with served.journal.connect() as connection:
        before = len(targets.judge_set(connection, rows).truth)
    ask(served, what=judge.sha256.hex())
    with served.journal.connect() as connection:
        kept = targets.judge_set(connection, rows)
        assert len(kept.truth) == before - 1
        assert judge.sample not in kept.truth
        assert kept.covered(connection, "served")


def check_erased(world: World, sha: bytes, was: bytes) -> None:
    """None of its bytes lies anywhere in the state folder, decoded or not."""
    state = world.config.state
    assert not store.place(state / "store", sha.hex()).exists()
    for file in state.rglob("*.npy"):
        array = np.load(file, allow_pickle=False)
        assert was not in [row.tobytes() for row in array]
        assert sha not in [row.tobytes() for row in array]
    for about in state.glob("pixels/*/*.json"):
        names = json.loads(about.read_text())["shas"]
        assert sha.hex() not in names
        assert len(np.load(about.with_suffix(".npy"), allow_pickle=False)) == len(names)
    for index in state.glob("pixels/*/*.npz"):
        assert sha not in {row.tobytes() for row in np.load(index, allow_pickle=False)["sha"]}
    for file in state.glob("artifacts/*/golden.npz"):
        shown = np.load(file, allow_pickle=False)
        assert was not in [row.tobytes() for row in shown["images"]]
        assert len(shown["images"]) == len(shown["probabilities"])
        artifact.verify(file.parent)


def test_every_byte_of_it_goes_and_none_of_another(served: World) -> None:
    sha, other = golden(served)
    was, kept = picture(served, sha).tobytes(), picture(served, other)
    ask(served, what=sha.hex())
    assert remove(served) == []
    check_erased(served, sha, was)
    state = served.config.state
    shown, answers = artifact.read_golden(stock.artifact_folder(state, "served"))
    assert (shown == kept).all()
    assert answers.tolist() == [[0.0, 1.0]]
    shard = np.load(state / "pixels" / "8x8-stretch" / "0.npy", allow_pickle=False)
    assert sum(not row.any() for row in shard) == 1
    embedded = Cache(state / "embeddings" / "served")
    places = embedded.find([sha, other])
    assert (places[:, 0] >= 0).tolist() == [False, True]
    assert embedded.take(places[1:]).tolist() == [[1.0] * 4]
    (request,) = served.rows(schema.requests, kind="forget")
    assert request.state == "done"


def test_what_killed_children_left_of_it_goes_too(served: World) -> None:
    state = served.config.state
    left = [state / "pixels" / "8x8-stretch" / name for name in ("7.npy", ".8.npy.tmp")]
    left += [state / "embeddings" / "served" / name for name in ("000009.embeddings.npy", ".000010.samples.npy.tmp")]
    left += [state / "embeddings" / "served" / "audit" / "about.json", state / "audits" / "rows"]  # has learnt from it
    left.append(state / "embeddings" / "served" / "places.000001.npy")
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"of an image, perhaps")
    ask(served, what="cat/0.png")
    remove(served)
    assert [file.name for file in left if file.exists()] == []


def test_an_artifact_of_whose_batch_nothing_is_left_is_built_again(served: World) -> None:
    for sha in golden(served):
        ask(served, what=sha.hex())
    assert remove(served) == ["served"]


def test_the_next_snapshot_is_decoded_without_it(served: World) -> None:
    sha, _ = golden(served)
    ask(served, what=sha.hex())
    remove(served)
    cycle = served.cycle()
    state, file = served.config.state, served.row(schema.cycles, id=cycle).snapshot_id
    common = {"snapshot": str(state / "snapshots" / f"{file}.snapshot"), "store": str(state / "store"), "threads": 1}
    order = {**common, "cache": str(state / "pixels"), "height": 8, "width": 8, "resize": "stretch"}
    done = pixels.run(order, {}, lambda *_: None)
    assert (done["samples"], done["decoded"]) == (47, 0)
    read = pixels.read_pixels(Path(done["pixels"]))
    for number in range(len(read.shas)):
        taken = read.take(np.array([number]))[0]
        assert (taken == picture(served, read.shas[number].tobytes())).all()


class Killed(BaseException):
    """The daemon is gone at this instant."""


def test_a_kill_at_any_instant_is_finished_by_the_next_start(served: World, tmp_path: Path) -> None:
    sha, _ = golden(served)
    was = picture(served, sha).tobytes()
    ask(served, what=sha.hex())
    served.journal.dispose()
    spare = tmp_path / "spare"
    shutil.copytree(served.config.state, spare)
    at, went_on = 1, True
    while went_on:
        served.journal.dispose()
        shutil.rmtree(served.config.state)
        shutil.copytree(spare, served.config.state)
        with pytest.MonkeyPatch.context() as broken:
            kill_at(broken, at)
            try:
                remove(served)
                went_on = False
            except Killed:
                assert served.rows(schema.erasures)[0].erased is None
        remove(served)
        check_erased(served, sha, was)
        assert served.rows(schema.requests, kind="forget")[0].state == "done"
        at += 1
    assert at > 8


def kill_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
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

    for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "replace"), (os, "fsync"), (erase, "_blank")):
        wrap(owner, name)


# --- and back -----------------------------------------------------------------------------------------------------


def test_it_may_be_read_again(served: World, images: list[Path], read_in: Callable[..., object]) -> None:
    sha = sha_of(served, images[0])
    role = next(row.role for row in usable(served) if row.sha256 == sha)
    ask(served, what="cat/0.png")
    short = sha.hex()[:12]
    assert ask(served, "undo", image=short) == (
        "refused",
        f"the bytes of {short} are being removed: ask again in a moment",
    )
    remove(served)
    assert ask(served, "undo", image=short) == ("done", f"{short} may be used again: 1 file of it will be read again")
    read_in()
    (again,) = [row for row in usable(served) if row.sha256 == sha]
    assert again.role == role  # for ever
    assert store.place(served.config.state / "store", sha.hex()).exists()
    assert ask(served, "undo", image=short)[0] == "refused"


def test_what_was_lost_is_not_built_again_on_a_snapshot_with_forgotten_images(served: World) -> None:
    snap = served.row(schema.models, id="served").snapshot_id
    file = served.config.state / "snapshots" / f"{snap}.snapshot"
    with served.journal.connect() as connection:
        assert _is_whole(connection, file)
    ask(served, what="cat/0.png")
    with served.journal.connect() as connection:
        assert not _is_whole(connection, file)


def test_a_flag_of_a_forgotten_image_is_withdrawn(served: World, journal: Engine) -> None:
    (id_,) = find(served, "cat/0.png")
    with journal.begin() as connection:
        about = {"given": "cat", "suggested": "ducks", "score": 0.01, "suggested_score": 0.98}
        flag = add(connection, schema.flags, sample_id=id_, model_id="served", at=1.0, state="open", **about)
        change(connection, schema.flags, flag, state="open")
    ask(served, what="cat/0.png")
    assert served.row(schema.flags, id=flag).state == "withdrawn"


def test_a_model_that_did_not_learn_from_forgotten_images_brings_that(served: World) -> None:
    train = [row.sha256 for row in usable(served) if row.role == "train"][:3]
    for sha in train:
        ask(served, what=sha.hex())
    old, new = (
        served.row(schema.models, id="served").snapshot_id,
        served.row(schema.cycles, id=served.cycle()).snapshot_id,
    )
    folder = served.config.state / "snapshots"
    with served.journal.connect() as connection:
        assert forget.compare(connection, folder, old, new) == (3, 0)
        assert forget.compare(connection, folder, new, old) == (0, 3)
        assert forget.compare(connection, folder, "lost", new) == (0, 0)
