"""`relearn flags`: labels that the audit takes for wrong, and what a person answers."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.command import HERE, AsJson, NewClass, To, Workspace, ask, find_config, read, show
from daemon.errors import UsageError

app = typer.Typer(help="Labels that are probably wrong: what the audit flagged, and what a person answers.")

Ids = Annotated[list[int] | None, typer.Argument(help="Numbers of flags.")]
Pair = Annotated[str | None, typer.Option(help="All flags of this pair of classes: --pair GIVEN:SUGGESTED.")]
Drop = Annotated[int | None, typer.Option(help="All flags of this drop.")]


@app.callback(invoke_without_command=True)
def flags(context: typer.Context, drop: Drop = None, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Lists the open flags, the least likely label first, and the drops that are held."""
    from daemon import data_views, render

    if context.invoked_subcommand is None:
        show(read(find_config(workspace), lambda c: data_views.flags(c, drop)), render.flags, as_json)


@app.command()
def accept(
    ids: Ids = None, pair: Pair = None, drop: Drop = None, workspace: Workspace = HERE, as_json: AsJson = False
) -> None:
    """The suggested class is right."""
    answer("accept", ids, pair, drop, workspace, as_json)


@app.command()
def keep(
    ids: Ids = None, pair: Pair = None, drop: Drop = None, workspace: Workspace = HERE, as_json: AsJson = False
) -> None:
    """The class that was given is right; it is not asked again."""
    answer("keep", ids, pair, drop, workspace, as_json)


@app.command()
def relabel(
    to: To,
    ids: Ids = None,
    pair: Pair = None,
    drop: Drop = None,
    new_class: NewClass = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Another class is right."""
    answer("relabel", ids, pair, drop, workspace, as_json, to, new_class)


@app.command()
def release(
    drop: Annotated[int, typer.Argument(help="The number of a held drop.")],
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Lets a held drop into the training; what is still flagged of it stays out until it is answered."""
    ask(find_config(workspace), "release", as_json, drop=drop)


def answer(
    how: str,
    ids: list[int] | None,
    pair: str | None,
    drop: int | None,
    workspace: Workspace,
    as_json: bool,
    to: str | None = None,
    new_class: bool = False,
) -> None:
    """Asks the daemon to write down a person's answer."""
    if pair is not None and pair.count(":") != 1:
        raise UsageError(f"--pair {pair}: write GIVEN:SUGGESTED")
    chosen = {"ids": ids or [], "pair": pair.split(":") if pair else None, "drop": drop, "new_class": new_class}
    ask(find_config(workspace), "flags", as_json, how=how, chosen=chosen, to=to)
