"""The README keeps its word: its tree lists every file, its commands run, its examples are valid."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daemon.config import load
from daemon.constraint_file import parse

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("policies/", "daemon/", "pipeline/", "deploy/", "benchmarks/")
LONG_RUNNING = ("make ", "./relearn run", "./relearn triton", "./relearn demo")  # each has tests of its own


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def tree() -> dict[str, str]:
    """Path -> what is said of it. A package's own line stands for its __init__.py."""
    found: dict[str, str] = {}
    package = ""
    text = README.split("\n## The tree\n")[1].split("```")[1]
    for line in text.strip().splitlines():
        name, _, said = line.strip().partition(" ")
        if name in PACKAGES:
            package, name = name, "__init__.py"
        elif not line.startswith(" "):
            package = ""
        found[package + name] = said.strip()
    return found


def test_the_tree_lists_every_file_with_a_word_on_it() -> None:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split()
    there = {name for name in tracked if (CHECKOUT / name).exists()}
    shown = {"tests/" if name.startswith("tests/") else name for name in there}
    shown -= {name for name in shown if name.startswith("benchmarks/results/")}
    told = tree()
    assert sorted(told) == sorted(shown)
    assert [name for name, said in told.items() if not said] == []


def test_the_commands_run_as_shown(tmp_path: Path) -> None:
    commands = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]
    short = [command for command in commands if not command.startswith(LONG_RUNNING)]
    assert len(short) >= 8
    journal_needed = ("status", "decisions", "cycles", "models", "rejected", "gc", "data")
    for command in short:
        words = shlex.split(command.replace("line1", str(tmp_path / "line1")))
        variables = dict(word.split("=", 1) for word in words if re.match(r"^[A-Z_]+=", word))
        done = subprocess.run(
            [word for word in words if not re.match(r"^[A-Z_]+=", word)],
            cwd=CHECKOUT, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if any(f" {name} " in f" {command} " for name in journal_needed):  # no daemon has run there yet: it says so
            assert (done.returncode, "relearn run" in done.stderr) == (2, True), command
        else:
            assert done.returncode == 0, (command, done.stderr)


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"(?:\./)?relearn ([a-z][a-z-]+)", README))
    helped = subprocess.run([CHECKOUT / "relearn", "--help"], capture_output=True, text=True, check=True).stdout
    there = set(re.findall(r"^│ ([a-z][a-z-]+)", helped, re.MULTILINE))
    assert named <= there
    assert there <= named | {"run", "demo"}


def test_the_constraint_file_shown_is_valid() -> None:
    text, _ = blocks("toml")
    requirement = parse(text, Path("constraints/edge.toml"))
    assert (requirement.latency_p95_ms, requirement.recall_min) == (50.0, {"scratch": 0.98})


def test_the_watched_folders_shown_are_valid(tmp_path: Path) -> None:
    _, text = blocks("toml")
    (tmp_path / "config.toml").write_text(f"version = 1\n{text}", encoding="utf-8")
    images, line3 = load(tmp_path).folders
    assert (images.name, line3.name) == ("images", "line3")
    assert load(tmp_path).watched(line3).group_of("part-17/left.png") == "part-17"


def test_the_client_shown_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the answer that Triton's classification extension gives; a real one answers it in tests/unit/deploy."""

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "127.0.0.1:8001"

        def infer(self, model: str, inputs: list[Any], **_: Any) -> Any:
            assert (model, inputs[0].shape(), inputs[0].datatype()) == ("edge", [1, 224, 224, 3], "UINT8")
            answer = np.array([[b"0.750000:1:scratch"]], dtype=object)
            return SimpleNamespace(
                as_numpy=lambda _: answer, get_response=lambda: SimpleNamespace(model_version="3")
            )  # fmt: skip

    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", Client)
    (text,) = blocks("python")
    exec(compile(text, "README.md", "exec"), {})
    assert capsys.readouterr().out == "scratch (0.75), says version 3\n"
