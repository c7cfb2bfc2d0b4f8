"""`relearn sync` by wandb's real command line: against a stand-in for the service, and without an account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon import uploads
from daemon.config import Config
from daemon.errors import RelearnError, UsageError


@pytest.fixture
def write(config: Config) -> Any:
    """Writes an offline run of two epochs, as a training does."""
    import wandb

    def write(name: str, finished: bool = True) -> None:
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        run = wandb.init(project="relearnd", id=name, dir=config.state, mode="offline", settings=settings)
        for epoch in (1, 2):
            run.log({"epoch": epoch}, step=epoch)
        run.finish()
        wandb.teardown()
        if finished:
            Path(run.settings.sync_dir, uploads.FINISHED).touch()

    return write


def test_what_is_finished_is_uploaded_once(config: Config, write: Any, wandb_service: Any) -> None:
    write("one")
    write("two", finished=False)
    assert uploads.upload(config) == {"uploaded": ["one"], "uploaded_before": [], "unfinished": ["two"]}
    assert wandb_service.steps == [1, 2]
    assert uploads.upload(config) == {"uploaded": [], "uploaded_before": ["one"], "unfinished": ["two"]}
    assert wandb_service.steps == [1, 2]


def test_without_an_account_it_says_what_is_needed(
    config: Config, write: Any, wandb_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("one")
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(UsageError, match=r"1 run to upload, but there is no account .*WANDB_API_KEY"):
        uploads.upload(config)
    assert wandb_service.steps == []


def test_a_service_that_refuses_is_told(config: Config, write: Any, wandb_service: Any) -> None:
    write("one")
    wandb_service.refuses = True
    with pytest.raises(RelearnError, match="1 of 1 run could not be uploaded: ") as caught:
        uploads.upload(config)
    assert caught.value.exit_code == 1
    wandb_service.refuses = False
    assert uploads.upload(config)["uploaded"] == ["one"]


def test_without_runs_nothing_is_started(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads.subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    view = uploads.upload(config)
    assert view == {"uploaded": [], "uploaded_before": [], "unfinished": []}
    assert uploads.describe(view) == "0 runs uploaded"


def test_people_are_told_what_was_left() -> None:
    view = {"uploaded": ["a"], "uploaded_before": ["b", "c"], "unfinished": ["d"]}
    assert uploads.describe(view) == (
        "1 run uploaded, 2 had been before; 1 unfinished: uploaded once the training has ended"
    )
