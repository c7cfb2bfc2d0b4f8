"""The command line as a user runs it, with a real daemon; no training is set off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
RELEARN = str(CHECKOUT / "relearn")
READING = (["status"], ["cycles"], ["models"], ["decisions"], ["explain", "d1"], ["rejected"])
Png = Callable[..., Path]
SECONDS = 60.0


def relearn(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end. Whatever it is, no traceback is shown."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELEARN")}
    done = subprocess.run(
        [RELEARN, *arguments], env=clean | environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Workspace:
    """A workspace that `relearn init` made, and at most one daemon on it."""

    def __init__(self, folder: Path, journal: Path | None = None) -> None:
        """journal: an empty one to begin with; without, the first daemon makes its own, which takes a while."""
        self.folder, self.journal = folder, journal
        self.images = folder / "images"
        self.log = folder.with_name("log")
        self.daemon: subprocess.Popen[bytes] | None = None

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return relearn(*arguments, "--workspace", str(self.folder), **environment)

    def view(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self) -> None:
        """Starts the daemon, and waits until it has decided on what it found."""
        state = self.folder / "state"
        if self.journal is not None and not state.exists():
            state.mkdir()
            shutil.copy(self.journal, state / "journal.db")
        before = self.decided()
        settings = ["--set", "watch.settle_seconds=0.2", "--set", "triton.url=127.0.0.1:9"]
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [RELEARN, "run", "--workspace", str(self.folder), *settings],
                stdin=subprocess.DEVNULL,  # on a terminal SIGHUP ends it
                stdout=log,
                stderr=log,
            )
        self.wait(lambda: self.decided() > before)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        return self.daemon.wait(SECONDS)

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        file = self.folder / "state" / "journal.db"
        if not file.exists():
            return []
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError:  # it is being made
                return []

    def decided(self) -> int:
        return len(self.sql("SELECT id FROM decisions"))

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.daemon is None or self.daemon.poll() is None, self.log.read_text()
            threading.Event().wait(0.05)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init") / "workspace"
    done = relearn("init", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def workspace(tmp_path: Path, template: Path, new_journal: Path) -> Iterator[Workspace]:
    """A copy of what `relearn init` wrote."""
    made = Workspace(tmp_path / "workspace", new_journal)
    shutil.copytree(template, made.folder)
    yield made
    if made.daemon is not None and made.daemon.poll() is None:
        made.stop(signal.SIGKILL)


def test_init_writes_a_workspace_once(workspace: Workspace) -> None:
    assert (workspace.folder / "config.toml").read_text() == (CHECKOUT / "config.toml").read_text()
    assert {path.name for path in workspace.folder.iterdir()} == {"config.toml", "constraints", "images", "triton"}
    (workspace.folder / "config.toml").write_text("version = 1\n# mine\n")
    again = relearn("init", str(workspace.folder))
    assert again.returncode == 2
    assert "is a workspace already; nothing was changed" in again.stderr
    assert (workspace.folder / "config.toml").read_text() == "version = 1\n# mine\n"


def test_check_config_prints_what_is_in_force_and_from_where(workspace: Workspace) -> None:
    done = workspace("check-config", "--set", "train.epochs=3", "--json", RELEARN__TRAIN__SEED="7")
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    found = {row["key"]: (row["value"], row["from"]) for row in view["settings"]}
    assert view["errors"] == []
    assert found["train.epochs"] == (3, "--set train.epochs")
    assert found["train.seed"] == (7, "RELEARN__TRAIN__SEED")
    assert found["train.batch_size"][1].startswith("config.toml:")
    assert view["requirements"]["edge"]["height"] == 224
    assert workspace("check-config").returncode == 0


def test_check_config_refuses_an_unknown_key(workspace: Workspace) -> None:
    file = workspace.folder / "config.toml"
    file.write_text("version = 1\n[train]\nepoch = 3\n")
    for command in ("check-config", "run", "status"):
        done = workspace(command)
        assert done.returncode == 2
        assert f"{file}:3: unknown setting 'train.epoch'; did you mean 'train.epochs'?" in done.stderr


def test_check_config_asks_timm_about_names(workspace: Workspace) -> None:
    done = workspace("check-config", "--set", "train.optimizer=adamww", "--json")
    assert done.returncode == 2
    (error,) = json.loads(done.stdout)["errors"]
    assert error.startswith("--set train.optimizer: ") and "'adamww' is not known; nearest: adamw" in error


def test_check_config_refuses_a_broken_constraint_file(workspace: Workspace) -> None:
    file = workspace.folder / "constraints" / "edge.toml"
    file.write_text(file.read_text().replace("artifact_max_mb", "artefact_max_mb"))
    done = workspace("check-config", "--json")
    assert done.returncode == 2
    (error,) = json.loads(done.stdout)["errors"]
    line = file.read_text().splitlines().index("artefact_max_mb = 50") + 1
    assert error.startswith(f"{file}:{line}: unknown key 'require.artefact_max_mb'; did you mean ")


@pytest.mark.parametrize("command", READING, ids=[command[0] for command in READING])
def test_before_any_daemon_the_reading_commands_say_what_to_do(workspace: Workspace, command: list[str]) -> None:
    done = workspace(*command, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no journal yet; `relearn run` makes it" in done.stderr
    assert not (workspace.folder / "state").exists()


def test_outside_a_workspace_the_commands_say_what_to_do(tmp_path: Path) -> None:
    done = relearn("status", "--workspace", str(tmp_path))
    assert done.returncode == 2
    assert f"`relearn init {tmp_path}` writes one" in done.stderr
    assert relearn("status", "--no-such-option").returncode == 2


@pytest.mark.parametrize("missing", ["images", "constraints"])
def test_run_refuses_a_folder_that_is_missing(workspace: Workspace, missing: str) -> None:
    shutil.rmtree(workspace.folder / missing)
    done = workspace("run")
    assert done.returncode == 2
    assert f"{missing} is watched and not there; make it, or correct" in done.stderr


def test_few_images_are_noticed_and_decided_on(workspace: Workspace, png: Png) -> None:
    workspace.journal = None  # all from the beginning
    workspace.start()
    for index in range(5):
        png(workspace.images / "cat" / f"{index}.png", index)
        png(workspace.images / "dog" / f"{index}.png", 10 + index)
    workspace.wait(lambda: count(workspace, "occurrences") == 10 and all_decided(workspace))
    decision = workspace.view("decisions")[0]
    assert (decision["target"], decision["action"]) == ("edge", "nothing")
    assert decision["event"].startswith("drop ")
    assert "class cat has 5 of 20" in decision["reason"]
    assert "class dog has 5 of 20" in decision["reason"]
    status = workspace.view("status")
    assert (status["running"], status["working"]) == (True, None)
    assert {name: sum(roles.values()) for name, roles in status["data"]["classes"].items()} == {"cat": 5, "dog": 5}
    assert status["targets"][0]["champion"] is None
    assert workspace.view("cycles") == workspace.view("models") == workspace.view("rejected") == []
    explained = workspace.view("explain", f"d{decision['id']}")
    assert explained["replayed"] == "the same"
    assert explained["evidence"]["counts"] == {"cat": 5, "dog": 5}
    for command in (["status"], ["decisions"], ["explain", f"d{decision['id']}"]):
        done = workspace(*command)
        assert (done.returncode, bool(done.stdout.strip())) == (0, True)


def all_decided(workspace: Workspace) -> bool:
    """Whether the last decision came after the last drop that brought something."""
    last = "SELECT max(at) > (SELECT max(ended) FROM drops WHERE added > 0 AND state = 'ready') FROM decisions"
    return workspace.sql(f"{last} WHERE NOT EXISTS (SELECT 1 FROM drops WHERE state = 'reading')") == [(1,)]


def count(workspace: Workspace, table: str) -> int:
    return len(workspace.sql(f"SELECT id FROM {table} WHERE gone IS NULL"))


def test_broken_files_are_listed_and_nothing_else_happens(workspace: Workspace, png: Png) -> None:
    workspace.start()
    before = workspace.decided()
    image = png(workspace.folder / "image.png", 1, (64, 64)).read_bytes()
    folder = workspace.images / "cat"
    folder.mkdir()
    (folder / "truncated.png").write_bytes(image[: len(image) // 2])
    (folder / "text.png").write_text("this is text")
    (folder / "empty.png").touch()
    workspace.wait(lambda: count(workspace, "rejections") == 3)
    rows = {Path(row["file"]).name: row["reason"] for row in workspace.view("rejected")}
    assert rows.keys() == {"truncated.png", "text.png", "empty.png"}
    assert rows["truncated.png"].startswith("cannot be decoded: ")
    assert rows["text.png"].startswith("is no image that can be recognised")
    assert rows["empty.png"] == "is empty"
    assert workspace.view("status")["data"]["rejected"] == 3
    png(folder / "text.png", 2)  # mended: it is read
    workspace.wait(lambda: count(workspace, "occurrences") == 1)
    assert count(workspace, "rejections") == 2
    workspace.wait(lambda: workspace.decided() > before)
    assert workspace.decided() == before + 1  # of the mended one


def test_an_invalid_constraint_edit_keeps_the_last_valid_one(workspace: Workspace) -> None:
    workspace.start()
    file = workspace.folder / "constraints" / "edge.toml"
    valid = file.read_text()
    file.write_text(valid.replace("height = 224", "hight = 64"))
    newest = "SELECT error IS NULL, count(*) FROM constraint_files WHERE id = (SELECT max(id) FROM constraint_files)"
    workspace.wait(lambda: workspace.sql(newest) == [(0, 1)])
    (target,) = workspace.view("status")["targets"]
    line = valid.splitlines().index(next(row for row in valid.splitlines() if row.startswith("height"))) + 1
    assert f"{file}:{line}: unknown key 'input.hight'; did you mean 'input.height'?" in target["error"]
    assert target["requirement"]["height"] == 224
    assert "the last valid constraints stand" in workspace("status").stdout
    file.write_text(valid.replace("height = 224", "height = 64 "))
    workspace.wait(lambda: workspace.sql(newest) == [(1, 1)])
    (target,) = workspace.view("status")["targets"]
    assert (target["error"], target["requirement"]["height"]) == (None, 64)
    assert workspace.view("cycles") == []


def test_a_second_daemon_is_refused(workspace: Workspace) -> None:
    workspace.start()
    done = workspace("run")
    assert done.returncode == 1
    assert workspace.daemon is not None
    assert f"another daemon or benchmark (process {workspace.daemon.pid}) runs on this workspace" in done.stderr
    assert workspace.view("status")["running"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_ten_seconds(workspace: Workspace, number: int) -> None:
    workspace.start()
    begun = time.monotonic()
    assert workspace.stop(number) == 0
    assert time.monotonic() - begun < 10
    assert workspace.view("status")["running"] is False
    assert "stopped; the next start goes on from here" in workspace.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_changed_while_no_daemon_ran_is_found(workspace: Workspace, png: Png, number: int) -> None:
    for index in range(3):
        png(workspace.images / "cat" / f"{index}.png", index)
    workspace.wait(lambda: time.time() - (workspace.images / "cat" / "2.png").stat().st_ctime > 0.3)
    workspace.start()
    workspace.wait(lambda: count(workspace, "occurrences") == 3)
    workspace.stop(number)
    png(workspace.images / "dog" / "new.png", 9)
    (workspace.images / "cat" / "0.png").unlink()
    (workspace.images / "cat" / "1.png").rename(workspace.images / "dog" / "1.png")
    workspace.start()
    live = "SELECT path FROM occurrences WHERE gone IS NULL ORDER BY path"
    expected = [("cat/2.png",), ("dog/1.png",), ("dog/new.png",)]
    workspace.wait(lambda: workspace.sql(live) == expected)
    assert workspace.sql("SELECT count(*) FROM samples") == [(4,)]


def test_what_people_ask_needs_a_daemon(workspace: Workspace) -> None:
    workspace.start()
    refused = workspace("rollback", "edge")
    assert refused.returncode == 1
    assert "edge has served no other artifact before" in refused.stdout
    unknown = workspace("rollback", "phone", "--json")
    assert unknown.returncode == 1
    assert json.loads(unknown.stdout)["state"] == "refused"
    workspace.stop()
    for command in ("rollback", "retrain"):
        done = workspace(command, "edge")
        assert done.returncode == 1
        assert "No daemon runs on this workspace; start it with `relearn run`" in done.stderr


def test_a_pause_is_kept_by_whatever_runs_and_ends_when_asked(workspace: Workspace, png: Png) -> None:
    """Begun without a daemon, seen by two, ended through the second."""
    workspace.start()
    workspace.stop()
    done = workspace("pause", "edge", "--because", "the line is rebuilt")
    assert (done.returncode, "edge is paused by" in done.stdout) == (0, True), done.stderr
    assert workspace("pause", "edge").returncode == 2
    workspace.start()
    (decision,) = workspace.view("decisions", "--limit", "1")
    assert ("edge is paused by" in decision["reason"], "(the line is rebuilt)" in decision["reason"]) == (True, True)
    assert "PAUSED: edge is paused by" in workspace("status").stdout
    for index in range(2):
        png(workspace.images / "cat" / f"{index}.png", index)
    workspace.wait(lambda: count(workspace, "occurrences") == 2)  # watching goes on
    before = workspace.decided()
    assert workspace("resume", "edge").stdout.strip() == "edge goes on"
    workspace.wait(lambda: workspace.decided() > before)
    assert "paused" not in workspace.view("decisions")[0]["reason"]
    assert workspace.view("status")["paused"] == []
    refused = workspace("resume")
    assert (refused.returncode, "nothing is paused" in refused.stdout) == (1, True)


def test_what_people_ask_of_candidates_is_answered_in_a_sentence(workspace: Workspace) -> None:
    workspace.start()
    for arguments, said in (
        (("approve", "edge"), "nothing waits for a person's answer for edge"),
        (("refuse", "edge", "--because", "no"), "nothing waits for a person's answer for edge"),
        (("promote", "edge", "1f3c", "--force"), "the journal has no artifact '1f3c'; `relearn models` lists them"),
        (("rollback", "edge", "--to", "3"), "edge has had no version 3; it has served none"),
    ):
        done = workspace(*arguments)
        assert (done.returncode, said in done.stdout.replace("\n", " ")) == (1, True), done.stdout


def test_a_journal_of_a_newer_release_is_refused(workspace: Workspace) -> None:
    workspace.start()
    workspace.stop()
    with closing(sqlite3.connect(workspace.folder / "state" / "journal.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for command in ("run", "status"):
        done = workspace(command)
        assert done.returncode == 2
        assert "was written by a newer relearnd (9999)" in done.stderr


def test_images_and_names_of_all_kinds_do_not_stop_it(workspace: Workspace, png: Png) -> None:
    workspace.start()
    png(workspace.images / "naïve café" / "ü b.png", 1)
    png(workspace.images / os.fsdecode(b"caf\xe9") / "x.png", 2)
    png(workspace.images / "deep" / "er" / "x.png", 3)
    os.mkfifo(workspace.images / "deep" / "pipe.png")
    workspace.wait(lambda: count(workspace, "occurrences") == 2 and count(workspace, "rejections") == 2)
    assert {row["reason"] for row in workspace.view("rejected")} == {
        "its name is not UTF-8 text on one line: rename it",
        "is no regular file (a device, pipe or socket is never opened)",
    }
    assert workspace.stop() == 0


def test_an_image_is_forgotten_and_may_be_read_again(workspace: Workspace, png: Png) -> None:
    file = png(workspace.images / "cat" / "1.png", 1)
    png(workspace.images / "dog" / "2.png", 2)
    workspace.start()
    workspace.wait(lambda: count(workspace, "occurrences") == 2)
    copies = workspace.folder / "state" / "store"
    shown = workspace("forget", "cat/1.png")  # nobody answers the question
    assert (shown.returncode, "1 image: each copy" in shown.stdout) == (1, True)
    assert workspace.view("forget", "images/cat/1.png", "--yes")["state"] == "done"
    assert (len([path for path in copies.rglob("*") if path.is_file()]), file.exists()) == (1, True)
    (refused,) = workspace.view("rejected")
    assert "relearn forget --undo" in refused["reason"]
    sha = refused["reason"].partition("--undo ")[2][:12]
    assert workspace.view("forget", "--undo", sha)["state"] == "done"
    workspace.wait(lambda: len([path for path in copies.rglob("*") if path.is_file()]) == 2)
    wrong = workspace("forget", "class:cow", "--yes")
    assert (wrong.returncode, "no image has 'class:cow'" in wrong.stderr) == (2, True)


def test_what_nothing_needs_is_shown_and_removed_on_request(workspace: Workspace) -> None:
    workspace.start()
    run = workspace.folder / "state" / "runs" / "abc"
    run.mkdir(parents=True)
    (run / "last.ckpt").write_bytes(bytes(5000))
    for path in (run / "last.ckpt", run):
        os.utime(path, (1e9, 1e9))
    (line,) = workspace.view("gc", "--dry-run")["removed"]
    assert (line["kind"], line["path"]) == ("run", str(run))
    assert run.exists()
    assert workspace.view("gc")["sweep"]["removed"] == [line]
    assert not run.exists()
    unknown = workspace("pin", "nothing")
    assert (unknown.returncode, "is called 'nothing'" in unknown.stderr) == (2, True)
    workspace.stop()
    assert workspace.view("gc", "--dry-run")["removed"] == []
    assert workspace("gc").returncode == 1
