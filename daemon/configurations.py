"""The configurations of a running daemon: read again on SIGHUP, taken or refused as a whole, and written down.

One that is taken takes effect as a restart would have it: watched folders, policies, promotion, Triton, timers, the use
of the machine and the log at once; a running cycle keeps the settings it was begun with (but `compute`), a drop is read
to its end as it was begun. The state folder alone takes a restart, since all that runs writes there. A configuration
that changes it is refused with all else in it: half of one is what nobody wrote.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, select, update

from daemon import named_servers, schema
from daemon.config import Config, dump, hash_text, leaves, load
from daemon.errors import ConfigError
from daemon.journal import AnyRow, add, now, open_journal
from daemon.settings import ENV_PREFIX, Paths, Settings
from daemon.text_file import parse_toml, read_text

log = logging.getLogger("relearn")
configurations = schema.configurations
STAND = "the settings before stand"


def take(connection: Connection, config: Config, because: str) -> tuple[Config, str] | None:
    """What is to be in force from now on, written down, and what to say of it once it is.

    None: what was in force stands; the log and those who asked are told why.
    """
    digest = hash_file(config.file)
    try:
        new = read_again(config)
    except ConfigError as error:
        said = f"{error}\n{STAND}"
        log.error("%s", said)
        note(connection, because, digest, None, str(error))
        answer(connection, "refused", said)
        return None
    said = f"{new.file} is in force: {', '.join(compare(config, new)) or 'it sets what was set before'}"
    note(connection, because, new.digest, new)
    return new, said


def read_again(config: Config) -> Config:
    """What is in force once this configuration's file is read anew, under the same --set and environment.

    Raises ConfigError where a daemon would not start with it, or it takes a restart.
    """
    new = load(config.file.parent, config.overrides)
    check_surroundings(new)
    if new.state != config.state:
        raise ConfigError(
            f"{_origin(new, 'paths.state')}: paths.state: is {new.state} and was {config.state}: that takes a restart"
        )
    return new


def check_surroundings(config: Config) -> None:
    """Raises ConfigError where a folder is to be watched that is not there, or a header's variable is not set."""
    for server in config.settings.triton:
        named_servers.resolve(server.headers)
    for folder in (*config.folders, config.constraints):
        if not folder.is_dir():
            key = "paths.constraints" if folder == config.constraints else "watch.folders"
            where = _origin(config, key)
            raise ConfigError(f"{where}: {key}: {folder} is watched and not there; make it, or correct the key")


def _origin(config: Config, key: str) -> str:
    return config.origin.get(key, config.file.name)


def compare(old: Config, new: Config) -> list[str]:
    """As "train.epochs 20 -> 3", what is set otherwise."""
    before, after = dict(leaves(dump(old))), dict(leaves(dump(new)))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    changed = [f"{key} {_show(before.get(key))} -> {_show(after.get(key))}" for key in keys]
    before, after = _secrets(old), _secrets(new)
    return changed + [key for key in {**before, **after} if before.get(key) != after.get(key) and key not in keys]


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _secrets(config: Config) -> dict[str, Any]:
    """By its key, what is compared and not shown."""
    found: dict[str, Any] = {"notify": config.settings.notify}
    for server in config.settings.triton:
        for header, value in server.headers.items():
            found[named_servers.key_of(config.server_names, server.name, f"headers.{header}")] = value
    return found


def hash_file(file: Path) -> str:
    """The digest of what config.toml holds now; "" where it cannot be read."""
    with suppress(OSError, ConfigError):
        return hash_text(read_text(file))
    return ""


def note(connection: Connection, because: str, digest: str, config: Config | None, error: str | None = None) -> None:
    """Writes down that a configuration was taken, or refused (None) and why; nothing where nothing is new."""
    about = {"digest": digest, "settings": dump(config) if config else None, "error": error}
    last = newest(connection)
    if last is None or about != {key: getattr(last, key) for key in about}:
        add(connection, configurations, at=now(), because=because, **about)


def newest(connection: Connection) -> AnyRow | None:
    """The configuration that a daemon took or refused last."""
    return connection.execute(select(configurations).order_by(configurations.c.id.desc())).first()


def answer(connection: Connection, state: str, said: str) -> None:
    """Tells those who asked to have it read again what came of it."""
    requests = schema.requests
    asked = (requests.c.kind == "reload", requests.c.state == "working")
    connection.execute(update(requests).where(*asked).values(state=state, answer=said))


def find(workspace: Path) -> tuple[Config, str | None]:
    """The configuration on the disk, and None; where it is refused, what a daemon took last, and why it is.

    Raises ConfigError where there is neither.
    """
    try:
        return load(workspace), None
    except ConfigError as error:
        with suppress(ValidationError):  # of another release's settings
            if plain := _last_taken(_find_state(workspace)):
                return Config(Settings(**plain), workspace.resolve(), workspace / "config.toml", {}), str(error)
        raise


def _last_taken(state: Path) -> dict[str, Any] | None:
    if not (state / "journal.db").exists():
        return None
    taken = select(configurations.c.settings).where(configurations.c.error.is_(None))
    with open_journal(state).connect() as connection:
        found: dict[str, Any] | None = connection.execute(taken.order_by(configurations.c.id.desc())).scalar()
    return found


def _find_state(workspace: Path) -> Path:
    """Where the state folder lies, as far as a file that is refused still says it."""
    file = workspace / "config.toml"
    state: Any = Paths().state
    with suppress(OSError, ConfigError, AttributeError):
        state = parse_toml(read_text(file), file).get("paths", {}).get("state", state)
    return workspace / Path(os.environ.get(f"{ENV_PREFIX}PATHS__STATE", str(state))).expanduser()


def view(connection: Connection, file: Path, refused: str | None) -> dict[str, Any]:
    """How config.toml on the disk stands to what is in force: why it is refused, whether it was edited since.

    refused: what is wrong with it by itself.
    """
    last, digest = newest(connection), hash_file(file)
    same = last is not None and last.digest == digest
    error = refused or (last.error if last is not None and same else None)
    return {"error": error, "edited": error is None and last is not None and not same}
