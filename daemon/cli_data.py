"""`relearn data`: what there is of images and labels, and what a snapshot holds."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.command import HERE, AsJson, Workspace, find_config, read, show
from daemon.errors import UsageError


def data(
    snapshot: Annotated[str | None, typer.Option(help="Show a snapshot by its id, or the beginning of it.")] = None,
    diff: Annotated[str | None, typer.Option(help="With --snapshot: what changed from it to this one.")] = None,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """What there is by class, role, folder and drop: new, relabelled, gone, in conflict, rejected."""
    from daemon import data_report, render_data, snapshot_diff

    config = find_config(workspace)
    if diff is not None and snapshot is None:
        raise UsageError("--diff OTHER says what changed from --snapshot ID to OTHER: name both")
    if snapshot is None:
        show(read(config, lambda c: data_report.report(c, config)), render_data.report, as_json)
        return
    file = read(config, lambda c: snapshot_diff.find(c, config.state, snapshot))
    if diff is None:
        show(snapshot_diff.describe(file), render_data.snapshot, as_json)
        return
    other = read(config, lambda c: snapshot_diff.find(c, config.state, diff))
    show(snapshot_diff.compare(file, other), render_data.difference, as_json)
