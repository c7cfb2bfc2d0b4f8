"""What people ask of the daemon: written as rows, answered once, refused with a reason."""

from __future__ import annotations

import getpass
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from daemon import people, schema
from daemon.config import Config
from daemon.constraint_file import take_in
from daemon.errors import DaemonNotRunning, NotFound
from daemon.events import Event
from daemon.journal import add, get, now
from daemon.lock import locked
from daemon.serving import Serving
from daemon.stock import artifact_folder
from tests.unit.daemon.conftest import lay


@pytest.fixture
def serving(config: Config, journal: Engine, world: Any) -> Serving:
    """Not started: no Triton is asked. There is enough to train on."""
    heard: list[Event] = []
    for name in ("cat", "dog"):
        world.samples(name, "train", 30)
    with journal.begin() as connection:
        take_in(connection, config.constraints)
    return Serving(config, journal, heard.append)


def served(journal: Engine, *artifacts: str) -> None:
    """A target `edge` that has served these artifacts, in this order."""
    with journal.begin() as connection:
        evidence = {"findings": [], "evidence": {}, "settings": {}, "policy": 1}
        decision = add(
            connection, schema.decisions, at=1.0, target="edge", event="", action="train", reason="", **evidence
        )
        add(connection, schema.snapshots, id="s", created=1.0, classes=[], counts={}, left_out={}, file="")
        about = {"trigger": "data", "state": "done", "requirement": {}, "settings": {}, "started": 1.0}
        cycle = add(connection, schema.cycles, decision_id=decision, target="edge", **about)
        for version, name in enumerate(artifacts, start=1):
            if connection.execute(select(schema.models).where(schema.models.c.id == name)).first() is None:
                model = {"architecture": "x", "recipe": "", "classes": [], "height": 224, "width": 224}
                of = {"snapshot_id": "s", "cycle_id": cycle, "train_seconds": 1.0, "created": 1.0}
                add(connection, schema.models, id=name, **model, **of)
                built = {"engine": "onnxruntime", "precision": "fp32", "artifact_mb": 1.0, "created": 1.0}
                add(connection, schema.artifacts, id=name, model_id=name, **built)
                lay(artifact_folder(Path(str(journal.url.database)).parent, name))
            state = "serving" if version == len(artifacts) else "retired"
            how = {"kind": "promotion", "reason": "", "by": "policy", "started": 1.0, "served": 1.0, "state": state}
            add(connection, schema.promotions, target="edge", artifact_id=name, version=version, **how)


def ask(config: Config, journal: Engine, kind: str, **arguments: object) -> int:
    return people.ask(journal, config.state, kind, **arguments)


def taken(journal: Engine, serving: Serving) -> list[str]:
    return [taken.said for taken in people.take(journal, serving)]


def owed(journal: Engine, target: str = "edge") -> str | None:
    with journal.connect() as connection:
        return people.owed(connection, target)


def answer(journal: Engine, request: int) -> tuple[str, str]:
    with journal.connect() as connection:
        row = get(connection, schema.requests, request)
    return row.state, row.answer


def test_a_training_that_could_not_begin_is_refused(config: Config, journal: Engine, world: Any) -> None:
    with journal.begin() as connection:
        take_in(connection, config.constraints)
    idle = Serving(config, journal, lambda event: None)
    request = ask(config, journal, "retrain", target="edge")
    assert taken(journal, idle) == []
    told = "a training takes two classes with 20 images each; there is "
    assert answer(journal, request) == ("refused", f"{told}no labelled image")
    world.samples("cat", "train", 30)
    world.samples("dog", "train", 5)
    request = ask(config, journal, "retrain", target="edge")
    taken(journal, idle)
    assert answer(journal, request) == ("refused", f"{told}cat 30, dog 5")


def test_an_artifact_is_named_by_the_beginning_of_its_id(config: Config, journal: Engine, serving: Serving) -> None:
    served(journal, "abc1", "abd2", "abc1")
    for named, state, said in (
        ("abd", "done", "goes back to abd2"),
        ("ab", "refused", "ab is the beginning of several artifacts: abc1, abd2"),
        ("x", "refused", "the journal has no artifact 'x'"),
    ):
        request = ask(config, journal, "rollback", target="edge", artifact=named)
        taken(journal, serving)
        found = answer(journal, request)
        assert (found[0], said in found[1]) == (state, True), found


def test_without_a_daemon_the_command_says_so(config: Config, journal: Engine) -> None:
    with pytest.raises(DaemonNotRunning, match="start it with `relearn run`") as caught:
        people.ask_and_wait(config, "retrain", target="edge")
    assert caught.value.exit_code == 1
    with journal.connect() as connection:
        assert connection.execute(select(schema.requests)).all() == []  # it does not lie in wait for the next daemon


def test_without_a_journal_the_command_says_so(config: Config) -> None:
    with pytest.raises(NotFound, match="there is no journal yet"):
        people.ask_and_wait(config, "retrain", target="edge")


def test_a_request_wakes_the_daemon_and_says_who_asked(config: Config, journal: Engine, serving: Serving) -> None:
    request = ask(config, journal, "retrain", target="edge")
    assert (config.state / "inbox" / "wake").exists()
    assert taken(journal, serving) == [f"{getpass.getuser()} asked for a training of edge"]
    assert answer(journal, request) == ("owed", "edge is trained next")


def test_a_training_is_owed_until_one_that_began_later_has_ended(
    config: Config, journal: Engine, serving: Serving
) -> None:
    request = ask(config, journal, "retrain", target="edge")
    assert owed(journal) is None
    taken(journal, serving)
    assert (owed(journal), owed(journal, "phone")) == (f"{getpass.getuser()} asked for it", None)
    with journal.begin() as connection:
        people.settle(connection, "edge", before=0.0)  # it was under way when this one was asked for
    assert owed(journal) is not None
    with journal.begin() as connection:
        people.settle(connection, "edge", before=now())
    assert (owed(journal), answer(journal, request)[0]) == (None, "done")


def test_a_request_is_taken_once(config: Config, journal: Engine, serving: Serving) -> None:
    ask(config, journal, "retrain", target="edge")
    assert len(taken(journal, serving)) == 1
    assert taken(journal, serving) == []


@pytest.mark.parametrize("kind", ["retrain", "rollback"])
def test_an_unknown_target_is_refused(config: Config, journal: Engine, serving: Serving, kind: str) -> None:
    request = ask(config, journal, kind, target="phone")
    assert taken(journal, serving) == []
    assert answer(journal, request) == ("refused", "there is no target 'phone' with a valid constraint file")


def test_a_rollback_without_an_earlier_artifact_is_refused(config: Config, journal: Engine, serving: Serving) -> None:
    served(journal, "one")
    request = ask(config, journal, "rollback", target="edge", artifact=None)
    taken(journal, serving)
    assert answer(journal, request) == ("refused", "edge has served no other artifact before")


def test_a_rollback_to_what_is_not_stored_is_refused(config: Config, journal: Engine, serving: Serving) -> None:
    request = ask(config, journal, "rollback", target="edge", artifact="nonesuch")
    taken(journal, serving)
    state, said = answer(journal, request)
    assert (state, "nonesuch" in said) == ("refused", True)


def test_a_rollback_to_another_input_size_is_refused(config: Config, journal: Engine, serving: Serving) -> None:
    served(journal, "one", "two")
    with journal.begin() as connection:
        connection.execute(update(schema.models).where(schema.models.c.id == "one").values(height=96))
    request = ask(config, journal, "rollback", target="edge", artifact="one")
    taken(journal, serving)
    assert answer(journal, request) == (
        "refused",
        "one takes images of 96 x 224, the clients of edge send 224 x 224",
    )


@pytest.mark.parametrize(
    ("artifacts", "asked", "expected"),
    [
        (["one", "two"], None, "one"),
        (["one", "two", "two"], None, "one"),  # the same again is no earlier one
        (["one", "two", "three"], "one", "one"),
        (["one", "two", "one"], None, "two"),
    ],
)
def test_a_rollback_is_a_promotion_under_a_new_version(
    config: Config, journal: Engine, serving: Serving, artifacts: list[str], asked: str | None, expected: str
) -> None:
    served(journal, *artifacts)
    request = ask(config, journal, "rollback", target="edge", artifact=asked)
    taken(journal, serving)
    version = len(artifacts) + 1
    assert answer(journal, request) == (
        "done",
        f"edge goes back to {expected}: it becomes version {version}",
    )
    with journal.connect() as connection:
        row = connection.execute(select(schema.promotions).where(schema.promotions.c.state == "switching")).one()
    assert (row.artifact_id, row.version, row.kind, row.by) == (expected, version, "rollback", getpass.getuser())


def test_a_training_asked_for_before_a_rollback_does_not_undo_it(
    config: Config, journal: Engine, serving: Serving
) -> None:
    served(journal, "old", "new")
    with journal.begin() as connection:
        for at in (1.0, now() + 60):  # the second is asked for later
            add(
                connection,
                schema.requests,
                kind="retrain",
                arguments={"target": "edge"},
                by="someone",
                at=at,
                state="owed",
            )
    ask(config, journal, "rollback", target="edge", artifact=None)
    taken(journal, serving)
    with journal.connect() as connection:
        states = connection.execute(select(schema.requests.c.state).order_by(schema.requests.c.id)).scalars().all()
    assert states == ["done", "owed", "done"]


@pytest.fixture
def answering(config: Config, journal: Engine, serving: Serving, eventually: Callable[..., None]) -> Iterator[None]:
    """A daemon's part: the workspace is locked, requests are taken as they come."""
    done = threading.Event()

    def serve() -> None:
        eventually(lambda: done.is_set() or taken(journal, serving), seconds=60)

    with locked(config.state):
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        done.set()
        thread.join()


@pytest.mark.usefixtures("answering")
def test_the_command_waits_for_the_answer(config: Config) -> None:
    said = people.ask_and_wait(config, "retrain", target="edge")
    assert (said["state"], said["answer"]) == ("owed", "edge is trained next")


def test_the_command_does_not_wait_for_ever(config: Config, journal: Engine) -> None:
    with locked(config.state):
        said = people.ask_and_wait(config, "retrain", seconds=0.1, target="edge")
    assert (said["state"], said["answer"]) == ("asked", "the daemon has not answered yet; it will")


def test_nothing_is_left_running(config: Config, journal: Engine, tmp_path: Path) -> None:
    before = threading.active_count()
    with locked(config.state):
        people.ask_and_wait(config, "retrain", seconds=0.01, target="edge")
    for thread in threading.enumerate()[before:]:
        thread.join(10)
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("flags", {"how": "accept", "to": None, "chosen": {"ids": [10**23]}}),
        ("flags", {"how": "accept", "to": None, "chosen": {"pair": ["a", "\udcff"]}}),
        ("release", {"drop": 10**23}),
        ("undo", {"image": "\udcffabc12345"}),
        ("flags", {"no": "such argument"}),
    ],
)
def test_what_cannot_be_done_at_all_is_refused_and_met_once(
    config: Config, journal: Engine, serving: Serving, kind: str, arguments: dict[str, Any]
) -> None:
    request = ask(config, journal, kind, **arguments)
    assert taken(journal, serving) == []
    with journal.connect() as connection:
        assert get(connection, schema.requests, request).state == "refused"
