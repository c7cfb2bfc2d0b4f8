"""Every setting of config.toml with its type, its default and what it may be; see there for what each means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from daemon import named_servers, search_space
from daemon.notices import KINDS
from daemon.search_space import Axis
from daemon.variants import join, split
from deploy.engines import ENGINES
from policies.settings import PoliciesSettings, PromotionSettings
from policies.suggest import nearest

ENV_PREFIX = "RELEARN__"
MOST = 10**7  # of any number: a timer of so many minutes still has a date


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _refuse_nul(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("holds a NUL character")
    return path


def _check_url(url: str) -> str:
    host, colon, port = url.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
        raise ValueError('must be HOST:PORT, as "127.0.0.1:8001"')
    return url


def check_variant(variant: str) -> str:
    """The variant with its precision. Raises ValueError where there is none such."""
    engine, precision = split(variant)
    if engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}; there are: {', '.join(sorted(ENGINES))}")
    if precision not in ENGINES[engine].precisions:
        raise ValueError(f"{engine} builds no {precision!r}; it builds: {', '.join(ENGINES[engine].precisions)}")
    return join(engine, precision)


def _check_capability(text: str) -> str:
    major, point, minor = text.partition(".")
    if text and not (point and major.isdecimal() and minor.isdecimal()):
        raise ValueError('must be a compute capability of NVIDIA\'s, as "8.9", or "" for none')
    return text


def _check_cluster(address: str) -> str:
    if address:
        try:
            _check_url(address)
        except ValueError:
            raise ValueError('must be HOST:PORT of the cluster\'s head, as "10.0.0.1:6379", or empty') from None
    return address


Number = BeforeValidator(_refuse_bool)
Share = Annotated[float, Number, Field(ge=0, le=1)]
Positive = Annotated[float, Number, Field(gt=0, le=MOST)]
Count = Annotated[int, Number, Field(ge=1, le=MOST)]
Variant = Annotated[str, AfterValidator(check_variant)]
Place = Annotated[Path, AfterValidator(_refuse_nul)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paths(Section):
    constraints: Place = Path("constraints")
    state: Place = Path("state")


class WatchedFolder(Section):
    """An entry of watch.folders: a path alone, or a table that says more."""

    path: Place
    labels: Literal["folders", "manifest", "none"] = "folders"
    manifest: str = ""
    group: str = ""
    done_marker: str | None = None  # None: as watch.done_marker says; so with polling
    polling: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value

    @field_validator("manifest")
    @classmethod
    def _check_manifest(cls, name: str) -> str:
        if name and (Path(name).is_absolute() or ".." in Path(name).parts or not name.endswith((".csv", ".jsonl"))):
            raise ValueError('must be a .csv or .jsonl file below the watched folder, as "labels.csv"')
        return name

    @field_validator("group")
    @classmethod
    def _check_group(cls, pattern: str) -> str:
        try:
            named = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if pattern and "group" not in named:
            raise ValueError('must name the part that tells the group, as "(?P<group>part-\\d+)"')
        return pattern

    @field_validator("done_marker")
    @classmethod
    def _check_marker(cls, name: str | None) -> str | None:
        return None if name is None else check_marker(name)

    @model_serializer(mode="wrap")
    def _write_briefly(self, write: SerializerFunctionWrapHandler) -> Any:
        """As it may be written in config.toml: what is as by default is left out."""
        said = {key: value for key, value in write(self).items() if key == "path" or value not in ("", None)}
        if self.labels == "folders":
            del said["labels"]
        return said if len(said) > 1 else said["path"]

    @model_validator(mode="after")
    def _agree(self) -> WatchedFolder:
        if (self.labels == "manifest") != bool(self.manifest):
            raise ValueError('labels = "manifest" and manifest = "FILE.csv" go together')
        return self


def check_marker(name: str) -> str:
    """The name of a done-marker. Raises ValueError where it is none."""
    if "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError('must be the name of a file, as "_READY", without a folder')
    return name


class Watch(Section):
    folders: tuple[WatchedFolder, ...] = Field(default=(WatchedFolder(path=Path("images")),), min_length=1)
    settle_seconds: Positive = 2.0
    done_marker: Annotated[str, AfterValidator(check_marker)] = ""
    rescan_minutes: Positive = 30.0
    polling: bool = False
    polling_seconds: Positive = 5.0
    max_megapixels: Positive = 100.0

    @model_validator(mode="before")
    @classmethod
    def _refuse_list(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("is one table, [watch]; write each folder's own as [[watch.folders]]")
        return value


class Store(Section):
    keep: Literal["copy", "reference"] = "copy"
    max_gb: Annotated[float, Number, Field(ge=0, le=MOST)] = 0.0
    keep_days: Annotated[float, Number, Field(ge=0, le=MOST)] = 30.0
    gc_hours: Positive = 24.0
    keep_versions: Count = 3


class Roles(Section):
    train: Share = 0.8
    tune: Share = 0.1
    judge: Share = 0.1

    @model_validator(mode="after")
    def _sum_to_one(self) -> Roles:
        if abs(self.train + self.tune + self.judge - 1) > 1e-9:
            raise ValueError(f"train + tune + judge must be 1, not {self.train + self.tune + self.judge:g}")
        if not self.train or not self.judge:
            raise ValueError("train and judge need a share above 0: nothing is promoted without a judge")
        return self


class Input(Section):
    resize: Literal["stretch", "crop"] = "stretch"


class Model(Section):
    architectures: tuple[str, ...] = Field(default=("mobilenetv3_small_100", "test_resnet"), min_length=1)
    weights: str = "none"


class Augment(Section):
    crop_min: Annotated[float, Field(gt=0, le=1)] = 0.6
    flip: bool = True
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0


class Train(Section):
    epochs: Count = 20
    batch_size: Count = 64
    optimizer: str = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Number, Field(ge=0, le=MOST)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    scheduler: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    head_learning_rate_factor: Positive = 1.0
    trainable_stages: Annotated[int, Field(ge=-1)] = -1
    freeze_batch_norm: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    sampling: Literal["uniform", "balanced"] = "uniform"
    early_stopping_patience: Annotated[int, Number, Field(ge=0, le=MOST)] = 0
    seed: Annotated[int, Number, Field(ge=0, le=2**32 - 1)] = 0
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    augment: Augment = Augment()
    optimizers: Annotated[dict[str, Positive], Field(min_length=2)] = {
        "adamw": 1.0,
        "nadamw": 1.0,
        "lion": 0.3,
        "lamb": 10.0,
        "mars": 3.0,
        "muon": 5.0,
        "nesterov": 30.0,
    }


SPACE = {
    "learning_rate": Axis(min=1e-4, max=1e-2, log=True),
    "weight_decay": Axis(min=1e-3, max=0.3, log=True),
    "label_smoothing": Axis(min=0.0, max=0.2),
    "batch_size": Axis(choices=[32, 64, 128]),
    "augment.crop_min": Axis(min=0.3, max=1.0),
}


class Tune(Section):
    trials: Annotated[int, Number, Field(ge=0, le=MOST)] = 0
    concurrent: Annotated[int, Number, Field(ge=0, le=1024)] = 0
    grace_epochs: Count = 2
    reduction: Annotated[float, Number, Field(ge=1.5, le=100)] = 3.0
    space: Annotated[dict[str, Axis], BeforeValidator(search_space.flatten)] = Field(default=SPACE, min_length=1)


class Cluster(Section):
    address: Annotated[str, AfterValidator(_check_cluster)] = ""


class Build(Section):
    engines: tuple[Variant, ...] = Field(default=("onnxruntime:fp32",), min_length=1)
    compute_capability: Annotated[str, AfterValidator(_check_capability)] = ""


class Audit(Section):
    backbone: str = ""
    weights: Annotated[str, Field(min_length=1)] = "timm"
    size: Annotated[int, Number, Field(ge=8, le=4096)] = 224


class Search(Section):
    architectures: tuple[str, ...] = ()
    first_epochs: Count = 1
    reduction: Annotated[float, Number, Field(ge=1.5, le=100)] = 3.0
    minutes_per_architecture: Positive = 5.0


class Measure(Section):
    seconds_max: Positive = 4.0


class Compute(Section):
    threads: Annotated[int, Number, Field(ge=0, le=1024)] = 0
    serve_threads: Annotated[int, Number, Field(ge=1, le=1024)] = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 5
    stage_timeout_minutes: Positive = 720.0


class Triton(Section):
    """One server, an entry of [[triton]] (daemon/named_servers.py)."""

    name: str = named_servers.FIRST
    url: Annotated[str, AfterValidator(_check_url)] = "127.0.0.1:8001"
    protocol: Literal["grpc", "http"] = "grpc"
    repository: Place = Path("triton")
    repository_seen: str = ""
    tls: bool = False
    tls_authorities: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    headers: dict[str, str] = {}
    file_owner: str = ""
    file_mode: str = ""
    flavour: Literal["python", "native"] = "python"
    max_batch_size: Count = 8
    instances: Count = 2
    timeout_seconds: Positive = 30.0
    check_seconds: Positive = 4.0

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not named_servers.NAME.fullmatch(name) or name in cls.model_fields:
            raise ValueError("must be small letters, digits, - and _, and no setting's name")
        return name

    @field_serializer("headers")
    def _hide_headers(self, headers: dict[str, str]) -> dict[str, str]:
        return named_servers.hide(headers)  # what is written down holds no secret

    @field_validator("file_mode")
    @classmethod
    def _check_mode(cls, mode: str) -> str:
        if mode and not re.fullmatch("0?[67][0-7]{2}", mode):
            raise ValueError(
                'must be the mode of a file in octal that its owner may read and write, as "0644", or empty'
            )
        return mode

    @field_validator("file_owner")
    @classmethod
    def _check_owner(cls, owner: str) -> str:
        if owner and not re.fullmatch(r"[^:\s]+:[^:\s]+", owner):
            raise ValueError('must be "user:group", or empty')
        return owner

    @model_validator(mode="after")
    def _agree(self) -> Triton:
        if (self.tls_authorities or self.tls_certificate) and not self.tls:
            raise ValueError("names files of TLS, which is off: write tls = true")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key go together")
        return self


class Wandb(Section):
    mode: Literal["offline", "online", "disabled"] = "offline"
    project: Annotated[str, Field(min_length=1)] = "relearnd"


class Notify(Section):
    """An entry of [[notify]]: who is told of what."""

    url: SecretStr
    name: str = ""
    kinds: tuple[str, ...] = Field(default=KINDS, min_length=1)
    targets: tuple[str, ...] = ()  # all

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        scheme, colon, rest = url.get_secret_value().partition(":")
        if not (scheme and colon and rest.removeprefix("//")) or (scheme != "env" and not rest.startswith("//")):
            raise ValueError('must be a URL of Apprise\'s, as "json://HOST/PATH", or "env:NAME" to read it from there')
        return url

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                guess = nearest(kind, KINDS)
                hint = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(KINDS)}"
                raise ValueError(f"there is no kind {kind!r}; {hint}")
        return kinds

    @property
    def called(self) -> str:
        """Its name in the journal and the log, which never show the URL: it may hold a password."""
        scheme, _, rest = self.url.get_secret_value().partition(":")
        return self.name or (rest if scheme == "env" else scheme)


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """The whole of config.toml; see there for what each setting means, and its unit."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", case_sensitive=False
    )
    version: Literal[1] = 1
    paths: Paths = Paths()
    watch: Watch = Watch()
    store: Store = Store()
    roles: Roles = Roles()
    input: Input = Input()
    model: Model = Model()
    train: Train = Train()
    audit: Audit = Audit()
    search: Search = Search()
    tune: Tune = Tune()
    cluster: Cluster = Cluster()
    build: Build = Build()
    measure: Measure = Measure()
    compute: Compute = Compute()
    policies: PoliciesSettings = PoliciesSettings()
    promotion: PromotionSettings = PromotionSettings()
    triton: Annotated[tuple[Triton, ...], BeforeValidator(named_servers.entries), Field(min_length=1)] = (Triton(),)
    wandb: Wandb = Wandb()
    notify: tuple[Notify, ...] = Field(default=(), exclude=True)  # what is written down holds no secret
    log: Log = Log()
