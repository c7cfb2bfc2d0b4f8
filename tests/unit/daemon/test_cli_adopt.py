"""`relearn adopt`: what the command line does before the daemon is asked."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon import cli_adopt
from daemon.cli_adopt import make_folder
from daemon.config import Config
from daemon.errors import UsageError

EXPECTED = {"scale": None, "mean": None, "std": None, "layout": None, "logits": False}


def test_two_at_once_are_each_about_their_own_file(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    both, start, said = threading.Barrier(2), subprocess.run, {}

    def run(*command: Any, **options: Any) -> Any:
        both.wait(60)  # both have written what they ask
        return start(*command, **options)

    def adopt(name: str) -> None:
        with pytest.raises(UsageError) as refused:
            make_folder(config, "edge", config.workspace / name, ["cat", "dog"], EXPECTED)
        said[name] = str(refused.value)

    monkeypatch.setattr(cli_adopt.subprocess, "run", run)
    threads = [threading.Thread(target=adopt, args=(name,)) for name in ("one.onnx", "two.onnx")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: f"{name} cannot be read" in words for name, words in said.items()} == {
        "one.onnx": True,
        "two.onnx": True,
    }


def test_what_was_asked_is_not_left_behind(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def run(command: list[str], **_options: Any) -> Any:
        asked.append(Path(command[-1]))
        assert json.loads(asked[-1].read_text())["stages"]
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_adopt.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        make_folder(config, "edge", Path("one.onnx"), ["cat", "dog"], EXPECTED)
    assert not asked[0].exists()


def test_a_pipe_is_not_waited_for(config: Config) -> None:
    pipe = config.workspace / "model.onnx"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is no regular file"):
        make_folder(config, "edge", pipe, ["cat", "dog"], EXPECTED)


@pytest.mark.parametrize("text", ["inf", "0.5,nan", "1e999", "half", ""])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(UsageError, match=r"--mean .*: write one number, or three"):
        cli_adopt.read_numbers("--mean", text)
    assert cli_adopt.read_numbers("--mean", "0.5,1,-2") == [0.5, 1.0, -2.0]
