"""`relearn conflicts`: images that stand in two classes at once, and what a person says of them."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.command import HERE, AsJson, NewClass, To, Workspace, ask, find_config, read, show
from daemon.errors import UsageError

app = typer.Typer(help="Images that stand in two classes at once, and are used nowhere until it is settled.")

Images = Annotated[list[str] | None, typer.Argument(help="Images, by the first signs of their hash.")]
Pair = Annotated[str | None, typer.Option(help="All images that stand in these two classes: --pair CLASS:CLASS.")]


@app.callback(invoke_without_command=True)
def conflicts(context: typer.Context, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Lists them, with all of their files."""
    from daemon import conflicts as in_conflict
    from daemon import render

    if context.invoked_subcommand is None:
        show(read(find_config(workspace), in_conflict.find), render.conflicts, as_json)


@app.command()
def settle(
    to: To,
    images: Images = None,
    pair: Pair = None,
    new_class: NewClass = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Says of which class they are; their files stay where they lie."""
    if pair is not None and pair.count(":") != 1:
        raise UsageError(f"--pair {pair}: write CLASS:CLASS")
    named = {"named": images or [], "pair": pair.split(":") if pair else None, "to": to, "new_class": new_class}
    ask(find_config(workspace), "conflicts", as_json, **named)
