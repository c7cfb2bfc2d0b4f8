"""The engines behind their interface, and those of the CPU on a graph as it was exported."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploy import engines
from deploy.config_pbtxt import FLAVOURS
from deploy.engines import ENGINES, Line, find_engine, find_installed, find_style, source_file
from deploy.precision import STYLES
from tests.unit.deploy.models import ROUNDING, answer, class_names, make_model, names, noise, write_graph

INSTALLED = sorted(find_installed())
CPU = ["onnxruntime", "openvino"]


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
    monkeypatch.setitem(ENGINES, "abacus", Line("engine_of_test", "cpu", ("fp32",)))
    with pytest.raises(ValueError, match=r"'abacus' is not installed here \(No module named 'no_such_runtime'\)"):
        find_engine("abacus")


@pytest.mark.parametrize("name", ["tensorrt", "torch2trt"])
def test_an_optional_engine_that_is_absent_is_said_so(name: str) -> None:
    if name in INSTALLED:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ValueError, match=rf"^engine '{name}' is not installed here .*; install its package$"):
        find_engine(name)


def test_what_is_installed_is_found() -> None:
    assert {"onnxruntime", "openvino", "tensorrt_rtx"} <= set(INSTALLED) <= set(ENGINES)


@pytest.mark.parametrize("name", INSTALLED)
def test_every_engine_describes_itself(name: str) -> None:
    engine = find_engine(name)
    facts = engine.describe()
    assert facts.keys() == {"graphs", "flavour"}
    assert facts["graphs"]["fp32"] == "as exported"
    assert set(facts["graphs"]) <= {"fp32", "fp16", "int8"}
    assert set(facts["graphs"].values()) <= set(STYLES)
    assert facts["flavour"] in FLAVOURS
    assert engine.version()[0].isdigit()


@pytest.mark.parametrize("name", CPU)
def test_what_runs_on_the_cpu_runs_here_and_is_bound_to_nothing(name: str) -> None:
    engine = find_engine(name)
    assert engine.why_not_here() is None
    assert engine.find_device({"compute_capability": "8.9"}) is None


@pytest.mark.parametrize("name", ENGINES)
def test_the_file_that_triton_gets_stands_alone(name: str) -> None:
    """It is copied into an environment that has the runtime and numpy alone."""
    allowed = set(sys.stdlib_module_names) | {"numpy", name}
    for node in ast.walk(ast.parse(source_file(name).read_text(encoding="utf-8"))):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found = [node.module or ""]
        assert {module.partition(".")[0] for module in found} <= allowed


@pytest.mark.parametrize("name", INSTALLED)
def test_the_registry_says_what_the_engine_says(name: str) -> None:
    assert tuple(find_engine(name).describe()["graphs"]) == ENGINES[name].precisions


@pytest.mark.parametrize("name", INSTALLED)
def test_the_file_that_triton_gets_is_that_which_loads(name: str) -> None:
    loader = importlib.import_module(ENGINES[name].loader or ENGINES[name].module)
    assert source_file(name) == Path(str(loader.__file__))
    assert find_engine(name).load is loader.load


@pytest.mark.parametrize("name", CPU)
def test_what_is_built_answers_as_the_graph_of_the_model(model: Path, out: Path, name: str) -> None:
    engine = find_engine(name)
    engine.build(model, model / "model.onnx", out, "fp32", {})
    (model / "model.onnx").rename(model / "away")  # what was built stands alone
    for threads in (1, 2):
        run = engine.load(out, threads)
        for count in (1, 3, 7):
            found = run(noise(count))
            assert (found.dtype, found.shape) == (np.float32, (count, 4))
            np.testing.assert_allclose(found, answer(model / "away", noise(count)), atol=ROUNDING)


@pytest.mark.parametrize("name", CPU)
def test_one_runner_may_be_asked_by_several_threads_at_once(model: Path, out: Path, name: str) -> None:
    engine = find_engine(name)
    engine.build(model, model / "model.onnx", out, "fp32", {})
    run = engine.load(out, 1)
    batches = [noise(1 + seed % 4, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    for images, probabilities in zip(batches, found, strict=True):
        np.testing.assert_allclose(probabilities, answer(model / "model.onnx", images), atol=ROUNDING)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("precision", ["int4", "FP32", ""])
def test_a_precision_that_it_does_not_build_is_refused(precision: str, name: str) -> None:
    engine = find_engine(name)
    builds = ", ".join(engine.describe()["graphs"])
    with pytest.raises(ValueError, match=f"^{name} builds {builds}, not {precision!r}$"):
        find_style(name, engine, precision)


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("ends", [("x", "probabilities"), ("images", "y")])
def test_a_graph_with_other_ends_is_refused(model: Path, out: Path, ends: tuple[str, str], name: str) -> None:
    write_graph(model / "model.onnx", 4, ends=ends)
    with pytest.raises(ValueError, match=r"not images and probabilities$") as refused:
        find_engine(name).build(model, model / "model.onnx", out, "fp32", {})
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
        ("model.onnx", lambda: engine.build(model, model / "model.onnx", out, "fp32", {})),
    ):
        with pytest.raises(ValueError, match="is no graph that") as refused:
            attempt()
        assert str(refused.value).startswith(f"{model / file} ")


@pytest.mark.parametrize("name", CPU)
def test_images_of_another_shape_are_refused_in_words(model: Path, out: Path, name: str) -> None:
    engine = find_engine(name)
    engine.build(model, model / "model.onnx", out, "fp32", {})
    run = engine.load(out, 1)
    with pytest.raises(ValueError, match=r"cannot run the graph on uint8 \(2, 5\)"):
        run(np.zeros((2, 5), np.uint8))
    assert run(noise(2)).shape == (2, 4)  # and it goes on


SIGNALLED = """
import gc, os, pathlib, signal, sys
from deploy.engines import find_engine
from tests.unit.deploy.models import noise

first, second = (find_engine(sys.argv[1]).load(pathlib.Path(sys.argv[2]), 1) for _ in range(2))
first(noise(1)), second(noise(1))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("name", CPU)
def test_a_process_that_has_used_it_still_handles_signals(model: Path, out: Path, name: str) -> None:
    find_engine(name).build(model, model / "model.onnx", out, "fp32", {})
    told = subprocess.run([sys.executable, "-c", SIGNALLED, name, str(out)], check=False, stderr=subprocess.PIPE)
    assert told.returncode == 143, told.stderr.decode()


def test_the_version_is_that_of_the_runtime() -> None:
    assert engines.find_engine("onnxruntime").version() == onnxruntime.__version__
    assert engines.find_engine("openvino").version() == importlib.metadata.version("openvino")
