"""An artifact opened to be asked: its engine, or its stand-in where this machine cannot run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import artifact
from deploy.engines import Engine, Runner, find_engine
from policies.job import StageError


@dataclass(frozen=True, slots=True)
class Opened:
    """What answers, and why it is not the engine itself (None: it is)."""

    run: Runner
    stand_in: str | None


def open_artifact(folder: Path, manifest: Mapping[str, Any], threads: int) -> Opened:
    """Loads the artifact with its engine, or its stand-in with ONNX Runtime.

    Raises StageError where the engine refuses it, and where it is bound to another version or device than this
    machine has.
    """
    engine = open_engine(manifest)
    try:
        check_binding(manifest, engine)
        reason = engine.why_not_here()
        if reason is None:
            return Opened(engine.load(folder, threads), None)
        if artifact.STAND_IN not in manifest["files"]:
            raise ValueError(f"{reason}, and it has no stand-in; ask it where it was built, or build it here")
        return Opened(open_stand_in(folder, threads), explain(reason))
    except ValueError as error:
        raise StageError(f"artifact {manifest['id']} cannot be loaded: {error}") from error


def open_engine(manifest: Mapping[str, Any]) -> Engine:
    """The artifact's engine. Raises StageError where it is not installed here."""
    try:
        return find_engine(manifest["engine"])
    except ValueError as error:
        raise StageError(f"artifact {manifest['id']} cannot be loaded: {error}") from error


def find_hindrance(manifest: Mapping[str, Any]) -> str | None:
    """Why this machine cannot run the artifact; None: it can."""
    return open_engine(manifest).why_not_here()


def check_binding(manifest: Mapping[str, Any], engine: Engine) -> None:
    """Raises ValueError where the artifact is bound to another version, or to another device than that of this machine.

    A machine without any such device is no hindrance: the stand-in answers there.
    """
    if manifest["device"] is None:
        return
    version = engine.version()
    if manifest["engine_version"] != version:
        raise ValueError(
            f"it was built by {manifest['engine']} {manifest['engine_version']} and this machine has {version}; "
            "build it again"
        )
    if engine.why_not_here() is None and (device := engine.find_device({})) != manifest["device"]:
        raise ValueError(f"it was built for {manifest['device']} and this machine has {device}; build it again")


def open_stand_in(folder: Path, threads: int) -> Runner:
    """ONNX Runtime on the graph that the artifact was built of."""
    from deploy.engines import onnxruntime

    return onnxruntime.open_graph(folder / artifact.STAND_IN, threads)


def explain(reason: str) -> str:
    return f"{reason}: ONNX Runtime answered instead, on the graph that the artifact was built of"
