"""Everything that can be said of a configuration before a daemon starts."""

from __future__ import annotations

from typing import Any

from daemon import constraint_file, named_servers
from daemon.config import Config, dump, leaves
from daemon.errors import ConfigError
from policies.facts import to_dict


def check(config: Config) -> dict[str, Any]:
    """Settings in force with their origin, requirements of all targets, and every error found.

    Remarks are on what may be otherwise where the daemon runs: its environment need not be this one.
    """
    problems = [
        f"{folder}: is watched and does not exist"
        for folder in (*config.folders, config.constraints)
        if not folder.is_dir()
    ]
    remarks = []
    for server in config.settings.triton:
        try:
            named_servers.resolve(server.headers)
        except ConfigError as error:
            remarks.append(f"{config.file}: {error} for the daemon, which does not start without it")
    requirements: dict[str, Any] = {}
    files = sorted(file for file in config.constraints.glob("*.toml") if constraint_file.target_of(file))
    for file in files:
        try:
            requirements[file.stem] = to_dict(constraint_file.read(file, config.server_names))
        except ConfigError as error:
            problems += str(error).splitlines()
    if config.constraints.is_dir() and not files:
        problems.append(f"{config.constraints}: holds no constraint file: nothing would be trained or served")
    settings = [
        {"key": key, "value": value, "from": config.origin.get(key, "default")} for key, value in leaves(dump(config))
    ]
    return {
        "workspace": str(config.workspace),
        "settings": settings,
        "requirements": requirements,
        "remarks": remarks,
        "errors": problems,
    }
