"""Stage `build`: an engine makes an artifact of a model, and answers its golden batch for the record."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy import artifact, durable
from deploy.engines import Engine, find_engine
from deploy.pixels import read_pixels
from policies.job import Outputs, Report, StageError

GOLDEN_IMAGES = 8


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """Builds `artifacts`/<id>/ of the folder `model`. The same build again finds the folder and keeps it."""
    began = time.monotonic()
    model = Path(inputs["model"] or earlier["export"]["path"])
    index = inputs.get("pixels") or earlier.get("pixels", {}).get("pixels")
    manifest = verify_model(model)
    try:
        engine = find_engine(inputs["engine"])
        folder = build(model, manifest, Path(inputs["artifacts"]), engine, inputs, index and Path(index))
    except ValueError as error:
        raise StageError(f"building {model.name} with {inputs['engine']} failed: {error}") from error
    built = artifact.read_manifest(folder)
    report(1, 1, "artifact")
    return {
        "artifact": built["id"],
        "path": str(folder),
        "artifact_mb": built["bytes"] / 1e6,
        "engine": built["engine"],
        "precision": built["precision"],
        "device": built["device"],
        "unverified": None,
        "seconds": time.monotonic() - began,
    }


def verify_model(model: Path) -> dict[str, Any]:
    """The manifest of a model folder, once its weights and graph have the SHA-256 that it names."""
    manifest = artifact.read_manifest(model)
    for part in ("weights", "graph"):
        if part not in manifest:
            raise artifact.ArtifactError(f"{model / artifact.MANIFEST} names no {part}: the folder is no model")
        artifact.check_file(model / manifest[part]["file"], manifest[part]["sha256"])
    return manifest


def build(
    model: Path,
    manifest: Mapping[str, Any],
    artifacts: Path,
    engine: Engine,
    order: Mapping[str, Any],
    index: Path | None,
) -> Path:
    """Makes the folder under a temporary name and renames it: what lies under its own name is complete."""
    artifacts.mkdir(parents=True, exist_ok=True)
    for left in artifacts.glob(".build-*"):  # of a build that was killed
        durable.remove_tree(left)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=artifacts) as temporary:
        work = Path(temporary) / "artifact"
        work.mkdir()
        engine.build(model, work, order["precision"])
        own = sorted(path.name for path in work.iterdir())
        (work / artifact.LABELS).write_text("".join(f"{c}\n" for c in manifest["classes"]), encoding="utf-8")
        write_golden(work, engine, manifest, index)
        facts = describe(work, own, manifest, engine, order)
        durable.sync_tree(work)
        durable.write_json(work / artifact.MANIFEST, facts)
        return keep(work, artifacts / facts["id"])


def keep(work: Path, final: Path) -> Path:
    """Renames the built folder to its own name; an equal one that is whole stays, a damaged one gives way."""
    try:
        artifact.verify(final)
    except artifact.ArtifactError:
        durable.remove_tree(final)
        durable.move(work, final)
    return final


def write_golden(work: Path, engine: Engine, manifest: Mapping[str, Any], index: Path | None) -> None:
    images = golden_images(manifest, index)
    answers = engine.load(work, 1)(images)
    if answers.shape != (len(images), len(manifest["classes"])):
        raise ValueError(f"the graph answers with shape {answers.shape} for {len(manifest['classes'])} classes")
    np.savez(work / artifact.GOLDEN, images=images, probabilities=answers.astype(np.float32))


def golden_images(manifest: Mapping[str, Any], index: Path | None) -> artifact.Images:
    """Up to eight images: one a class of `tune` where there are decoded images, otherwise noise from a fixed seed."""
    size = manifest["input"]
    if index is not None:
        pixels = read_pixels(index)
        tune = pixels.select("tune")
        _, first = np.unique(pixels.labels[tune], return_index=True)
        if len(first):
            return pixels.take(tune[np.sort(first)[:GOLDEN_IMAGES]])
    shape = (GOLDEN_IMAGES, size["height"], size["width"], size["channels"])
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def describe(
    work: Path, own: list[str], manifest: Mapping[str, Any], engine: Engine, order: Mapping[str, Any]
) -> dict[str, Any]:
    """The artifact's manifest."""
    files = artifact.describe_files(work, [*own, artifact.LABELS, artifact.GOLDEN])
    return {
        "format": artifact.FORMAT,
        "id": artifact.name_artifact(manifest["id"], files),
        "model": manifest["id"],
        "architecture": manifest["architecture"],
        "engine": order["engine"],
        "engine_version": engine.version(),
        "precision": order["precision"],
        "device": engine.describe()["device"],
        "classes": manifest["classes"],
        "input": manifest["input"],
        "snapshot": manifest["snapshot"],
        "bytes": sum(files[name]["bytes"] for name in own),
        "files": files,
    }
