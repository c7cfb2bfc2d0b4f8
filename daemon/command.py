"""What the commands share: their common options, asking the daemon, and an answer for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from sqlalchemy import Connection

from daemon.config import Config

console = Console()
errors = Console(stderr=True)

Workspace = Annotated[
    Path,
    typer.Option("--workspace", "-w", envvar="RELEARN_WORKSPACE", help="The folder that holds config.toml."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="A setting for this command: --set train.epochs=3.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
To = Annotated[str, typer.Option(help="The class that is right.")]
NewClass = Annotated[bool, typer.Option("--new-class", help="The class may be one that no sample has yet.")]
HERE = Path()


def find_config(workspace: Path) -> Config:
    """The configuration; where config.toml is refused, what a daemon took last, and stderr says so.

    For all that asks the daemon or reads the journal: an edit that the daemon disregards keeps nobody from it. Raises
    ConfigError where no daemon took any.
    """
    from daemon import configurations

    config, refused = configurations.find(workspace)
    if refused:
        said = f"relearn: {refused}\n{configurations.STAND}"
        errors.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return config


def read(config: Config, view: Callable[[Connection], Any]) -> Any:
    """A view of the journal, whether a daemon runs or not."""
    from daemon.journal import open_journal

    with open_journal(config.state).connect() as connection:
        return view(connection)


def ask(config: Config, kind: str, as_json: bool, **arguments: Any) -> None:
    """Asks the running daemon for something and shows its answer."""
    from daemon import people, render

    answer = people.ask_and_wait(config, kind, **arguments)
    show(answer, render.answer, as_json)
    if answer["state"] not in ("done", "owed", "working"):
        raise typer.Exit(1)


def show(view: Any, for_people: Callable[[Any], Any], as_json: bool) -> None:
    """A view as JSON, or drawn for people."""
    if as_json:
        print(json.dumps(view, indent=2, default=str))
    else:
        console.print(for_people(view))
