"""What settings may not be, beyond their types: values out of range, and combinations that cannot work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon import named_servers
from daemon.variants import split
from deploy import access
from deploy.device import find_version, package

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.settings import Triton

POLICIES = ("volume", "new_class", "accuracy", "drift", "drift_unlabelled", "staleness")
_MOST = 1e7  # a timer of so many minutes still has a date
_COUNT = (1.0, _MOST)
_SHARE = (0.0, 1.0)
_CHANCE = (1e-9, 1.0 - 1e-9)
_BOUNDS = {  # of the settings that policies/settings.py describes with the standard library alone
    "policies.volume.new_samples": _COUNT,
    "policies.volume.new_share": (0.0, math.inf),
    "policies.volume.class_samples": _COUNT,
    "policies.volume.class_share": (0.0, math.inf),
    "policies.volume.first_classes": (2.0, _MOST),
    "policies.volume.first_samples_per_class": _COUNT,
    "policies.new_class.samples": _COUNT,
    "policies.accuracy.fall": _SHARE,
    "policies.accuracy.samples": _COUNT,
    "policies.accuracy.confidence": _CHANCE,
    "policies.labels.hold_above": _SHARE,
    "policies.labels.samples": _COUNT,
    "policies.labels.confidence": _CHANCE,
    "policies.drift.false_alarms_per_100_checks": (0.25, 100.0),
    "policies.drift.samples": (4.0, _MOST),
    "policies.staleness.days": (0.0, _MOST),
    "policies.staleness.samples": _COUNT,
    "policies.budget.minutes_per_day": (0.0, _MOST),
    "policies.cooldown.minutes": (0.0, _MOST),
    "policies.tuning.days": (0.0, _MOST),
    "policies.tuning.missed_days": (0.0, _MOST),
    "policies.retry.attempts": _COUNT,
    "policies.retry.first_seconds": (0.01, _MOST),
    "policies.retry.max_seconds": (0.01, _MOST),
    "promotion.margin": _SHARE,
    "promotion.class_margin": _SHARE,
    "promotion.error_budget": _CHANCE,
    "promotion.period_days": (0.01, _MOST),
    "promotion.new_class_recall_min": _SHARE,
    "promotion.confidence": _CHANCE,
}


def out_of_bounds(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and sentence of each setting (by dotted key) whose value can never work."""
    for key, (low, high) in _BOUNDS.items():
        value = settings[key]
        if not low <= value <= high:
            if (low, high) == _CHANCE:
                asked = "lie between 0 and 1"
            else:
                asked = f"be at least {low:g}" if value < low else f"be at most {high:g}"
            yield key, f"must {asked} (is {value:g})"
    if settings["policies.retry.max_seconds"] < settings["policies.retry.first_seconds"]:
        yield "policies.retry.max_seconds", "must not be below policies.retry.first_seconds"


def unknown_policies(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and sentence of each policy in the rule that there is not, or that stands in both lists."""
    alone, together = settings["policies.rule.alone"], settings["policies.rule.together"]
    for key, names in (("policies.rule.alone", alone), ("policies.rule.together", together)):
        for name in names:
            if name not in POLICIES:
                yield key, f"there is no policy {name!r}; there are {', '.join(POLICIES)}"
    for name in sorted(set(alone) & set(together)):
        yield "policies.rule.together", f"{name} suffices alone already: name it in one list"


def impossible(config: Config) -> Iterator[tuple[str, str]]:
    """Key and sentence of each combination that cannot work: folders that lie in one another."""
    ours = {
        "paths.state": config.state,
        "paths.constraints": config.constraints,
    }
    ours |= {_of(config, server, "repository"): config.path(server.repository) for server in config.settings.triton}
    for key, path in ours.items():
        if path.exists() and not path.is_dir():
            yield key, f"{path} is a file: name a folder"
    yield from _impossible_servers(config)
    seen: list[Path] = []
    for folder in (folder.resolve() for folder in config.folders):
        for other in seen:
            if folder.is_relative_to(other) or other.is_relative_to(folder):
                yield (
                    "watch.folders",
                    f"{folder} and {other} overlap: each image would be seen twice",
                )
        seen.append(folder)
        for key, path in ours.items():
            if path.resolve().is_relative_to(folder):
                yield (
                    key,
                    f"{path} lies in the watched folder {folder}: its files would be read as images",
                )
    if config.weights not in ("none", "timm") and not Path(config.weights).is_file():
        yield "model.weights", f'names the file {config.weights}, which is not there; or write "none" or "timm"'
    if config.settings.train.optimizer == "auto" and not config.settings.roles.tune:
        yield "train.optimizer", 'is "auto", which compares optimizers on tune samples: roles.tune must be above 0'
    called = [entry.called for entry in config.settings.notify]
    if doubled := sorted({name for name in called if called.count(name) > 1}):
        yield "notify", f"has several entries of the name {', '.join(doubled)}: give each a name of its own"
    yield from _impossible_search(config)
    yield from _missing_engines(config)
    names = config.settings.model.architectures
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        yield "model.architectures", f"names {', '.join(doubled)} twice"


def _of(config: Config, server: Triton, key: str) -> str:
    return named_servers.key_of([each.name for each in config.settings.triton], server.name, key)


def _impossible_servers(config: Config) -> Iterator[tuple[str, str]]:
    servers = {server.name: server for server in config.settings.triton}
    repositories = {name: config.path(server.repository).resolve() for name, server in servers.items()}
    for name, server in servers.items():
        if repositories[name] == config.state.resolve():
            said = f"{repositories[name]} is paths.state too: Triton's models need a folder of their own"
            yield _of(config, server, "repository"), said
        for key in ("tls_authorities", "tls_certificate", "tls_key"):
            file = getattr(server, key)
            if file and not config.path(Path(file)).is_file():
                yield _of(config, server, key), f"names the file {config.path(Path(file))}, which is not there"
        if wrong := access.find_unknown(server.file_owner):
            yield _of(config, server, "file_owner"), wrong
    for key, values in (("url", {name: server.url for name, server in servers.items()}), ("repository", repositories)):
        if twice := named_servers.doubles(values.items()):
            yield _of(config, servers[twice[1]], key), f"is that of {twice[0]!r} too: two servers need two"


def _missing_engines(config: Config) -> Iterator[tuple[str, str]]:
    for engine in dict.fromkeys(split(variant)[0] for variant in config.settings.build.engines):
        if find_version(engine) is None:
            wanted = package(engine)
            yield "build.engines", f"{engine} is not installed here: install its package {wanted}, or leave it out"


def _impossible_search(config: Config) -> Iterator[tuple[str, str]]:
    settings = config.settings
    if settings.tune.trials and not settings.roles.tune:
        yield "tune.trials", "are compared on tune samples: roles.tune must be above 0"
    optimizers = settings.tune.space.get("optimizer")
    if optimizers is not None and "auto" in (optimizers.choices or ()):
        yield (
            "tune.space.optimizer",
            'a race of optimizers in every trial: leave "auto" out, or name it in train.optimizer',
        )
    audit = settings.audit
    if audit.backbone and audit.weights != "timm" and not config.path(Path(audit.weights)).is_file():
        yield "audit.weights", f'names the file {config.path(Path(audit.weights))}, which is not there; or write "timm"'
    twice = {name for name in settings.build.engines if settings.build.engines.count(name) > 1}
    if twice:
        yield "build.engines", f"names {', '.join(sorted(twice))} twice"
