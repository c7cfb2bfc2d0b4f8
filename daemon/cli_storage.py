"""`relearn gc`, `pin`, `unpin` and `forget`: what stays in the state folder, and what goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from daemon.command import HERE, AsJson, Workspace, ask, console, find_config, read, show
from daemon.config import Config
from daemon.errors import DaemonNotRunning, UsageError
from daemon.lock import is_running

View = dict[str, Any]
LONG_SECONDS = 3600.0  # that a large state folder may take
Named = Annotated[str, typer.Argument(help="A model, artifact or snapshot by its id, or a cycle (c7).")]


def write(config: Config, change: Callable[[Connection, str], View], named: str) -> View:
    """One row of a person's, whether a daemon runs or not."""
    from daemon.journal import open_journal

    with open_journal(config.state).begin() as connection:
        return change(connection, named)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Removes what nothing needs: old by store.keep_days, or beyond store.max_gb."""
    from daemon import gc as collection
    from daemon import people, render_storage

    config = find_config(workspace)
    if dry_run:
        view = read(config, lambda c: collection.view(collection.plan(c, config), config))
        show(view, render_storage.would_remove, as_json)
        return
    answer = people.ask_and_wait(config, "gc", LONG_SECONDS)
    show({**answer, "sweep": read(config, collection.last)}, render_storage.answer, as_json)
    if answer["state"] != "done":
        raise typer.Exit(1)


def pin(named: Named, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Keeps a model, artifact, snapshot or cycle, with all that it stands on."""
    from daemon import pins, render_storage

    show(write(find_config(workspace), pins.pin, named), render_storage.answer, as_json)


def unpin(named: Named, workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Ends a pin."""
    from daemon import pins, render_storage

    show(write(find_config(workspace), pins.unpin, named), render_storage.answer, as_json)


def forget(
    what: Annotated[str, typer.Argument(help="A path in a watched folder, the first signs of a hash, or class:NAME.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let a forgotten image be read again.")] = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Removes the bytes of images for good; your own files stay where they are, and are not read again."""
    from daemon import consequences, named_images, render_storage

    config = find_config(workspace)
    if undo:
        ask(config, "undo", as_json, image=what)
        return
    if Path(what).exists() and "/" in what:
        what = str(Path(what).absolute())  # the daemon stands elsewhere
    view = read(config, lambda c: consequences.foresee(c, config, named_images.find(c, what, config.folders)))
    if not yes:
        if as_json:
            show(view, render_storage.foreseen, as_json)
            raise UsageError("nothing was forgotten: --yes does what is shown")
        console.print(render_storage.foreseen(view))
        if not is_running(config.state):
            raise DaemonNotRunning
        typer.confirm("Forget them for good?", abort=True)
    ask(config, "forget", as_json, what=what, images=view["images"])
