"""`relearn check-client`: whether a client prepares its images as training did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.command import HERE, AsJson, Workspace, find_config, read, show
from daemon.config import Config
from daemon.errors import ConfigError, NotFound, RelearnError, UsageError

if TYPE_CHECKING:
    from daemon.targets import Champion
    from deploy.specimens import Record

View = dict[str, Any]


def check_client(
    target: Annotated[str, typer.Argument(help="The Triton model.")],
    answers: Annotated[
        Path | None, typer.Option(help="What your client answers: JSON {file: [probability, …] or class}.")
    ] = None,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Says whether images are prepared as training did: by Triton's own answers, or by those of your client."""
    view = check(find_config(workspace), target, answers)
    show(view, describe, as_json)
    if not view["agrees"]:
        raise typer.Exit(1)


def check(config: Config, target: str, answers: Path | None) -> View:
    """The files, and what the comparison of the answers to them came to. Raises NotFound, UsageError, RelearnError."""
    from daemon import targets
    from daemon.stock import artifact_folder
    from deploy import specimens
    from deploy.artifact import ArtifactError

    champion = read(config, lambda c: targets.champion(c, target))
    if champion is None:
        raise NotFound(f"{target} serves nothing yet: there is nothing to compare with")
    folder = artifact_folder(config.state, champion.artifact)
    try:
        record = specimens.read(folder)
        if answers is None:
            found = specimens.compare(record, _ask_triton(config, target, champion, folder, record))
        else:
            found = specimens.compare(record, specimens.read_answers(answers, record))
    except ArtifactError as error:
        raise RelearnError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return {
        "target": target,
        "version": champion.version,
        "whose": "Triton's" if answers is None else "your client's",
        "files": [str(folder / name) for name in record.files],
        "resize": record.resize,
        "agrees": found.agrees,
        "likeliest": found.likeliest,
        "said": found.said,
        "distances": found.distances,
        "not_shown": {way: specimens.WAYS[way][1] for way in found.hidden},
    }


def _ask_triton(config: Config, target: str, champion: Champion, folder: Path, record: Record) -> Any:
    """What Triton answers to the files, prepared as training did."""
    import numpy as np

    from daemon.servers import connect
    from deploy.artifact import read_manifest
    from deploy.client import prepare
    from deploy.triton import TritonError

    server = config.server(champion.server)
    if server is None:
        raise RelearnError(f"{target} is served by {champion.server!r}, which config.toml does not name any more")

    size = read_manifest(folder)["input"]
    images = [prepare(folder / name, (size["height"], size["width"]), record.resize) for name in record.files]
    try:
        with connect(config, server) as triton:
            return triton.infer_all(target, np.stack(images), champion.version)[0]
    except TritonError as error:
        raise RelearnError(f"{target} at {server.url}: {error}") from error
    except (ConfigError, OSError) as error:  # of headers and certificates
        raise RelearnError(f"{target} at {server.url} cannot be asked from here: {error}") from error


def describe(view: View) -> str:
    """For people: the verdict, and how to go on."""
    lines = [f"{view['target']} version {view['version']}, {view['whose']} answers: {view['said']}"]
    if view["not_shown"]:
        lines.append("this model does not show, so that nothing is said of it:")
        lines += [f"  {said}" for said in view["not_shown"].values()]
    lines.append("the files, for your own client to classify (then: --answers answers.json):")
    lines += [f"  {file}" for file in view["files"]]
    return "\n".join(lines)
