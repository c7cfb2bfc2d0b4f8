"""The configuration read again: what is taken, what is refused with which words, and how status shows it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine

from daemon import configurations, people, render, schema, views
from daemon.config import Config, dump, load
from daemon.errors import ConfigError
from daemon.journal import add, get, open_journal
from daemon.settings import Settings

World = Any  # tests/unit/daemon/conftest.py
BROKEN = "version = 1\n[train]\nepoch = 3\n"


@pytest.fixture
def file(config: Config) -> Path:
    return config.file


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_what_was_edited_is_taken_and_what_was_set_at_the_start_holds(config: Config, file: Path) -> None:
    edit(file, "epochs = 20", "epochs = 3")
    edit(file, "settle_seconds = 2.0", "settle_seconds = 9.0")  # --set says otherwise
    new = configurations.read_again(config)
    assert (new.settings.train.epochs, new.settings.watch.settle_seconds) == (3, 0.01)
    assert configurations.compare(config, new) == ["train.epochs 20 -> 3"]
    assert configurations.compare(new, configurations.read_again(new)) == []


def test_the_environment_holds_too(config: Config, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARN__TRAIN__EPOCHS", "7")
    edit(file, "epochs = 20", "epochs = 3")
    assert configurations.read_again(config).settings.train.epochs == 7


def test_what_is_wrong_is_said_as_check_config_says_it(config: Config, file: Path) -> None:
    file.write_text(BROKEN)
    with pytest.raises(ConfigError) as checked:
        load(config.workspace)
    with pytest.raises(ConfigError) as refused:
        configurations.read_again(config)
    assert str(refused.value) == str(checked.value)
    assert str(refused.value).startswith(f"{file}:3: unknown setting 'train.epoch'")


def test_a_folder_that_is_not_there_is_refused(config: Config, file: Path) -> None:
    edit(file, 'folders = ["images"]', 'folders = ["images", "more"]')
    with pytest.raises(ConfigError, match=r"^config.toml:\d+: watch.folders: .*/more is watched and not there"):
        configurations.read_again(config)


def test_the_state_folder_takes_a_restart(config: Config, file: Path) -> None:
    edit(file, 'state = "state"', 'state = "elsewhere"')
    with pytest.raises(
        ConfigError, match=r"^config.toml:\d+: paths.state: is .*/elsewhere and was .*that takes a restart"
    ):
        configurations.read_again(config)


def test_what_was_taken_is_a_row_and_written_once(config: Config, journal: Engine, world: World) -> None:
    with journal.begin() as connection:
        for because in ("the daemon started", "SIGHUP"):
            configurations.note(connection, because, "1", config)
        configurations.note(connection, "SIGHUP", "2", None, "it is wrong")
        configurations.note(connection, "SIGHUP", "1", config)
    rows = [(row.because, row.digest, row.error) for row in world.rows(schema.configurations)]
    taken = ("the daemon started", "1", None)
    assert rows == [taken, ("SIGHUP", "2", "it is wrong"), ("SIGHUP", "1", None)]
    assert world.rows(schema.configurations)[0].settings == dump(config)


def server(file: Path, headers: str) -> None:
    file.write_text(f"version = 1\n[[triton]]\nheaders = {headers}\n")


def test_a_header_s_value_is_nowhere_written_down(
    config: Config, journal: Engine, world: World, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relearn")
    server(file, '{ authorization = "Bearer OLD", tenant = "a", key = "env:KEY" }')
    old = load(config.workspace)
    server(file, '{ authorization = "Bearer NEW", tenant = "a", key = "env:OTHER" }')
    with journal.begin() as connection:
        configurations.take(connection, old, "SIGHUP")
    written = f"{caplog.text} {world.rows(schema.configurations)} {dump(old)}"
    assert "OLD" not in written
    assert "Bearer" not in written
    assert configurations.compare(old, load(config.workspace)) == [
        'triton.headers.key "env:KEY" -> "env:OTHER"',
        "triton.headers.authorization",
    ]
    server(file, '{ authorization = "Bearer NEW", tenant = "a", key = ["NEW"] }')
    with pytest.raises(ConfigError) as refused:
        load(config.workspace)
    assert "headers.key: Input should be a valid string" in str(refused.value)
    assert "NEW" not in str(refused.value)


def test_a_server_is_asked_by_no_header_that_was_not_written_down(config: Config, journal: Engine, file: Path) -> None:
    server(file, '{ authorization = "Bearer SECRET" }')
    with journal.begin() as connection:
        configurations.note(connection, "the daemon started", "1", load(config.workspace))
    file.write_text(BROKEN)
    said = shown(config.workspace)
    assert "not asked from here: triton.headers.authorization: its value was not written down" in said
    assert "AWAY" not in said


def test_the_settings_that_were_written_down_are_read_back(config: Config) -> None:
    assert dump(dataclasses.replace(config, settings=Settings(**dump(config)))) == dump(config)


def test_those_who_asked_are_answered(config: Config, journal: Engine, world: World) -> None:
    first = people.ask(journal, config.state, "reload")
    other = people.ask(journal, config.state, "gc")
    with journal.begin() as connection:
        connection.execute(schema.requests.update().values(state="working"))
        configurations.answer(connection, "refused", "because")
        assert [get(connection, schema.requests, id_).state for id_ in (first, other)] == ["refused", "working"]


# --- how it is shown ------------------------------------------------------------------------------------------------


def shown(workspace: Path, *, running: bool = True) -> str:
    """What `relearn status` prints of it."""
    config, refused = configurations.find(workspace)
    console = Console(width=500, record=True)
    with open_journal(config.state).connect() as connection:
        view = views.status(connection, config, refused)
    console.print(render.status({**view, "running": running}))
    return console.export_text()


@pytest.fixture
def started(config: Config, journal: Engine) -> Path:
    """A daemon was started with the file as it is."""
    with journal.begin() as connection:
        digest = configurations.hash_file(config.file)
        configurations.note(connection, "the daemon started", digest, config)
    return config.workspace


def test_a_file_that_is_in_force_is_not_spoken_of(started: Path) -> None:
    assert "REFUSED" not in shown(started)
    assert "was edited" not in shown(started)


def test_an_edited_file_is_said_to_wait(started: Path, file: Path) -> None:
    edit(file, "epochs = 20", "epochs = 3")
    assert "config.toml was edited since the daemon read it: `relearn reload`" in shown(started)
    assert "was edited" not in shown(started, running=False)


def test_a_broken_file_is_shown_until_it_is_mended(started: Path, file: Path) -> None:
    whole = file.read_text()
    file.write_text(BROKEN)
    said = shown(started)
    assert f"REFUSED: {file}:3: unknown setting 'train.epoch'" in said
    assert "the settings before stand" in said
    assert "no daemon starts with it" in shown(started, running=False)
    file.write_text(whole)
    assert "REFUSED" not in shown(started)


def test_what_the_daemon_alone_refused_is_shown_until_it_is_edited(started: Path, file: Path, journal: Engine) -> None:
    edit(file, 'state = "state"', 'state = "./state"')
    with journal.begin() as connection:
        configurations.note(connection, "SIGHUP", configurations.hash_file(file), None, "a folder is missing")
    assert "REFUSED: a folder is missing" in shown(started)
    edit(file, "epochs = 20", "epochs = 3")
    assert "REFUSED" not in shown(started)
    assert "was edited since" in shown(started)


def test_a_state_folder_elsewhere_is_found_by_a_broken_file(config: Config, journal: Engine, file: Path) -> None:
    elsewhere = dataclasses.replace(config, settings=load(config.workspace, ["paths.state=elsewhere"]).settings)
    journal.dispose()
    config.state.rename(elsewhere.state)
    with open_journal(elsewhere.state).begin() as connection:
        configurations.note(connection, "the daemon started", "1", elsewhere)
    file.write_text('version = 1\n[paths]\nstate = "elsewhere"\n[train]\nepoch = 3\n')
    found, refused = configurations.find(config.workspace)
    assert found.state == elsewhere.state
    assert refused is not None
    assert "'train.epoch'" in refused


def test_settings_of_another_release_are_not_fallen_back_to(config: Config, journal: Engine, file: Path) -> None:
    with journal.begin() as connection:
        said = {"settings": {"version": 1, "nonesuch": {}}, "digest": "1", "because": "the daemon started"}
        add(connection, schema.configurations, at=1.0, error=None, **said)
    file.write_text(BROKEN)
    with pytest.raises(ConfigError, match=r"train\.epoch"):
        configurations.find(config.workspace)


@pytest.mark.parametrize("text", [BROKEN, "paths = 3", "[paths", "\0"])
def test_before_any_daemon_a_broken_file_is_an_error(config: Config, journal: Engine, file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError):
        configurations.find(config.workspace)
