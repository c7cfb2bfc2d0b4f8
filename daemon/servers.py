"""What is known of each Triton: how it is reached, how it serves a target, in which state it was last found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.dialects.sqlite import insert

from daemon import named_servers, targets
from daemon.config import Config
from daemon.journal import AnyRow, now
from daemon.schema import servers
from daemon.settings import Triton as Settings
from daemon.stock import artifact_folder
from deploy import repository
from deploy.access import Access
from deploy.artifact import ArtifactError, read_manifest
from deploy.config_pbtxt import Flavour
from deploy.config_pbtxt import Serving as ServedHow
from deploy.switch import Switch
from deploy.triton import Triton
from deploy.wire import Endpoint, Tls
from policies.facts import Requirement


def connect(config: Config, server: Settings, timeout: float | None = None) -> Triton:
    """A connection to a server. Raises ConfigError where a header's variable is not set, OSError of a TLS file."""
    tls = None
    if server.tls:
        files = (server.tls_authorities, server.tls_certificate, server.tls_key)
        tls = Tls(*(config.path(Path(file)) if file else None for file in files))
    endpoint = Endpoint(server.url, server.protocol, tls, named_servers.resolve(server.headers))
    return Triton(endpoint, timeout=server.timeout_seconds if timeout is None else timeout)


def find_place(connection: Connection, target: str, names: Sequence[str]) -> str:
    """Where a target is to be served: as its constraint file says, else where it is, else at the first of them."""
    asked = targets.requirements(connection).get(target)
    champion = targets.champion(connection, target)
    wanted = [asked.server if asked else "", champion.server if champion else ""]
    return next((name for name in wanted if name in names), names[0])


def describe_switch(
    config: Config, server: Settings, row: AnyRow, asked: Requirement | None, before: int | None
) -> Switch:
    """The promotion of this row, as this server is given it. before: the version that the target serves there."""
    folder = artifact_folder(config.state, row.artifact_id)
    return Switch(
        repository=config.repository_of(server.name),
        target=row.target,
        artifact=folder,
        version=row.version,
        before=before,
        serving=ServedHow(
            flavour=find_flavour(config, server, row, folder),
            max_batch_size=max(server.max_batch_size, asked.batch_size if asked else 1),
            instances=server.instances,
            threads=config.settings.compute.serve_threads,
        ),
        access=Access(server.file_owner, int(server.file_mode, 8) if server.file_mode else None),
    )


def find_flavour(config: Config, server: Settings, row: AnyRow, folder: Path) -> Flavour:
    """How Triton is to run the artifact: by the Python backend, or by its engine's own. One that is gone stays."""
    if server.flavour == "python":
        return "python"
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        put = repository.versions(config.repository_of(server.name), row.target)
        manifest = put.get(row.version, {}).get("serving", {})
    flavour: Flavour = manifest.get("flavour", "python")
    return flavour


def note(journal: Engine, name: str, state: str, *, trouble: str | None = None, version: str | None = None) -> None:
    """Writes down what a server was found to be: "ready", "away" or "unfit"; `since` stays while the state does."""
    with journal.begin() as connection:
        known = connection.execute(select(servers).where(servers.c.name == name)).first()
        if known and (known.state, known.trouble, known.version) == (state, trouble, version or known.version):
            return
        since = known.since if known and known.state == state else now()
        values = {"state": state, "trouble": trouble, "since": since, "version": version or (known and known.version)}
        connection.execute(
            insert(servers).values(name=name, **values).on_conflict_do_update(index_elements=["name"], set_=values)
        )


def forget_others(connection: Connection, names: Sequence[str]) -> None:
    """Drops what was noted of servers that are configured no more."""
    connection.execute(delete(servers).where(servers.c.name.not_in(names)))
