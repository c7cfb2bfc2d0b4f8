"""`relearn approve`, `refuse`, `promote`, `rollback`, `pause` and `resume`: what people say of what is served."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from daemon.command import HERE, AsJson, Workspace, ask, find_config, show
from daemon.config import Config
from daemon.lock import is_running

Target = Annotated[str, typer.Argument(help="The Triton model.")]
OneOrAll = Annotated[str | None, typer.Argument(help="The Triton model; all of them without.")]
Because = Annotated[str | None, typer.Option(help="Why, in your words; it is kept.")]


def approve(target: Target, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Promotes what waits for you."""
    ask(find_config(workspace), "approve", as_json, target=target)


def refuse(target: Target, because: Because = None, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Keeps the champion; what waits for you is not brought again."""
    ask(find_config(workspace), "refuse", as_json, target=target, because=because)


def promote(
    target: Target,
    candidate: Annotated[str, typer.Argument(help="An artifact of `relearn models`, or the beginning of its id.")],
    force: Annotated[bool, typer.Option("--force", help="Whatever the policy says of it.")] = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Promotes a candidate that the policy would promote, or says why it would not; asks it where it never was."""
    ask(find_config(workspace), "promote", as_json, target=target, artifact=candidate, force=force)


def rollback(
    target: Target,
    to: Annotated[
        str | None,
        typer.Option("--to", help="A version of it, or an artifact of `relearn models`; else what was served before."),
    ] = None,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Puts an earlier artifact in front of the clients again, as a new version; what came since stays away."""
    ask(find_config(workspace), "rollback", as_json, target=target, artifact=to)


def pause(
    target: OneOrAll = None, because: Because = None, workspace: Workspace = HERE, as_json: AsJson = False
) -> None:
    """Stops the daemon from beginning or promoting anything; it goes on watching, reading and mending."""
    from daemon import pauses

    config, by = find_config(workspace), getpass.getuser()
    if is_running(config.state):
        ask(config, "pause", as_json, target=target, because=because)
    else:
        _write(config, as_json, lambda connection: pauses.pause(connection, target, by, because))


def resume(target: OneOrAll = None, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Ends a pause: what rests goes on where it was."""
    from daemon import pauses

    config, by = find_config(workspace), getpass.getuser()
    if is_running(config.state):
        ask(config, "resume", as_json, target=target)
    else:
        _write(config, as_json, lambda connection: pauses.resume(connection, target, by))


def _write(config: Config, as_json: bool, change: Callable[[Connection], str]) -> None:
    """Without a daemon the row is written all the same: the next one finds it."""
    from daemon import render
    from daemon.journal import open_journal

    with open_journal(config.state).begin() as connection:
        said: dict[str, Any] = {"request": None, "state": "done", "answer": change(connection)}
    show(said, render.answer, as_json)
