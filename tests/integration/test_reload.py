"""A running daemon is given another config.toml, good and bad, by SIGHUP and by `relearn reload`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

from tests.integration.test_daemon_commands import Workspace, count, template, workspace

__all__ = ["template", "workspace"]  # fixtures
Png = Callable[..., Path]
TAKEN = "SELECT error IS NULL FROM configurations ORDER BY id"


def edit(workspace: Workspace, old: str, new: str) -> None:
    file = workspace.folder / "config.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def hang_up(workspace: Workspace) -> None:
    """SIGHUP, and the daemon has said what came of it."""
    before = len(workspace.sql(TAKEN))
    assert workspace.daemon is not None
    workspace.daemon.send_signal(signal.SIGHUP)
    workspace.wait(lambda: len(workspace.sql(TAKEN)) > before)


def test_sighup_takes_a_good_file_and_refuses_a_bad_one(workspace: Workspace, png: Png) -> None:
    workspace.start()
    png(workspace.folder / "more" / "cat" / "1.png", 1)
    edit(workspace, 'folders = ["images"]', 'folders = ["images", "more"]')
    assert "was edited since the daemon read it" in workspace("status").stdout
    hang_up(workspace)
    workspace.wait(lambda: count(workspace, "occurrences") == 1)
    png(workspace.folder / "more" / "cat" / "2.png", 2)  # it is watched, too
    workspace.wait(lambda: count(workspace, "occurrences") == 2)

    edit(workspace, 'folders = ["images", "more"]', 'folders = ["images"]')
    edit(workspace, "epochs = 20", "epoch = 20")
    hang_up(workspace)
    said = "unknown setting 'train.epoch'; did you mean 'train.epochs'?"
    assert said in workspace.log.read_text()
    assert said in workspace.view("status")["configuration"]["error"]
    png(workspace.folder / "more" / "cat" / "3.png", 3)  # the settings before stand
    workspace.wait(lambda: count(workspace, "occurrences") == 3)

    edit(workspace, "epoch = 20", "epochs = 20")
    hang_up(workspace)
    workspace.wait(lambda: count(workspace, "occurrences") == 0)
    assert workspace.view("status")["configuration"] == {"error": None, "edited": False}
    assert workspace.sql(TAKEN) == [(1,), (1,), (0,), (1,)]
    assert workspace.stop() == 0


def test_reload_says_what_came_of_it(workspace: Workspace) -> None:
    none = workspace("reload")
    assert (none.returncode, "there is no journal yet" in none.stderr) == (2, True)
    workspace.start()
    edit(workspace, "epochs = 20", "epochs = 3")
    edit(workspace, "settle_seconds = 2.0", "settle_seconds = 3.0")  # `--set` of the start goes before it
    done = workspace.view("reload")
    assert (done["state"], done["answer"].partition(" is in force: ")[2]) == ("done", "train.epochs 20 -> 3")
    edit(workspace, "epochs = 3", "epochs = 0")
    refused = workspace("reload", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["state"] == "refused"
    assert "train.epochs: " in json.loads(refused.stdout)["answer"]
    assert workspace.daemon is not None
    assert workspace.daemon.poll() is None
