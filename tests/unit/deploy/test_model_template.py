"""The model that Triton's Python backend runs: requests are run together, and a bad one harms no other."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from deploy import repository as disk
from deploy.config_pbtxt import Serving
from deploy.server import Server
from deploy.triton import Triton, TritonRefused
from tests.unit.deploy.models import ROUNDING, answer, class_names, make_artifact, noise

WAIT = Serving(max_batch_size=16, queue_delay_us=400_000, instances=1)  # so that requests meet
Publish = Callable[..., str]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact"), class_names(4))


@pytest.fixture
def publish(repository: Path, triton: Triton, artifact: Path, request: pytest.FixtureRequest) -> Any:
    """Serves the artifact as a model of the test's own, with changes to its configuration and engine."""
    name = re.sub(r"\W", "_", request.node.name)

    def load(config: Sequence[tuple[str, str]] = (), engine: str | None = None) -> str:
        disk.stage(repository, artifact, name, 1, WAIT)
        disk.put(repository, name, 1, None)
        file = repository / name / "config.pbtxt"
        text = file.read_text()
        for old, new in config:
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)
        if engine is not None:
            (repository / name / "1" / "engine.py").write_text(engine)
        triton.load(name)
        return name

    yield load
    triton.unload(name)
    shutil.rmtree(repository / name, ignore_errors=True)


def ask_at_once(server: Server, model: str, batches: Sequence[np.ndarray]) -> list[Any]:
    """What each of the requests, sent together, is answered: probabilities, or the words of an error."""

    def ask(images: np.ndarray) -> Any:
        with Triton(server.address) as triton:
            try:
                return triton.infer(model, images)[0]
            except TritonRefused as error:
                return str(error)

    with ThreadPoolExecutor(len(batches)) as pool:
        return list(pool.map(ask, batches))


def runs(server: Server, model: str) -> tuple[int, int]:
    """(requests answered or failed, runs of the model) since it was loaded, the warm-up's among them."""
    with grpc.InferenceServerClient(server.address) as client:
        (row,) = client.get_inference_statistics(model).model_stats
    counts = row.inference_stats
    return counts.success.count + counts.fail.count, row.execution_count


def test_requests_of_different_sizes_are_run_together_and_each_gets_its_own(
    server: Server, artifact: Path, publish: Publish
) -> None:
    model = publish()
    batches = [noise(count, seed=count) for count in (1, 4, 2, 3, 1)]
    before = runs(server, model)
    found = ask_at_once(server, model, batches)
    after = runs(server, model)
    assert after[0] - before[0] == 5
    assert after[1] - before[1] < 5, "none met another"
    for images, probabilities in zip(batches, found, strict=True):
        np.testing.assert_allclose(probabilities, answer(artifact / "model.onnx", images), atol=ROUNDING)


RAGGED = [
    ("dims: [ 8, 8, 3 ] } ]\noutput", "dims: [ -1, -1, 3 ] allow_ragged_batch: true } ]\noutput"),
    ("model_warmup", "# model_warmup"),
]


def test_a_bad_request_is_told_so_and_harms_no_other(server: Server, artifact: Path, publish: Publish) -> None:
    """Triton looks at shapes itself; here it is told not to, so that they come to the model."""
    model = publish(config=RAGGED)
    batches = [noise(1, 1), noise(2, 2, size=9), noise(3, 3), noise(1, 4)[:, :4], noise(2, 5)]
    before = runs(server, model)
    found = ask_at_once(server, model, batches)
    after = runs(server, model)
    assert after[1] - before[1] < 5, "none met another"
    for place in (0, 2, 4):
        np.testing.assert_allclose(found[place], answer(artifact / "model.onnx", batches[place]), atol=ROUNDING)
    for place, shape in ((1, r"\(2, 9, 9, 3\)"), (3, r"\(1, 4, 8, 3\)")):
        assert re.search(rf"images must be uint8 of shape \(n, 8, 8, 3\), not uint8 {shape}", found[place])


def test_bad_requests_alone_are_told_so(server: Server, artifact: Path, publish: Publish) -> None:
    model = publish(config=RAGGED)
    found = ask_at_once(server, model, [noise(1, 1, size=9)] * 2)
    assert all("images must be uint8 of shape" in words for words in found)
    (after,) = ask_at_once(server, model, [noise(1)])
    np.testing.assert_allclose(after, answer(artifact / "model.onnx", noise(1)), atol=ROUNDING)


FAULTS = {
    "it raises": ("raise ValueError('the seventh layer')", "the engine failed: the seventh layer"),
    "too few answers": ("return answers(images)[1:]", r"the engine failed: the engine answered with shape \(0, 4\)"),
    "other classes": ("return answers(images)[:, :3]", r"the engine answered with shape \(1, 3\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_fails_is_told_to_the_client_and_the_model_lives_on(
    server: Server, artifact: Path, publish: Publish, fault: str
) -> None:
    """The engine does as it should but for images that are black."""
    code, words = FAULTS[fault]
    engine = (
        "import numpy as np\n"
        "def load(folder, threads):\n"
        "    def answers(images): return np.full((len(images), 4), threads / 4, np.float32)\n"
        "    def run(images):\n"
        f"        if not images.any(): {code}\n"
        "        return answers(images)\n"
        "    return run\n"
    )
    model = publish(engine=engine)
    (black,) = ask_at_once(server, model, [np.zeros((1, 8, 8, 3), np.uint8)])
    assert re.search(words, black)
    (white,) = ask_at_once(server, model, [np.full((2, 8, 8, 3), 255, np.uint8)])
    np.testing.assert_array_equal(white, np.full((2, 4), 0.25, np.float32))


def test_the_engine_is_given_the_threads_of_the_configuration(server: Server, publish: Publish) -> None:
    engine = (
        "import numpy as np\n"
        "def load(folder, threads):\n"
        "    assert (folder / 'model.onnx').exists()\n"
        "    return lambda images: np.full((len(images), 4), threads, np.float32)\n"
    )
    model = publish(config=[('string_value: "1"', 'string_value: "7"')], engine=engine)
    (found,) = ask_at_once(server, model, [noise(1)])
    assert found.tolist() == [[7.0] * 4]


def test_answers_that_are_no_float32_or_lie_otherwise_in_memory_are_sent_as_they_should_be(
    server: Server, publish: Publish
) -> None:
    engine = (
        "import numpy as np\n"
        "def load(folder, threads):\n"
        "    return lambda images: np.asfortranarray(np.arange(4.0) + images[:, 0, 0, :1])\n"
    )
    model = publish(engine=engine)
    images = noise(3)
    (found,) = ask_at_once(server, model, [images])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(4.0) + images[:, 0, 0, :1])


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("raise ImportError('no runtime')", "no runtime"),
        ("def load(folder, threads): raise ValueError('no graph')", "no graph"),
        ("", "load"),
    ],
    ids=["import", "load", "empty"],
)
def test_an_engine_that_does_not_load_keeps_the_model_from_loading(publish: Publish, engine: str, words: str) -> None:
    with pytest.raises(TritonRefused, match=words):
        publish(engine=engine)
