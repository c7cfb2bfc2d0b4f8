"""The entries of [[triton]] by their names: how a file, a variable or a --set says which server it means.

Where there is one server, `triton.url` is that one's, and a plain table [triton] is it. Where there are several,
`triton.NAME.url` says whose; a key that names none is refused, since nobody could tell which was meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from daemon.errors import ConfigError
from policies.suggest import nearest

SECTION = "triton"
FIRST = "main"  # the name of an entry that gives none
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FROM_ENVIRONMENT = "env:"  # before the variable that holds a header's value
HIDDEN = "…"  # in its place where settings are written down; no header can have it


def by_name(given: Any, where: str) -> Any:
    """{name: entry} of what a file holds under [[triton]] or [triton], as it stands there; else what was given.

    Raises ConfigError where two have one name.
    """
    entries = [given] if isinstance(given, Mapping) else given
    if not (isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)):
        return given
    names = [str(entry.get("name", FIRST)) for entry in entries]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where}: triton.name: several servers are called {doubled[0]!r}: give each its own name")
    return dict(zip(names, entries, strict=True))


def spread(layer: Mapping[str, Any], names: Sequence[str], keys: Collection[str], where: str) -> dict[str, Any]:
    """What a variable or a --set says of servers, put under their names. `keys`: what an entry may hold.

    Raises ConfigError where there are several and one is not named.
    """
    given = layer.get(SECTION)
    if given is None:
        return dict(layer)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where} triton: servers are written in config.toml; set a key of one, as triton.{names[0]}.url"
        )
    servers: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if key in names and key not in keys:
            servers.setdefault(key, {}).update(value if isinstance(value, Mapping) else {"": value})
        elif len(names) == 1:
            servers.setdefault(names[0], {})[key] = value
        else:
            guess = nearest(key, names) or names[0]
            meant = f"triton.{guess}.{key if key in keys else 'url'}"
            said = f"names none of the servers {', '.join(names)}; did you mean {meant}?"
            raise ConfigError(f"{where} triton.{key}: {said}")
    return {**layer, SECTION: servers}


def entries(given: Any) -> Any:
    """The list that [[triton]] is, of {name: entry}."""
    if isinstance(given, Mapping) and given and all(isinstance(entry, Mapping) for entry in given.values()):
        return [{"name": name, **entry} for name, entry in given.items()]
    return [given] if isinstance(given, Mapping) else given


def key_of(names: Sequence[str], name: str, key: str) -> str:
    """The dotted key of one server's setting; "" is the server."""
    return ".".join(part for part in (SECTION, name if len(names) > 1 else "", key) if part)


def written(key: str, names: Sequence[str]) -> tuple[str, int]:
    """How a dotted key stands in the file, and in which of the tables [[triton]]."""
    section, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    if section == SECTION and len(names) > 1 and name in names:
        return f"{SECTION}.{inner}" if inner else SECTION, list(names).index(name)
    return key, 0


def tables(value: Any) -> dict[str, Any] | None:
    """{name: entry} of a list of tables that all have names, as [[triton]] is; None of anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(e, Mapping) and "name" in e for e in value):
        return {entry["name"]: entry for entry in value}
    return None


def hide(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers as they may be written down: which there are, and which variables hold them."""
    return {key: value if value.startswith(FROM_ENVIRONMENT) else HIDDEN for key, value in headers.items()}


def resolve(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers as they are sent: "env:NAME" is what that variable holds. Raises ConfigError where it is not set."""
    found = {}
    for key, value in headers.items():
        variable = value.removeprefix(FROM_ENVIRONMENT)
        if variable != value and variable not in os.environ:
            raise ConfigError(f"triton.headers.{key}: the environment has no variable {variable}: set it")
        if value == HIDDEN:
            raise ConfigError(f"triton.headers.{key}: its value was not written down: mend config.toml, which has it")
        found[key] = os.environ[variable] if variable != value else value
    return found


def doubles(values: Iterable[tuple[str, Any]]) -> tuple[str, str] | None:
    """The names of the first two that have the same value."""
    seen: dict[Any, str] = {}
    for name, value in values:
        if value in seen:
            return seen[value], name
        seen[value] = name
    return None
