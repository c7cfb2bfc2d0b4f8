"""What tests of several packages share: small images, a workspace, waiting for a condition."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parent.parent
Png = Callable[..., Path]


@pytest.fixture
def png() -> Png:
    """Writes a small PNG of noise: `png(file, seed)`; the same seed gives the same bytes."""

    def write(file: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        temporary = file.with_name(f".{file.name}")
        Image.fromarray(pixels).save(temporary, format="PNG")
        temporary.rename(file)
        return file

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace as `relearn init` writes it."""
    folder = tmp_path / "workspace"
    for name in ("images", "constraints", "triton"):
        (folder / name).mkdir(parents=True)
    shutil.copy(CHECKOUT / "config.toml", folder / "config.toml")
    shutil.copy(CHECKOUT / "constraints" / "edge.toml", folder / "constraints" / "edge.toml")
    return folder


@pytest.fixture(scope="session")
def new_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal as the migrations make it, made once, to be copied."""
    from daemon.journal import open_journal

    folder = tmp_path_factory.mktemp("journal")
    open_journal(folder, migrate=True).dispose()
    return folder / "journal.db"


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds: `eventually(lambda: …, seconds=20)`; fails at the deadline."""

    def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come to hold in time"
            threading.Event().wait(0.02)

    return wait


ANSWERS = {  # to what wandb-core asks by GraphQL, as far as a run's upload needs them
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "UpsertBucket": {
        "upsertBucket": {
            "bucket": {
                "id": "run",
                "name": "one",
                "displayName": "one",
                "config": "{}",
                "historyLineCount": 0,
                "project": {"name": "relearnd", "entity": {"name": "someone"}},
            },
            "inserted": True,
        }
    },
}


class WandbService(ThreadingHTTPServer):
    """A stand-in for Weights & Biases: what it was asked for, and the steps of the epochs that it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.steps: list[int] = []
        self.refuses = False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer: Any = {}
                service.asked.append(self.path)
                if service.refuses:
                    self.send_error(403)
                    return
                if self.path.endswith("/graphql"):
                    answer = {"data": service.answer(json.loads(body))}
                elif self.path.endswith("/file_stream"):
                    service.take(json.loads(body))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_PUT = do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, question: dict[str, Any]) -> Any:
        asked = question["query"]
        if "createRunFiles" in asked:
            files = [{"name": name, "uploadUrl": f"{self.address}/{name}"} for name in question["variables"]["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        return next((data for name, data in ANSWERS.items() if name in asked), {})

    def take(self, sent: dict[str, Any]) -> None:
        history = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.steps += [json.loads(line)["_step"] for line in history]


@pytest.fixture(scope="session")
def _one_wandb_service() -> Iterator[WandbService]:
    with WandbService() as service:  # one for all: wandb remembers an address for as long as the process lives
        yield service
        service.shutdown()


@pytest.fixture
def wandb_service(
    _one_wandb_service: WandbService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[WandbService]:
    """The service that wandb speaks to in this test, with an account there: `asked`, `steps`, `refuses`."""
    from wandb.sdk.lib.wbauth import authenticate

    service = _one_wandb_service
    service.asked, service.steps, service.refuses = [], [], False
    monkeypatch.setenv("HOME", str(tmp_path))  # no account of whoever runs the tests
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", service.address)
    yield service
    authenticate.unauthenticate_session()  # remembered too
