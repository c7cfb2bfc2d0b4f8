"""The engines behind their interface, and ONNX Runtime as one of them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploy import engines
from deploy.engines import ENGINES, find_engine, source_file
from tests.unit.deploy.models import ROUNDING, answer, class_names, make_model, names, noise, write_graph


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", class_names(4))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("find", [find_engine, source_file])
def test_an_unknown_engine_is_refused_with_those_that_there_are(find: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"^there is no engine 'abacus'; there are: .*onnxruntime"):
        find("abacus")


def test_an_engine_that_is_not_installed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine_of_test.py").write_text("import no_such_runtime\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "abacus", "engine_of_test")
    with pytest.raises(ValueError, match=r"'abacus' is not installed here \(No module named 'no_such_runtime'\)"):
        find_engine("abacus")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_describes_itself(name: str) -> None:
    engine = find_engine(name)
    facts = engine.describe()
    assert facts.keys() == {"precisions", "accelerator", "device"}
    assert facts["precisions"]
    assert facts["accelerator"] in ("cpu", "cuda")
    assert engine.version()[0].isdigit()


@pytest.mark.parametrize("name", ENGINES)
def test_an_engines_file_stands_alone(name: str) -> None:
    """Triton gets a copy of it, in an environment that has the runtime and numpy alone."""
    allowed = set(sys.stdlib_module_names) | {"numpy", name}
    for node in ast.walk(ast.parse(source_file(name).read_text(encoding="utf-8"))):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found = [node.module or ""]
        assert {module.partition(".")[0] for module in found} <= allowed


@pytest.mark.parametrize("name", ENGINES)
def test_an_engines_file_is_that_of_its_module(name: str) -> None:
    assert source_file(name) == Path(str(importlib.import_module(ENGINES[name]).__file__))


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_built_answers_as_the_graph_of_the_model(model: Path, out: Path, name: str) -> None:
    engine = find_engine(name)
    engine.build(model, out, "fp32")
    (model / "model.onnx").rename(model / "away")  # what was built stands alone
    for threads in (1, 2):
        run = engine.load(out, threads)
        for count in (1, 3, 7):
            found = run(noise(count))
            assert (found.dtype, found.shape) == (np.float32, (count, 4))
            np.testing.assert_allclose(found, answer(model / "away", noise(count)), atol=ROUNDING)


@pytest.mark.parametrize("name", ENGINES)
def test_one_runner_may_be_asked_by_several_threads_at_once(model: Path, out: Path, name: str) -> None:
    engine = find_engine(name)
    engine.build(model, out, "fp32")
    run = engine.load(out, 1)
    batches = [noise(1 + seed % 4, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    for images, probabilities in zip(batches, found, strict=True):
        np.testing.assert_allclose(probabilities, answer(model / "model.onnx", images), atol=ROUNDING)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("precision", ["int8", "fp16", "FP32", ""])
def test_a_precision_that_it_does_not_build_is_refused(model: Path, out: Path, precision: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} builds fp32, not {precision!r}$"):
        find_engine(name).build(model, out, precision)
    assert names(out) == []


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("ends", [("x", "probabilities"), ("images", "y")])
def test_a_graph_with_other_ends_is_refused(model: Path, out: Path, ends: tuple[str, str], name: str) -> None:
    write_graph(model / "model.onnx", 4, ends=ends)
    with pytest.raises(ValueError, match=r"not images and probabilities$") as refused:
        find_engine(name).build(model, out, "fp32")
    assert str(refused.value).startswith(f"{model / 'model.onnx'} has inputs ['{ends[0]}'] and outputs ['{ends[1]}']")
    assert names(out) == []


@pytest.mark.parametrize(("name", "graph"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
@pytest.mark.parametrize("content", [b"", b"junk", None], ids=["empty", "junk", "missing"])
def test_what_is_no_graph_is_named_at_load_and_at_build(
    model: Path, out: Path, content: bytes | None, name: str, graph: str
) -> None:
    (model / "model.onnx").unlink()
    if content is not None:
        for file in ("model.onnx", graph):
            (model / file).write_bytes(content)
    engine = find_engine(name)
    for file, attempt in (
        (graph, lambda: engine.load(model, 1)),
        ("model.onnx", lambda: engine.build(model, out, "fp32")),
    ):
        with pytest.raises(ValueError, match="is no graph that") as refused:
            attempt()
        assert str(refused.value).startswith(f"{model / file} ")


@pytest.mark.parametrize("name", ENGINES)
def test_images_of_another_shape_are_refused_in_words(model: Path, out: Path, name: str) -> None:
    engine = find_engine(name)
    engine.build(model, out, "fp32")
    run = engine.load(out, 1)
    with pytest.raises(ValueError, match=r"cannot run the graph on uint8 \(2, 5\)"):
        run(np.zeros((2, 5), np.uint8))
    assert run(noise(2)).shape == (2, 4)  # and it goes on


def test_the_version_is_that_of_the_runtime() -> None:
    assert engines.find_engine("onnxruntime").version() == onnxruntime.__version__
    assert engines.find_engine("openvino").version() == importlib.metadata.version("openvino")
