"""What people put in front of the clients: approvals, candidates by name or by force, earlier versions.

No Triton is asked: a promotion is a row here, and the test says when it serves.
"""

from __future__ import annotations

import getpass
import shutil
from typing import Any

import pytest
from sqlalchemy import select, update

from daemon import approvals, declined, people, schema, targets
from daemon.journal import add, change, now
from daemon.serving import Serving
from daemon.stock import artifact_folder
from deploy.artifact import MANIFEST
from policies.facts import ClassTally, Verdict, to_dict
from policies.settings import PromotionSettings

World = Any  # tests/unit/daemon/conftest.py
ME = getpass.getuser()


class Office:
    """A target that serves `old`, a challenger `new` in stock, and people who ask."""

    def __init__(self, world: World) -> None:
        self.world = world
        for role in ("train", "tune", "judge"):
            world.samples("cat", role, 2)
            world.samples("dog", role, 2)
        world.require()
        self.cycle: int = world.champion()
        world.artifact("new", self.cycle)
        self.serving = Serving(world.config, world.journal, lambda _event: None)
        self.serving.devices = world.devices

    def verdict(self, answer: str = "promote", artifact: str = "new", **columns: Any) -> int:
        approval = "waiting" if answer == "ask" else None
        said = Verdict(answer, "it is better", better=answer == "promote")  # type: ignore[arg-type]
        values = {
            "champion_id": "old",
            "approval": approval,
            "facts": {
                "requirement": to_dict(self.world.requirement()),
                "settings": to_dict(PromotionSettings()),
                "tallies": [to_dict(ClassTally(name, 2, 0, 0, 0)) for name in ("cat", "dog")],
            },
            "at": now(),
            **columns,
        }
        with self.world.journal.begin() as connection:
            return add(
                connection,
                schema.verdicts,
                cycle_id=self.cycle,
                target="edge",
                artifact_id=artifact,
                answer=answer,
                reason=said.reason,
                better=said.better,
                verdict=to_dict(said),
                **values,
            )

    def ask(self, kind: str, **arguments: Any) -> tuple[str, str]:
        id_ = people.ask(self.world.journal, self.world.config.state, kind, target="edge", **arguments)
        list(people.take(self.world.journal, self.serving))
        row = self.world.row(schema.requests, id=id_)
        return row.state, row.answer

    def promote(self, artifact: str = "new", *, force: bool = False) -> tuple[str, str]:
        return self.ask("promote", artifact=artifact, force=force)

    def switching(self) -> Any:
        return self.world.row(schema.promotions, state="switching")

    def serve(self) -> None:
        """Triton has what was asked for."""
        row = self.switching()
        with self.world.journal.begin() as connection:
            connection.execute(
                update(schema.promotions).where(schema.promotions.c.state == "serving").values(state="retired")
            )
            change(connection, schema.promotions, row.id, state="serving", served=now())

    def anchor(self) -> str | None:
        with self.world.journal.connect() as connection:
            return targets.anchor(connection, "edge")

    def waiting(self) -> Any:
        with self.world.journal.connect() as connection:
            return approvals.waiting(connection, "edge")


@pytest.fixture
def office(world: World) -> Office:
    return Office(world)


# --- approve and refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "anchor"), [("promote", "new"), ("ask", None)])
def test_an_approval_promotes_what_waits(office: Office, answer: str, anchor: str | None) -> None:
    id_ = office.verdict(answer, approval="waiting")
    state, said = office.ask("approve")
    assert (state, said) == ("done", "edge is switched to new: Triton loads it as version 2 now")
    row, verdict = office.switching(), office.world.row(schema.verdicts)
    assert (row.artifact_id, row.kind, row.by, row.verdict_id, row.cycle_id) == ("new", "promotion", ME, id_, None)
    assert row.reason == f"approved by {ME}: it is better"
    assert (verdict.approval, verdict.answered_by, verdict.answered > 0) == ("approved", ME, True)
    office.serve()
    assert office.anchor() == anchor  # the policy's word, whoever approved it
    assert office.ask("approve") == ("refused", "nothing waits for a person's answer for edge")


def test_a_refusal_keeps_the_champion_and_says_why(office: Office) -> None:
    office.verdict(approval="waiting")
    said = office.ask("refuse", because="the line is rebuilt")
    assert said == ("done", "new is not promoted to edge, and its model not asked about again: the line is rebuilt")
    verdict = office.world.row(schema.verdicts)
    assert (verdict.approval, verdict.answered_by, verdict.because) == ("refused", ME, "the line is rebuilt")
    state, answer = office.promote()
    assert (state, answer.startswith("you refused new on ")) == ("refused", True)
    assert answer.endswith("(the line is rebuilt); `--force` promotes it all the same")
    assert office.world.rows(schema.promotions, state="switching") == []


def change_champion(office: Office) -> None:
    office.world.artifact("third", office.cycle)
    office.world.promote("third", 2)


def change_constraints(office: Office) -> None:
    office.world.require(at=2.0, latency_p95_ms=1.0)


def lose_artifact(office: Office) -> None:
    shutil.rmtree(artifact_folder(office.world.config.state, "new"))


def forget_images(office: Office) -> None:
    (sample, *_) = office.world.truth("train")
    with office.world.journal.begin() as connection:
        change(connection, schema.samples, sample, forgotten=now() + 60)


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (change_champion, "it was compared with old, and edge serves third now"),
        (change_constraints, "the constraints of edge have changed"),
        (lose_artifact, "the folder of new is gone or damaged"),
        (forget_images, "it learnt from 1 images that were forgotten since"),
    ],
)
def test_no_approval_where_the_ground_has_changed(office: Office, happens: Any, said: str) -> None:
    id_ = office.verdict(approval="waiting")
    happens(office)
    state, answer = office.ask("approve")
    assert state == "refused"
    assert answer.startswith(f"v{id_} on new cannot be approved any more: {said}; ")
    assert answer.endswith("`relearn promote edge new` has it judged by what holds now")
    assert office.world.rows(schema.promotions, state="switching") == []
    assert office.waiting().id == id_  # still to be refused


def test_a_first_model_waits_until_something_serves(office: Office) -> None:
    with office.world.journal.begin() as connection:
        connection.execute(schema.promotions.delete())
    office.verdict(approval="waiting", champion_id=None, at=5.0)
    office.world.promote("old", 1, served=9.0)
    assert "it was compared with nothing, and edge serves old now" in office.ask("approve")[1]


@pytest.mark.parametrize(
    ("artifact", "approval", "left"),
    [
        ("third", "waiting", "the new one"),  # the newest of two that wait
        ("new", None, None),  # the policy says something else of the same by now
        ("third", None, "the old one"),  # a refusal of another takes nothing from it
    ],
)
def test_a_newer_verdict_supersedes_one_that_waits(
    office: Office, artifact: str, approval: str | None, left: str | None
) -> None:
    office.world.artifact("third", office.cycle)
    old = office.verdict(approval="waiting")
    with office.world.journal.begin() as connection:
        approvals.supersede(connection, "edge", artifact, approval)
    new = office.verdict("promote" if approval else "keep", artifact, approval=approval)
    found = office.waiting()
    assert (found.id if found else None) == {"the new one": new, "the old one": old, None: None}[left]
    assert office.world.row(schema.verdicts, id=old).approval == ("waiting" if left == "the old one" else "superseded")


# --- promote --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approval", [None, "waiting"])
def test_what_the_policy_would_promote_is_promoted_by_name(office: Office, approval: str | None) -> None:
    """Also where only an approval lacks, or where an earlier switch to it came to nothing."""
    office.verdict(approval=approval)
    assert office.promote("ne")[0] == "done"
    assert (office.switching().artifact_id, office.switching().kind) == ("new", "promotion")
    assert office.world.row(schema.verdicts).approval == "approved"


def test_what_the_policy_refused_is_said(office: Office) -> None:
    id_ = office.verdict("keep")
    state, answer = office.promote()
    assert (state, answer.startswith(f"new is not promoted: it is better (v{id_} of 2")) == ("refused", True)
    assert answer.endswith("; `--force` promotes it all the same")


def test_a_refusal_on_fewer_judge_samples_or_by_other_settings_is_judged_anew(office: Office) -> None:
    id_ = office.verdict("keep")
    assert office.promote()[0] == "refused"
    office.world.samples("cat", "judge", 1, mark="later")
    state, answer = office.promote()
    assert (state, answer) == (
        "owed",
        f"new was not promoted (v{id_}), but there are 5 judge samples in place of 4 since: a cycle judges it anew",
    )
    edited = to_dict(PromotionSettings(margin=0.1))
    with office.world.journal.begin() as connection:
        facts = {**office.world.row(schema.verdicts).facts, "settings": edited}
        change(connection, schema.verdicts, id_, facts=facts)
    assert "[promotion] was edited since" in office.promote()[1]


def test_no_id_is_the_beginning_of_none(office: Office) -> None:
    assert office.promote("") == ("refused", "which artifact? `relearn models` lists them")


def test_of_many_classes_that_come_a_few_are_named(office: Office) -> None:
    names = ["cat", "dog", "x" * 5_000, *(f"c{number}" for number in range(20))]
    with office.world.journal.begin() as connection:
        change(connection, schema.models, "new", classes=names)
    said = office.promote(force=True)[1]
    assert said.endswith(f"; new: {'x' * 60}…, c0, c1, c2, c3 and 16 more")


def test_what_was_never_judged_is_judged_first(office: Office) -> None:
    state, answer = office.promote("ne")
    assert (state, answer) == ("owed", "the policy was never asked whether new may serve edge: a cycle asks it next")
    with office.world.journal.begin() as connection:
        assert people.asked_about(connection, "edge") == ("new", ME)  # in full, whatever comes to begin like it
        assert people.asked_about(connection, "other") == (None, "")
        people.settle_asked(connection, "edge", "kept: no better", "new")
        assert people.asked_about(connection, "edge") == (None, "")
    assert office.world.row(schema.requests).answer == "kept: no better"


def test_a_verdict_that_holds_no_more_is_given_anew(office: Office) -> None:
    office.verdict("keep")
    change_constraints(office)
    state, answer = office.promote()
    assert (state, "holds no more: the constraints of edge have changed; a cycle judges it anew" in answer) == (
        "owed",
        True,
    )


def test_by_force_whatever_the_policy_says(office: Office) -> None:
    id_ = office.verdict("keep")
    assert office.promote(force=True)[0] == "done"
    row = office.switching()
    assert (row.kind, row.by, row.verdict_id) == ("forced", ME, id_)
    assert row.reason == f"forced by {ME}; the policy said of it (v{id_}): keep: it is better"


def test_what_was_forced_is_no_anchor(office: Office) -> None:
    verdict = office.verdict("promote", "old", champion_id=None)
    with office.world.journal.begin() as connection:
        connection.execute(update(schema.promotions).values(verdict_id=verdict))
    office.verdict("promote", champion_id=None)  # whatever was once said of it
    office.promote(force=True)
    office.serve()
    assert office.anchor() == "old"


def test_a_change_of_the_classes_is_told(office: Office) -> None:
    office.world.artifact("odd", office.cycle, ["cat", "newt"])
    assert office.promote("odd", force=True)[1].endswith("; it does not know dog; new: newt")
    assert "the policy was never asked about it" in office.switching().reason


def test_what_cannot_be_served_is_not_even_forced(office: Office) -> None:
    office.world.artifact("large", office.cycle, height=64)
    with office.world.journal.begin() as connection:
        add(connection, schema.artifacts, id="plan", model_id="new", engine="tensorrt", precision="fp16",
            device="sm90", artifact_mb=1.0, created=1.0)  # fmt: skip
    assert "takes images of 64 x 32" in office.promote("large", force=True)[1]
    assert office.promote("plan", force=True) == (
        "refused",
        "plan (tensorrt fp16 for sm90) cannot run on 'cpu' here",
    )
    assert "edge serves old already, as version 1" in office.promote("old", force=True)[1]


def test_nothing_is_promoted_beside_another_promotion(office: Office) -> None:
    office.world.artifact("third", office.cycle)
    office.promote("third", force=True)
    office.verdict(approval="waiting")
    for kind in ("approve", "promote"):
        state, said = office.ask(kind, artifact="new", force=True)
        assert (state, said.split(":")[0]) == (
            "refused",
            "a forced promotion of third to edge, as version 2, is under way",
        )


# --- rollback -------------------------------------------------------------------------------------------------------


@pytest.fixture
def versions(office: Office) -> Office:
    """Versions 1 to 4 served, the last still does; 5 came to nothing."""
    for version, name in ((2, "b2"), (3, "2002aa"), (4, "2002bb")):
        office.world.artifact(name, office.cycle)
        office.world.promote(name, version)
    with office.world.journal.begin() as connection:
        earlier = schema.promotions.c.version < 4
        connection.execute(update(schema.promotions).where(earlier).values(state="retired"))
    office.world.promote("new", 5, state="failed", served=None, error="probe: other answers")
    return office


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("1", "goes back to old: it becomes version 6"),
        ("3", "goes back to 2002aa"),
        ("b", "goes back to b2"),
        ("2002a", "goes back to 2002aa"),
        ("2002", "2002 is the beginning of several artifacts: 2002aa, 2002bb"),
        ("5", "version 5 of edge was never served: probe: other answers"),
        ("9", "edge has had no version 9; it has served 1, 2, 3, 4"),
        ("nonesuch", "the journal has no artifact 'nonesuch'"),
        ("", "goes back to 2002aa"),
        ("4", "edge serves 2002bb already, as version 4"),
        ("2002b", "edge serves 2002bb already, as version 4"),
    ],
)
def test_a_rollback_goes_to_any_version_or_artifact(versions: Office, to: str, expected: str) -> None:
    state, said = versions.ask("rollback", artifact=to)
    assert (state, expected in said) == ("done" if "goes back" in expected else "refused", True), said


def test_a_number_that_could_be_both_is_said_to_be(versions: Office) -> None:
    versions.world.promote("b2", 2002, state="retired")
    state, said = versions.ask("rollback", artifact="2002")
    both = "2002 is version 2002 of edge (b2) and the beginning of 2002aa, 2002bb: write more of the id"
    assert (state, said) == ("refused", both)


def test_what_is_damaged_on_the_disk_is_refused_at_once(office: Office) -> None:
    (artifact_folder(office.world.config.state, "new") / MANIFEST).write_text("{")
    state, said = office.promote(force=True)
    assert (state, said.startswith("the folder of new is gone or damaged")) == ("refused", True)
    assert "`relearn retrain edge` makes a new one" in said


@pytest.mark.parametrize("step", [None, "stage", "probe", "put", "load"])
def test_while_another_takes_its_place_going_back_is_going_to_the_champion(versions: Office, step: str | None) -> None:
    versions.world.promote("new", 6, state="switching", step=step, served=None)
    state, said = versions.ask("rollback", artifact=None)
    row = versions.world.row(schema.promotions, version=6)
    early = step in (None, "stage", "probe")
    if early:
        assert (state, said) == ("done", "new is not switched to any more: edge serves 2002bb, as version 4")
        assert (row.state, row.error) == ("undoing", f"taken back by {ME}")
    else:
        assert (state, said) == ("done", "edge goes back to 2002bb: it becomes version 7")
        assert (row.state, row.error) == ("switching", None)  # clients may have it already, and go back then
    with versions.world.journal.begin() as connection:
        if not early:
            connection.execute(update(schema.promotions).where(schema.promotions.c.version == 6).values(served=1.0))
        assert set(declined.declined(connection, "edge")) == {"new"}


def test_a_first_promotion_that_waits_can_be_taken_back(office: Office) -> None:
    with office.world.journal.begin() as connection:
        connection.execute(update(schema.promotions).values(state="retired"))
    office.world.promote("new", 2, state="switching", step=None, served=None)
    assert office.ask("rollback", artifact=None) == ("done", "new is not switched to any more: edge serves nothing")


def test_what_waited_before_waits_again_after_a_refusal(office: Office) -> None:
    office.world.artifact("third", office.cycle)
    old = office.verdict(approval="waiting")
    with office.world.journal.begin() as connection:
        approvals.supersede(connection, "edge", "third", "waiting")
    office.verdict("promote", "third", approval="waiting")
    state, said = office.ask("refuse", because=None)
    assert (state, said.endswith(f"; new (v{old}), which waited before, waits again")) == ("done", True)
    assert office.waiting().id == old


def test_a_rollback_settles_what_was_asked_about_before(versions: Office) -> None:
    versions.promote("b2")
    versions.ask("rollback", artifact="1")
    with versions.world.journal.connect() as connection:
        assert people.asked_about(connection, "edge") == (None, "")
        asked = select(schema.requests.c.answer).where(schema.requests.c.kind == "promote")
        assert connection.execute(asked).scalar_one() == f"{ME} went back first"


# --- paused ---------------------------------------------------------------------------------------------------------


def test_a_pause_holds_the_daemon_and_not_people(office: Office) -> None:
    assert office.ask("pause", because=None)[0] == "done"
    state, said = office.promote()
    assert (state, "edge is paused by" in said, said.endswith("it waits for `relearn resume`")) == ("owed", True, True)
    state, said = office.promote(force=True)
    assert (state, said.endswith("which holds nobody but the daemon")) == ("done", True)
    assert office.switching().kind == "forced"
