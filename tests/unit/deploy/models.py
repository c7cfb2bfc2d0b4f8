"""Small real parts for the tests of `deploy`: a graph, the folder of a model, decoded images, an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploy import build
from policies.facts import ROLES

SIZE = 8  # height and width of the images
ROUNDING = 2e-5  # of a probability: a batch is summed otherwise than an image alone
Images = NDArray[np.uint8]
Floats = NDArray[np.float32]


def silent(done: float, total: float, unit: str, **figures: Any) -> None:
    """A report that nobody hears."""


def class_names(count: int, prefix: str = "class") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def noise(count: int, seed: int = 0, size: int = SIZE) -> Images:
    """Images of noise, each of a colour of its own, so that they fall into several classes."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 1, 1, 3))
    return np.clip(colours + random.integers(-9, 10, (count, size, size, 3)), 0, 255).astype(np.uint8)


def write_graph(
    file: Path,
    classes: int,
    seed: int = 0,
    *,
    size: int | str = SIZE,
    batch: int | str = "batch",
    kind: int = TensorProto.UINT8,
    ends: tuple[str, str] = ("images", "probabilities"),
) -> None:
    """Mean of each channel, a layer of random weights, softmax: deterministic, and cheap."""
    random = np.random.default_rng(seed)
    weights = random.normal(0, 12, (3, classes)).astype(np.float32)
    start, end = ends
    nodes = [
        helper.make_node("Cast", [start], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["means", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [end], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(start, kind, [batch, size, size, 3])],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [batch, classes])],
        [
            numpy_helper.from_array(np.float32(255).reshape(()), "scale"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(-weights.mean(axis=0) * 1.5, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def make_model(folder: Path, classes: Sequence[str], seed: int = 0, *, size: int = SIZE, **graph: Any) -> Path:
    """The folder of a model, as the training writes it; `graph`: what `write_graph` is told."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights %d" % seed)
    write_graph(folder / "model.onnx", len(classes), seed, **{"size": size, **graph})
    write_manifest(folder, classes, size)
    return folder


def write_manifest(folder: Path, classes: Sequence[str], size: int = SIZE) -> None:
    weights, graph = (describe(folder / name) for name in ("weights.safetensors", "model.onnx"))
    manifest = {
        "format": 1,
        "id": hashlib.sha256((weights["sha256"] + graph["sha256"]).encode()).hexdigest()[:16],
        "architecture": "small",
        "classes": list(classes),
        "input": {"height": size, "width": size, "channels": 3, "dtype": "uint8", "layout": "NHWC"},
        "snapshot": "snapshot1",
        "weights": weights,
        "graph": graph,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def describe(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"file": file.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def order(model: Path | None, artifacts: Path, **other: Any) -> dict[str, Any]:
    """The inputs of the stage `build`."""
    named = {"model": str(model) if model else None, "artifacts": str(artifacts)}
    return {**named, "engine": "onnxruntime", "precision": "fp32", **other}


def make_artifact(folder: Path, classes: Sequence[str], seed: int = 0, **other: Any) -> Path:
    """An artifact, built of a model made for it; `other`: what `make_model` is told."""
    model = make_model(folder / f"model-{len(classes)}-{seed}", classes, seed, **other)
    return Path(build.run(order(model, folder / "artifacts"), {}, silent)["path"])


def rewrite(artifact: Path, name: str, content: bytes) -> None:
    """Replaces a file of the artifact and lets the manifest say that this is as it should be."""
    (artifact / name).write_bytes(content)
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    found = describe(artifact / name)
    manifest["files"][name] = {"sha256": found["sha256"], "bytes": found["bytes"]}
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def answer(graph: Path, images: Images) -> Floats:
    """What the graph answers, asked without anything of `deploy`, one image at a time."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = [session.run(None, {"images": images[i : i + 1]})[0] for i in range(len(images))]
    answers: Floats = np.concatenate(found)
    return answers


def write_pixels(
    folder: Path, classes: Sequence[str], rows: Sequence[tuple[str, str]], images: Images, *, shards: int = 2
) -> Path:
    """The index of decoded images; a row is (role, class). The samples lie over the shards in turn, from the end."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(rows)
    numbers = np.arange(count)[::-1]
    shard = (numbers % shards).astype(np.int32)
    paths = [folder / f"{number}.npy" for number in range(shards)]
    row = np.empty(count, np.int64)
    for number, path in enumerate(paths):
        mine = np.flatnonzero(shard == number)
        row[mine] = np.arange(len(mine))
        np.save(path, images[mine])
    index = folder / "index.npz"
    np.savez(
        index,
        snapshot=np.array("snapshot1"),
        resize=np.array("squash"),
        classes=np.array(classes, dtype=np.str_),
        sha=np.array([list(hashlib.sha256(image.tobytes()).digest()) for image in images], np.uint8).reshape(-1, 32),
        label=np.array([list(classes).index(name) for _, name in rows], np.int32),
        role=np.array([ROLES.index(role) for role, _ in rows], np.uint8),  # type: ignore[arg-type]
        shard=shard,
        row=row,
        shards=np.array([path.name for path in paths], dtype=np.str_),
    )
    return index


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def tree(folder: Path) -> Mapping[str, bytes]:
    """Every file below the folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    """What lies in the folder, by name."""
    return sorted(path.name for path in folder.iterdir())
