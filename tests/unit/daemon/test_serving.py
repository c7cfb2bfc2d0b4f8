"""What Triton should serve: with a Triton that is away, and a few times with the real packaged one."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from daemon import pauses, schema
from daemon.config import Config, load
from daemon.errors import NotFound
from daemon.events import ArtifactLost, Event, SettingsEdited, SwitchEnded
from daemon.journal import AnyRow, change
from daemon.keeper import Keeper
from daemon.serving import Serving
from daemon.stock import artifact_folder
from deploy import artifact as artifacts
from deploy.repository import RepositoryError
from deploy.server import Server, free_ports
from deploy.switch import SwitchFailed
from deploy.triton import Triton, TritonUnavailable
from tests.unit.deploy.models import class_names, make_artifact

World = Any  # tests/unit/daemon/conftest.py
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two artifacts, of three classes and of four."""
    folder = tmp_path_factory.mktemp("built")
    return [make_artifact(folder, class_names(3), 1), make_artifact(folder, class_names(4), 2)]


class Hall:
    """Serving on a journal with two stored artifacts, `first` and `second`."""

    def __init__(self, world: World, config: Config, built: list[Path]) -> None:
        self.world = world
        self.config = config
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.serving = Serving(config, world.journal, self.queue.put)
        world.samples("cat", "train")
        self.cycle: int = world.cycle(state="done")
        for name, folder in zip(("first", "second"), built, strict=True):
            world.artifact(name, self.cycle)
            shutil.copytree(folder, self.folder(name), dirs_exist_ok=True)

    def folder(self, artifact: str) -> Path:
        return artifact_folder(self.config.state, artifact)

    def request(self, artifact: str, target: str = "edge", cycle: int | None = None, kind: str = "rollback") -> AnyRow:
        with self.world.journal.begin() as connection:
            return self.serving.request(connection, target, artifact, kind=kind, by="ann", cycle=cycle)

    def promotion(self, id_: int) -> AnyRow:
        row: AnyRow = self.world.row(schema.promotions, id=id_)
        return row

    def state(self, id_: int) -> tuple[str, str | None]:
        row = self.promotion(id_)
        return row.state, row.step

    def heard(self) -> SwitchEnded:
        event = self.queue.get(timeout=60)
        assert isinstance(event, SwitchEnded)
        return event


def look_through(serving: Serving) -> None:
    """A round of each server."""
    for keeper in serving.keepers:
        keeper.round()


# --- what is asked --------------------------------------------------------------------------------------------------


@pytest.fixture
def away(world: World, workspace: Path, journal: Engine, built: list[Path]) -> Hall:
    """Nobody listens where Triton should be."""
    (port,) = free_ports(1)
    return Hall(world, load(workspace, [f"triton.url=127.0.0.1:{port}", "triton.timeout_seconds=1"]), built)


def test_a_request_is_a_row_before_anything_is_done(away: Hall) -> None:
    row = away.request("first")
    assert (row.target, row.artifact_id, row.version, row.kind, row.by) == ("edge", "first", 1, "rollback", "ann")
    assert (row.state, row.step, row.error, row.served) == ("switching", None, None, None)
    assert row.reason == "rollback by ann"
    assert not list(away.config.repository.iterdir())


def test_a_cycle_asks_once(away: Hall) -> None:
    row = away.request("first", cycle=away.cycle, kind="promotion")
    assert away.request("first", cycle=away.cycle, kind="promotion").id == row.id
    assert away.request("second", cycle=away.cycle, kind="promotion").id != row.id


def test_a_person_may_ask_again(away: Hall) -> None:
    assert away.request("first").id != away.request("first").id


def test_what_is_not_stored_is_not_promoted(away: Hall) -> None:
    with pytest.raises(NotFound, match="nonesuch"):
        away.request("nonesuch")
    assert away.world.rows(schema.promotions) == []


def test_versions_only_grow(away: Hall) -> None:
    assert [away.request(name).version for name in ("first", "second", "first")] == [1, 2, 3]
    assert away.request("first", "other").version == 1


def test_a_version_that_lies_in_the_repository_is_not_given_again(away: Hall) -> None:
    """A journal restored from a backup knows less than the repository."""
    folder = away.config.repository / "edge" / "7"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1, "target": "edge"}')
    assert away.request("first").version == 8


def test_withdrawing_takes_back_what_is_not_served_yet(away: Hall) -> None:
    mine = away.request("first", cycle=away.cycle, kind="promotion")
    others = away.request("second")
    served = away.world.promote("first", 9, cycle_id=away.cycle)
    away.serving.withdraw(away.cycle)
    assert [away.promotion(id_).state for id_ in (mine.id, others.id, served)] == ["undoing", "switching", "serving"]
    assert away.promotion(mine.id).error == "withdrawn: the constraints changed"


# --- paused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "kind", "step", "waits"),
    [
        ("policy", "promotion", None, True),
        ("policy", "promotion", "probe", True),
        ("policy", "promotion", "put", False),  # Triton may be loading it
        ("ann", "promotion", None, False),  # a person's act
        ("policy", "settings", None, False),  # of what is served already
    ],
)
def test_a_pause_holds_what_the_policy_promotes_until_triton_may_load_it(
    away: Hall, monkeypatch: pytest.MonkeyPatch, by: str, kind: str, step: str | None, waits: bool
) -> None:
    """The steps themselves are faked: what is asked here is which of them is begun."""
    begun = []

    def begin(step: str, *_: object) -> str:
        begun.append(step)
        raise TritonUnavailable("away")

    monkeypatch.setattr("daemon.keeper.run_step", begin)
    monkeypatch.setattr("daemon.keeper.inspect", lambda *_: "2.51")
    promotion = away.world.promote("first", 1, by=by, kind=kind, step=step, state="switching", served=None)
    away.world.require()
    with away.world.journal.begin() as connection:
        pauses.pause(connection, "edge", "ann", None)
    away.serving.keepers[0].round()
    row = away.promotion(promotion)
    assert (begun == [], row.state, row.step) == (waits, "switching", step)
    assert row.error.startswith("waits: edge is paused by ann since" if waits else "waits: away")
    with away.world.journal.begin() as connection:
        pauses.resume(connection, None, "ann")
    away.serving.keepers[0].round()
    assert len(begun) == (1 if waits else 2)


# --- Triton is away -------------------------------------------------------------------------------------------------


def rounds(hall: Hall, eventually: Eventually, condition: Callable[[], object]) -> None:
    """Asks for rounds until a condition holds."""

    def hold() -> object:
        if found := condition():
            return found
        hall.serving.tend()
        return False

    with hall.serving.running():
        eventually(hold, seconds=60)


def test_a_promotion_waits_for_a_triton_that_is_away(away: Hall, eventually: Eventually) -> None:
    row = away.request("first")
    rounds(away, eventually, lambda: away.promotion(row.id).error)
    assert away.promotion(row.id).error.startswith("waits: no Triton answers at 127.0.0.1:")
    assert away.state(row.id) == ("switching", "stage")  # what could be done is done
    assert away.queue.empty()
    staged = away.config.repository.with_name("triton.staging") / "edge" / "1"
    eventually((staged / "manifest.json").exists)  # a round under way makes it anew


@pytest.mark.parametrize(("asked", "flavour"), [(None, "python"), ("native", "onnxruntime")])
def test_a_version_is_staged_in_the_flavour_that_is_set(away: Hall, asked: str | None, flavour: str) -> None:
    """NVIDIA's Triton, which has the native backends, cannot run here: what it would be given is looked at."""
    away.request("first")
    settle(away, "edge", **({"flavour": asked} if asked else {}))
    staged = away.config.repository.with_name("triton.staging") / "edge" / "1"
    assert artifacts.read_manifest(staged)["serving"]["flavour"] == flavour
    assert (staged / "model.py").exists() is (flavour == "python")


def test_servers_come_go_and_change_while_a_daemon_runs(away: Hall, eventually: Eventually) -> None:
    """Port 9 answers nobody; what counts is who would be asked."""

    def reconfigure(*servers: str) -> None:
        entry = '[[triton]]\nname = "{0}"\nurl = "{1}"\nrepository = "{0}"\n'
        text = "".join(entry.format(*server.split()) for server in servers)
        (away.config.workspace / "config.toml").write_text(f"version = 1\n{text}")
        away.serving.reconfigure(load(away.config.workspace, ["compute.serve_threads=3"]))

    def asked() -> list[tuple[str, str]]:
        return [(keeper.server.name, keeper._open().address) for keeper in away.serving.keepers]

    with away.serving.running():
        first = away.serving.keepers[0]
        name = first.server.name
        reconfigure(f"{name} 127.0.0.1:9", "other 127.0.0.2:9")
        eventually(lambda: asked() == [(name, "127.0.0.1:9"), ("other", "127.0.0.2:9")])
        assert away.serving.keepers[0] is first
        assert all("3 threads" in device for device in away.serving.devices.values())
        threads = dict(away.serving._threads)
        assert set(threads) == {name, "other"} and all(thread.is_alive() for thread in threads.values())
        reconfigure("other 127.0.0.3:9")
        eventually(lambda: asked() == [("other", "127.0.0.3:9")])
        eventually(lambda: not threads[name].is_alive())
        assert threads["other"].is_alive()
    eventually(lambda: not threads["other"].is_alive())


def test_a_server_that_is_put_back_waits_for_the_last_step_of_the_one_before(
    away: Hall, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads must never take the steps of one server's promotions, however long a step lasts."""
    at_work, went_on, most = threading.Event(), threading.Event(), []
    busy: list[str] = []

    def work(keeper: Keeper) -> None:
        if keeper.server.name == "other":
            busy.append("other")
            most.append(len(busy))
            at_work.set()
            went_on.wait(60)
            busy.pop()

    monkeypatch.setattr(Keeper, "round", work)
    file = away.config.workspace / "config.toml"
    one = 'version = 1\n[[triton]]\nname = "one"\nurl = "127.0.0.1:9"\nrepository = "one"\n'
    two = one + '[[triton]]\nname = "other"\nurl = "127.0.0.2:9"\nrepository = "other"\n'

    def reconfigure(text: str) -> None:
        file.write_text(text)
        away.serving.reconfigure(load(away.config.workspace))

    reconfigure(two)
    with away.serving.running():
        assert at_work.wait(60)
        reconfigure(one)
        reconfigure(two)
        again = away.serving._threads["other"]
        again.join(1.0)
        assert again.is_alive() and most == [1]
        went_on.set()
        eventually(lambda: len(most) == 2)
    assert most == [1, 1]


def test_a_trouble_is_logged_once(away: Hall, caplog: pytest.LogCaptureFixture) -> None:
    away.request("first")
    for _ in range(3):
        look_through(away.serving)
    said = [record.message for record in caplog.records if "no Triton answers" in record.message]
    assert len(said) == 1
    assert said[0].endswith("it is tried again in 2 s")


def test_without_anything_to_serve_triton_is_not_asked(away: Hall, caplog: pytest.LogCaptureFixture) -> None:
    away.world.promote("first", 1, state="retired")
    away.world.promote("second", 2, state="failed")
    look_through(away.serving)
    assert caplog.text == ""


def test_what_somebody_else_put_there_is_left_alone(away: Hall, eventually: Eventually) -> None:
    theirs = away.config.repository / "edge" / "1" / "model.onnx"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    row = away.request("first")
    rounds(away, eventually, lambda: away.promotion(row.id).error)
    assert "was not made by relearnd and is left alone" in away.promotion(row.id).error
    assert away.state(row.id) == ("switching", None)
    assert theirs.read_text() == "theirs"


def test_one_target_s_trouble_is_not_another_s(away: Hall) -> None:
    (away.config.repository / "edge").mkdir()
    (away.config.repository / "edge" / "theirs").touch()
    away.request("first", "edge")
    other = away.request("second", "other")
    look_through(away.serving)
    assert away.state(other.id) == ("switching", "stage")


def test_a_later_promotion_never_overtakes_an_earlier_one(away: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first finds no room on the disk: the second, which would, waits for it."""

    def full(*_: object) -> None:
        raise RepositoryError("No space left on device")

    first, second = away.request("first"), away.request("second")
    with monkeypatch.context() as broken:
        broken.setattr("daemon.keeper.run_step", full)
        look_through(away.serving)
    assert away.promotion(first.id).error == "waits: No space left on device"
    assert away.promotion(second.id).error is None


def test_a_switch_under_way_brings_the_settings_itself(away: Hall) -> None:
    """What was served when the edit was seen is not switched to itself behind what replaces it."""
    before = away.world.promote("first", 1)
    away.request("second")
    away.serving.renew(SettingsEdited(before, "instances 2 -> 4"))
    assert [row.kind for row in away.world.rows(schema.promotions)] == ["promotion", "rollback"]


def test_a_promotion_withdrawn_at_the_last_moment_retires_nobody(away: Hall) -> None:
    """Between the check of its last step and its own row an edit came: what served before serves on."""
    before = away.world.promote("second", 1)
    row = away.request("first", cycle=away.cycle, kind="promotion")
    with away.world.journal.begin() as connection:
        change(connection, schema.promotions, row.id, step="verify")
    stale = away.promotion(row.id)
    with away.world.journal.begin() as connection:
        change(connection, schema.promotions, row.id, state="undoing")
    with contextlib.suppress(Exception):
        away.serving.keepers[0]._switch(stale)  # Triton is away: it cannot end well
    assert away.promotion(before).state == "serving"


def test_an_error_nobody_thought_of_does_not_end_the_thread(
    away: Hall, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def stumble() -> None:
        calls.append(1)
        raise ZeroDivisionError("of this round")

    monkeypatch.setattr(away.serving.keepers[0], "round", stumble)
    rounds(away, eventually, lambda: len(calls) >= 2)
    assert "of this round" in caplog.text


# --- the packaged Triton --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    with Server(folder / "repository", folder / "cache", log=folder / "log") as running:
        yield running


@pytest.fixture
def hall(world: World, workspace: Path, journal: Engine, built: list[Path], server: Server) -> Hall:
    repository = server.log.with_name("repository")
    overrides = [f"triton.url={server.address}", f"triton.repository={repository}", "triton.instances=1"]
    return Hall(world, load(workspace, overrides), built)


@pytest.fixture
def triton(server: Server) -> Iterator[Triton]:
    with Triton(server.address) as connection:
        yield connection


def answers(triton: Triton, target: str, folder: Path) -> set[int]:
    """The versions that answer a target's clients, which give the artifact's own answers."""
    images, recorded = artifacts.read_golden(folder)
    found, versions = triton.infer_all(target, images)
    assert np.allclose(found, recorded, atol=1e-3)
    return versions


def is_loaded(triton: Triton, target: str) -> bool:
    return any(state.state == "READY" for state in triton.index()[target])


def test_a_promotion_is_served_and_the_one_before_retired(
    hall: Hall, triton: Triton, built: list[Path], eventually: Eventually
) -> None:
    first = hall.request("first", "turns")
    rounds(hall, eventually, lambda: hall.state(first.id) == ("serving", "retire"))
    assert hall.heard() == SwitchEnded(first.id, None)
    assert answers(triton, "turns", built[0]) == {1}
    assert hall.promotion(first.id).served is not None
    second = hall.request("second", "turns")
    hall.serving = Serving(hall.config, hall.world.journal, hall.queue.put)  # a daemon that was started again
    rounds(hall, eventually, lambda: hall.state(second.id) == ("serving", "retire"))
    assert hall.heard() == SwitchEnded(second.id, None)
    assert answers(triton, "turns", built[1]) == {2}
    assert hall.promotion(first.id).state == "retired"
    assert hall.promotion(first.id).ended is not None
    assert [state.version for state in triton.index()["turns"] if state.state == "READY"] == [2]


def settle(hall: Hall, target: str, **settings: object) -> list[AnyRow]:
    """A daemon that was started with these settings of Triton, until all is served; the target's promotions."""
    (triton,) = hall.config.settings.triton
    changed = (triton.model_copy(update=settings),)
    config = replace(hall.config, settings=hall.config.settings.model_copy(update={"triton": changed}))
    hall.serving = Serving(config, hall.world.journal, hall.queue.put)
    for _ in range(4):
        look_through(hall.serving)
        while not hall.queue.empty():  # as the loop does
            if isinstance(event := hall.queue.get(), SettingsEdited):
                hall.serving.renew(event)
    return hall.world.rows(schema.promotions, target=target)  # type: ignore[no-any-return]


def test_edited_settings_reach_what_is_served(hall: Hall, triton: Triton, built: list[Path]) -> None:
    hall.world.require("wide")
    hall.request("first", "wide")
    (before,) = settle(hall, "wide")
    _, after = settle(hall, "wide", max_batch_size=16)
    assert (after.artifact_id, after.kind, after.state, after.step) == ("first", "settings", "serving", "retire")
    assert after.reason == "how it is served was edited: max_batch_size 8 -> 16"
    assert hall.promotion(before.id).state == "retired"
    assert answers(triton, "wide", built[0]) == {2}
    assert len(settle(hall, "wide", max_batch_size=16)) == 2


def test_settings_that_cannot_be_served_are_tried_once(
    hall: Hall, triton: Triton, built: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hall.world.require("narrow")
    hall.request("first", "narrow")
    settle(hall, "narrow")

    def refuse(*_: object) -> None:
        raise SwitchFailed("probe: no memory for so many")

    monkeypatch.setattr("daemon.keeper.run_step", refuse)
    before, failed = settle(hall, "narrow", max_batch_size=16)
    assert (before.state, failed.state) == ("serving", "failed")
    assert before.error.endswith("max_batch_size 8 -> 16; Triton did not take it: probe: no memory for so many")
    assert answers(triton, "narrow", built[0]) == {1}


def test_an_artifact_that_its_native_backend_cannot_serve_is_a_failed_promotion(hall: Hall) -> None:
    """A plan for smaller batches than Triton may combine; the manifest alone is a plan's, there is no GPU here."""
    manifest = artifacts.read_manifest(hall.folder("first")) | {"flavour": "tensorrt_plan", "max_batch_size": 4}
    (hall.folder("first") / "manifest.json").write_text(json.dumps(manifest))
    hall.request("first", "planned")
    (row,) = settle(hall, "planned", flavour="native")
    assert (row.state, row.step) == ("failed", None)
    assert row.error == "stage: the plan was built for batches up to 4, and serving.max_batch_size is 8"
    assert not (hall.config.repository / "planned").exists()


def test_what_is_not_served_as_it_should_be_is_mended(
    hall: Hall, triton: Triton, built: list[Path], eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a Triton that was restarted: in explicit mode it comes back empty."""
    row = hall.request("first", "mended")
    rounds(hall, eventually, lambda: hall.state(row.id) == ("serving", "retire"))
    triton.unload("mended")
    eventually(lambda: not is_loaded(triton, "mended"))
    hall.serving = Serving(hall.config, hall.world.journal, hall.queue.put)
    rounds(hall, eventually, lambda: is_loaded(triton, "mended"))
    assert answers(triton, "mended", built[0]) == {1}
    eventually(lambda: "mended version 1 was loaded again" in caplog.text)


def test_a_version_that_cannot_serve_leaves_the_one_before(
    hall: Hall, triton: Triton, built: list[Path], eventually: Eventually
) -> None:
    before = hall.request("first", "safe")
    rounds(hall, eventually, lambda: hall.state(before.id) == ("serving", "retire"))
    hall.heard()
    shutil.rmtree(hall.folder("second"))
    row = hall.request("second", "safe")
    hall.serving = Serving(hall.config, hall.world.journal, hall.queue.put)
    rounds(hall, eventually, lambda: hall.promotion(row.id).state == "failed")
    ended = hall.heard()
    assert ended.promotion == row.id
    assert ended.error == hall.promotion(row.id).error
    assert "is missing" in str(ended.error)
    assert hall.promotion(before.id).state == "serving"
    assert answers(triton, "safe", built[0]) == {1}


def test_a_withdrawn_promotion_is_undone(hall: Hall, triton: Triton, eventually: Eventually) -> None:
    row = hall.request("first", "undone", cycle=hall.cycle, kind="promotion")
    hall.serving.withdraw(hall.cycle)
    rounds(hall, eventually, lambda: hall.promotion(row.id).state == "failed")
    assert hall.heard() == SwitchEnded(row.id, "withdrawn: the constraints changed")
    assert "undone" not in triton.index()


def test_what_is_served_outlives_its_artifact(
    hall: Hall, triton: Triton, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies in the repository is complete: a Triton that comes back empty gets it."""
    row = hall.request("first", "orphan")
    rounds(hall, eventually, lambda: hall.state(row.id) == ("serving", "retire"))
    shutil.rmtree(hall.folder("first"))
    look_through(hall.serving)
    assert "was loaded again" not in caplog.text  # it is served: nothing is to be mended
    triton.unload("orphan")
    eventually(lambda: not is_loaded(triton, "orphan"))
    look_through(hall.serving)
    assert is_loaded(triton, "orphan")
    assert "orphan version 1 was loaded again" in caplog.text


def test_a_target_beyond_repair_leaves_the_others_mended(hall: Hall, triton: Triton, eventually: Eventually) -> None:
    """The artifact of the first is gone, and its folder was damaged; the second is only not loaded."""
    rows = [hall.request("first", "broken"), hall.request("second", "beside")]
    rounds(hall, eventually, lambda: all(hall.state(row.id) == ("serving", "retire") for row in rows))
    shutil.rmtree(hall.folder("first"))
    (hall.config.repository / "broken" / "1" / "model.onnx").write_bytes(b"damaged")
    for target in ("broken", "beside"):
        triton.unload(target)
        eventually(lambda target=target: not is_loaded(triton, target))
    later = Serving(hall.config, hall.world.journal, hall.queue.put)
    for _ in range(2):
        look_through(later)
    assert is_loaded(triton, "beside")
    heard = []
    while not hall.queue.empty():
        heard.append(hall.queue.get())
    broken, beside = (hall.promotion(row.id).error for row in rows)
    assert "is missing" in broken
    assert beside is None
    assert 1 <= heard.count(ArtifactLost("broken")) <= 2  # the loop has it built again, and is told once by each
    assert hall.world.row(schema.artifacts, id="first").gone is not None
