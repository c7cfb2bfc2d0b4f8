"""The command line: each command reads or asks, says it to people or as JSON, and exits 0, 1 (failed) or 2 (usage)."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from sqlalchemy.exc import OperationalError

from daemon import cli_conflicts as conflicts
from daemon import cli_data as data
from daemon import cli_flags as flags
from daemon import cli_notify as notify
from daemon import cli_serving as serving
from daemon import cli_storage as storage
from daemon import config as configuration
from daemon.children import CHECKOUT
from daemon.cli_adopt import adopt
from daemon.cli_client import check_client
from daemon.command import HERE, AsJson, Overrides, Workspace, ask, console, errors, find_config, read, show
from daemon.errors import RelearnError, UsageError

app = typer.Typer(
    name="relearn",
    help="Keeps an image classifier good while its world changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(flags.app, name="flags")
app.add_typer(conflicts.app, name="conflicts")
ours = (adopt, check_client, data.data, notify.notify)
for command in (*ours, storage.gc, storage.pin, storage.unpin, storage.forget):
    app.command()(command)
for act in (serving.approve, serving.refuse, serving.promote, serving.rollback, serving.pause, serving.resume):
    app.command()(act)


def main() -> None:
    """Runs a command; what a person can mend is said in one message, without a traceback."""
    try:
        app(prog_name="relearn")
    except RelearnError as error:
        errors.print(f"relearn: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OperationalError as error:  # a full disk, as the journal meets it
        errors.print(f"relearn: the journal: {error.orig}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except UnicodeEncodeError as error:  # of an argument, or for a terminal that shows ASCII alone
        what = ascii(error.object[error.start : error.end])
        said = f"relearn: text that is not UTF-8, or cannot be shown here: {what}"
        errors.print(said, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        errors.print(f"relearn: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="The new workspace.")]) -> None:
    """Writes a workspace: a commented config.toml, a first constraint file, the watched folder."""
    if (folder / "config.toml").exists():
        raise UsageError(f"{folder}: is a workspace already; nothing was changed")
    try:
        for name in ("images", "constraints", "triton"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not any((folder / "constraints").iterdir()):
            shutil.copy(CHECKOUT / "constraints" / "edge.toml", folder / "constraints" / "edge.toml")
        shutil.copy(CHECKOUT / "config.toml", folder / "config.toml")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made a workspace: {error}") from None
    called = os.environ.get("RELEARN_CALLED", "relearn")
    command = "relearn" if shutil.which("relearn") == called else called
    console.print(
        f"{folder} is ready.\n"
        f"  1. edit {folder}/constraints/edge.toml: what the Triton model `edge` must fulfil\n"
        f"  2. {command} triton --workspace {folder}    starts the packaged Triton, if you have none\n"
        f"  3. {command} run --workspace {folder}       starts the daemon\n"
        f"  4. drop images into {folder}/images/<class>/",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def run(workspace: Workspace = HERE, overrides: Overrides = None) -> None:
    """Runs the daemon until SIGTERM or Ctrl-C; what is unfinished then goes on at the next start."""
    from daemon import loop

    config = configuration.load(workspace, overrides or ())
    log_to_stderr(config.settings.log.level)
    loop.run(config)


def log_to_stderr(level: str) -> None:
    """Log lines for people on a terminal, plain lines with a time elsewhere (journald, files)."""
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        handler = RichHandler(console=errors, show_path=False, markup=False, omit_repeated_times=False)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("relearn")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


@app.command("check-config")
def check_config(workspace: Workspace = HERE, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Checks configuration and constraint files, and prints what is in force and from where."""
    from daemon import post, render, timm_names
    from daemon.check import check

    config = configuration.load(workspace, overrides or ())
    view = check(config)
    view["errors"] += [*timm_names.find_faults(config), *post.find_faults(config)]
    show(view, render.checked, as_json)
    if view["errors"]:
        raise typer.Exit(2)


@app.command()
def status(
    workspace: Workspace = HERE,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the daemon does, what each target serves, what data there is."""
    from daemon import configurations, render, views

    def look() -> dict[str, Any]:
        config, refused = configurations.find(workspace)
        view: dict[str, Any] = read(config, lambda c: views.status(c, config, refused))
        return view

    if watch:
        render.watch(console, look)
    else:
        show(look(), render.status, as_json)


@app.command()
def reload(workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Has the running daemon read config.toml again, as SIGHUP does, and says what came of it."""
    from daemon import configurations

    ask(configurations.find(workspace)[0], "reload", as_json)


@app.command()
def cycles(
    workspace: Workspace = HERE,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The cycles, with their stages, verdicts and promotions."""
    from daemon import render, views

    config = find_config(workspace)
    show(read(config, lambda c: views.cycles(c, limit)), render.cycles, as_json)


@app.command()
def models(workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """The stored models, with what was measured and proven of each."""
    from daemon import render, views

    show(read(find_config(workspace), views.models), render.models, as_json)


@app.command()
def decisions(
    workspace: Workspace = HERE,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What was decided, and why."""
    from daemon import render, views

    show(read(find_config(workspace), lambda c: views.decisions(c, limit)), render.decisions, as_json)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A decision (d3), a cycle (c3) or a verdict (v3).")],
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Everything that a decision, a cycle or a verdict rests on."""
    from daemon import render, views

    show(read(find_config(workspace), lambda c: views.explain(c, name)), render.explained, as_json)


@app.command()
def rejected(workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """The files that could not be used, each with its reason."""
    from daemon import data_views, render

    show(read(find_config(workspace), data_views.rejected), render.rejected, as_json)


@app.command()
def retrain(
    target: Annotated[str, typer.Argument(help="The Triton model.")],
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Asks for a training now, whatever the data policies say."""
    ask(find_config(workspace), "retrain", as_json, target=target)


@app.command()
def benchmark(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Architectures of timm, with * and ?; all without.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The target whose size and load count; else the first.")] = None,
    classes: Annotated[int, typer.Option(min=2, help="Of the networks that are drawn.")] = 10,
    engine: Annotated[
        str | None, typer.Option(help='Engine and precision, as "openvino:fp16"; else the first of build.engines.')
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="That one architecture may take.")] = 300.0,
    memory_mb: Annotated[float, typer.Option(min=100, help="That one of its processes may take.")] = 8_000.0,
    table: Annotated[Path | None, typer.Option("--csv", help="This file is written anew, a row as it comes.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what has a row already too.")] = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Measures architectures of timm, untrained, on this machine: latency, throughput, memory, size."""
    from daemon import benchmark as benchmarks
    from daemon import constraint_file, render, timm_names
    from daemon.settings import check_variant

    config = configuration.load(workspace)
    file = config.constraints / f"{target}.toml" if target else min(config.constraints.glob("*.toml"), default=None)
    if file is None:
        raise UsageError(f"{config.constraints}: there is no constraint file that says size and load")
    try:
        variant = check_variant(engine or config.settings.build.engines[0])
    except ValueError as error:
        raise UsageError(f"--engine {engine}: {error}") from None
    order = benchmarks.order_for(constraint_file.read(file), classes, variant, seconds, memory_mb)
    names = timm_names.find_architectures(patterns or [])
    rows = []
    for row in benchmarks.benchmark(config, names, order, table, again=again):
        rows.append(row)
        errors.print(f"{len(rows)} of {len(names)}: {render.benchmarked(row)}", markup=False, highlight=False)
    show(rows, render.benchmarks, as_json)


@app.command()
def audit(
    labels: Annotated[Path, typer.Option(help="A .npy file: the index of each label's class, (n,).")],
    probabilities: Annotated[Path, typer.Option(help="A .npy file: out-of-sample probabilities, (n, classes).")],
    as_json: AsJson = False,
) -> None:
    """Says which labels of anyone's arrays are probably wrong, and how many."""
    from daemon import audit_arrays, render

    show(audit_arrays.audit(labels, probabilities), render.audit, as_json)


@app.command()
def sync(workspace: Workspace = HERE, as_json: AsJson = False) -> None:
    """Uploads to Weights & Biases what trainings wrote for it while offline."""
    from daemon import uploads

    show(uploads.upload(configuration.load(workspace)), uploads.describe, as_json)


@app.command()
def triton(
    name: Annotated[str, typer.Option("--server", help="Which of several entries of triton in config.toml.")] = "",
    workspace: Workspace = HERE,
    overrides: Overrides = None,
) -> None:
    """Starts the packaged Triton on the workspace's repository, until Ctrl-C."""
    from daemon import packaged_triton

    config = configuration.load(workspace, overrides or ())
    log_to_stderr(config.settings.log.level)
    packaged_triton.serve(config, name)


@app.command()
def demo(
    workspace: Annotated[Path | None, typer.Option(help="Where; a temporary folder otherwise.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running at the end.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Labels, drift, engines, search and tuning too.")] = False,
    as_json: AsJson = False,
) -> None:
    """The main job, for real, on handwritten digits: ends by itself within some minutes, with --full within fifteen."""
    from daemon.demo import run_demo

    raise typer.Exit(run_demo(workspace, keep=keep, as_json=as_json, full=full))
