"""`relearn notify`: who is told of what happens, and whether that works."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from daemon import config as configuration
from daemon.command import HERE, AsJson, Workspace, read, show
from daemon.config import Config
from daemon.errors import UsageError
from daemon.settings import Notify
from policies.suggest import nearest


def notify(
    name: Annotated[str | None, typer.Argument(help="One entry of notify in config.toml; else all.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a message now, and say whether it went.")] = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Who is told of what happens: what was sent last, what waits, what was given up."""
    from daemon import outbox, render_notify

    config = configuration.load(workspace)
    entries = choose(config, name)
    if not test:
        show(read(config, lambda c: outbox.view(c, entries)), render_notify.entries, as_json)
        return
    results = [try_out(entry, config) for entry in entries]
    show(results, render_notify.tried, as_json)
    if not all(result["sent"] for result in results):
        raise typer.Exit(1)


def choose(config: Config, name: str | None) -> list[Notify]:
    """The entries of the configuration, or the one of this name. Raises UsageError."""
    entries = {entry.called: entry for entry in config.settings.notify}
    if not entries:
        raise UsageError(f"{config.file}: nobody is told of anything: there is no [[notify]] in it")
    if name is None:
        return list(entries.values())
    if name not in entries:
        guess = nearest(name, entries)
        hint = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(entries)}"
        raise UsageError(f"{config.file}: there is no [[notify]] of the name {name!r}; {hint}")
    return [entries[name]]


def try_out(entry: Notify, config: Config) -> dict[str, Any]:
    """Sends a message that says it is a test, whatever the entry asks to be told."""
    from daemon import notices, post
    from daemon.journal import now

    reason = "this is a test: what relearnd has to tell arrives here"
    test = notices.Notice(0, "test", None, "test", f"a test of the entry {entry.called}", reason, "notify", now())
    message = notices.message(test, config.workspace)
    error = post.send(post.spawn(), entry.url.get_secret_value(), message)
    return {"name": entry.called, "sent": error is None, "error": error}
