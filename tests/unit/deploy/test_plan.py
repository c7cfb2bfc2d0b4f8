"""Plans are built by NVIDIA's own builder for a GPU that is elsewhere, and never offered to another."""

from __future__ import annotations

import ctypes
import json
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy import artifact, build, measure, plan, plan_builder, prove
from deploy.engines import tensorrt_rtx
from policies.job import StageError
from tests.unit.deploy.models import (
    ROUNDING,
    answer,
    class_names,
    make_model,
    names,
    noise,
    order,
    silent,
    write_graph,
    write_pixels,
)

CLASSES = class_names(4)
OPTIONS = {"max_batch_size": 4, "compute_capability": "8.9"}
GPU = pytest.mark.skipif(plan.find_gpu() is not None, reason="says what a machine without a GPU does")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for compute capability 8.9, and the graph that it was built of."""
    folder = tmp_path_factory.mktemp("plan")
    write_graph(folder / "model.onnx", 4)
    tensorrt_rtx.build(folder, folder / "model.onnx", folder, "fp32", OPTIONS)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A plan to spoil."""
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """An artifact with a plan, made by the stage."""
    model = make_model(tmp_path / "model", CLASSES)
    inputs = order(model, tmp_path / "artifacts", engine="tensorrt_rtx", options=OPTIONS)
    return Path(build.run(inputs, {}, silent)["path"])


def say(folder: Path, **other: Any) -> None:
    about = json.loads((folder / "plan.json").read_text()) | other
    (folder / "plan.json").write_text(json.dumps(about))


def proof(folder: Path, place: Path) -> dict[str, Any]:
    index = write_pixels(place / "pixels", CLASSES, [("judge", "class1"), ("tune", "class2")], noise(2))
    answers = str(place / "answers.json")
    return {"artifact": str(folder), "pixels": str(index), "tune": None, "threads": 1, "answers": answers}


# --- built ------------------------------------------------------------------------------------------------------


def test_what_a_plan_needs_lies_beside_it(made: Path) -> None:
    assert json.loads((made / "plan.json").read_text()) == {
        "bindings": "tensorrt_rtx_bindings",
        "version": tensorrt_rtx.version(),
        "device": "sm89",
        "bytes": (made / "model.plan").stat().st_size,
        "input": [8, 8, 3],
        "max_batch_size": 4,
    }


@GPU
def test_where_no_gpu_is_the_artifact_is_built_and_says_that_it_is_unverified(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", CLASSES)
    inputs = order(model, tmp_path / "artifacts", engine="tensorrt_rtx", options=OPTIONS)
    outputs = build.run(inputs, {}, silent)
    folder = Path(outputs["path"])
    facts = artifact.verify(folder)
    assert outputs["verified"] is facts["verified"] is False
    assert outputs["unverified"] == facts["unverified"]
    assert facts["unverified"].startswith("no NVIDIA GPU answers here (")
    assert facts["unverified"].endswith(": ONNX Runtime answered instead, on the graph that the artifact was built of")
    assert (outputs["engine"], outputs["precision"], outputs["device"]) == ("tensorrt_rtx", "fp32", "sm89")
    assert (facts["engine_version"], facts["max_batch_size"]) == (tensorrt_rtx.version(), 4)
    told = ["golden.npz", "labels.txt", "manifest.json", "model.plan", "plan.json", "stand_in.onnx"]
    assert names(folder) == sorted([*told, *artifact.SPECIMENS])
    assert facts["bytes"] == sum((folder / name).stat().st_size for name in ("model.plan", "plan.json"))
    images, probabilities = artifact.read_golden(folder)
    np.testing.assert_allclose(probabilities, answer(model / "model.onnx", images), atol=ROUNDING)


def test_the_same_plan_has_the_same_name_though_no_two_are_equal(built: Path, tmp_path: Path) -> None:
    inputs = order(tmp_path / "model", built.parent, engine="tensorrt_rtx", options=OPTIONS)
    before = (built / "model.plan").read_bytes()
    assert build.run(inputs, {}, silent)["path"] == str(built)
    assert (built / "model.plan").read_bytes() == before
    for other in ({"compute_capability": "12.0"}, {"max_batch_size": 2}):
        assert build.run({**inputs, "options": OPTIONS | other}, {}, silent)["path"] != str(built)


def odd(graph: Path) -> str:
    """Puts an operator before the last that the builder does not know."""
    write_graph(graph, 4)
    model = onnx.load(graph)
    model.graph.node[-1].input[0] = "odd"
    model.graph.node.insert(4, helper.make_node("Det", ["logits"], ["odd"]))
    onnx.save(model, graph)
    return r"tensorrt_rtx_bindings \S+ cannot read model\.onnx: it refuses the operator Det$"


def junk(graph: Path) -> str:
    graph.write_bytes(b"junk")
    return r"tensorrt_rtx_bindings \S+ cannot read model\.onnx: .*Failed to parse the ONNX model"


def empty(graph: Path) -> str:
    graph.write_bytes(b"")
    return r"model\.onnx has inputs \[\] and outputs \[\], not images and probabilities$"


def other_ends(graph: Path) -> str:
    write_graph(graph, 4, ends=("x", "probabilities"))
    return r"model\.onnx has inputs \['x'\] and outputs \['probabilities'\], not images and probabilities$"


def fixed_batch(graph: Path) -> str:
    write_graph(graph, 4, batch=1)
    return r"model\.onnx takes UINT8 \(1, 8, 8, 3\) and answers FLOAT; agreed are UINT8 of an open batch"


def floats(graph: Path) -> str:
    write_graph(graph, 4, kind=TensorProto.FLOAT)
    return r"model\.onnx takes FLOAT \(-1, 8, 8, 3\) and answers FLOAT; agreed are UINT8 of an open batch"


@pytest.mark.parametrize("spoil", [odd, junk, empty, other_ends, fixed_batch, floats])
def test_what_the_builder_refuses_is_said_in_words(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    words = spoil(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=words):
        tensorrt_rtx.build(tmp_path, tmp_path / "model.onnx", tmp_path, "fp32", OPTIONS)
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("asked", ["9.0", "x"])
def test_a_gpu_that_the_builder_does_not_know_is_refused_with_those_that_it_does(asked: str) -> None:
    with pytest.raises(ValueError, match=rf"^tensorrt_rtx builds for compute capability .*8\.9, .*, not {asked}$"):
        tensorrt_rtx.find_device({"compute_capability": asked})


@GPU
def test_without_a_gpu_the_option_has_to_say_for_which() -> None:
    assert tensorrt_rtx.find_device({"compute_capability": "12.0"}) == "sm120"
    with pytest.raises(ValueError, match=r"none answers here; set compute_capability, as \"8\.9\"$"):
        tensorrt_rtx.find_device({})
    with pytest.raises(ValueError, match=r"^tensorrt builds on the GPU that is to run the plan, and no NVIDIA GPU"):
        plan_builder.find_own_gpu("tensorrt", {"compute_capability": "8.9"})


def test_an_engine_that_builds_on_its_own_gpu_builds_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake GPU: there is none here."""
    monkeypatch.setattr(plan_builder, "find_gpu", lambda: "sm90")
    assert plan_builder.find_own_gpu("tensorrt", {"compute_capability": "9.0"}) == "sm90"
    with pytest.raises(ValueError, match=r"builds for this machine's GPU, sm90, and not for compute capability 8\.9$"):
        plan_builder.find_own_gpu("tensorrt", {"compute_capability": "8.9"})


# --- asked ------------------------------------------------------------------------------------------------------


@GPU
def test_the_stand_in_is_proven_and_nothing_measured(built: Path, tmp_path: Path) -> None:
    outputs = prove.run(proof(built, tmp_path), {}, silent)
    assert outputs["stand_in"] == artifact.read_manifest(built)["unverified"]
    assert outputs["judge_samples"] == 1
    skipped = measure.run({"artifact": str(built), "batch_size": 1, "concurrency": 1, "threads": 1}, {}, silent)
    assert skipped.keys() == {"artifact", "skipped"}
    assert skipped["artifact"] == built.name
    assert skipped["skipped"].startswith("not measured: no NVIDIA GPU answers here (")


@GPU
def test_without_a_stand_in_nothing_can_be_asked(built: Path, tmp_path: Path) -> None:
    facts = artifact.read_manifest(built)
    del facts["files"]["stand_in.onnx"]
    (built / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(StageError, match=r"and it has no stand-in; ask it where it was built, or build it here$"):
        prove.run(proof(built, tmp_path), {}, silent)


@pytest.mark.parametrize("name", ["model.plan", "plan.json", "stand_in.onnx"])
def test_a_file_that_is_cut_off_is_found_and_named(built: Path, tmp_path: Path, name: str) -> None:
    (built / name).write_bytes((built / name).read_bytes()[:-1])
    with pytest.raises(StageError, match=f"{name} is damaged: SHA-256"):
        prove.run(proof(built, tmp_path), {}, silent)


def test_a_plan_of_another_version_is_refused(built: Path, tmp_path: Path) -> None:
    facts = artifact.read_manifest(built) | {"engine_version": "1.0.0"}
    (built / "manifest.json").write_text(json.dumps(facts))
    words = rf"it was built by tensorrt_rtx 1\.0\.0 and this machine has {tensorrt_rtx.version()}; build it again$"
    with pytest.raises(StageError, match=words):
        prove.run(proof(built, tmp_path), {}, silent)


def test_a_plan_for_another_device_is_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake GPU: there is none here."""
    monkeypatch.setattr(plan, "find_gpu", lambda: "sm120")
    monkeypatch.setattr(tensorrt_rtx, "why_not_here", lambda: None)
    with pytest.raises(StageError, match=r"it was built for sm89 and this machine has sm120; build it again$"):
        prove.run(proof(built, tmp_path), {}, silent)


def test_an_artifact_of_an_engine_that_is_not_installed_is_refused(built: Path, tmp_path: Path) -> None:
    facts = artifact.read_manifest(built) | {"engine": "abacus"}
    (built / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(StageError, match=r"cannot be loaded: there is no engine 'abacus'"):
        prove.run(proof(built, tmp_path), {}, silent)
    with pytest.raises(StageError, match=r"cannot be loaded: there is no engine 'abacus'"):
        measure.run({"artifact": str(built), "batch_size": 1, "concurrency": 1, "threads": 1}, {}, silent)


# --- loaded, as Triton does it -------------------------------------------------------------------------------------


def test_a_plan_that_is_cut_off_is_not_loaded(folder: Path) -> None:
    (folder / "model.plan").write_bytes((folder / "model.plan").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.plan is cut off: 100 bytes of \d+; build it again$"):
        plan.load(folder, 1)


@pytest.mark.parametrize("content", [b"", b"junk", b"[]", b"{}", None])
def test_a_plan_without_what_it_needs_is_not_loaded(folder: Path, content: bytes | None) -> None:
    (folder / "plan.json").unlink()
    if content is not None:
        (folder / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^the plan in .* cannot be read \(.*\); build it again$"):
        plan.load(folder, 1)


def test_a_plan_of_another_version_is_not_loaded(folder: Path) -> None:
    say(folder, version="1.0.0")
    with pytest.raises(ValueError, match=r"built by tensorrt_rtx_bindings 1\.0\.0 and this machine has \S+; build it"):
        plan.load(folder, 1)


@GPU
def test_without_a_gpu_a_plan_is_not_loaded(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^the plan is for sm89 and no NVIDIA GPU answers here"):
        plan.load(folder, 1)


def test_a_plan_for_another_gpu_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake GPU: there is none here."""
    monkeypatch.setattr(plan, "find_gpu", lambda: "sm120")
    with pytest.raises(ValueError, match=r"built for sm89 and this machine's GPU is sm120; build it again$"):
        plan.load(folder, 1)


class Memory:
    """A fake CUDA: the GPU's memory is this process's."""

    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 7

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.held[address]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert (target if kind == 1 else source) in self.held
        ctypes.memmove(target, source, size)
        return (0,)


class Context:
    """A fake execution context: ONNX Runtime answers from and to the fake GPU's memory."""

    def __init__(self, graph: Path) -> None:
        self.graph = graph
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.batches: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 4)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.batches.append(self.shape[0])
        given = ctypes.string_at(self.addresses["images"], int(np.prod(self.shape)))
        found = answer(self.graph, np.frombuffer(given, np.uint8).reshape(self.shape)).tobytes()
        ctypes.memmove(self.addresses["probabilities"], found, len(found))
        return True


@pytest.fixture
def context(made: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A fake GPU of compute capability 8.9 with a fake runtime: there is none here."""
    context = Context(made / "model.onnx")
    engine = types.SimpleNamespace(create_execution_context=lambda: context)
    bindings = types.SimpleNamespace(
        __name__="fake",
        __version__=tensorrt_rtx.version(),
        Logger=types.SimpleNamespace(ERROR=1),
        Runtime=lambda log: types.SimpleNamespace(deserialize_cuda_engine=lambda content: engine if content else None),
    )
    bindings.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    modules = {"cuda.bindings.runtime": Memory(), "tensorrt_rtx_bindings": bindings}
    monkeypatch.setattr(plan, "find_gpu", lambda: "sm89")
    monkeypatch.setattr(plan.importlib, "import_module", lambda name: modules[name])
    return context


def test_a_batch_goes_to_the_gpu_in_parts_and_comes_back_whole(made: Path, context: Context) -> None:
    run = plan.load(made, 1)
    for count in (1, 3, 10):  # larger ones need more of the GPU's memory
        found = run(noise(count))
        assert (found.dtype, found.shape) == (np.float32, (count, 4))
        np.testing.assert_allclose(found, answer(made / "model.onnx", noise(count)), atol=ROUNDING)
    assert context.batches == [1, 3, 4, 4, 2]
    np.testing.assert_allclose(run(noise(6)[::2]), answer(made / "model.onnx", noise(6)[::2]), atol=ROUNDING)


def test_several_threads_may_ask_the_gpu_at_once(made: Path, context: Context) -> None:
    run = plan.load(made, 1)
    batches = [noise(1 + seed % 6, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    for images, probabilities in zip(batches, found, strict=True):
        np.testing.assert_allclose(probabilities, answer(made / "model.onnx", images), atol=ROUNDING)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 5), np.uint8), np.zeros((2, 8, 8, 3), np.float32)], ids=["2D", "floats"]
)
def test_images_of_another_kind_are_refused_in_words(made: Path, context: Context, images: np.ndarray) -> None:
    run = plan.load(made, 1)
    with pytest.raises(ValueError, match=r"^the plan cannot run on .*: it takes uint8 of shape \(n, 8, 8, 3\)$"):
        run(images)
    assert run(noise(2)).shape == (2, 4)  # and it goes on


def test_a_plan_that_the_runtime_refuses_is_named(folder: Path, context: Context) -> None:
    (folder / "model.plan").write_bytes(b"")
    say(folder, bytes=0)
    with pytest.raises(ValueError, match=r"model\.plan cannot be loaded by fake .*; build it again$"):
        plan.load(folder, 1)
