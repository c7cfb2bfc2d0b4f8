"""SIGKILL at eleven moments over the stages of two cycles, while clients ask: nothing is lost, nothing done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from daemon.demo.digits import Digit
from tests.acceptance.house import EPOCHS, House

# Where a cycle is: each moment is a query that tells whether it has been reached.
STAGE = "select count(*) from stages join cycles on cycles.id = cycle_id where cycle_id = {cycle} and name = '{stage}' "
FIRST_CYCLE = {
    "a drop is being read": "select count(*) from drops",
    "its images are being decoded": STAGE.format(cycle=1, stage="pixels") + "and stages.state <> 'waiting'",
    "an epoch is trained": "select count(*) from attempts where number = 1 and progress ->> 'unit' = 'epoch'"
    " and progress ->> 'done' >= 1",
    "another attempt has trained one more": "select count(*) from attempts where number >= 2"
    " and progress ->> 'unit' = 'epoch' and progress ->> 'done' >= 3",
    "it is trained": STAGE.format(cycle=1, stage="train") + "and stages.state = 'done'",
    "its engine is being built": STAGE.format(cycle=1, stage="build") + "and stages.state <> 'waiting'",
}
SECOND_CYCLE = {
    "the challenger is being proven": STAGE.format(cycle=2, stage="prove") + "and stages.state <> 'waiting'",
    **{
        f"the promotion has come to its step {step}": f"select count(*) from promotions where cycle_id = 2"
        f" and step in ({', '.join(repr(s) for s in steps)})"
        for step, steps in {
            "probe": ("probe", "put", "load", "verify", "retire"),
            "put": ("put", "load", "verify", "retire"),
            "load": ("load", "verify", "retire"),
            "retire": ("retire",),
        }.items()
    },
}


def test_a_daemon_killed_at_eleven_moments_loses_nothing(house: House) -> None:
    assert len(FIRST_CYCLE) + len(SECOND_CYCLE) == 11
    house.start_triton()
    house.drop(house.some("012"))
    for moment, reached in FIRST_CYCLE.items():
        kill_when(house, moment, reached)
    house.start_daemon()
    house.until(lambda: house.version() == 1, "the first model is served")
    house.ask_all_the_time("012")
    house.drop(second_drop(house))
    for moment, reached in SECOND_CYCLE.items():
        kill_when(house, moment, reached)
    house.start_daemon()
    house.until(lambda: house.version() == 2, "the second model is served")
    house.until(house.at_rest, "it is at rest")
    record = house.answers()
    assert (record.failures, record.mismatches) == ([], [])
    assert set(record.versions) == {1, 2}
    each_thing_is_done_once(house)
    no_epoch_is_trained_twice(house)
    nothing_is_left_lying(house)
    assert house.target()["champion"]["classes"] == ["0", "1", "2", "3"]


def second_drop(house: House) -> list[Digit]:
    return [*house.some("012", first=90, count=40), *house.some("3", count=140)]


def kill_when(house: House, moment: str, reached: str) -> None:
    """Starts the daemon where none runs, and ends it by SIGKILL once the journal says that the moment has come."""
    if house.daemon is None or house.daemon.poll() is not None:
        house.start_daemon()
    house.until_reached(reached, moment)
    house.kill_daemon()
    assert house.sql("pragma integrity_check") == [("ok",)]
    assert house.sql("pragma foreign_key_check") == []


def each_thing_is_done_once(house: House) -> None:
    assert house.sql("select state, outcome, count(*) from cycles group by 1, 2") == [("done", "promoted", 2)]
    assert house.sql("select state from stages where state not in ('done', 'skipped')") == []
    finished = "select stage_id from attempts where outcome = 'done' group by stage_id having count(*) > 1"
    assert house.sql(finished) == []
    assert house.sql("select outcome from attempts where outcome not in ('done', 'lost')") == []
    assert house.sql("select version, state, kind from promotions order by id") == [
        (1, "retired", "promotion"),
        (2, "serving", "promotion"),
    ]
    for table in ("models", "artifacts", "verdicts"):
        assert house.sql(f"select count(*) from {table}") == [(2,)], table
    images = len(house.some("012")) + len(second_drop(house))
    assert house.sql("select count(*) from samples") == [(images,)]
    assert house.sql("select count(*) from occurrences where gone is null") == [(images,)]


def no_epoch_is_trained_twice(house: House) -> None:
    for (outputs,) in house.sql("select outputs from stages where name = 'train'"):
        history = json.loads((Path(json.loads(outputs)["run"]) / "history.json").read_text())
        epochs = [row["epoch"] for row in history["epochs"]]
        assert epochs == list(range(1, EPOCHS + 1))
        attempts = [row["attempt"] for row in history["epochs"]]
        assert all(a <= b for a, b in pairwise(attempts))
    assert len(set(attempts_of_first(house))) >= 3  # the two kills in the midst of it, and the end


def attempts_of_first(house: House) -> list[int]:
    (outputs,) = house.sql("select outputs from stages where name = 'train' and cycle_id = 1")[0]
    history = json.loads((Path(json.loads(outputs)["run"]) / "history.json").read_text())
    return [row["attempt"] for row in history["epochs"]]


def nothing_is_left_lying(house: House) -> None:
    """In Triton's repository the version that serves, in the store no half copies, and no candidate."""
    repository = house.config.repository
    assert [path.name for path in repository.iterdir()] == ["digits"]
    assert sorted(path.name for path in (repository / "digits").iterdir() if path.is_dir()) == ["2"]
    assert list((house.config.state / "store" / "incoming").iterdir()) == []
    hidden: Callable[[Path], bool] = lambda path: path.name.startswith(".") and path.suffix == ".tmp"  # noqa: E731
    assert [path for path in house.config.state.rglob("*") if hidden(path)] == []
