"""The client to copy from works as it stands."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from deploy import repository as disk
from deploy.client import classify
from deploy.config_pbtxt import Serving
from deploy.server import Server
from deploy.triton import Triton
from tests.unit.deploy.models import ROUNDING, answer, make_artifact, noise

CLASSES = ["naïve café", "a:b", "cat", "dog"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, repository: Path, triton: Triton) -> Path:
    """The graph of the model that is served as version 3 of `edge`."""
    artifact = make_artifact(tmp_path_factory.mktemp("artifact"), CLASSES)
    disk.stage(repository, artifact, "edge", 3, Serving())
    disk.put(repository, "edge", 3, None)
    triton.load("edge")
    return artifact / "model.onnx"


def expected(graph: Path, images: np.ndarray) -> list[tuple[str, float, str]]:
    rows = answer(graph, images)
    return [(CLASSES[row.argmax()], pytest.approx(float(row.max()), abs=ROUNDING), "3") for row in rows]


@pytest.mark.parametrize("count", [1, 4])
def test_images_become_names(server: Server, graph: Path, count: int) -> None:
    images = noise(count, seed=count)
    with grpc.InferenceServerClient(server.address) as client:
        assert classify(client, "edge", images) == expected(graph, images)


def test_one_client_is_shared_by_threads(server: Server, graph: Path) -> None:
    batches = [noise(1 + seed % 4, seed) for seed in range(24)]
    with grpc.InferenceServerClient(server.address) as client, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: classify(client, "edge", images), batches))
    assert found == [expected(graph, images) for images in batches]
    assert {name for row in found for name, _, _ in row} == set(CLASSES)


def test_what_is_wrong_is_an_error(server: Server, graph: Path) -> None:
    with grpc.InferenceServerClient(server.address) as client:
        with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
            classify(client, "edge", noise(5))
        with pytest.raises(InferenceServerException, match="'nothing' is not found"):
            classify(client, "nothing", noise(1))
