"""Keepers in trouble: servers that refuse, disks that fail, names that change; said once, tried again soon, mended."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from daemon import keeper as keepers
from daemon import looks, schema, servers, wanted
from daemon.keeper import Keeper
from deploy import artifact, fitness
from deploy.repository import RepositoryError
from deploy.server import free_ports
from deploy.switch import Switch, SwitchFailed
from deploy.triton import Triton, TritonRefused
from tests.unit.daemon.house import House, Place, answers, ask_for
from tests.unit.deploy.models import class_names, make_artifact

World = Any  # tests/unit/daemon/conftest.py
Eventually = Callable[..., None]


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


def only(house: House) -> Keeper:
    (keeper,) = house.serving.keepers
    return keeper


def rounds(house: House, number: int = 2) -> None:
    """Of each server, as long as the loop would take to answer what they ask."""
    for _ in range(number):
        for keeper in house.serving.keepers:
            keeper.round()
        house.answer_events()


def places_of(house: House, target: str) -> list[tuple[str, str]]:
    return [(row.server, row.state) for row in house.promotions(target)]


# --- names that change ------------------------------------------------------------------------------------------------


def test_a_server_by_another_name_keeps_what_it_serves(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    """Nothing is loaded for that, and what Triton forgets is loaded again."""
    house = House(world, workspace, built, places[0])
    ask_for(house, "renamed", "")
    house.request("renamed")
    rounds(house)
    file = workspace / "config.toml"
    file.write_text(file.read_text().replace('name = "here"', 'name = "line1"'))
    house.start_anew()
    rounds(house)
    assert places_of(house, "renamed") == [("line1", "serving")]
    with Triton(places[0].url) as triton:
        triton.unload("renamed")
    rounds(house)
    assert answers(places[0].url, "renamed", built)
    assert places_of(house, "renamed") == [("line1", "serving")]


def test_what_a_server_served_that_was_taken_out_moves_to_the_one_that_is_left(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    house = House(world, workspace, built, *places)
    ask_for(house, "back", "there")
    house.request("back")
    rounds(house)
    assert places_of(house, "back") == [("there", "serving")]
    file = workspace / "config.toml"
    file.write_text(file.read_text().partition('[[triton]]\nname = "there"')[0])
    ask_for(house, "back", "")
    house.start_anew()
    rounds(house)
    assert places_of(house, "back") == [("there", "retired"), ("here", "serving")]
    assert house.promotions("back")[1].reason == "it moves from there to here, since there is no there any more"
    assert answers(places[0].url, "back", built)


def test_a_server_that_is_taken_out_draws_nothing_to_itself_in_its_last_round(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    """By its own settings what another has, by a name that it does not know, is to be served by it."""
    house = House(world, workspace, built, places[0])
    ask_for(house, "renamed", "")
    house.world.promote("first", 1, target="renamed", server="line1")
    keeper = only(house)
    keeper.stop()
    keeper.round()
    assert house.queue.empty()


def test_a_target_may_be_called_as_a_server_is_in_the_log(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    house = House(world, workspace, built, places[0])
    house.request("server")
    rounds(house)
    keeper = only(house)
    monkeypatch.setattr(keepers, "mend", failing(SwitchFailed("no room")))
    keeper.round()
    assert keeper.pause() == keeper.server.check_seconds  # the server itself is well


# --- what refuses, or cannot be read ----------------------------------------------------------------------------------


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a service that wants to know who asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error":"unauthorized"}'
            self.send_response(401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_refuses_is_unfit_and_said_once(
    world: World, workspace: Path, journal: Engine, built: Path, refusing: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place.__new__(Place)
    place.root, place.url = workspace / "refusing", refusing
    place.root.mkdir()
    house = House(world, workspace, built, place, more='protocol = "http"\n')
    house.request("edge")
    rounds(house, 3)
    state, trouble = house.noted()["here"]
    assert (state, "refuses what a Triton is asked: " in str(trouble)) == ("unfit", True)
    assert caplog.text.count("refuses what a Triton is asked") == 1
    assert "Traceback" not in caplog.text
    assert house.promotions("edge")[0].error.startswith(f"waits: what answers at {refusing} refuses")


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_a_disk_that_fails_is_one_target_s_trouble_and_said_once(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(world, workspace, built, places[0])
    house.request("stale")
    rounds(house)
    keeper = only(house)
    assert not keeper.look()
    with monkeypatch.context() as broken:
        broken.setattr(looks, "fingerprint", failing(OSError(116, "Stale file handle")))
        assert keeper.look()
        rounds(house, 3)
    assert house.promotions("stale")[0].error == "[Errno 116] Stale file handle"
    assert caplog.text.count("Stale file handle") == 1
    assert house.noted()["here"] == ("ready", None)
    keeper.round()
    assert house.promotions("stale")[0].error is None


def test_a_header_whose_variable_went_is_the_server_s_trouble(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    monkeypatch.setenv("RELEARN_TEST_TOKEN", "x")
    house = House(world, workspace, built, places[0], more='headers = { authorization = "env:RELEARN_TEST_TOKEN" }\n')
    monkeypatch.delenv("RELEARN_TEST_TOKEN")
    house.request("edge")
    rounds(house)
    state, trouble = house.noted()["here"]
    assert (state, "RELEARN_TEST_TOKEN" in str(trouble)) == ("unfit", True)


def test_a_journal_that_cannot_be_written_is_said_once(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(world, workspace, built, places[0], more="check_seconds = 0.05\n")
    tries: list[None] = []

    def full(*_: object, **__: object) -> None:
        tries.append(None)
        raise OperationalError("insert", {}, Exception("database or disk is full"))

    monkeypatch.setattr(servers, "note", full)
    with house.serving.running():
        eventually(lambda: len(tries) > 3)
    assert caplog.text.count("the journal: database or disk is full") == 1
    assert "Traceback" not in caplog.text


@pytest.fixture
def moving(world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]) -> House:
    """Its target is served here, and is to move to a server that is away, as far as a folder lets it."""
    away = Place.__new__(Place)
    away.root, away.url = workspace / "there", f"127.0.0.1:{free_ports(1)[0]}"
    away.root.mkdir()
    house = House(world, workspace, built, places[0], away)
    ask_for(house, "edge", "here")
    house.request("edge")
    rounds(house)
    ask_for(house, "edge", "there")
    rounds(house, 3)
    assert [(row.state, row.step) for row in house.promotions("edge")] == [
        ("serving", "retire"),
        ("switching", "stage"),
    ]
    return house


def test_a_move_to_a_server_that_is_away_is_withdrawn_when_the_file_is_edited_back(moving: House) -> None:
    ask_for(moving, "edge", "here")
    rounds(moving)
    (served, moved) = moving.promotions("edge")
    assert (served.state, served.error) == ("serving", None)
    assert (moved.state, moved.error) == ("failed", "withdrawn: its constraint file names here now")


def test_a_move_that_was_withdrawn_is_made_at_once_when_the_file_is_edited_again(moving: House) -> None:
    for server in ("here", "there"):
        ask_for(moving, "edge", server)
        rounds(moving)
    assert [(row.kind, row.state) for row in moving.promotions("edge")] == [
        ("rollback", "serving"),
        ("move", "failed"),
        ("move", "switching"),
    ]


def test_a_renewal_that_a_person_took_back_is_no_trouble_and_waits_for_a_reload(
    moving: House, journal: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with journal.begin() as connection:
        assert moving.serving.take_back(connection, moving.promotions("edge")[1], "ann")
    rounds(moving, 3)
    served, moved = moving.promotions("edge")
    assert (served.error, moved.state, moved.error) == (None, "failed", "taken back by ann")
    assert "did not take it" not in caplog.text
    for keeper in moving.serving.keepers:
        keeper._configure(moving.config, keeper.server)  # as its thread does it
    rounds(moving)
    assert [row.state for row in moving.promotions("edge")] == ["serving", "failed", "switching"]


def test_a_move_to_a_server_that_is_away_can_be_taken_back_and_holds_up_nothing(moving: House, journal: Engine) -> None:
    with journal.begin() as connection:
        row = moving.promotions("edge")[1]
        assert moving.serving.take_back(connection, row, "ann")
    ask_for(moving, "edge", "here")
    rounds(moving)
    assert [row.state for row in moving.promotions("edge")] == ["serving", "failed"]
    assert moving.promotions("edge")[1].error == "taken back by ann"
    moving.request("edge")
    rounds(moving)
    assert [row.state for row in moving.promotions("edge")] == ["retired", "failed", "serving"]


def test_what_was_killed_is_mended_though_the_journal_cannot_be_written(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(world, workspace, built, places[0])
    keeper = only(house)
    house.request("edge")
    keeper.round()
    assert house.serves("edge")

    def full(*_: object, **__: object) -> None:
        raise OperationalError("insert", {}, Exception("database or disk is full"))

    monkeypatch.setattr(servers, "note", full)
    monkeypatch.setattr(keepers, "update", full)
    for stub in places[0].stubs():
        stub.kill()
    assert keeper.look()
    keeper.round()
    assert answers(places[0].url, "edge", built)


def test_a_server_that_answers_late_is_waited_for(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    """Its answers come later than a call may take; once they come in time it is given what it should serve."""
    slow = SlowWire(places[0].ports[1], seconds=1.5)
    place = Place.__new__(Place)
    place.root, place.url = places[0].root, slow.address
    house = House(world, workspace, built, place, more='protocol = "http"\ntimeout_seconds = 0.5\n')
    house.request("late")
    keeper = only(house)
    keeper.round()
    assert house.noted()["here"][0] == "away"
    assert house.promotions("late")[0].error.startswith("waits: no Triton answers at ")
    slow.seconds = 0.0
    keeper.round()
    assert house.serves("late")
    slow.seconds = 1.5
    assert keeper.look()
    keeper.round()
    assert house.noted()["here"][0] == "away"
    slow.seconds = 0.0
    keeper.round()
    assert house.noted()["here"] == ("ready", None)
    assert [row.state for row in house.promotions("late")] == ["serving"]
    slow.listening.close()


class SlowWire:
    """Passes on to a port what it is told, and what is answered so much later."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.seconds = port, seconds
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.listening.accept()
                behind = socket.create_connection(("127.0.0.1", self.port))
                for ends in ((caller, behind, False), (behind, caller, True)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, late: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.seconds * late)
                sink.sendall(data)
            sink.close()


# --- tried again soon -------------------------------------------------------------------------------------------------


def test_what_failed_is_tried_again_when_it_is_said_to_be(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(world, workspace, built, places[0])
    house.request("retried")
    rounds(house)
    keeper = only(house)
    clock = Clock(monkeypatch)
    waits = []
    with monkeypatch.context() as broken:
        broken.setattr(keepers, "mend", failing(SwitchFailed("no room just now")))
        clock.at += 61.0
        for _ in range(6):
            assert keeper.look()
            keeper.round()
            waits.append(clock.until(keeper.look))
    assert waits == [4, 8, 16, 32, 60, 60]
    assert "no room just now; it is tried again in 4 s" in caplog.text
    keeper.round()
    assert house.promotions("retried")[0].error is None
    assert clock.until(keeper.look) == 60


def test_a_promotion_that_the_disk_had_no_room_for_is_tried_again_soon(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    places: tuple[Place, Place],
    monkeypatch: Any,
    caplog: Any,
) -> None:
    """What serves meanwhile serves well, which is no end of that trouble."""
    house = House(world, workspace, built, places[0])
    keeper = only(house)
    house.request("full")
    keeper.round()
    assert house.serves("full")
    house.request("full")
    clock = Clock(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(keepers, "run_step", failing(RepositoryError("No space left on device")))
        keeper.round()
    assert house.promotions("full")[1].error == "waits: No space left on device"
    assert "as it should be again" not in caplog.text
    assert clock.until(keeper.look) == 4
    keeper.round()
    assert [row.state for row in house.promotions("full")] == ["retired", "serving"]


class Clock:
    """The keepers' time, which passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = time.time()
        for module in (keepers, looks, wanted):
            monkeypatch.setattr(module, "now", lambda: self.at)

    def until(self, condition: Callable[[], bool]) -> int:
        """Whole seconds that pass until then."""
        for seconds in range(1000):
            self.at += 0.5  # in the midst of a second
            if condition():
                return seconds
            self.at += 0.5
        raise AssertionError("it never came")


def test_a_server_that_dies_with_nothing_of_ours_is_looked_at_when_it_comes_back(
    world: World,
    workspace: Path,
    journal: Engine,
    built: Path,
    tmp_path: Path,
    monkeypatch: Any,
    eventually: Eventually,
) -> None:
    place = Place(tmp_path / "dies" / "here")
    try:
        house = House(world, workspace, built, place)
        keeper = only(house)
        keeper.round()
        assert house.noted()["here"] == ("ready", None)
        place.kill()
        assert keeper.look()
        keeper.round()
        assert house.noted()["here"][0] == "away"
        monkeypatch.setattr(fitness, "LEAST", (99, 1))  # as if an older one had taken its place
        place.start()
        assert keeper.look()

        def is_found_unfit() -> bool:
            keeper.round()
            return house.noted()["here"][0] == "unfit"

        eventually(is_found_unfit)
    finally:
        place.kill()


# --- moves and settings that are refused ------------------------------------------------------------------------------


def test_a_move_that_is_refused_is_no_trouble_of_what_serves(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    """It serves well where it is; the failed promotion tells of the refusal, once for each time it is tried."""
    here, there = places
    house = House(world, workspace, built, here, there)
    ask_for(house, "stays", "here")
    house.request("stays")
    rounds(house)
    ask_for(house, "stays", "there")
    clock = Clock(monkeypatch)
    refuse_at(there, monkeypatch)
    rounds(house, 3)
    told = len(world.rows(schema.notices))
    for wait in (300.0, 60.0, 60.0):
        clock.at += wait
        rounds(house)
    assert len(world.rows(schema.notices)) == told
    first, move = house.promotions("stays")
    assert (first.server, first.state, first.error) == ("here", "serving", None)
    assert (move.server, move.kind, move.state, move.error) == ("there", "move", "failed", "probe: out of memory")
    assert answers(here.url, "stays", built)


def test_what_fails_once_it_was_loaded_is_undone_in_triton_too(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    """All steps in one go: how far it came is what the journal says at its end, not at its begin."""
    house = House(world, workspace, built, places[0])
    house.request("undone")
    keeper = only(house)
    keeper.round()
    assert house.serves("undone")
    real = keepers.run_step

    def fail(step: str, switch: Switch, triton: Triton) -> str:
        if step == "verify":
            raise SwitchFailed("verify: it answers otherwise")
        return real(step, switch, triton)

    monkeypatch.setattr(keepers, "run_step", fail)
    monkeypatch.setattr(keepers, "mend", lambda *_, **__: "")  # which would put it right as well
    house.request("undone")
    keeper.round()
    assert [row.state for row in house.promotions("undone")] == ["serving", "failed"]
    images, _ = artifact.read_golden(built)
    assert keeper._open().infer_all("undone", images)[1] == {1}


def test_a_target_that_a_server_will_not_give_up_is_asked_for_again(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    """Triton unloads whatever it is asked to; a refusal, as of a proxy, is put in its mouth."""
    house = House(world, workspace, built, *places)
    ask_for(house, "clings", "here")
    house.request("clings")
    rounds(house)
    ask_for(house, "clings", "there")
    unload = Triton.unload

    def refuse(triton: Triton, model: str) -> None:
        if model == "clings":
            raise TritonRefused("not allowed")
        unload(triton, model)

    with monkeypatch.context() as refusing:
        refusing.setattr(Triton, "unload", refuse)
        rounds(house, 3)
    assert places_of(house, "clings") == [("here", "leaving"), ("there", "serving")]
    assert answers(places[0].url, "clings", built)  # from memory
    rounds(house)
    assert places_of(house, "clings") == [("here", "retired"), ("there", "serving")]
    assert not answers(places[0].url, "clings", built)


def test_settings_that_are_refused_are_tried_ever_more_rarely_and_stay_a_trouble_meanwhile(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place], monkeypatch: Any
) -> None:
    house = House(world, workspace, built, places[0])
    ask_for(house, "narrow", "")
    house.request("narrow")
    rounds(house)
    file = workspace / "config.toml"
    file.write_text(file.read_text().replace("instances = 1", "instances = 2"))
    house.start_anew()
    clock = Clock(monkeypatch)
    monkeypatch.setattr("daemon.serving.now", lambda: clock.at)
    refuse_at(places[0], monkeypatch)
    tried, troubles = [], set()
    began = clock.at
    for _ in range(2 * 60):
        rounds(house, 1)
        clock.at += 60.0
        tried = [round((row.ended - began) / 60) for row in house.promotions("narrow") if row.state == "failed"]
        troubles.add(house.promotions("narrow")[0].error)
    assert tried[0] <= 1
    assert [later - earlier for earlier, later in pairwise(tried)] == [12, 22, 42]
    said = "how it is served was edited: instances 1 -> 2; Triton did not take it: probe: out of memory"
    assert troubles == {None, said}
    states = [n.what for n in world.rows(schema.notices, about="narrow")]
    assert sum("is served as it should be again" in what for what in states) == 0


def refuse_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = keepers.run_step

    def refuse(step: str, switch: Switch, triton: Triton) -> str:
        if switch.repository == place.root and step == "probe":
            raise SwitchFailed("probe: out of memory")
        return real(step, switch, triton)

    monkeypatch.setattr(keepers, "run_step", refuse)


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_a_keeper_over_http_switches_and_mends(
    world: World, workspace: Path, journal: Engine, built: Path, places: tuple[Place, Place]
) -> None:
    place = Place.__new__(Place)
    place.root, place.url = places[0].root, f"127.0.0.1:{places[0].ports[1]}"
    house = House(world, workspace, built, place, more='protocol = "http"\n')
    house.request("viahttp")
    keeper = only(house)
    keeper.round()
    assert house.serves("viahttp")
    assert not keeper.look()
    with Triton(places[0].url) as triton:
        triton.unload("viahttp")
    assert keeper.look()
    keeper.round()
    assert answers(places[0].url, "viahttp", built)
    assert house.noted()["here"] == ("ready", None)
