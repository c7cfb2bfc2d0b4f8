"""A packaged Triton for each module that asks for one, and children that are not left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.server import Server
from deploy.triton import Triton

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is put together from Triton's wheel, once for all servers."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, triton_cache: Path) -> Iterator[Server]:
    """A Triton on an empty repository beside its log."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    with Server(folder / "repository", triton_cache, log=folder / "log") as running:
        yield running


@pytest.fixture(scope="module")
def repository(server: Server) -> Path:
    """The server's model repository."""
    return server.log.with_name("repository")


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[Triton]:
    with Triton(server.address) as connection:
        yield connection


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python with the checkout on its path; what still runs at the test's end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **options.pop("environment", {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **{**pipes, **options}))
        return started[-1]

    yield run
    for child in started:
        child.kill()
        child.communicate()
