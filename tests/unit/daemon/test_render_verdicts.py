"""Verdicts drawn for people: class by class within 80 columns, and what people said."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from daemon import render
from daemon.render_verdicts import by_class, said_by_people
from policies.facts import Candidate, ClassCount, ClassTally, Requirement, to_dict
from policies.promotion import judge
from policies.settings import PromotionSettings

LONG = "a class whose name is longer than anybody would like it to be"


def drawn(*parts: RenderableType) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=80)
    for part in parts:
        console.print(part)
    return out.getvalue().splitlines()


def table() -> list[dict[str, Any]]:
    """The policy's own: a class fallen, one that is new, two too small to be tested apart."""
    counts = (ClassCount("cat", 12_000, 11_000), ClassCount("new one", 40, 30))
    about = {"model": "m", "architecture": "net", "snapshot": "s", "artifact_mb": 1.0, "tune_accuracy": 0.9}
    tallies = (
        ClassTally("cat", 10_000, 900, 1_000, 100), ClassTally("dog", 300, 90, 5, 5), ClassTally(LONG, 2, 0, 1, 0),
        ClassTally("b", 1, 1, 0, 0),
    )  # fmt: skip
    known = tuple(tally.name for tally in tallies)
    requirement = Requirement(target="edge", accelerator="cpu", height=32, width=32)
    old = Candidate(artifact="old", classes=known, measurement=None, **about)  # type: ignore[arg-type]
    new = Candidate(artifact="new", classes=(*known, "new one"), measurement=None, proof=counts, **about)  # type: ignore[arg-type]
    how: dict[str, Any] = {
        "anchor": None,
        "champion_feasible": True,
        "askings": (),
        "now": 0.0,
        "settings": PromotionSettings(),
    }
    return list(to_dict(judge(requirement, new, old, tallies, **how).table))


def test_the_table_fits_eighty_columns_and_names_what_counts() -> None:
    lines = drawn(by_class(table()))
    assert max(map(len, lines)) <= 80
    head, cat, dog = (line.split() for line in lines[:3])
    assert " ".join(head) == "class samples before now won lost p shows from"
    assert cat[:6] == ["cat", "12,000", "90.8%", "91.7%", "1,000", "900"]
    assert (dog[:6], dog[-1]) == (["dog", "400", "97.5%", "76.2%", "5", "90"], "FALLEN")
    assert float(dog[6]) < 1e-10
    text = "\n".join(lines)
    assert "2 small classes," in text
    assert ["new", "one", "40", "75.0%", "new"] in [line.split() for line in lines]
    assert LONG[:12] in text


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({}, []),
        ({"approval": None, "promotions": []}, []),
        (
            {"approval": "waiting", "target": "edge", "answered_by": None},
            ["waits for a person: `relearn approve edge` or `relearn refuse edge`"],
        ),
        ({"approval": "superseded", "answered_by": None, "because": None}, ["superseded"]),
    ],
)
def test_what_became_of_it_is_said(view: dict[str, Any], said: list[str]) -> None:
    assert [line.plain for line in said_by_people(view)] == said


def test_who_approved_and_who_forced_is_said() -> None:
    row = {"version": 3, "kind": "forced", "by": "bob", "error": None, "state": "serving"}
    view = {"approval": "refused", "answered": 1.8e9, "answered_by": "ann", "because": "too odd", "promotions": [row]}
    refused, forced = (line.plain for line in said_by_people(view))
    assert refused.startswith("refused by ann on 2027-01-15 ")
    assert refused.endswith(": too odd")
    assert forced == "version 3, by force, by bob: serving"


def test_an_explained_verdict_shows_both() -> None:
    verdict = {
        "answer": "promote", "reason": "better", "table": table(), "approval": "waiting", "target": "edge",
        "answered_by": None,
    }  # fmt: skip
    lines = drawn(render.explained(verdict))
    assert max(map(len, lines)) <= 80
    assert lines[0] == "promote: better"
    assert any("FALLEN" in line for line in lines)
    assert any("waits for a person" in line for line in lines)
