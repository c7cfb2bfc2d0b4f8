"""While config.toml is broken people go on asking, acting and reading, by what a daemon took last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from daemon import configurations
from daemon.cli import app
from daemon.config import Config
from daemon.errors import ConfigError, DaemonNotRunning, NotFound

BROKEN = "version = 1\n[train]\nepoch = 3\n"
SAID = "unknown setting 'train.epoch'"


@pytest.fixture
def broken(config: Config, journal: Engine) -> Path:
    """A workspace whose daemon took a good file, which was then spoilt."""
    with journal.begin() as connection:
        configurations.note(connection, "the daemon started", configurations.hash_file(config.file), config)
    config.file.write_text(BROKEN)
    return config.workspace


def call(workspace: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--workspace", str(workspace)])


def test_a_pause_is_taken_and_what_is_wrong_is_said_beside_it(broken: Path) -> None:
    done = call(broken, "pause", "--because", "an emergency", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["state"] == "done"
    assert SAID in done.stderr
    assert configurations.STAND in done.stderr
    assert call(broken, "resume").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["approve", "edge"], ["refuse", "edge"], ["promote", "edge", "1f3c"], ["rollback", "edge"], ["reload"],
        ["retrain", "edge"], ["gc"], ["flags", "keep", "3"], ["flags", "release", "3"], ["forget", "a", "--undo"],
        ["conflicts", "settle", "a", "--to", "b"],
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_what_people_ask_comes_as_far_as_the_daemon(broken: Path, words: list[str]) -> None:
    assert isinstance(call(broken, *words).exception, DaemonNotRunning)


@pytest.mark.parametrize(
    "words",
    [["cycles"], ["models"], ["decisions"], ["rejected"], ["data"], ["flags"], ["conflicts"], ["gc", "--dry-run"]],
)
def test_what_is_known_can_be_read(broken: Path, words: list[str]) -> None:
    done = call(broken, *words, "--json")
    assert done.exit_code == 0, done.output
    json.loads(done.stdout)


@pytest.mark.parametrize("words", [["explain", "v1"], ["pin", "c1"], ["unpin", "c1"], ["check-client", "edge"]])
def test_a_name_is_looked_for(broken: Path, words: list[str]) -> None:
    assert isinstance(call(broken, *words).exception, NotFound)


def test_what_starts_anew_or_sends_goes_by_the_file_alone(broken: Path) -> None:
    for words in (["run"], ["triton"], ["check-config"], ["notify"]):
        assert isinstance(call(broken, *words).exception, ConfigError)


def test_before_any_daemon_the_file_is_what_is_wrong(config: Config) -> None:
    config.file.write_text(BROKEN)
    assert isinstance(call(config.workspace, "pause").exception, ConfigError)
