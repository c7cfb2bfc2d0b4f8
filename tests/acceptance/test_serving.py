"""What a person and a robot see of a target that serves: rollback, a training asked for, Triton lost, a stop."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import pytest

from daemon.demo.clients import accuracy
from daemon.demo.digits import known
from daemon.demo.processes import TARGET, TIGHT_MB
from deploy.triton import Triton, TritonUnavailable
from tests.acceptance.house import House


def test_clients_get_good_answers(served: House) -> None:
    right, version, _ = accuracy(served.url, TARGET, known(served.waves.held_back, ["0", "1", "2", "3"]))
    assert right > 0.8
    assert version == served.version()


def test_a_decision_explains_itself_and_can_be_replayed(served: House) -> None:
    decision = served.view("explain", "d1")
    assert decision["action"] == "train"
    assert "4 classes have 20 samples, it takes 2: 0 90, 1 90, 2 90, 3 90" in decision["reason"]
    assert decision["replayed"] == "the same"
    cycle = served.view("explain", "c1")
    assert [stage["name"] for stage in cycle["stages"]] == [
        "pixels", "train", "evaluate", "export", "pixels", "build", "prove", "measure",
    ]  # fmt: skip
    verdict = served.view("explain", f"v{cycle['verdicts'][0]['id']}")
    assert verdict["answer"] == "promote"
    shown = served("explain", "c1")
    assert "promoted" in shown.stdout


def test_a_training_asked_for_is_decided_on_and_a_worse_model_is_not_promoted(served: House) -> None:
    served.until(served.at_rest, "it is at rest")
    before, version = len(served.cycles()), served.version()
    asked = served.view("retrain", TARGET)
    assert asked["answer"] == f"{TARGET} is trained next"
    served.until(lambda: len(served.cycles()) > before and served.at_rest(), "the cycle has ended")
    assert served.cycles()[-1]["outcome"] == "kept"  # the same data and settings give the same model
    assert served.version() == version


def test_a_rollback_serves_the_earlier_model_under_a_new_version(served: House) -> None:
    served.until(served.at_rest, "it is at rest")
    earlier, version = served.target()["champion"]["artifact"], served.version()
    roomy = served.constraint_file.read_text()
    served.constrain(TIGHT_MB)  # another model comes: the second architecture, which fits
    served.until(lambda: served.version() == version + 1 and served.at_rest(), "the smaller model is served")
    assert served.target()["champion"]["artifact"] != earlier
    refused = served("rollback", TARGET, "--to", "nonesuch")
    assert (refused.returncode, "nonesuch" in refused.stdout) == (1, True)
    done = served.view("rollback", TARGET)
    assert done["answer"] == f"{TARGET} goes back to {earlier}: it becomes version {version + 2}"
    served.until(lambda: served.version() == version + 2 and served.at_rest(), "the earlier model is served")
    with Triton(served.url) as triton:
        digit = served.waves.held_back[0]
        assert triton.classify(TARGET, digit.as_sent()[None])[1] == version + 2
    assert served.target()["champion"]["artifact"] == earlier
    served.constraint_file.write_text(roomy)
    served.until(lambda: served.cycles()[-1]["trigger"] == "constraints" and served.at_rest(), "it is judged anew")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_triton_that_comes_back_empty_is_given_its_model_again(served: House, how: signal.Signals) -> None:
    served.until(served.at_rest, "it is at rest")
    assert served.triton is not None
    served.triton.send_signal(how)
    served.triton.wait(60)
    (server,) = served.view("status")["servers"]
    assert (server["url"], server["answers"], server["ready"]) == (served.url, False, {})
    served.start_triton()
    digit = served.waves.held_back[0].as_sent()[None]

    def answers() -> Any:
        with suppress(TritonUnavailable), Triton(served.url) as triton:
            return triton.is_ready(TARGET, served.version()) and triton.classify(TARGET, digit)

    served.until(answers, "the model answers again")
    (server,) = served.view("status")["servers"]
    assert (server["url"], server["answers"], server["ready"]) == (served.url, True, {TARGET: True})


def test_a_stopped_daemon_ends_in_ten_seconds_and_goes_on_at_the_next_start(house: House) -> None:
    """SIGTERM in the midst of a training; Triton serves on without the daemon, and does without it at first."""
    house.drop(house.some("01"))
    house.start_daemon()
    trained = "select count(*) from attempts where progress ->> 'unit' = 'epoch' and progress ->> 'done' >= 2"
    house.until_reached(trained, "two epochs are trained")
    assert house.daemon is not None
    house.daemon.terminate()
    assert house.daemon.wait(10) == 0
    assert "the next start goes on from here" in house.log("run")
    house.start_daemon()
    waiting = "select error from promotions where state = 'switching' and error is not null"
    house.until(lambda: house.sql(waiting), "the promotion waits for Triton")
    assert house.sql("select outcome from cycles") == [(None,)]
    assert "waits: " in house.view("status")["working"]["last_words"]
    house.start_triton()
    house.until(lambda: house.version() == 1, "the model is served once Triton is there")
    training = "(select id from stages where name = 'train')"
    attempts = house.sql(f"select number, outcome from attempts where stage_id = {training} order by number")
    assert attempts == [(1, "lost"), (2, "done")]
