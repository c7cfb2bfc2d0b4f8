"""Keepers and a Triton that is killed, spoilt, slow or moved from: what should be served is, soon and at no cost."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import schema
from deploy import fitness
from deploy.server import free_ports
from deploy.triton import Triton
from tests.unit.daemon.house import House, Place, answers, ask_for
from tests.unit.deploy.models import class_names, make_artifact

World = Any  # tests/unit/daemon/conftest.py
Eventually = Callable[..., None]
MENDED_SECONDS = 10.0  # promised


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("built"), class_names(3), 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Place]]:
    folder = tmp_path_factory.mktemp("places")
    made = Place(folder / "here"), Place(folder / "there")
    yield made
    for place in made:
        place.kill()


def since(moment: float, condition: Callable[[], object], eventually: Eventually) -> float:
    eventually(condition, seconds=60)
    return time.monotonic() - moment


# --- with the settings as they are shipped --------------------------------------------------------------------------


def test_what_was_killed_is_served_again_soon(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    eventually: Eventually,
    record_property: Callable[[str, object], None],
) -> None:
    """A dead backend process, then a server that comes back empty; nobody asks it anything meanwhile."""
    place = places[0]
    house = House(world, workspace, built, place, instances=2)
    with house.serving.running():
        house.request("edge")
        eventually(lambda: house.serves("edge"), seconds=60)
        eventually(lambda: len(place.stubs()) == 2)
        place.stubs()[0].kill()
        killed = time.monotonic()
        eventually(lambda: not answers(place.url, "edge", built))
        stub = since(killed, lambda: answers(place.url, "edge", built), eventually)
        place.kill()
        eventually(lambda: house.noted()["here"][0] == "away")
        place.start()
        server = since(time.monotonic(), lambda: answers(place.url, "edge", built), eventually)
        assert house.noted()["here"] == ("ready", None)
    record_property("seconds", (stub, server))
    print(f"a stub {stub:.1f} s, a server {server:.1f} s")
    assert max(stub, server) < MENDED_SECONDS


def test_a_look_at_rest_opens_no_journal_and_costs_little(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    house = House(world, workspace, built, places[0])
    house.request("rest")
    (keeper,) = house.serving.keepers
    keeper.round()
    assert house.serves("rest")
    keeper.journal = None  # type: ignore[assignment]
    began = time.thread_time()
    for _ in range(20):
        assert not keeper.look()
    assert (time.thread_time() - began) / 20 < 0.003 * keeper.server.check_seconds  # of a core, were it all the daemon
    assert keeper.pause() == 4.0


def edit_configuration(model: Path) -> None:
    (model / "config.pbtxt").write_text('name: "mine"')


def remove_version(model: Path) -> None:
    shutil.rmtree(model / "1")


def touch_weights(model: Path) -> None:
    file = model / "1" / "model.onnx"
    file.write_bytes(b"x" * file.stat().st_size)


@pytest.mark.parametrize("edit", [edit_configuration, remove_version, touch_weights])
def test_an_edit_by_hand_is_seen_and_put_right(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    edit: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    place, target = places[0], edit.__name__
    theirs = place.root / "theirs" / "config.pbtxt"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("of somebody else")
    house = House(world, workspace, built, place)
    house.request(target)
    (keeper,) = house.serving.keepers
    keeper.round()
    assert not keeper.look()
    edit(place.root / target)
    assert keeper.look()
    keeper.round()
    assert f"{target} version 1 was made again in the repository, and served on: " in caplog.text
    assert not keeper.look()
    assert answers(place.url, target, built)
    assert theirs.read_text() == "of somebody else"


def test_a_version_of_somebody_elses_is_left_alone_and_told(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    house = House(world, workspace, built, places[0])
    house.request("shared")
    (keeper,) = house.serving.keepers
    keeper.round()
    theirs = places[0].root / "shared" / "29" / "model.bin"
    theirs.parent.mkdir()
    theirs.write_text("of somebody else")
    keeper.round()
    (row,) = house.promotions("shared")
    assert (row.state, row.error) == (
        "serving",
        f"{theirs.parent} was not put there by relearnd and is left alone: take it away",
    )
    assert answers(places[0].url, "shared", built)
    assert theirs.read_text() == "of somebody else"
    theirs.unlink()
    theirs.parent.rmdir()
    keeper.round()
    assert house.promotions("shared")[0].error is None


# --- servers that cannot be given models ------------------------------------------------------------------------------


def test_a_triton_that_is_too_old_is_told_and_given_nothing(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An older one cannot be had here: the least version is set above that of this one."""
    house = House(world, workspace, built, places[0])
    row = house.request("old")
    (keeper,) = house.serving.keepers
    with monkeypatch.context() as newer:
        newer.setattr(fitness, "LEAST", (99, 1))
        for _ in range(2):
            keeper.round()
    said = "is version 2.51.0, which would fail requests at a switch: take 99.1 or newer"
    assert caplog.text.count(said) == 1
    assert (house.noted()["here"][0], said in str(house.noted()["here"][1])) == ("unfit", True)
    assert house.promotions("old")[0].error.startswith("waits: Triton at ")
    keeper.round()
    assert house.serves("old")
    assert house.noted()["here"] == ("ready", None)
    assert house.world.row(schema.servers, name="here").version == "2.51.0"
    assert row.server == "here"


def test_a_triton_on_another_repository_is_told_what_it_should_serve(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    here, there = places
    house = House(world, workspace, built, here, more='repository_seen = "/models"\n')
    (keeper,) = house.serving.keepers
    keeper.repository = there.root
    keeper.round()
    state, trouble = house.noted()["here"]
    assert state == "unfit"
    assert "has another model repository: start it with --model-repository=/models" in str(trouble)
    keeper.repository = here.root  # as it is corrected
    keeper.round()
    assert house.noted()["here"] == ("ready", None)
    assert not list(here.root.glob("relearn-check*"))
    fitness.forget(there.root, keeper.owner)
    assert not list(there.root.glob("relearn-check*"))


def test_a_triton_in_polling_mode_is_told_how_to_start(
    world: World, workspace: Path, journal: Engine, built: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path / "polling" / "here", mode="poll")
    try:
        house = House(world, workspace, built, place)
        house.request("edge")
        (keeper,) = house.serving.keepers
        keeper.round()
        state, trouble = house.noted()["here"]
        assert "start it with --model-control-mode=explicit" in str(trouble)
        assert state == "unfit"
        assert house.promotions("edge")[0].state == "switching"
        assert list(place.root.iterdir()) == []
    finally:
        place.kill()


# --- several ----------------------------------------------------------------------------------------------------------


def test_a_target_moves_to_another_server_which_answers_first(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], eventually: Eventually
) -> None:
    here, there = places
    house = House(world, workspace, built, here, there)
    ask_for(house, "moves", "here")
    failed: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        """A client that changes its address once the new server answers."""
        url = here.url
        while not stop.wait(0.01):
            url = there.url if url == there.url or answers(there.url, "moves", built) else url
            if not answers(url, "moves", built):
                failed.append(url)

    with house.serving.running():
        house.request("moves")
        eventually(lambda: house.serves("moves"), seconds=60)
        client = threading.Thread(target=ask)
        client.start()
        try:
            ask_for(house, "moves", "there")
            house.serving.tend()

            def has_moved() -> bool:
                house.answer_events()
                return [(row.server, row.state) for row in house.promotions("moves")] == [
                    ("here", "retired"), ("there", "serving"),
                ]  # fmt: skip

            eventually(has_moved, seconds=60)
        finally:
            stop.set()
            client.join()
    assert failed == []
    assert not (here.root / "moves").exists()
    with Triton(here.url) as triton:
        assert "moves" not in triton.index()
    assert [row.kind for row in house.promotions("moves")] == ["rollback", "move"]
    assert house.promotions("moves")[1].reason == "it moves from here to there, as its constraint file says"


def test_a_server_that_is_silent_holds_up_no_other(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], eventually: Eventually
) -> None:
    """It takes connections and says nothing: each question to it lasts until its time is over."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = Place.__new__(Place)
        silent.root, silent.url = workspace / "silent", f"127.0.0.1:{mute.getsockname()[1]}"
        silent.root.mkdir()
        house = House(world, workspace, built, silent, places[1])
        ask_for(house, "slow", "here")
        ask_for(house, "quick", "there")
        with house.serving.running():
            house.request("slow")
            house.request("quick")
            eventually(lambda: house.serves("quick"), seconds=25)
            assert house.promotions("slow")[0].state == "switching"


def test_a_target_leaves_a_server_that_is_away(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    """It is served where it should be; the one that is away is to forget it once it is back."""
    gone = Place.__new__(Place)
    gone.root, gone.url = workspace / "gone", f"127.0.0.1:{free_ports(1)[0]}"
    gone.root.mkdir()
    house = House(world, workspace, built, gone, places[1])
    house.world.promote("first", 1, target="flees", server="here")
    ask_for(house, "flees", "there")
    for _ in range(2):
        for keeper in house.serving.keepers:
            keeper.round()
        house.answer_events()
    assert [(row.server, row.state) for row in house.promotions("flees")] == [("here", "leaving"), ("there", "serving")]
    assert answers(places[1].url, "flees", built)


def test_rows_of_a_journal_that_knew_one_server_are_the_first_s(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    house = House(world, workspace, built, *places)
    house.world.promote("first", 1, target="older", state="retired")
    house.world.promote("first", 1, target="stray", server="nonesuch", state="switching", step=None)
    house.serving.settle(house.config)
    assert [row.server for row in house.promotions("older")] == ["here"]
    (stray,) = house.promotions("stray")
    assert (stray.state, stray.error) == ("failed", "config.toml names no server 'nonesuch' any more")
