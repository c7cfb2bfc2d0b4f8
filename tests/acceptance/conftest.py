"""The workspaces of the acceptance tests: an empty one, and one that serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.house import House


@pytest.fixture(scope="module", autouse=True)
def untracked() -> Iterator[None]:
    """Nothing here looks at Weights & Biases, which every training would load."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELEARN__WANDB__MODE", "disabled")
        yield


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """An empty workspace; nothing runs in it yet."""
    made = House(tmp_path / "workspace")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A workspace whose target serves at least one version; the daemon and Triton run."""
    made = House(tmp_path_factory.mktemp("served") / "workspace")
    try:
        made.drop(made.some("0123"))
        made.start_triton()
        made.start_daemon()
        made.until(lambda: made.version() >= 1, "a first model is served")
        made.until(made.at_rest, "it is at rest")
        yield made
    finally:
        made.stop()
