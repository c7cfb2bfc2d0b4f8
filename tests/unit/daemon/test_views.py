"""What people and programs are shown: plain values that JSON can hold, and NotFound for what is not there."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from typing import Any
from unittest.mock import ANY

import pytest
from rich.console import Console
from sqlalchemy import Engine, update

from daemon import data_views, pauses, render, schema, servers, views
from daemon.config import Config, load
from daemon.constraint_file import take_in
from daemon.errors import NotFound
from daemon.journal import add, change
from daemon.lock import locked
from policies.facts import to_dict

World = Any  # tests/unit/daemon/conftest.py


def show(journal: Engine, view: Any, *arguments: Any) -> Any:
    """The view, as a program reads it."""
    with journal.connect() as connection:
        shown = view(connection, *arguments)
    plain = json.loads(json.dumps(shown))
    assert plain == shown, "not plain values"
    return plain


@pytest.fixture
def served(world: World) -> World:
    """A target with a champion, and a cycle that was judged and kept."""
    for role, number in (("train", 3), ("tune", 1), ("judge", 2)):
        world.samples("cat", role, number)
        world.samples("dog", role, number)
    world.require()
    world.champion("old", latency_p95_ms=2.5)
    return world


def stage(world: World, cycle: int, step: str, name: str, state: str, **attempt: Any) -> int:
    with world.journal.begin() as connection:
        values = {"cycle_id": cycle, "step": step, "name": name, "state": state, "attempts": int(bool(attempt))}
        id_ = add(connection, schema.stages, **values)
        if attempt:
            add(connection, schema.attempts, stage_id=id_, **{"number": 1, "token": "t", "started": 1.0, **attempt})
    return id_


def verdict(world: World, cycle: int, artifact: str = "old", **columns: Any) -> int:
    said = {"answer": "keep", "reason": "no better", "better": False, "at": 3.0, "facts": {"askings": 2}}
    stored = {"answer": "keep", "reason": "no better", "table": [{"class": "cat", "lost": 1}]}
    with world.journal.begin() as connection:
        values = {**said, "verdict": stored, "cycle_id": cycle, "target": "edge", "artifact_id": artifact, **columns}
        return add(connection, schema.verdicts, **values)


def silent(config: Config) -> dict[str, Any]:
    """What is shown of the only server, where it was never reached and does not answer."""
    unknown = dict.fromkeys(("state", "trouble", "version", "since"))
    return {
        "name": "main",
        "url": config.settings.triton[0].url,
        **unknown,
        "answers": False,
        "ready": {},
        "not_asked": None,
    }


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_of_an_empty_workspace(config: Config, journal: Engine) -> None:
    assert show(journal, views.status, config) == {
        "workspace": str(config.workspace),
        "running": False,
        "paused": [],
        "configuration": {"error": None, "edited": False},
        "disk_free_mb": ANY,
        "targets": [],
        "servers": [silent(config)],
        "working": None,
        "reading": None,
        "data": {"classes": {}, "unlabelled": 0, "in_conflict": 0, "held": 0, "flagged": 0, "rejected": 0},
        "drift": [],
        "last_decision": None,
    }


def drawn(view: Any) -> str:
    out = StringIO()
    Console(file=out, width=200).print(render.status(view))
    return out.getvalue()


def test_a_long_drop_is_told_with_its_speed(config: Config, journal: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.data_views.now", lambda: 1e9 + 5)
    with journal.begin() as connection:
        about = {"folder": "images", "files": 1000, "added": 240, "rejected": 10}
        drop = add(connection, schema.drops, state="reading", started=1e9, **about)
        view = views.status(connection, config)
        assert view["reading"]["done"] == 250
        assert view["reading"]["speed"] == pytest.approx(50)
        assert view["reading"]["seconds_left"] == pytest.approx(15)
        assert "drop 1: 250 of 1,000 files read, 50/s, about 15 s left" in drawn(view)
        change(connection, schema.drops, drop, state="matching")
        assert "near-duplicates of its images are looked for" in drawn(views.status(connection, config))
        change(connection, schema.drops, drop, state="ready")
        assert views.status(connection, config)["reading"] is None


def test_status_says_whether_a_daemon_runs(config: Config, journal: Engine) -> None:
    with locked(config.state):
        assert show(journal, views.status, config)["running"] is True
    assert show(journal, views.status, config)["running"] is False


def test_status_shows_what_is_served(config: Config, journal: Engine, served: World) -> None:
    (target,) = show(journal, views.status, config)["targets"]
    champion = target["champion"]
    assert target["requirement"] == to_dict(served.requirement())
    assert (target["error"], target["removed"], target["violated"]) == (None, False, None)
    assert (champion["artifact"], champion["version"], champion["by"]) == ("old", 1, "policy")
    assert (champion["served_since"], champion["reason"], champion["judge_accuracy"]) == (1.0, "it is good", 1.0)
    assert champion["measurement"]["latency_p95_ms"] == 2.5
    assert target["last_cycle"]["outcome"] == "promoted"


@pytest.mark.parametrize(
    ("triton", "said"),
    [
        ({"answers": False, "ready": {}}, "AWAY: no Triton answers at here:1; it is served once one does"),
        ({"answers": True, "ready": {"edge": False}}, "AWAY: Triton has not loaded version 1"),
        ({"answers": True, "ready": {"edge": True}}, None),
    ],
)
def test_what_triton_says_itself_is_drawn(
    config: Config, journal: Engine, served: World, triton: dict[str, Any], said: str | None
) -> None:
    view = show(journal, views.status, config)
    assert view["servers"] == [silent(config)]
    drawn = Console(width=200, file=StringIO())
    drawn.print(render.status({**view, "servers": [{**silent(config), "url": "here:1", **triton}]}))
    text = drawn.file.getvalue()  # type: ignore[attr-defined]
    assert said in text if said else "AWAY" not in text
    assert "serves version 1: net" in text


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        (None, "no daemon has found it yet"),
        ("ready", "the daemon found it ready since "),
        ("away", "found it away since "),
    ],
)
def test_a_triton_that_cannot_be_asked_from_here_is_not_said_to_be_away(
    config: Config, journal: Engine, served: World, noted: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a header takes from the environment stands in the daemon's alone."""
    monkeypatch.delenv("TOKEN", raising=False)
    asked = load(config.workspace, ['triton.headers={authorization="env:TOKEN"}'])
    if noted:
        servers.note(journal, "main", noted, trouble="it is asleep" if noted == "away" else None)
    view = show(journal, views.status, asked)
    (server,) = view["servers"]
    assert (server["answers"], server["ready"]) == (None, {})
    text = drawn(view)
    assert f"not asked from here: {server['not_asked']}; " in text
    assert "the environment has no variable TOKEN" in server["not_asked"]
    assert said in text
    assert "AWAY" not in text
    assert ("it is asleep" in text) == (noted == "away")


def test_a_certificate_that_one_may_not_read_is_no_silence(config: Config, journal: Engine, served: World) -> None:
    asked = load(config.workspace, ["triton.tls=true"])
    hidden = {"tls_authorities": str(config.workspace / "gone.pem")}
    server = asked.settings.triton[0].model_copy(update=hidden)
    asked = dataclasses.replace(asked, settings=asked.settings.model_copy(update={"triton": (server,)}))
    (said,) = show(journal, views.status, asked)["servers"]
    assert said["answers"] is None
    assert "gone.pem" in said["not_asked"]


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("forced", "put: no room", "FAILED: version 2 (old), forced by ann, is not served: put: no room"),
        ("rollback", "put: no room", "FAILED: version 2 (old), gone back to by ann, is not served: put: no room"),
        ("forced", "taken back by ann", None),
        ("settings", "put: no room", None),  # of that what is served tells
    ],
)
def test_what_a_person_asked_for_and_failed_stands_in_status(
    config: Config, journal: Engine, served: World, kind: str, error: str, told: str | None
) -> None:
    served.promote("old", 2, kind=kind, by="ann", state="failed", served=None, error=error)
    drawn = Console(width=200, file=StringIO())
    drawn.print(render.status(show(journal, views.status, config)))
    text = drawn.file.getvalue()  # type: ignore[attr-defined]
    assert (told in text) if told else ("FAILED" not in text)


def test_what_is_under_way_and_what_is_wrong_is_drawn(config: Config, journal: Engine, served: World) -> None:
    with journal.begin() as connection:
        connection.execute(update(schema.promotions).values(error="somebody else's folder"))
    switching = {"kind": "rollback", "by": "ann", "state": "switching", "served": None}
    served.promote("old", 2, **switching, step=None)
    (target,) = show(journal, views.status, config)["targets"]
    assert target["switching"] == {"version": 2, "kind": "rollback", "by": "ann", "step": None, "error": None}
    with journal.begin() as connection:
        waits = {"step": "stage", "error": "waits: Triton is away"}
        connection.execute(update(schema.promotions).where(schema.promotions.c.version == 2).values(**waits))
    served.promote("old", 3, **switching, step=None)  # it waits for that one
    drawn = Console(width=200, file=StringIO())
    drawn.print(render.status(show(journal, views.status, config)))
    text = drawn.file.getvalue()  # type: ignore[attr-defined]
    assert "TROUBLE: somebody else's folder" in text
    assert "rollback to version 2 is under way: waits: Triton is away" in text


def test_status_counts_samples_by_class_and_role(config: Config, journal: Engine, served: World) -> None:
    (odd,) = served.samples("cat", "train", 1, mark="odd")
    served.appear(odd, "dog")
    (gone,) = served.samples("dog", "tune", 1, mark="gone")
    served.vanish(gone)
    served.samples(None, "", 3)
    data = show(journal, views.status, config)["data"]
    assert data["classes"] == {"cat": {"train": 3, "tune": 1, "judge": 2}, "dog": {"train": 3, "tune": 1, "judge": 2}}
    assert (data["unlabelled"], data["in_conflict"], data["rejected"]) == (3, 1, 0)


def test_status_of_a_violated_target(config: Config, journal: Engine, served: World) -> None:
    served.cycle(state="done", outcome="violated", reason="none fits", ended=3.0)
    (target,) = show(journal, views.status, config)["targets"]
    assert (target["violated"], target["last_cycle"]["reason"]) == ("none fits", "none fits")
    served.cycle(state="failed", outcome="failed", reason="disk full", ended=4.0)
    (target,) = show(journal, views.status, config)["targets"]
    assert target["violated"] == "none fits"  # nothing is better for that
    served.cycle(state="done", outcome="kept", reason="too slow", ended=4.0, trigger="asked", about="old")
    (target,) = show(journal, views.status, config)["targets"]
    assert target["violated"] == "none fits"  # nor for a person's question about one artifact
    assert target["champion"]["artifact"] == "old"  # it serves on


def test_status_of_what_waits_for_a_person(config: Config, journal: Engine, served: World) -> None:
    cycle = served.cycle(state="done", outcome="ask", reason="would be promoted", ended=3.0)
    served.artifact("new", cycle)
    asked = {"answer": "promote", "champion_id": "old", "approval": "waiting", "reason": "it is better"}
    id_ = verdict(served, cycle, "new", **asked, facts={"requirement": to_dict(served.requirement())})
    status = show(journal, views.status, config)
    expected = {"verdict": id_, "artifact": "new", "answer": "promote", "since": 3.0, "reason": "it is better"}
    assert status["targets"][0]["asks"] == {**expected, "void": None}
    assert f"ASKS YOU: new would be promoted (v{id_}, since 1970-01-0" in drawn(status)
    assert "`relearn approve edge` promotes it, `relearn refuse edge` does not" in drawn(status)
    served.require(at=4.0, latency_p95_ms=1.0)
    status = show(journal, views.status, config)
    assert status["targets"][0]["asks"]["void"] == "the constraints of edge have changed"
    assert "too late: the constraints of edge have changed; `relearn promote edge new` has it" in drawn(status)


def test_status_says_that_it_is_paused_and_what_stays_away(config: Config, journal: Engine, served: World) -> None:
    served.artifact("bad", served.cycle(state="done"))
    served.promote("bad", 2, state="retired")
    served.promote("old", 3, kind="rollback", by="ann", started=86_400.0 * 2)
    with journal.begin() as connection:
        pauses.pause(connection, None, "ann", "a visit")
    status = show(journal, views.status, config)
    assert status["paused"][0].startswith("all targets are paused by ann since ")
    assert status["targets"][0]["declined"]["bad"].startswith("ann went back from bad on 1970-01-0")
    text = drawn(status)
    assert "(a visit); `relearn resume` ends it" in text
    assert "not brought back: ann went back from bad on 1970-01-0" in text


def test_an_explained_verdict_says_what_became_of_it(journal: Engine, served: World) -> None:
    cycle = served.cycle(state="done", outcome="ask", reason="", ended=3.0)
    id_ = verdict(served, cycle, approval="approved", answered=4.0, answered_by="ann")
    served.promote("old", 2, by="ann", verdict_id=id_)
    view = show(journal, views.explain, f"v{id_}")
    assert (view["approval"], view["answered_by"]) == ("approved", "ann")
    assert [(row["version"], row["by"]) for row in view["promotions"]] == [(2, "ann")]
    assert [row["version"] for row in show(journal, views.explain, f"c{cycle}")["promotions"]] == [2]
    out = StringIO()
    Console(file=out, width=200).print(render.cycles(show(journal, views.cycles)))
    assert "ask, approved, version 2" in out.getvalue()


def test_status_of_a_target_whose_file_is_gone(config: Config, journal: Engine, served: World) -> None:
    (config.constraints / "edge.toml").unlink()
    with journal.begin() as connection:
        take_in(connection, config.constraints)
    (target,) = show(journal, views.status, config)["targets"]
    assert (target["removed"], target["requirement"], target["champion"]["artifact"]) == (True, None, "old")


def test_an_unknown_target_is_not_found(config: Config, journal: Engine) -> None:
    with pytest.raises(NotFound, match="no target 'phone'"):
        show(journal, views.target, config, "phone")


# --- what runs ------------------------------------------------------------------------------------------------------


def test_what_runs_is_told_with_its_progress(journal: Engine, served: World) -> None:
    cycle = served.cycle()
    stage(served, cycle, "train net", "pixels", "done", outcome="done")
    progress = {"done": 1, "total": 8, "unit": "epoch"}
    stage(served, cycle, "train net", "train", "running", progress=progress)
    assert show(journal, views.working) == {
        "cycle": cycle,
        "target": "edge",
        "since": 1.0,
        "paused": None,
        "step": "train net",
        "stage": "train",
        "state": "running",
        "attempt": 1,
        "progress": progress,
        "last_words": None,
    }


def test_a_stage_that_waits_for_a_retry_says_what_went_wrong(journal: Engine, served: World) -> None:
    stage(served, served.cycle(), "train net", "train", "waiting", outcome="failed", last_words="out of memory")
    view = show(journal, views.working)
    assert (view["stage"], view["state"], view["last_words"]) == ("train", "waiting", "out of memory")


def test_between_two_steps_no_stage_is_told(journal: Engine, served: World) -> None:
    cycle = served.cycle()
    stage(served, cycle, "train net", "train", "done", outcome="done")
    view = show(journal, views.working)
    assert (view["cycle"], view["stage"], view["progress"]) == (cycle, None, None)


def test_a_promotion_that_waits_for_triton_is_told(journal: Engine, served: World) -> None:
    cycle = served.cycle()
    how = {"state": "switching", "step": "stage", "served": None, "error": "waits: no Triton answers"}
    served.promote("old", 2, cycle_id=cycle, **how)
    view = show(journal, views.working)
    assert (view["stage"], view["step"], view["last_words"]) == ("promotion", "stage", "waits: no Triton answers")


@pytest.mark.parametrize("runs", ["another training", "a promotion"])
def test_stages_that_a_step_left_out_are_not_what_runs(journal: Engine, served: World, runs: str) -> None:
    """A network that is too large by its weights is not evaluated and not exported."""
    cycle = served.cycle()
    stage(served, cycle, "train large", "train", "done", outcome="done")
    stage(served, cycle, "train large", "evaluate", "skipped")
    if runs == "a promotion":
        served.promote("old", 2, cycle_id=cycle, state="switching", served=None)
        assert show(journal, views.working)["stage"] == "promotion"
    else:
        stage(served, cycle, "train small", "train", "running", progress={"done": 1})
        view = show(journal, views.working)
        assert (view["step"], view["stage"], view["progress"]) == ("train small", "train", {"done": 1})


# --- models ---------------------------------------------------------------------------------------------------------


def test_models_are_shown_with_what_is_known_of_them(journal: Engine, served: World) -> None:
    cycle = served.cycle(state="done")
    served.artifact("bare", cycle, megabytes=3.0, architecture="big", tune_accuracy=0.25)
    found = {view["artifact"]: view for view in show(journal, views.models)}
    assert (found["old"]["serves"], found["bare"]["serves"]) == ("edge/1", None)
    bare = found["bare"]
    assert (bare["architecture"], bare["artifact_mb"], bare["tune_accuracy"]) == ("big", 3.0, 0.25)
    assert bare["measurement"] is bare["judge_accuracy"] is bare["parity"] is None
    assert (bare["cycle"], bare["classes"], bare["path"]) == (cycle, ["cat", "dog"], "artifacts/bare")


def test_the_newest_measurement_is_shown(journal: Engine, served: World) -> None:
    served.measure("old", latency_p95_ms=9.0)
    (model,) = show(journal, views.models)
    assert model["measurement"]["latency_p95_ms"] == 9.0


def test_the_accuracy_on_judge_is_by_the_labels_now(journal: Engine, served: World) -> None:
    cat = next(sample for sample, name in served.truth().items() if name == "cat")
    served.relabel(cat, "dog")
    (model,) = show(journal, views.models)
    assert model["judge_accuracy"] == 0.75
    served.vanish(cat)
    (model,) = show(journal, views.models)
    assert model["judge_accuracy"] == 1.0


def test_an_image_that_lies_there_twice_counts_once(journal: Engine, served: World) -> None:
    cats = [sample for sample, name in served.truth().items() if name == "cat"]
    served.relabel(cats[0], "dog")
    for _ in range(4):
        served.appear(cats[1], "cat")
    (model,) = show(journal, views.models)
    assert model["judge_accuracy"] == 0.75


# --- cycles ---------------------------------------------------------------------------------------------------------


def test_cycles_are_shown_with_stages_verdicts_and_promotions(journal: Engine, served: World) -> None:
    cycle = served.cycle(state="done", outcome="kept", reason="no better", ended=9.0)
    stage(served, cycle, "train net", "train", "done", outcome="done", ended=2.0, last_words="a warning")
    verdict(served, cycle, champion_id="old")
    served.promote("old", 2, cycle_id=cycle, state="failed", error="probe: other answers")
    view = show(journal, views.cycles)[0]
    assert (view["id"], view["state"], view["outcome"], view["reason"]) == (cycle, "done", "kept", "no better")
    (trained,) = view["stages"]
    assert (trained["step"], trained["name"], trained["state"]) == ("train net", "train", "done")
    assert trained["attempts"] == [
        {"number": 1, "started": 1.0, "ended": 2.0, "outcome": "done", "last_words": "a warning"}
    ]
    (judged,) = view["verdicts"]
    assert (judged["artifact"], judged["against"], judged["answer"]) == ("old", "old", "keep")
    (promotion,) = view["promotions"]
    assert (promotion["version"], promotion["state"], promotion["error"]) == (2, "failed", "probe: other answers")


def test_the_newest_come_first_and_no_more_than_asked(journal: Engine, served: World) -> None:
    later = [served.cycle(state="done") for _ in range(3)]
    assert [view["id"] for view in show(journal, views.cycles, 2)] == later[:0:-1]
    assert [view["id"] for view in show(journal, views.decisions, 1)] == [served.rows(schema.decisions)[-1].id]


# --- explain --------------------------------------------------------------------------------------------------------


def test_a_cycle_is_explained_with_its_decision(journal: Engine, served: World) -> None:
    view = show(journal, views.explain, "c1")
    assert (view["id"], view["outcome"], view["decided_by"]["reason"]) == (1, "promoted", "because")


def test_a_verdict_is_explained_with_its_facts(journal: Engine, served: World) -> None:
    id_ = verdict(served, 1, champion_id="old")
    view = show(journal, views.explain, f"v{id_}")
    assert (view["cycle"], view["answer"], view["against"], view["facts"]) == (1, "keep", "old", {"askings": 2})
    assert view["table"] == [{"class": "cat", "lost": 1}]


@pytest.mark.parametrize("name", ["d1", "1", "D1"])
def test_a_decision_is_explained(journal: Engine, served: World, name: str) -> None:
    view = show(journal, views.explain, name)
    assert (view["id"], view["action"], view["reason"]) == (1, "train", "because")


NUMBERS = ["0", "99", str(2**63 - 1), str(2**63), "9" * 5000, "²", "١", "1.0", " 1"]


@pytest.mark.parametrize("number", NUMBERS, ids=[number[:20] for number in NUMBERS])
def test_what_is_not_there_is_not_found(journal: Engine, served: World, number: str) -> None:
    for kind in ("d", "c", "v", "", "x"):
        with pytest.raises(NotFound):
            show(journal, views.explain, f"{kind}{number}")


def test_rejected_files_are_shown_until_they_are_gone(journal: Engine, world: World) -> None:
    with journal.begin() as connection:
        drop = add(connection, schema.drops, folder="/images", state="ready", started=1.0)
        about = {"folder": "/images", "size": 1, "mtime_ns": 1, "reason": "is empty", "drop_id": drop, "at": 2.0}
        for path, gone in (("a.png", None), ("b.png", 3.0), ("c.png", None)):
            add(connection, schema.rejections, path=path, gone=gone, **about)
    rows = show(journal, data_views.rejected)
    assert rows[0] == {"file": "/images/c.png", "reason": "is empty", "drop": drop, "at": 2.0}
    assert [row["file"] for row in rows] == ["/images/c.png", "/images/a.png"]
