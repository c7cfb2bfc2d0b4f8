"""`relearn check-config` before anything runs, and that every view can be drawn for people."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine

from daemon import data_views, render, views
from daemon.check import check
from daemon.config import Config, known_keys, load
from daemon.constraint_file import take_in
from daemon.errors import NotFound


def drawn(view: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_a_fresh_workspace_has_no_errors(workspace: Path) -> None:
    view = check(load(workspace, ["train.epochs=3"]))
    assert view["errors"] == []
    assert list(view["requirements"]) == ["edge"]
    assert {row["key"] for row in view["settings"]} == set(known_keys())
    (epochs,) = [row for row in view["settings"] if row["key"] == "train.epochs"]
    assert (epochs["value"], epochs["from"]) == (3, "--set train.epochs")
    assert "no errors" in drawn(render.checked(view))


def test_every_error_is_found(workspace: Path) -> None:
    (workspace / "images").rmdir()
    (workspace / "constraints" / "edge.toml").write_text("version = 1\n[input]\nhight = 3\n")
    (workspace / "constraints" / "phone.toml").write_text("version = 1\n[input]\nheight = 32\nwidth = 32\n")
    view = check(load(workspace))
    assert list(view["requirements"]) == ["phone"]
    said = "\n".join(view["errors"])
    assert "images: is watched and does not exist" in said
    assert "edge.toml:3: unknown key 'input.hight'" in said
    assert "edge.toml:2: input.height is missing" in said
    assert all(error in drawn(render.checked(view)) for error in view["errors"])


def test_a_variable_that_the_daemon_may_have_is_remarked_on(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    view = check(load(workspace, ['triton.headers={authorization="env:TOKEN"}']))
    assert view["errors"] == []
    (remark,) = view["remarks"]
    assert "triton.headers.authorization: the environment has no variable TOKEN" in remark
    assert "for the daemon, which does not start" in " ".join(drawn(render.checked(view)).split())
    monkeypatch.setenv("TOKEN", "x")
    assert check(load(workspace, ['triton.headers={authorization="env:TOKEN"}']))["remarks"] == []


def test_no_constraint_file_is_an_error(workspace: Path) -> None:
    (workspace / "constraints" / "edge.toml").unlink()
    assert "holds no constraint file" in check(load(workspace))["errors"][0]


@pytest.fixture
def known(config: Config, journal: Engine, png: Callable[..., Path], read_in: Callable[..., Any]) -> Engine:
    """A journal with a target, some samples and a rejected file."""
    for index in range(10):
        png(config.folders[0] / "[bold]cat" / f"{index}.png", index)
    png(config.folders[0] / "loose.png", 99)
    (config.folders[0] / "[bold]cat" / "[red]text.png").write_text("text")
    read_in()
    with journal.begin() as connection:
        take_in(connection, config.constraints)
    return journal


def test_status_is_drawn(config: Config, known: Engine) -> None:
    with known.connect() as connection:
        view = views.status(connection, config)
    assert view["data"] == {
        "classes": {"[bold]cat": {"train": 8, "tune": 1, "judge": 1}},
        "unlabelled": 1,
        "in_conflict": 0,
        "held": 0,
        "flagged": 0,
        "rejected": 1,
    }
    said = drawn(render.status(view))
    assert "no daemon runs" in said
    assert "serves nothing yet" in said
    assert "idle" in said


def test_an_error_of_a_constraint_file_is_drawn(config: Config, known: Engine) -> None:
    (config.constraints / "edge.toml").write_text("version = 2\n")
    with known.begin() as connection:
        take_in(connection, config.constraints)
        view = views.status(connection, config)
    assert view["targets"][0]["requirement"]["height"] == 224
    said = drawn(render.status(view))
    assert "edge.toml:1: version: " in said
    assert "the last valid constraints stand" in said


def test_a_first_constraint_file_that_is_broken_has_nothing_that_stands(config: Config, known: Engine) -> None:
    (config.constraints / "new.toml").write_text("version = 2\n")
    with known.begin() as connection:
        take_in(connection, config.constraints)
        view = views.status(connection, config)
    said = drawn(render.status(view))
    assert "new.toml:1: version: " in said
    assert "stand" not in said


def test_a_rejected_file_is_named_in_full_however_narrow_the_terminal() -> None:
    name = "images/" + "deep/" * 40 + "x.png"
    view = [{"file": name, "reason": "is empty", "at": 1.0, "drop": 1}]
    console = Console(width=60, file=StringIO())
    console.print(render.rejected(view))
    cells = [line.split("│")[1].strip() for line in console.file.getvalue().splitlines() if line.startswith("│")]  # type: ignore[attr-defined]
    assert "".join(cells) == name


def test_names_are_drawn_as_they_are(config: Config, known: Engine) -> None:
    """A class or a file may hold what rich takes for markup."""
    with known.connect() as connection:
        assert "[bold]cat" in drawn(render.status(views.status(connection, config)))
        assert "[red]text.png" in drawn(render.rejected(data_views.rejected(connection)))


def test_empty_lists_are_drawn(known: Engine) -> None:
    with known.connect() as connection:
        for show, view in (
            (render.cycles, views.cycles(connection)),
            (render.models, views.models(connection)),
            (render.decisions, views.decisions(connection, 5)),
            (render.rejected, []),
        ):
            assert drawn(show(view))


@pytest.mark.parametrize("name", ["x3", "d", "", "c99", "v99", "d99", "99", "dd3", "-1"])
def test_explaining_what_is_not_there_says_so(known: Engine, name: str) -> None:
    with known.connect() as connection, pytest.raises(NotFound):
        views.explain(connection, name)
