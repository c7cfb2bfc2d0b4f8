"""The client's classifiers against a real Triton: both protocols, batches, labels, and what is tried again."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from deploy import client as module
from deploy import repository as disk
from deploy.client import AsyncClassifier, Classifier, is_away, prepare
from deploy.config_pbtxt import Serving
from deploy.server import Server
from deploy.triton import Triton
from tests.unit.deploy.models import ROUNDING, answer, make_artifact, noise
from tests.unit.deploy.test_wire import Terminator, make_certificate

CLASSES = ["naïve café", "a:b", "cat", "dog"]
CHECKOUT = Path(__file__).resolve().parents[3]
PROTOCOLS = ("grpc", "http")
IMAGES = noise(11, seed=5)  # of which the model takes four at once
LONG = 3600.0  # seconds: what is tried again without end never ends


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, repository: Path, triton: Triton) -> Path:
    """The graph of the model that is served as version 3 of `edge`."""
    artifact = make_artifact(tmp_path_factory.mktemp("artifact"), CLASSES)
    disk.stage(repository, artifact, "edge", 3, Serving())
    disk.put(repository, "edge", 3, None)
    triton.load("edge")
    return artifact / "model.onnx"


@pytest.fixture
def url(server: Server, graph: Path) -> Callable[[str], str]:
    return lambda protocol: server.address if protocol == "grpc" else f"127.0.0.1:{server.http_port}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("labels", [None, CLASSES], ids=["its names", "names of ours"])
def test_any_number_of_images_is_answered_in_their_order(
    url: Callable[[str], str], graph: Path, protocol: str, labels: list[str] | None
) -> None:
    wanted = answer(graph, IMAGES)
    with Classifier(url(protocol), "edge", protocol=protocol, labels=labels) as model:
        assert model.limits() == (8, 8, 4)
        found = model.classify(IMAGES)
        np.testing.assert_allclose(model.probabilities(IMAGES), wanted, atol=ROUNDING)
    assert [one.name for one in found] == [CLASSES[row.argmax()] for row in wanted]
    np.testing.assert_allclose([one.probability for one in found], wanted.max(1), atol=ROUNDING)
    assert {one.version for one in found} == {3}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_several_callers_share_one_under_asyncio(url: Callable[[str], str], graph: Path, protocol: str) -> None:
    async def ask() -> list[list[str]]:
        async with AsyncClassifier(url(protocol), "edge", protocol=protocol, in_flight=2) as model:
            answered = await asyncio.gather(*(model.classify(IMAGES[n:]) for n in range(6)))
        return [[one.name for one in found] for found in answered]

    names = [CLASSES[row.argmax()] for row in answer(graph, IMAGES)]
    assert asyncio.run(ask()) == [names[n:] for n in range(6)]


def test_files_are_resized_as_training_did(url: Callable[[str], str], graph: Path, tmp_path: Path) -> None:
    files = []
    for number in range(5):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(noise(1, number, 31)[0][: 20 + number]).save(files[-1])
    pixels = np.stack([prepare(file, (8, 8), "crop") for file in files])
    with Classifier(url("grpc"), "edge") as model:
        found = model.classify_files(files, "crop")
    assert [one.name for one in found] == [CLASSES[row.argmax()] for row in answer(graph, pixels)]
    words = [str(files[0]), "--url", url("http"), "--model", "edge", "--protocol", "http", "--resize", "crop"]
    assert list(module.main(words)) == [f"{files[0]}: {found[0].name} ({found[0].probability:.2f}), says version 3"]


def test_the_line_of_the_readme_runs(url: Callable[[str], str], graph: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(1)[0]).save(tmp_path / "one.png")
    (line,) = re.findall(r"`(with Classifier\(.*?)`", (CHECKOUT / "README.md").read_text(encoding="utf-8"))
    exec(line.replace("127.0.0.1:8001", url("grpc")), {"Classifier": Classifier, "files": [tmp_path / "one.png"]})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refusal_is_raised_at_once(url: Callable[[str], str], protocol: str) -> None:
    refused = pytest.raises(InferenceServerException, match="'nothing' is not found")
    with Classifier(url(protocol), "nothing", protocol=protocol, seconds=LONG) as model, refused:
        model.classify(IMAGES)
    with Classifier(url(protocol), "edge", protocol=protocol, seconds=LONG) as model:
        with pytest.raises(InferenceServerException, match="unexpected shape"):
            model.classify(np.zeros((9, 8, 9, 3), np.uint8))
        assert len(model.classify(IMAGES)) == 11  # and it can be asked on


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fewer_images_at_once_are_sent_once_the_server_takes_fewer(
    url: Callable[[str], str], graph: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client read before `max_batch_size` was lowered: the packaged server takes four."""
    with Classifier(url(protocol), "edge", protocol=protocol) as model:
        monkeypatch.setattr(model._model, "_limits", (8, 8, 11))
        assert len(model.classify(IMAGES)) == 11
        assert model.limits() == (8, 8, 4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_asks_for_tls_is_asked_by_it(server: Server, graph: Path, tmp_path: Path, protocol: str) -> None:
    ours, theirs = make_certificate(tmp_path, "client"), make_certificate(tmp_path, "server")
    behind = Terminator(server.grpc_port if protocol == "grpc" else server.http_port, theirs, ours[0])
    named: dict[str, Any] = {"tls": True, "authorities": theirs[0], "certificate": ours[0], "key": ours[1]}
    with Classifier(behind.address, "edge", protocol=protocol, **named) as model:
        assert len(model.classify(IMAGES)) == 11
    lost = pytest.raises((InferenceServerException, OSError, TimeoutError))
    with Classifier(behind.address, "edge", protocol=protocol, seconds=1.0) as model, lost:
        model.classify(IMAGES)
    behind.listening.close()


def test_headers_go_with_each_question_by_grpc() -> None:
    heard: list[dict[str, str]] = []

    def refuse(_request: bytes, context: Any) -> None:
        heard.append(dict(context.invocation_metadata()))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "it is only listened to")

    class Listener(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(refuse)

    listening = grpc.server(ThreadPoolExecutor(1), handlers=[Listener()])
    port = listening.add_insecure_port("127.0.0.1:0")
    listening.start()
    refused = pytest.raises(InferenceServerException, match="listened to")
    with Classifier(f"127.0.0.1:{port}", "edge", headers={"Authorization": "Bearer x"}) as model, refused:
        model.limits()
    listening.stop(None)
    assert [each["authorization"] for each in heard] == ["Bearer x"]


def test_and_by_http(server: Server, graph: Path) -> None:
    """Through a port that keeps what it passes on."""
    relay = Relay(server.http_port)
    relay.open()
    with Classifier(f"127.0.0.1:{relay.port}", "edge", protocol="http", headers={"Authorization": "Bearer x"}) as model:
        model.classify(IMAGES[:1])
    relay.listening.close()
    requests = re.findall(rb"(?:GET|POST) /v2/\S+ HTTP.*?\r\n\r\n", bytes(relay.heard), re.DOTALL)
    assert len(requests) == 3
    assert all(b"authorization: Bearer x" in request for request in requests)


class Relay:
    """A port that leads to the server once it is open; before, nobody answers there."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.heard = bytearray()  # of those who come

    def open(self) -> None:
        self.listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                come, _ = self.listening.accept()
                go = socket.create_connection(("127.0.0.1", self.to))
                for one, other, heard in ((come, go, self.heard), (go, come, bytearray())):
                    threading.Thread(target=self._pump, args=(one, other, heard), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, heard: bytearray) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                heard += data
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(server: Server, graph: Path, request: pytest.FixtureRequest) -> Iterator[Relay]:
    made = Relay(server.grpc_port if request.param == "grpc" else server.http_port)
    yield made
    made.listening.close()


@pytest.mark.parametrize(("relay", "protocol"), [(one, one) for one in PROTOCOLS], indirect=["relay"])
def test_what_is_away_is_asked_until_it_is_back(relay: Relay, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is there as soon as the client has waited twice."""
    waited: list[float] = []
    sleep = asyncio.sleep

    async def wait(seconds: float, *more: Any) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            relay.open()
        await sleep(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", wait)
    with Classifier(f"127.0.0.1:{relay.port}", "edge", protocol=protocol, seconds=120.0) as model:
        assert len(model.classify(IMAGES)) == 11
    assert len(waited) >= 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_deadline_is_of_all_tries_together(protocol: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        lost = pytest.raises((InferenceServerException, OSError, TimeoutError))
        with Classifier(address, "edge", protocol=protocol, seconds=0.5) as model, lost:
            model.classify(IMAGES)


@pytest.mark.parametrize(
    ("status", "words", "away"),
    [
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", True),
        ("StatusCode.UNAVAILABLE", "Request for unknown model: 'edge' is not found", False),
        ("StatusCode.UNAVAILABLE", "Request for unknown model: 'edge' has no available versions", True),
        ("400", "Request for unknown model: 'edge' has no available versions", True),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", True),
        ("503", "", True),
        ("StatusCode.INVALID_ARGUMENT", "batch-size must be <= 4", False),
        (None, "unexpected", False),
    ],
)
def test_what_is_tried_again(status: str | None, words: str, away: bool) -> None:
    assert is_away(InferenceServerException(words, status)) is away


def test_labels_that_are_too_few_name_nothing(url: Callable[[str], str]) -> None:
    with (
        Classifier(url("grpc"), "edge", labels=CLASSES[:3]) as model,
        pytest.raises(ValueError, match="version 3 knows 4 classes, and `labels` names 3"),
    ):
        model.classify(IMAGES)


def test_probabilities_are_of_one_version_where_another_is_promoted_between_two_requests(
    url: Callable[[str], str], graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = AsyncClassifier._ask, []

    async def ask(self: AsyncClassifier, *arguments: Any) -> tuple[Any, int]:
        rows, version = await real(self, *arguments)
        asked.append(version)
        return (rows[:, :3], 2) if len(asked) == 1 else (rows, version)  # the first is of the version before

    monkeypatch.setattr(AsyncClassifier, "_ask", ask)
    with Classifier(url("grpc"), "edge") as model:
        np.testing.assert_allclose(model.probabilities(IMAGES), answer(graph, IMAGES), atol=ROUNDING)
    assert len(asked) == 6  # of three batches each time
