"""Stage `build`: an engine makes an artifact of a model, and answers its golden batch for the record.

What this machine cannot run is built all the same and says so: "verified" is false, "unverified" says why, and ONNX
Runtime gives the golden answers, on the graph that the artifact was built of.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy import artifact, durable, specimens
from deploy.engines import Engine, find_engine, find_style
from deploy.opened import explain, open_stand_in
from deploy.pixels import Pixels, check_size, read_pixels
from deploy.precision import choose_images, write_graph
from policies.job import Outputs, Report, StageError

GOLDEN_IMAGES = 8
MAX_BATCH_SIZE = 64  # of what is bound to a device, where the options name no other


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built: by which engine, in which precision and style of graph, with which options."""

    engine: str
    by: Engine
    precision: str
    style: str
    options: Mapping[str, Any]
    device: str | None  # what the artifact will be bound to
    hindrance: str | None  # why this machine cannot run it


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """Builds `artifacts`/<id>/ of the folder `model`. The same build again finds the folder and keeps it."""
    began = time.monotonic()
    model = Path(inputs["model"] or earlier["export"]["path"])
    index = inputs.get("pixels") or earlier.get("pixels", {}).get("pixels")
    manifest = verify_model(model)
    pixels = read_pixels(Path(index)) if index else None
    try:
        order = read_order(inputs)
        folder = build(model, manifest, Path(inputs["artifacts"]), order, pixels)
    except ValueError as error:
        raise StageError(f"building {model.name} with {inputs['engine']} failed: {error}") from error
    built = artifact.read_manifest(folder)
    report(1, 1, "artifact")
    told = ("engine", "engine_version", "precision", "device", "verified", "unverified")
    return {
        "artifact": built["id"],
        "path": str(folder),
        "artifact_mb": built["bytes"] / 1e6,
        "seconds": time.monotonic() - began,
        "verified": True,  # so was all that was built before this was written down
        "unverified": None,
        **{name: built[name] for name in told if name in built},
    }


def read_order(inputs: Mapping[str, Any]) -> Order:
    """The stage's inputs, made sure of. Raises ValueError, with the engine's words, for what it cannot do."""
    engine = find_engine(inputs["engine"])
    options = {"max_batch_size": MAX_BATCH_SIZE, **(inputs.get("options") or {})}
    if not isinstance(options["max_batch_size"], int) or options["max_batch_size"] < 1:
        raise ValueError(f"max_batch_size must be a whole number from 1 upwards, not {options['max_batch_size']!r}")
    return Order(
        engine=inputs["engine"],
        by=engine,
        precision=inputs["precision"],
        style=find_style(inputs["engine"], engine, inputs["precision"]),
        options=options,
        device=engine.find_device(options),
        hindrance=engine.why_not_here(),
    )


def verify_model(model: Path) -> dict[str, Any]:
    """The manifest of a model folder, once its weights and graph have the SHA-256 that it names."""
    manifest = artifact.read_manifest(model)
    for part in ("weights", "graph"):
        if part not in manifest:
            raise artifact.ArtifactError(f"{model / artifact.MANIFEST} names no {part}: the folder is no model")
        artifact.check_file(model / manifest[part]["file"], manifest[part]["sha256"])
    return manifest


def build(model: Path, manifest: Mapping[str, Any], artifacts: Path, order: Order, pixels: Pixels | None) -> Path:
    """Makes the folder under a temporary name and renames it: what lies under its own name is complete."""
    artifacts.mkdir(parents=True, exist_ok=True)
    for left in artifacts.glob(".build-*"):  # of a build that was killed
        durable.remove_tree(left)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=artifacts) as temporary:
        work = Path(temporary) / "artifact"
        work.mkdir()
        graph = prepare_graph(model, manifest, Path(temporary), order, pixels)
        order.by.build(model, graph, work, order.precision, order.options)
        own = sorted(path.name for path in work.iterdir())
        (work / artifact.LABELS).write_text("".join(f"{c}\n" for c in manifest["classes"]), encoding="utf-8")
        if order.hindrance is not None:
            shutil.copyfile(graph, work / artifact.STAND_IN)
        write_golden(work, order, manifest, pixels)
        facts = describe(work, own, manifest, order, durable.hash_file(graph))
        durable.sync_tree(work)
        durable.write_json(work / artifact.MANIFEST, facts)
        return keep(work, artifacts / facts["id"])


def prepare_graph(model: Path, manifest: Mapping[str, Any], aside: Path, order: Order, pixels: Pixels | None) -> Path:
    """The model's graph in the style that the engine wants: the exported one, or another written aside."""
    exported = model / str(manifest["graph"]["file"])
    if order.style == "as exported":
        return exported
    images = None
    if pixels is not None:
        check_size(pixels, manifest["input"], "the snapshot", f"model {manifest['id']}")
        images = choose_images(pixels)
    graph = aside / f"{order.style}.onnx"
    write_graph(exported, graph, order.style, images)
    return graph


def keep(work: Path, final: Path) -> Path:
    """Renames the built folder to its own name; an equal one that is whole stays, a damaged one gives way."""
    try:
        artifact.verify(final)
    except artifact.ArtifactError:
        durable.remove_tree(final)
        durable.move(work, final)
    return final


def write_golden(work: Path, order: Order, manifest: Mapping[str, Any], pixels: Pixels | None) -> None:
    images = golden_images(manifest, pixels)
    answer = order.by.load(work, 1) if order.hindrance is None else open_stand_in(work, 1)
    answers = answer(images)
    if answers.shape != (len(images), len(manifest["classes"])):
        raise ValueError(f"the graph answers with shape {answers.shape} for {len(manifest['classes'])} classes")
    np.savez(work / artifact.GOLDEN, images=images, probabilities=answers.astype(np.float32))
    specimens.write(work, manifest, answer)


def golden_images(manifest: Mapping[str, Any], pixels: Pixels | None) -> artifact.Images:
    """Up to eight images: one a class of `tune` where there are decoded images, otherwise noise from a fixed seed."""
    if pixels is not None:
        tune = pixels.select("tune")
        _, first = np.unique(pixels.labels[tune], return_index=True)
        if len(first):
            return pixels.take(tune[np.sort(first)[:GOLDEN_IMAGES]])
    size = manifest["input"]
    shape = (GOLDEN_IMAGES, size["height"], size["width"], size["channels"])
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def describe(work: Path, own: list[str], manifest: Mapping[str, Any], order: Order, graph: str) -> dict[str, Any]:
    """The artifact's manifest. graph: the SHA-256 of the one that it was built of."""
    beside = (artifact.LABELS, artifact.GOLDEN, artifact.STAND_IN, *artifact.SPECIMENS)
    beside = tuple(name for name in beside if (work / name).exists())
    files = artifact.describe_files(work, [*own, *beside])
    facts = {
        "format": artifact.FORMAT,
        "model": manifest["id"],
        "architecture": manifest["architecture"],
        "engine": order.engine,
        "engine_version": order.by.version(),
        "precision": order.precision,
        "device": order.device,
        "flavour": order.by.describe()["flavour"],
        "max_batch_size": order.options["max_batch_size"] if order.device else None,
        "verified": order.hindrance is None,
        "unverified": order.hindrance and explain(order.hindrance),
        "classes": manifest["classes"],
        "input": manifest["input"],
        "snapshot": manifest["snapshot"],
        "bytes": sum(files[name]["bytes"] for name in own),
        "files": files,
    }
    return {**facts, "id": name_artifact(facts, graph)}


def name_artifact(facts: Mapping[str, Any], graph: str) -> str:
    """The artifact's id. A plan is never the same twice, byte for byte: it is named by what it was built of and how."""
    if facts["device"] is None:
        return artifact.name_artifact(facts["model"], facts["files"])
    named = ("model", "engine", "engine_version", "precision", "device", "max_batch_size", "verified", "classes")
    return hashlib.sha256(json.dumps([graph, *(facts[name] for name in named)]).encode()).hexdigest()[:16]
