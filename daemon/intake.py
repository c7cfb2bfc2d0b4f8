"""What a drop brings, as rows: samples, occurrences, labels and rejections, a batch at a time.

Nothing of the user's is modified, moved or deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from daemon import forget
from daemon.config import Config
from daemon.erase import erase_copies
from daemon.journal import AnyRow, add, change, chunks, now
from daemon.scan import UNREADABLE, Difference
from daemon.schema import drops, labels, manifests, occurrences, rejections, samples
from daemon.walk import text

File = Mapping[Any, Any]  # what the reading child says of one (daemon/decode.py)
Said = tuple[str | None, str | None]  # class and group, as a manifest says
NOTHING: Said = (None, None)


class Drop:
    """One drop being read: what is written down of each line that its children say."""

    def __init__(self, config: Config, journal: Engine, folder: Path, difference: Difference) -> None:
        self.journal = journal
        self.folder = folder
        self.watched = config.watched(folder)
        self.store = config.state / "store"
        self.files = difference.read
        self._known = difference.known
        self.manifest = difference.manifest
        self.again: list[str] = []
        self.said: dict[str, Said] = dict.fromkeys(self.files, NOTHING) if self.watched.manifest else {}
        with journal.begin() as connection:
            self.id = add(
                connection, drops, folder=str(folder), state="reading", started=now(), files=len(self.files)
            )  # fmt: skip
            self._end(connection, difference.gone)
            change(connection, drops, self.id, gone=len(difference.gone))

    # --- images ------------------------------------------------------------------------------------------------------

    def record(self, files: Iterable[dict[str, Any]]) -> None:
        """Writes down a batch that a child has read and stored: one transaction."""
        files = list(files)
        self.again += [file["path"] for file in files if file.get("again")]
        with self.journal.begin() as connection:
            refused = self._refuse_forgotten(connection, files)
            bad = [file for file in files if "reason" in file]
            good = sorted((file for file in files if "sha256" in file), key=lambda file: str(file["sha256"]))
            self._end(connection, [file["path"] for file in files if file["path"] in self._known])
            if good:
                self._accept(connection, good)
            if bad:
                connection.execute(insert(rejections), [self._rejection(file) for file in bad])
            connection.execute(
                update(drops)
                .where(drops.c.id == self.id)
                .values(added=drops.c.added + len(good), rejected=drops.c.rejected + len(bad))
            )
        erase_copies(self.store, refused)

    def _refuse_forgotten(self, connection: Connection, files: list[dict[str, Any]]) -> set[bytes]:
        """What people had forgotten for good is not taken in again, wherever it lies."""
        read = [bytes.fromhex(file["sha256"]) for file in files if "sha256" in file]
        refused = forget.is_forgotten(connection, read)
        for file in files if refused else ():
            if "sha256" in file and (sha := bytes.fromhex(file["sha256"])) in refused:
                file["reason"] = forget.why_refused(connection, sha)
                del file["sha256"]
        return refused

    def refuse(self, paths: list[str], reason: str, *, again: bool = False) -> None:
        """Rejects files unread, as they are: they are read when their content changes, or `again` at the next scan."""
        files = []
        for path in paths:
            try:
                found = (self.folder / path).stat()
            except OSError:
                continue
            size, mtime = UNREADABLE if again else (found.st_size, found.st_mtime_ns)
            files.append({"path": text(path), "size": size, "mtime_ns": mtime, "reason": reason})
        if files:
            self.record(files)

    def finish(self, state: str) -> AnyRow:
        """Ends a phase of the drop: what it is then ("matching", "ready")."""
        with self.journal.begin() as connection:
            change(connection, drops, self.id, state=state, ended=now())
            return connection.execute(select(drops).where(drops.c.id == self.id)).one()

    def _accept(self, connection: Connection, files: list[dict[str, Any]]) -> None:
        moment = now()
        rows: list[dict[str, Any]] = [
            {"sha256": bytes.fromhex(file["sha256"]), "first_seen": moment}
            | {name: file[name] for name in ("bytes", "width", "height", "mode", "frames")}
            for file in files
        ]
        connection.execute(upsert(samples).on_conflict_do_nothing(), rows)
        ids = _find_samples(connection, [row["sha256"] for row in rows])
        found = [
            self._occurrence(ids[row["sha256"]], file, self.look_up(file["path"]), moment)
            for row, file in zip(rows, files, strict=True)
        ]
        connection.execute(insert(occurrences), found)
        self._label(connection, found, moment)

    def look_up(self, path: str) -> Said:
        """Class and group of a file: by the manifest where there is one, otherwise by its path."""
        name, key = self.said.get(path, NOTHING)
        return name or self.watched.class_of(path), key or self.watched.group_of(path)

    def _occurrence(self, sample: int, file: File, said: Said, moment: float) -> dict[str, Any]:
        return {
            "folder": str(self.folder), "path": file["path"], "sample_id": sample, "class_name": said[0],
            "group_key": said[1], "size": file["size"], "mtime_ns": file["mtime_ns"], "drop_id": self.id,
            "first_seen": moment,
        }  # fmt: skip

    def _label(self, connection: Connection, found: list[dict[str, Any]], moment: float) -> None:
        source = "manifest" if self.watched.manifest else "folder"
        said = [
            {"sample_id": row["sample_id"], "class_name": row["class_name"], "source": source, "by": source,
             "at": moment, "drop_id": self.id}
            for row in found if row["class_name"] is not None
        ]  # fmt: skip
        if said:
            connection.execute(insert(labels), said)

    def _rejection(self, file: File) -> dict[str, Any]:
        kept = {name: file[name] for name in ("path", "size", "mtime_ns", "reason")}
        return {"folder": str(self.folder), "drop_id": self.id, "at": now(), **kept}

    def _end(self, connection: Connection, paths: list[str]) -> None:
        """These paths no longer hold what was seen there."""
        for table in (occurrences, rejections):
            for some in chunks(paths):
                connection.execute(self._live(table, some).values(gone=now()))

    def _live(self, table: Table, paths: list[str]) -> Any:
        here = (table.c.folder == str(self.folder), table.c.path.in_(paths), table.c.gone.is_(None))
        return update(table).where(*here)

    # --- labels by a manifest ----------------------------------------------------------------------------------------

    def hear_rows(self, rows: list[tuple[str, str | None, str | None]]) -> None:
        """What the manifest says of images: of known ones it is written down, of those to be read it is kept."""
        said = {path: (name, key) for path, name, key in rows}
        self.said |= {path: what for path, what in said.items() if path in self.said}
        self._say(said)

    def hear_manifest(self, told: Mapping[str, Any]) -> None:
        """The manifest was read."""
        row = {"folder": str(self.folder), "path": self.watched.manifest, "at": now()}
        row |= {name: told[name] for name in ("size", "mtime_ns", "rows", "waiting", "refused")}
        stat = {"path": self.watched.manifest, "size": told["size"], "mtime_ns": told["mtime_ns"]}
        with self.journal.begin() as connection:
            self._end(connection, [self.watched.manifest])
            for problem in told["problems"]:
                connection.execute(insert(rejections).values(self._rejection({**stat, "reason": problem})))
            new = upsert(manifests).values(row)
            connection.execute(new.on_conflict_do_update(["folder", "path"], set_=row))

    def lose_manifest(self) -> None:
        """It is away, or could not be read: it counts as new when next seen, for images of this drop to get a class."""
        table = manifests
        with self.journal.begin() as connection:
            here = (table.c.folder == str(self.folder), table.c.path == self.watched.manifest)
            connection.execute(delete(table).where(*here))

    def _say(self, said: Mapping[str, Said]) -> None:
        """Occurrences whose class or group is another now end, and begin anew in this drop."""
        with self.journal.begin() as connection:
            for some in chunks(said):
                self._relabel(connection, said, some)

    def _relabel(self, connection: Connection, said: Mapping[str, Said], paths: list[str]) -> None:
        table, moment = occurrences, now()
        here = (table.c.folder == str(self.folder), table.c.path.in_(paths), table.c.gone.is_(None))
        rows = connection.execute(select(table).where(*here)).mappings().all()
        other = [row for row in rows if (row["class_name"], row["group_key"]) != self._with_path(row["path"], said)]
        if not other:
            return
        self._end(connection, [row["path"] for row in other])
        found = [self._occurrence(row["sample_id"], row, self._with_path(row["path"], said), moment) for row in other]
        connection.execute(insert(table), found)
        self._label(connection, found, moment)
        connection.execute(update(drops).where(drops.c.id == self.id).values(added=drops.c.added + len(found)))

    def _with_path(self, path: str, said: Mapping[str, Said]) -> Said:
        name, key = said[path]
        return name, key or self.watched.group_of(path)


def _find_samples(connection: Connection, shas: list[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for some in chunks(shas):
        chosen = samples.c.sha256.in_(some)
        found |= {sha: id_ for id_, sha in connection.execute(select(samples.c.id, samples.c.sha256).where(chosen))}
    return found


def leave_folders(journal: Engine, but: Iterable[Path]) -> None:
    """Samples are no longer seen in folders that are not watched any more. They stay in the store, with their roles."""
    watched = [str(folder) for folder in but]
    with journal.begin() as connection:
        for table in (occurrences, rejections):
            left = (table.c.folder.not_in(watched), table.c.gone.is_(None))
            connection.execute(update(table).where(*left).values(gone=now()))


def write_job(file: Path, job: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job), encoding="utf-8")
    return file
