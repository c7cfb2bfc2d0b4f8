"""`[tune.space]` and `[cluster]`: written in several ways, and refused with file, line, key and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.config import dump, load
from daemon.errors import ConfigError
from daemon.search_space import setting_names, wrong
from daemon.settings import SPACE, Train

CHECKOUT = Path(__file__).resolve().parents[3]
LINE = "learning_rate = { min = 1e-4, max = 1e-2, log = true }"


def write(workspace: Path, new: str, old: str = LINE) -> int:
    """Replaces a line of the default space; the number of the line."""
    file = workspace / "config.toml"
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def error_of(workspace: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(workspace, overrides)
    return str(caught.value)


def space_of(workspace: Path, *overrides: str) -> dict[str, Any]:
    return dict(dump(load(workspace, overrides))["tune"]["space"])


def test_the_default_space_can_be_searched() -> None:
    assert list(wrong(SPACE, Train)) == []


def test_a_job_gets_it_as_plain_values(workspace: Path) -> None:
    space = space_of(workspace)
    assert space["learning_rate"] == {"min": 1e-4, "max": 1e-2, "log": True}
    assert space["batch_size"] == {"choices": [32, 64, 128]}
    assert space["augment.crop_min"] == {"min": 0.3, "max": 1.0}


@pytest.mark.parametrize("key", setting_names(Train))
def test_any_setting_of_train_can_be_searched(workspace: Path, key: str) -> None:
    value: Any = Train()
    for part in key.split("."):
        value = getattr(value, part)
    literal = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
    (workspace / "config.toml").write_text(f'[tune.space]\n"{key}" = {{ choices = [{literal}] }}\n', encoding="utf-8")
    assert space_of(workspace) == {key: {"choices": [value]}}


def test_a_nested_setting_needs_no_quotes(workspace: Path) -> None:
    write(workspace, "augment.brightness = { min = 0.0, max = 0.4 }")
    assert space_of(workspace)["augment.brightness"] == {"min": 0.0, "max": 0.4}


def test_it_can_be_overridden_by_setting_and_by_bound(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARN__TUNE__SPACE__MOMENTUM", '{"min": 0.8, "max": 0.95}')
    space = space_of(workspace, "tune.space.learning_rate.max=0.1", "tune.space.augment.crop_min.min=0.5")
    assert space["learning_rate"] == {"min": 1e-4, "max": 0.1, "log": True}
    assert space["augment.crop_min"] == {"min": 0.5, "max": 1.0}
    assert space["momentum"] == {"min": 0.8, "max": 0.95}
    assert "label_smoothing" in space


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        (
            "lerning_rate = { min = 1e-4, max = 1e-2 }",
            "lerning_rate",
            "has no setting 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("augment.crop = { min = 0.5, max = 1.0 }", "augment.crop", "did you mean 'augment.crop_min'?"),
        ("learning_rate = { min = 1.0, max = 1e-2 }", "learning_rate", "min 1 is above max 0.01"),
        ("learning_rate = { min = 0.0, max = 1e-2, log = true }", "learning_rate", "needs a min above 0 (is 0)"),
        ("learning_rate = { min = 0.0, max = 1e-2 }", "learning_rate", "0.0 is no value of learning_rate"),
        ("learning_rate = { min = 1e-3 }", "learning_rate", "needs min and max, or choices"),
        ("learning_rate = {}", "learning_rate", "needs min and max, or choices"),
        ("learning_rate = { min = 1e-3, max = 1e-2, choices = [1e-3] }", "learning_rate", "both choices and a range"),
        ("scheduler = { choices = [] }", "scheduler", "choices is empty"),
        ('scheduler = { choices = ["onecycle", "cosin"] }', "scheduler", "'cosin' is no value of scheduler"),
        ("optimizer = { min = 1, max = 2 }", "optimizer", "is no number: give choices"),
        ("freeze_batch_norm = { min = 0, max = 1 }", "freeze_batch_norm", "is no number: give choices"),
        ("epochs = { min = 1.5, max = 20 }", "epochs", "1.5 is no value of epochs"),
        ("epochs = { choices = [5, true] }", "epochs", "True is no value of epochs"),
        ('momentum = { choices = ["0.9"] }', "momentum", "'0.9' is no value of momentum, which would take it for 0.9"),
        ("momentum = { min = 0.5, max = nan }", "momentum", "nan is no value of momentum"),
        ("label_smoothing2 = { min = 0.0, max = 0.1 }", "label_smoothing2", "did you mean 'label_smoothing'?"),
    ],
)
def test_what_cannot_be_searched_is_refused(workspace: Path, line: str, key: str, said: str) -> None:
    number = write(workspace, line)
    told = error_of(workspace)
    assert told.startswith(f"{workspace}/config.toml:{number}: tune.space.{key}: "), told
    assert said in told and "\n" not in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('learning_rate = { min = "low", max = 1e-2 }', "tune.space.learning_rate.min: must be a number (is 'low')"),
        ("learning_rate = { min = true, max = 1e-2 }", "tune.space.learning_rate.min: must be a number (is True)"),
        ("learning_rate = { choices = 0.1 }", "tune.space.learning_rate.choices: must be a list of numbers"),
        ("learning_rate = { choices = [[1]] }", "tune.space.learning_rate.choices: must be a list of numbers"),
        ("learning_rate = { min = 1e-4, max = 1e-2, lgo = true }", "unknown setting 'tune.space.learning_rate.lgo'"),
        ("learning_rate = 3", "tune.space.learning_rate: "),
    ],
)
def test_what_is_no_axis_is_refused(workspace: Path, line: str, said: str) -> None:
    number = write(workspace, line)
    told = error_of(workspace)
    assert f"{workspace}/config.toml:{number}: " in told and said in told, told


def test_an_override_that_cannot_be_searched_names_itself(workspace: Path) -> None:
    told = error_of(workspace, "tune.space.learning_rate.max=1e-5")
    assert told == "--set tune.space.learning_rate: tune.space.learning_rate: min 0.0001 is above max 1e-05"


@pytest.mark.parametrize("address", ["host", "host:port", "ray://host:10001", "host:0"])
def test_an_address_that_is_none_is_refused(workspace: Path, address: str) -> None:
    assert "cluster.address: must be HOST:PORT" in error_of(workspace, f"cluster.address={address}")


def test_an_address_is_taken(workspace: Path) -> None:
    assert load(workspace, ["cluster.address=10.0.0.1:6379"]).settings.cluster.address == "10.0.0.1:6379"
    assert load(workspace).settings.cluster.address == ""
