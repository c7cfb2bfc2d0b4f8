"""config.toml, the environment and --set: defaults, precedence, and what is refused with file, line and key."""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.config import dump, known_keys, leaves, load, parse_overrides
from daemon.errors import ConfigError
from daemon.named_servers import resolve
from daemon.notices import KINDS
from daemon.settings import Settings, Train
from daemon.toml_lines import line_of

CHECKOUT = Path(__file__).resolve().parents[3]
TEXT = (CHECKOUT / "config.toml").read_text(encoding="utf-8")
# Words of the field, or units that stand in the name: their lines need no comment.
PLAIN = {
    "version", "roles.train", "train.epochs", "train.batch_size", "train.learning_rate", "train.weight_decay",
    "train.label_smoothing", "train.seed", "build.precision", "policies.accuracy.confidence",
    "policies.retry.max_seconds", "promotion.period_days",
}  # fmt: skip


def write(workspace: Path, old: str, new: str) -> int:
    """Replaces a text in the workspace's config.toml; the line at which it stands."""
    file = workspace / "config.toml"
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def error_of(workspace: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(workspace, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_config_toml_holds_every_setting_at_its_default() -> None:
    written = dict(leaves(tomllib.loads(TEXT)))
    defaults = dict(leaves(Settings.model_construct().model_dump(mode="json")))
    assert written.keys() == defaults.keys() == set(known_keys())
    assert {key: plain(value) for key, value in written.items()} == defaults


@pytest.mark.parametrize("key", known_keys())
def test_config_toml_says_what_each_setting_is(key: str) -> None:
    number = line_of(TEXT, key)
    assert number is not None
    line = TEXT.splitlines()[number - 1]
    assert key in PLAIN or line.partition("#")[2].strip(), line


def test_a_fresh_workspace_is_as_the_defaults(workspace: Path) -> None:
    config = load(workspace)
    assert dump(config) == Settings.model_construct().model_dump(mode="json")
    assert config.state == workspace / "state"
    assert config.folders == (workspace / "images",)
    assert config.origin["train.epochs"] == f"config.toml:{line_of(TEXT, 'train.epochs')}"


def test_an_empty_file_gives_the_defaults(workspace: Path) -> None:
    (workspace / "config.toml").write_text("", encoding="utf-8")
    config = load(workspace)
    assert dump(config) == Settings.model_construct().model_dump(mode="json")
    assert config.origin == {}


def test_set_goes_before_environment_before_file(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workspace, "epochs = 20", "epochs = 5")
    write(workspace, "batch_size = 64", "batch_size = 32")
    write(workspace, "seed = 0", "seed = 7")
    monkeypatch.setenv("RELEARN__TRAIN__EPOCHS", "6")
    monkeypatch.setenv("RELEARN__TRAIN__BATCH_SIZE", "16")
    config = load(workspace, ["train.epochs=8"])
    train = config.settings.train
    assert (train.epochs, train.batch_size, train.seed) == (8, 16, 7)
    assert config.origin["train.epochs"] == "--set train.epochs"
    assert config.origin["train.batch_size"] == "RELEARN__TRAIN__BATCH_SIZE"
    assert config.origin["train.seed"].startswith("config.toml:")


def test_lists_and_deep_settings_can_be_overridden(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARN__MODEL__ARCHITECTURES", '["resnet10t"]')
    config = load(workspace, ["train.augment.flip=false", 'watch.folders=["a", "b"]', "policies.cooldown.minutes=0"])
    assert config.settings.model.architectures == ("resnet10t",)
    assert config.settings.train.augment.flip is False
    assert config.settings.train.augment.crop_min == 0.6
    assert config.folders == (workspace / "a", workspace / "b")
    assert config.settings.policies.cooldown.minutes == 0


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=3", {"train": {"epochs": 3}}),
        ("model.weights=timm", {"model": {"weights": "timm"}}),
        ('model.weights="timm"', {"model": {"weights": "timm"}}),
        ("triton.url=host:8001", {"triton": {"url": "host:8001"}}),
        ("model.weights=a=b", {"model": {"weights": "a=b"}}),
        ("train.flip=true", {"train": {"flip": True}}),
    ],
)
def test_a_value_of_set_is_toml_or_text(override: str, value: dict[str, Any]) -> None:
    assert parse_overrides([override]) == value


@pytest.mark.parametrize("override", ["train.epochs", "=3", ""])
def test_a_set_without_key_or_value_is_refused(workspace: Path, override: str) -> None:
    assert "write it as KEY=VALUE" in error_of(workspace, override)


def test_a_set_of_a_value_as_section_is_refused(workspace: Path) -> None:
    assert "used as a section" in error_of(workspace, "train.epochs=3", "train.epochs.x=4")


def test_an_unknown_key_names_file_line_and_the_nearest(workspace: Path) -> None:
    line = write(workspace, "batch_size = 64", "batchsize = 64")
    said = error_of(workspace)
    assert said == (
        f"{workspace}/config.toml:{line}: unknown setting 'train.batchsize'; did you mean 'train.batch_size'?"
    )


def test_an_unknown_section_names_the_nearest(workspace: Path) -> None:
    line = write(workspace, "[policies.cooldown]", "[policies.coldown]")
    said = error_of(workspace)
    assert f"config.toml:{line}: unknown setting 'policies.coldown'; did you mean 'policies.cooldown'?" in said


def test_unknown_overrides_name_themselves(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of(workspace, "train.epoch=3") == (
        "--set train.epoch: unknown setting 'train.epoch'; did you mean 'train.epochs'?"
    )
    monkeypatch.setenv("RELEARN__TRAIN__EPOCHZ", "3")
    assert error_of(workspace) == (
        "RELEARN__TRAIN__EPOCHZ: unknown setting 'train.epochz'; did you mean 'train.epochs'?"
    )


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("epochs = 20", 'epochs = "many"', "train.epochs"),
        ("epochs = 20", "epochs = 2.5", "train.epochs"),
        ("epochs = 20", "epochs = 0", "train.epochs"),
        ("flip = true", "flip = 3", "train.augment.flip"),
        ('scheduler = "onecycle"', 'scheduler = "steps"', "train.scheduler"),
        ('folders = ["images"]', 'folders = "images"', "watch.folders"),
        ('folders = ["images"]', "folders = []", "watch.folders"),
        ("new_samples = 100 ", 'new_samples = "a lot"', "policies.volume.new_samples"),
        ("attempts = 3 ", "attempts = 0 ", "policies.retry.attempts"),
        ("error_budget = 0.05", "error_budget = 5", "promotion.error_budget"),
    ],
)
def test_a_wrong_value_names_file_line_and_key(workspace: Path, old: str, new: str, key: str) -> None:
    line = write(workspace, old, new)
    said = error_of(workspace)
    assert said.startswith(f"{workspace}/config.toml:{line}: {key}: ")
    assert "\n" not in said


def test_a_value_in_an_inline_table_names_the_line_of_the_table(workspace: Path) -> None:
    (workspace / "config.toml").write_text("version = 1\n[train]\naugment = { flip = 3 }\n", encoding="utf-8")
    assert error_of(workspace).startswith(f"{workspace}/config.toml:3: train.augment.flip: ")


def test_every_error_is_said_at_once(workspace: Path) -> None:
    write(workspace, "epochs = 20", "epochs = 0")
    write(workspace, "batch_size = 64", "batchsize = 64")
    assert len(error_of(workspace).splitlines()) == 2


def test_a_wrong_override_names_itself_and_not_the_file(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of(workspace, "train.epochs=many").startswith("--set train.epochs: Input")
    assert error_of(workspace, "train=3").startswith("--set train: ")
    assert error_of(workspace, "promotion.margin=2").startswith("--set promotion.margin: ")
    assert error_of(workspace, "roles.tune=0.2").startswith("--set roles.tune: roles: ")
    monkeypatch.setenv("RELEARN__TRAIN__EPOCHS", "many")
    assert error_of(workspace).startswith("RELEARN__TRAIN__EPOCHS: train.epochs: ")


def test_the_optimizers_that_race_are_any(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "config.toml").write_text("version = 1\n[train.optimizers]\nsgd = 10\nadan = 3\n", encoding="utf-8")
    assert load(workspace).settings.train.optimizers == {"sgd": 10, "adan": 3}
    monkeypatch.setenv("RELEARN__TRAIN__OPTIMIZERS__KRON", "0.5")
    assert load(workspace, ["train.optimizers.sgd=20"]).settings.train.optimizers == {"sgd": 20, "adan": 3, "kron": 0.5}


def test_one_optimizer_is_no_race(workspace: Path) -> None:
    (workspace / "config.toml").write_text("version = 1\n[train.optimizers]\nsgd = 10\n", encoding="utf-8")
    assert "train.optimizers: Dictionary should have at least 2 items" in error_of(workspace)


def test_a_list_in_the_environment_must_be_json(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARN__WATCH__FOLDERS", "images")
    assert error_of(workspace).startswith("RELEARN__WATCH__FOLDERS: a list is written as JSON")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["roles.tune=0.2"], "train + tune + judge must be 1, not 1.1"),
        (["roles.tune=0.2", "roles.judge=0"], "train and judge need a share above 0"),
        (["roles.train=0", "roles.judge=0.9"], "train and judge need a share above 0"),
        (['watch.folders=["images", "images/a"]'], "overlap"),
        (['watch.folders=["images", "images"]'], "overlap"),
        (["paths.state=images/state"], "lies in the watched folder"),
        (["triton.repository=images"], "lies in the watched folder"),
        (['model.architectures=["a", "b", "a"]'], "names a twice"),
        (["model.architectures=[]"], "at least 1 item"),
        (['build.engines=["torch2trt:fp16"]'], "torch2trt is not installed here: install its package torch2trt"),
        (['build.engines=["tensorrt:fp16"]'], "tensorrt is not installed here: install its package tensorrt-cu13"),
        (["policies.volume.first_classes=1"], "must be at least 2"),
        (["policies.accuracy.confidence=95"], "must lie between 0 and 1"),
        (["promotion.confidence=1"], "must lie between 0 and 1"),
        (["watch.settle_seconds=inf"], "less than or equal to 10000000"),
        (["triton.check_seconds=1e300"], "less than or equal to 10000000"),
        (["watch.rescan_minutes=nan"], "greater than 0"),
        (["policies.cooldown.minutes=inf"], "must be at most 1e+07"),
        (["train.epochs=true"], "must be a number"),
        (["train.optimizers.lion=0"], "train.optimizers.lion: Input should be greater than 0"),
        (["train.optimizer=auto", "roles.tune=0", "roles.train=0.9"], "roles.tune must be above 0"),
        (["tune.trials=8", "roles.tune=0", "roles.train=0.9"], "tune.trials: are compared on tune samples"),
        (['tune.space.optimizer.choices=["auto","sgd"]'], "a race of optimizers in every trial"),
        (["audit.backbone=resnet18", "audit.weights=none.safetensors"], "none.safetensors, which is not there"),
        (['build.engines=["openvino", "openvino:fp32"]'], "names openvino:fp32 twice"),
        (['build.engines=["abacus"]'], "there is no engine 'abacus'; there are: onnxruntime, openvino"),
        (['build.engines=["onnxruntime:fp16"]'], "onnxruntime builds no 'fp16'; it builds: fp32, int8"),
        (["build.compute_capability=ada"], "must be a compute capability"),
        (["policies.tuning.days=-1"], "policies.tuning.days: must be at least 0"),
        (["wandb.mode=dryrun"], "wandb.mode: Input should be 'offline', 'online' or 'disabled'"),
        (["wandb.project="], "at least 1 character"),
        (["train.epochs=99999999999999999999"], "less than or equal to 10000000"),
        (["triton.url="], "must be HOST:PORT"),
        (["triton.url=http://localhost:8001"], "must be HOST:PORT"),
        (["triton.url=127.0.0.1"], "must be HOST:PORT"),
        (["triton.url=127.0.0.1:99999"], "must be HOST:PORT"),
        (["triton.repository=state"], "a folder of their own"),
        (["paths.state=config.toml"], "is a file: name a folder"),
        (['paths.state="a\\u0000b"'], "NUL character"),
        (["policies.cooldown.minutes=-1"], "must be at least 0"),
        (["policies.retry.first_seconds=0"], "must be at least 0.01"),
        (["policies.retry.first_seconds=60", "policies.retry.max_seconds=5"], "must not be below"),
    ],
)
def test_what_cannot_work_is_refused(workspace: Path, overrides: list[str], said: str) -> None:
    assert said in error_of(workspace, *overrides)


def test_files_that_cannot_be_read_are_refused_by_name(workspace: Path) -> None:
    file = workspace / "config.toml"
    file.write_text("[train\n", encoding="utf-8")
    assert error_of(workspace).startswith(f"{file}: not valid TOML: ")
    file.write_bytes(b"\xff\xfe")
    assert error_of(workspace).startswith(f"{file}:1: is not UTF-8 text: ")
    file.unlink()
    assert f"`relearn init {workspace}` writes one" in error_of(workspace)


def test_the_daemon_sends_the_settings_that_training_knows() -> None:
    """`pipeline` may not be imported by the daemon, so the two describe the settings apart."""
    if not (CHECKOUT / "pipeline" / "settings.py").exists():
        pytest.skip("pipeline/settings.py is not written yet")
    module = importlib.import_module("pipeline.settings")
    classes = [
        kind for kind in vars(module).values() if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    ]
    (settings,) = [kind for kind in classes if "epochs" in {field.name for field in dataclasses.fields(kind)}]
    theirs = dict(leaves(dataclasses.asdict(settings())))
    assert theirs == dict(leaves(Train().model_dump(mode="json")))


HOOK = "json://bob:geheim99@127.0.0.1/tok3n"


def test_who_is_told_is_written_down_nowhere(workspace: Path) -> None:
    config = load(workspace, [f'notify=[{{url = "{HOOK}"}}, {{url = "env:HOOK", targets = ["edge"]}}]'])
    assert [entry.called for entry in config.settings.notify] == ["json", "HOOK"]
    assert config.settings.notify[0].kinds == KINDS
    assert config.settings.notify[0].url.get_secret_value() == HOOK
    for text in (str(dump(config)), repr(config.settings), str(config)):
        assert "geheim99" not in text and "tok3n" not in text


def test_the_entry_shown_is_valid(workspace: Path) -> None:
    text = TEXT[TEXT.index("# [[notify]]") :].partition("\n\n")[0]
    (workspace / "config.toml").write_text(f"version = 1\n{text.replace('# ', '', 1).replace(chr(10) + '# ', chr(10))}")
    (entry,) = load(workspace).settings.notify
    assert (entry.called, entry.targets, len(entry.kinds)) == ("line 3", ("edge",), 6)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f'url = "{HOOK}"\nkinds = ["hold", "promotoin"]', "notify.kinds: there is no kind 'promotoin'; did you mean"),
        (f'url = "{HOOK}"\nkinds = []', "notify.kinds: "),
        (f'url = "{HOOK}"\nkind = ["hold"]', "unknown setting 'notify.kind'; did you mean 'notify.kinds'?"),
        ('url = "geheim99"', "notify.url: must be a URL of Apprise's"),
        ('url = "env:"', "notify.url: must be a URL of Apprise's"),
        ('url = ["geheim99"]', "notify.url: "),
        (f'url = "{HOOK}"\n[[notify]]\nurl = "{HOOK}"', "several entries of the name json: give each a name"),
    ],
)
def test_a_wrong_entry_is_refused_without_its_url(workspace: Path, entry: str, said: str) -> None:
    with (workspace / "config.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n[[notify]]\n{entry}\n")
    error = error_of(workspace)
    assert said in error
    assert "geheim99" not in error and "tok3n" not in error


@pytest.mark.parametrize("value", ['["geheim99"]', '{"url": "geheim99"}', '"geheim99"', "geheim99"])
def test_wrong_entries_of_the_environment_are_not_shown(
    workspace: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELEARN__NOTIFY", value)
    error = error_of(workspace)
    assert "RELEARN__NOTIFY" in error and "geheim99" not in error


# --- several Triton servers ---------------------------------------------------------------------------------------

TWO = """version = 1
[[triton]]
url = "127.0.0.1:9001"
repository = "one"

[[triton]]
name = "edge"
url = "127.0.0.1:9002"
repository = "two"
check_seconds = 1.5
"""


@pytest.fixture
def two(workspace: Path) -> Path:
    (workspace / "config.toml").write_text(TWO, encoding="utf-8")
    return workspace


def test_each_server_has_its_settings_its_name_and_its_lines(two: Path) -> None:
    config = load(two)
    assert config.server_names == ("main", "edge")
    assert [server.url for server in config.settings.triton] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert config.repository_of("edge") == two / "two"
    assert config.repository_of("") == config.repository == two / "one"
    assert config.server("nonesuch") is None
    assert config.origin["triton.edge.check_seconds"] == "config.toml:10"
    assert config.origin["triton.main.url"] == "config.toml:3"


def test_an_override_says_which_of_several_it_means(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEARN__TRITON__EDGE__INSTANCES", "5")
    config = load(two, ["triton.edge.url=here:1", "triton.main.check_seconds=9"])
    main, edge = config.settings.triton
    assert (edge.url, edge.instances, main.check_seconds, main.url) == ("here:1", 5, 9.0, "127.0.0.1:9001")
    assert config.origin["triton.edge.url"] == "--set triton.edge.url"
    assert error_of(two, "triton.edge.url=there").startswith("--set triton.edge.url: must be HOST:PORT")
    said = error_of(two, "triton.url=here:1")
    assert said == "--set triton.url: names none of the servers main, edge; did you mean triton.main.url?"


@pytest.mark.parametrize("table", ["[triton]", "[[triton]]", "[[triton]]\nname = 'only'"])
def test_where_there_is_one_it_need_not_be_named(workspace: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    (workspace / "config.toml").write_text(f"version = 1\n{table}\nurl = 'a:1'\nheaders = {{ x = 'y' }}\n")
    monkeypatch.setenv("RELEARN__TRITON__INSTANCES", "3")
    config = load(workspace, ["triton.max_batch_size=16"])
    (server,) = config.settings.triton
    assert (server.url, server.instances, server.max_batch_size, server.headers) == ("a:1", 3, 16, {"x": "y"})
    assert config.origin["triton.instances"] == "RELEARN__TRITON__INSTANCES"
    assert load(workspace, [f"triton.{server.name}.url=b:2"]).settings.triton[0].url == "b:2"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "edge"', "", "triton.name: several servers are called 'main': give each its own name"),
        ('"127.0.0.1:9002"', '"127.0.0.1:9001"', "8: triton.edge.url: is that of 'main' too: two servers need two"),
        ('"two"', '"one"', "9: triton.edge.repository: is that of 'main' too: two servers need two"),
        ('"two"', '"state"', "9: triton.edge.repository: "),
        (
            "check_seconds = 1.5",
            "check_secs = 1.5",
            "10: unknown setting 'triton.edge.check_secs'; did you mean 'triton.",
        ),
        (
            "check_seconds = 1.5",
            "instances = 0",
            "10: triton.edge.instances: Input should be greater than or equal to 1",
        ),
        ("check_seconds = 1.5", 'file_mode = "8"', "10: triton.edge.file_mode: must be the mode of a file in octal"),
        ("check_seconds = 1.5", 'file_owner = "nonesuch:x"', "10: triton.edge.file_owner: 'nonesuch:x': this machine"),
        ("check_seconds = 1.5", 'tls_key = "key.pem"', "triton.edge: tls_certificate and tls_key go together"),
        ("check_seconds = 1.5", 'protocol = "carrier"', "10: triton.edge.protocol: Input should be 'grpc' or 'http'"),
        ('name = "edge"', 'name = "url"', "triton.url.name: must be small letters, digits, - and _, and no setting's"),
    ],
)
def test_servers_that_cannot_be_are_refused(two: Path, old: str, new: str, said: str) -> None:
    write(two, old, new)
    assert said in error_of(two)


def test_a_header_comes_from_the_environment(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    assert resolve({"authorization": "env:A_TOKEN", "plain": "x"}) == {"authorization": "secret", "plain": "x"}
    with pytest.raises(ConfigError, match=r"triton\.headers\.authorization: the environment has no variable NONESUCH"):
        resolve({"authorization": "env:NONESUCH"})
