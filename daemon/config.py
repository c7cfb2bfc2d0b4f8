"""The configuration of a workspace: config.toml, overridden by RELEARN__… variables, overridden by --set."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

from daemon import limits, named_servers, search_space
from daemon.errors import ConfigError
from daemon.settings import ENV_PREFIX, Notify, Settings, Train, Triton, WatchedFolder
from daemon.text_file import parse_toml, read_text
from daemon.toml_lines import line_of, nearest_line
from daemon.watched import Watched
from policies.suggest import nearest

_LISTS = (
    "watch.folders", "model.architectures", "search.architectures", "build.engines", "policies.rule.alone",
    "policies.rule.together", "notify",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The settings in force for one workspace, with where each came from."""

    settings: Settings
    workspace: Path
    file: Path
    origin: Mapping[str, str]  # dotted key -> "config.toml:12", "RELEARN__…", "--set"; missing: the default
    overrides: tuple[str, ...] = field(default=(), repr=False)  # of --set; they may hold secrets
    digest: str = ""  # of the file's text

    def path(self, relative: Path) -> Path:
        """A configured path, made absolute at the workspace."""
        return (self.workspace / relative.expanduser()).absolute()

    @property
    def state(self) -> Path:
        return self.path(self.settings.paths.state)

    @property
    def constraints(self) -> Path:
        return self.path(self.settings.paths.constraints)

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(self.path(folder.path) for folder in self.settings.watch.folders)

    def watched(self, folder: Path) -> Watched:
        """How a watched folder's files come to their labels."""
        return self._watched[folder]

    @cached_property
    def _watched(self) -> dict[Path, Watched]:
        watch = self.settings.watch
        return {self.path(entry.path): Watched.of(self.path(entry.path), entry, watch) for entry in watch.folders}

    @property
    def weights(self) -> str:
        """`model.weights`, a file made absolute."""
        weights = self.settings.model.weights
        return weights if weights in ("none", "timm") else str(self.path(Path(weights)))

    @property
    def repository(self) -> Path:
        """The first server's model repository."""
        return self.path(self.settings.triton[0].repository)

    def server(self, name: str = "") -> Triton | None:
        """The server of this name; "" is the first, for a target that names none. None: there is none such any more."""
        servers = self.settings.triton
        return servers[0] if not name else next((server for server in servers if server.name == name), None)

    @property
    def server_names(self) -> tuple[str, ...]:
        return tuple(server.name for server in self.settings.triton)

    def repository_of(self, name: str) -> Path:
        """The model repository of a server; of one that is not known any more, the first's."""
        return self.path((self.server(name) or self.settings.triton[0]).repository)


def load(workspace: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a workspace.

    Raises ConfigError with one line for each thing wrong: file, line, key, what is wrong and the nearest known key.
    """
    file = workspace / "config.toml"
    text = _read(file)
    from_file = parse_toml(text, file)
    names: tuple[str, ...] = (named_servers.FIRST,)
    if isinstance(servers := named_servers.by_name(from_file.get("triton"), str(file)), Mapping) and servers:
        from_file, names = {**from_file, "triton": servers}, tuple(servers)
    from_set = named_servers.spread(parse_overrides(overrides), names, Triton.model_fields, "--set")
    from_env = {
        name[len(ENV_PREFIX) :].lower().replace("__", "."): name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
    }
    origin = {
        key: f"{file.name}:{line_of(text, *named_servers.written(key, names)) or '?'}"
        for key, _ in leaves(_named(from_file, names))
    }
    origin |= from_env
    origin |= {key: f"--set {key}" for key, _ in leaves(_named(from_set, names))}
    known = {
        *known_keys(),
        *(f"tune.space.{name}" for name in search_space.setting_names(Train)),
        *(f"watch.folders.{name}" for name in WatchedFolder.model_fields),
        *("notify", *(f"notify.{name}" for name in Notify.model_fields)),
        *(f"triton.{name}.{key}" for name in names for key in Triton.model_fields),
    }
    for key, name in from_env.items():
        if key not in known and not key.startswith("train.optimizers."):  # whose keys are any of timm's optimizers
            raise ConfigError(f"{name}: unknown setting {key!r}{_hint(key, known)}")
    try:
        settings = _layered(from_file, names)(**from_set)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, file, text, origin, known, names))) from None
    except SettingsError:
        raise ConfigError(f"{_not_json(from_env)}: a list is written as JSON, for instance '[\"images\"]'") from None
    config = Config(settings, workspace.resolve(), file, origin, tuple(overrides), hash_text(text))
    plain = dict(leaves(dump(config)))
    if wrong := [
        *limits.out_of_bounds(plain),
        *limits.unknown_policies(plain),
        *limits.impossible(config),
        *search_space.wrong(settings.tune.space, Train),
    ]:
        raise ConfigError("\n".join(f"{_where(key, file, text, origin, names)}: {key}: {said}" for key, said in wrong))
    return config


def hash_text(text: str) -> str:
    """SHA-256 of a file's text, as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["train.epochs=3"]` as nested settings. A value is read as TOML; what is not TOML is taken as text."""
    nested: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {override}: write it as KEY=VALUE, for instance --set train.epochs=3")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            parsed = value
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {override}: {section!r} is set to a value and used as a section")
        place[last] = parsed
    return nested


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each setting in a nested mapping."""
    for key, value in nested.items():
        if (tables := named_servers.tables(value)) is not None:
            yield from leaves(tables if len(tables) > 1 else next(iter(tables.values())), f"{prefix}{key}.")
        elif isinstance(value, Mapping) and value and not search_space.is_axis(value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump(config: Config) -> dict[str, Any]:
    """The settings as plain JSON values, for the journal and for jobs, which know no workspace."""
    plain = config.settings.model_dump(mode="json")
    plain["model"]["weights"] = config.weights
    return plain


def known_keys() -> list[str]:
    """Every dotted key that config.toml may hold."""
    return [key for key, _ in leaves(Settings.model_construct().model_dump(mode="json"))]


def _named(layer: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A layer whose servers stand by their names, as `leaves` tells it: the name is left out where there is one."""
    servers = layer.get("triton")
    one = isinstance(servers, Mapping) and len(names) == 1 and set(servers) == set(names)
    return {**layer, "triton": servers[names[0]]} if one and servers else dict(layer)


def _layered(from_file: Mapping[str, Any], names: Sequence[str]) -> type[Settings]:
    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            from_env = named_servers.spread(env_settings(), names, Triton.model_fields, f"{ENV_PREFIX}…")
            layers = from_env, dict(from_file)
            return init_settings, *(InitSettingsSource(settings_cls, layer) for layer in layers)

    return Layered


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: there is no configuration; `relearn init {file.parent}` writes one, "
            "or name another workspace with --workspace"
        ) from None


def _explain(
    error: ValidationError,
    file: Path,
    text: str,
    origin: Mapping[str, str],
    known: set[str],
    names: Sequence[str],
) -> Iterator[str]:
    told: set[str] = set()
    for problem in error.errors(include_url=False):
        parts = [str(part) for part in problem["loc"] if not isinstance(part, int)]
        key = ".".join(parts)
        entry = next((part for part in problem["loc"] if isinstance(part, int)), 0)
        if parts[:1] == ["triton"] and len(problem["loc"]) > 1:
            key = named_servers.key_of(names, names[entry], ".".join(parts[1:]))
        where = _where(key, file, text, origin, names, entry)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            sections = {k.rpartition(".")[0] for k in known}
            yield f"{where}: unknown setting {key!r}{_hint(key, known | sections)}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] != "too_short" or key not in told:  # its items were refused, so that it has too few
                yield f"{name(where, key)}: {message}{_given(problem)}"
        told.add(key)


def name(where: str, key: str) -> str:
    """Where a setting comes from, and its key where that does not say it."""
    return where if where.endswith(f" {key}") else f"{where}: {key}"


def _where(key: str, file: Path, text: str, origin: Mapping[str, str], names: Sequence[str], entry: int = 0) -> str:
    """What to mend: the variable or the --set that a setting (or one of its section) came from, or file and line."""
    found = [origin[key]] if key in origin else [o for k, o in origin.items() if k.startswith(f"{key}.")]
    overridden = [where for where in found if where.upper().startswith((ENV_PREFIX, "--SET"))]
    key, of_server = named_servers.written(key, names)
    return overridden[-1] if overridden else f"{file}:{nearest_line(text, key, of_server or entry)}"


def _not_json(from_env: Mapping[str, str]) -> str:
    bad = (name for key, name in from_env.items() if key in _LISTS and not _is_json_list(os.environ[name]))
    return next(bad, f"{ENV_PREFIX}…")


def _is_json_list(value: str) -> bool:
    try:
        return isinstance(json.loads(value), list)
    except ValueError:
        return False


def _given(problem: Any) -> str:
    value = problem.get("input")
    of_notify = problem["loc"][0] == "notify" and not {"name", "kinds", "targets"} & {*problem["loc"]}
    if of_notify or "headers" in problem["loc"]:
        return ""  # it may hold a password
    return "" if isinstance(value, Mapping | BaseModel) else f" (is {value!r})"


def _hint(key: str, known: set[str]) -> str:
    guess = nearest(key, known) or nearest(key.rpartition(".")[2], known)
    return f"; did you mean {guess!r}?" if guess else ""
