"""`relearn benchmark` with the real children: rows as they come, what fails is a row, and nothing is done twice.

timm takes seconds to say which architectures a pattern names; where that is not what is tried, it has said so before.
"""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from daemon import timm_names
from daemon.cli import app
from daemon.errors import DaemonRuns, UsageError
from daemon.lock import locked

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(workspace: Path) -> Path:
    """A target of small images; the shortest measurement."""
    file = workspace / "constraints" / "edge.toml"
    file.write_text(file.read_text().replace("= 224", "= 64"))
    config = workspace / "config.toml"
    config.write_text(config.read_text().replace("seconds_max = 4.0", "seconds_max = 0.3"))
    return workspace


def relearn(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHECKOUT / "relearn"), "benchmark", *arguments, "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def found_by_timm() -> list[str]:
    """What the pattern `test_resnet` names."""
    return timm_names.find_architectures(["test_resnet"])


@pytest.fixture
def run(small: Path, found_by_timm: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`relearn benchmark test_resnet …` in this process: `run("--json")`."""
    monkeypatch.setattr(timm_names, "find_architectures", lambda _patterns: found_by_timm)
    command = ["benchmark", "test_resnet", "--workspace", str(small)]
    return lambda *arguments: CliRunner().invoke(app, [*command, *arguments])


def rows(done: subprocess.CompletedProcess[str] | Result) -> dict[str, dict[str, Any]]:
    assert (done.exit_code if isinstance(done, Result) else done.returncode) == 0, done.stderr
    return {row["architecture"]: row for row in json.loads(done.stdout)}


def test_architectures_are_measured_and_what_cannot_be_is_a_row(
    small: Path, run: Callable[..., Result], tmp_path: Path
) -> None:
    table = tmp_path / "rows.csv"
    asked = ("test_resnet", "inception_v3", "--csv", str(table), "--json")
    done = relearn(small, *asked, "--memory-mb", "2000")
    found = rows(done)
    good, bad = found["test_resnet"], found["inception_v3"]
    assert good["error"] is None
    assert 0 < good["latency_p50_ms"] <= good["latency_p95_ms"]
    assert (good["height"], good["classes"], good["batch_size"]) == (64, 10, 1)
    assert good["artifact_mb"] > 0.1 < good["parameters"] / 1e6
    assert bad["error"].startswith("inception_v3 cannot take images of 64 x 64 pixels: ")
    assert "1 of 2: test_resnet: p95 " in done.stderr
    with table.open() as file:
        assert [row["architecture"] for row in csv.DictReader(file)] == list(found)
    assert not (small / "state" / "benchmark").exists()
    again = rows(run("--json"))
    assert again["test_resnet"]["latency_p50_ms"] == good["latency_p50_ms"]  # from the journal
    assert again["test_resnet"]["seconds"] == good["seconds"]


@pytest.mark.parametrize(
    ("limit", "said"),
    [(("--seconds", "1"), "took longer than 1 s"), (("--memory-mb", "100"), "MB of memory, more than")],
)
def test_what_takes_too_much_is_stopped(run: Callable[..., Result], limit: tuple[str, str], said: str) -> None:
    assert said in rows(run(*limit, "--json"))["test_resnet"]["error"]


def test_a_pattern_that_names_nothing_is_refused(small: Path) -> None:
    done = relearn(small, "test_resnett")
    assert (done.returncode, "nearest: test_resnet" in done.stderr) == (2, True)


def test_a_table_that_cannot_be_written_is_said_before_anything_is_measured(
    small: Path, run: Callable[..., Result]
) -> None:
    refused = run("--csv", str(small / "nowhere" / "rows.csv")).exception
    assert isinstance(refused, UsageError)
    assert str(refused).endswith("rows.csv: No such file or directory")


def test_it_does_not_measure_beside_a_daemon(small: Path, run: Callable[..., Result]) -> None:
    (small / "state").mkdir()
    with locked(small / "state"):
        refused = run().exception
    assert isinstance(refused, DaemonRuns)
    assert "needs the machine to itself" in str(refused)
