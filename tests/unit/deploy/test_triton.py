"""What is asked of a real Triton, and what is said when it refuses or is away."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from deploy import repository as disk
from deploy.config_pbtxt import Serving
from deploy.server import Server, free_ports
from deploy.triton import Triton, TritonRefused, TritonUnavailable, parse_class
from deploy.wire import Endpoint
from tests.unit.deploy.models import ROUNDING, answer, class_names, make_artifact, noise

Protocol = Literal["grpc", "http"]
CLASSES = ["naïve café", "a:b:c", " leading", "日本", *class_names(4)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact"), CLASSES)


@pytest.fixture(scope="module")
def model(repository: Path, triton: Triton, artifact: Path) -> Iterator[str]:
    """A model that serves two versions of one artifact."""
    for number in (1, 2):
        disk.stage(repository, artifact, "edge", number, Serving(instances=1))
        disk.put(repository, "edge", number, 1 if number == 2 else None)
    triton.load("edge")
    yield "edge"
    triton.unload("edge")


@pytest.fixture(params=["grpc", "http"])
def either(request: pytest.FixtureRequest, server: Server) -> Iterator[Triton]:
    """A connection by each protocol: what both have to answer alike."""
    ports = {"grpc": server.grpc_port, "http": server.http_port}
    with Triton(Endpoint(f"127.0.0.1:{ports[request.param]}", request.param)) as connection:
        yield connection


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_a_server_is_live(either: Triton) -> None:
    assert either.is_live()


def test_answers_are_those_of_the_graph_with_the_version_that_gave_them(
    either: Triton, model: str, artifact: Path
) -> None:
    for count in (1, 3, 4):
        images = noise(count, seed=count)
        for version, by in ((None, 2), (1, 1), (2, 2)):
            found, number = either.infer(model, images, version)
            assert (found.dtype, number) == (np.float32, by)
            np.testing.assert_allclose(found, answer(artifact / "model.onnx", images), atol=ROUNDING)


def test_more_images_than_a_batch_holds_are_asked_one_by_one(either: Triton, model: str, artifact: Path) -> None:
    images = noise(11)
    found, versions = either.infer_all(model, images)
    assert versions == {2}
    np.testing.assert_allclose(found, answer(artifact / "model.onnx", images), atol=ROUNDING)
    assert either.infer_all(model, images[:2], version=1)[1] == {1}


@pytest.mark.parametrize("count", [1, 3])
def test_classes_are_named_likeliest_first(either: Triton, model: str, artifact: Path, count: int) -> None:
    images = noise(4, seed=9)
    expected = answer(artifact / "model.onnx", images)
    rows, version = either.classify(model, images, count=count)
    assert version == 2
    assert len(rows) == 4
    for row, probabilities in zip(rows, expected, strict=True):
        best = np.argsort(-probabilities)[:count]
        assert [(index, name) for _, index, name in row] == [(i, CLASSES[i]) for i in best]
        np.testing.assert_allclose([p for p, _, _ in row], probabilities[best], atol=ROUNDING)


def test_every_class_has_its_name(either: Triton, model: str) -> None:
    ((row,), _) = either.classify(model, noise(1), count=len(CLASSES))
    assert {index: name for _, index, name in row} == dict(enumerate(CLASSES))


@pytest.mark.parametrize(
    ("cell", "parsed"),
    [(b"0.98:3:cat", (0.98, 3, "cat")), (b"1:0:a:b", (1.0, 0, "a:b")), (b"0.5:2", (0.5, 2, ""))],
)
def test_one_answer_of_the_classification_extension(cell: bytes, parsed: tuple[float, int, str]) -> None:
    assert parse_class(cell) == parsed


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (noise(2)[:, :4], r"unexpected shape for input 'images'"),
        (noise(2, size=16), r"Expected \[-1,8,8,3\], got \[2,16,16,3\]"),
        (noise(1)[0], r"batch-size must be <= 4|unexpected shape"),
        (noise(5), "batch-size must be <= 4"),
        (noise(0), "input byte size mismatch"),
    ],
    ids=["height", "size", "no batch", "too many", "none"],
)
def test_images_of_a_wrong_shape_are_refused_in_words(
    either: Triton, model: str, images: np.ndarray, words: str
) -> None:
    with pytest.raises(TritonRefused, match=words):
        either.infer(model, images)
    assert either.infer(model, noise(1))[1] == 2  # and the next one is answered


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_images_of_a_wrong_type_are_refused_in_words(triton: Triton, model: str, dtype: type) -> None:
    with pytest.raises(Exception, match=r"got unexpected datatype \w+ from numpy array, expected UINT8"):
        triton.infer(model, noise(1).astype(dtype))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda triton: triton.infer("nothing", noise(1)), "Request for unknown model: 'nothing' is not found"),
        (lambda triton: triton.classify("edge", noise(1), 7), "'edge' version 7 is not found"),
        (lambda triton: triton.load("nothing"), "failed to load 'nothing'"),
    ],
    ids=["infer", "version", "load"],
)
def test_what_is_not_there_is_refused_by_name(
    either: Triton, model: str, ask: Callable[[Triton], object], words: str
) -> None:
    with pytest.raises(TritonRefused, match=words):
        ask(either)


def test_unloading_what_is_not_loaded_is_no_error(either: Triton) -> None:
    either.unload("nothing")


def test_readiness_is_of_models_and_versions(either: Triton, model: str) -> None:
    asked = [(model, None), (model, 1), (model, 2), (model, 3), ("nothing", None)]
    assert [either.is_ready(*names) for names in asked] == [True, True, True, False, False]


def test_the_index_says_what_lies_there_and_what_of_it_is_loaded(
    either: Triton, model: str, repository: Path, artifact: Path, eventually: Callable[..., None]
) -> None:
    later = f"later-{either.endpoint.protocol}"
    disk.stage(repository, artifact, later, 3, Serving(instances=1))
    disk.put(repository, later, 3, None)
    assert either.index()[later] == []
    either.load(later)
    assert [(state.version, state.state) for state in either.index()[later]] == [(3, "READY")]
    assert [(state.version, state.state) for state in either.index()[model]] == [(1, "READY"), (2, "READY")]
    either.unload(later)
    eventually(lambda: [state.state for state in either.index()[later]] == ["UNAVAILABLE"])
    disk.restore(repository, later, None)
    assert later not in either.index()


def test_a_model_that_does_not_load_is_refused_with_its_own_words(either: Triton, repository: Path) -> None:
    model = repository / f"broken-{either.endpoint.protocol}"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text("raise ValueError('the seventh layer')")
    (model / "config.pbtxt").write_text(f'name: "{model.name}" backend: "python"')
    with pytest.raises(TritonRefused, match="the seventh layer"):
        either.load(model.name)
    (state,) = either.index()[model.name]
    assert (state.version, state.state) == (1, "UNAVAILABLE")
    assert "the seventh layer" in state.reason


ASKING = {
    "infer": lambda triton: triton.infer("edge", noise(1)),
    "infer_all": lambda triton: triton.infer_all("edge", noise(2)),
    "classify": lambda triton: triton.classify("edge", noise(1)),
    "load": lambda triton: triton.load("edge"),
    "unload": lambda triton: triton.unload("edge"),
    "index": lambda triton: triton.index(),
    "is_ready": lambda triton: triton.is_ready("edge"),
}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_where_nobody_listens_it_is_said_with_the_address(
    nobody: str, ask: Callable[[Triton], object], protocol: Protocol
) -> None:
    with (
        Triton(Endpoint(nobody, protocol), timeout=60.0) as triton,
        pytest.raises(TritonUnavailable, match=f"^no Triton answers at {nobody}: "),
    ):
        ask(triton)


def test_where_nobody_listens_nothing_is_live(nobody: str) -> None:
    with Triton(nobody) as triton:
        assert not triton.is_live()


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of one that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_one_that_never_answers_is_given_up(mute: str, ask: Callable[[Triton], object], protocol: Protocol) -> None:
    endpoint = Endpoint(mute, protocol)
    with Triton(endpoint, timeout=0.2, load_timeout=0.2) as triton, pytest.raises(TritonUnavailable, match=mute):
        ask(triton)


def test_one_that_never_answers_is_not_live(mute: str) -> None:
    with Triton(mute) as triton:
        assert not triton.is_live(timeout=0.2)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_port_of_the_other_protocol_is_no_triton(server: Server, protocol: Protocol) -> None:
    """The ports are taken for one another easily."""
    port = server.http_port if protocol == "grpc" else server.grpc_port
    with Triton(Endpoint(f"127.0.0.1:{port}", protocol)) as triton:
        assert not triton.is_live()
        with pytest.raises(TritonUnavailable, match=f"no Triton answers at {triton.address}"):
            triton.index()


def test_a_server_that_comes_back_is_found_again(
    tmp_path: Path, triton_cache: Path, eventually: Callable[..., None]
) -> None:
    (tmp_path / "repository").mkdir()
    ports = tuple(free_ports(3))
    assert len(ports) == 3
    with Triton(f"127.0.0.1:{ports[0]}") as triton:
        for _ in range(2):
            with Server(tmp_path / "repository", triton_cache, ports=ports, log=tmp_path / "log"):
                eventually(triton.is_live)
                assert triton.index() == {}
            with pytest.raises(TritonUnavailable):
                triton.index()


class LoadingServer(Server):
    """A server that decides by itself what it loads, as Triton does unless it is told otherwise."""

    def _command(self, *given: Any) -> list[str]:
        return [word.replace("mode=explicit", "mode=none") for word in super()._command(*given)]


def test_a_server_that_takes_no_orders_is_as_one_that_is_away(tmp_path: Path, triton_cache: Path) -> None:
    """What was to be loaded is tried again once it was started as it should be."""
    (tmp_path / "repository").mkdir()
    with (
        LoadingServer(tmp_path / "repository", triton_cache, log=tmp_path / "log") as server,
        Triton(server.address) as triton,
        pytest.raises(TritonUnavailable, match="start it with --model-control-mode=explicit"),
    ):
        triton.load("edge")
