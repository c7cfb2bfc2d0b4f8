"""What a drop brings, as rows: samples, occurrences, labels and rejections, a batch at a time.

Nothing of the user's is modified, moved or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from daemon import forget
from daemon.config import Config
from daemon.erase import erase_copies
from daemon.journal import AnyRow, add, add_many, change, chunks, now
from daemon.scan import Difference
from daemon.schema import drops, labels, manifests, occurrences, rejections, samples
from daemon.walk import UNREADABLE, stat_of, text

File = Mapping[Any, Any]  # what the reading child says of one (daemon/decode.py)
Said = tuple[str | None, str | None]  # class and group, as a manifest says
NOTHING: Said = (None, None)
Known = tuple[int, float | None]  # of a sample: its id, and since when it is forgotten
Row = tuple[Any, ...]
OCCURRENCE = ("sample_id", "class_name", "path", "folder", "group_key", "size", "mtime_ns", "drop_id", "first_seen")


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
            known = _find_samples(connection, [bytes.fromhex(file["sha256"]) for file in files if "sha256" in file])
            refused = self._refuse_forgotten(connection, files, known)
            bad = [file for file in files if "reason" in file]
            good = [file for file in files if "sha256" in file]
            self._end(connection, [file["path"] for file in files if file["path"] in self._known])
            if good:
                self._accept(connection, good, {sha: id_ for sha, (id_, _) in known.items()})
            if bad:
                connection.execute(insert(rejections), [self._rejection(file) for file in bad])
            connection.execute(
                update(drops)
                .where(drops.c.id == self.id)
                .values(added=drops.c.added + len(good), rejected=drops.c.rejected + len(bad))
            )
        erase_copies(self.store, refused)

    def _refuse_forgotten(
        self, connection: Connection, files: list[dict[str, Any]], known: Mapping[bytes, Known]
    ) -> set[bytes]:
        """What people had forgotten for good is not taken in again, wherever it lies."""
        refused = {sha for sha, (_, forgotten) in known.items() if forgotten is not None}
        for file in files if refused else ():
            if "sha256" in file and (sha := bytes.fromhex(file["sha256"])) in refused:
                file["reason"] = forget.why_refused(connection, sha)
                del file["sha256"]
        return refused

    def refuse(self, paths: list[str], reason: str, *, again: bool = False) -> None:
        """Rejects files unread, as they are: they are read when their content changes, or `again` at the next scan."""
        files = []
        for path in paths:
            size, mtime = UNREADABLE
            if not again:
                try:
                    size, mtime = stat_of((self.folder / path).stat())
                except OSError:
                    continue
            files.append({"path": text(path), "size": size, "mtime_ns": mtime, "reason": reason})
        if files:
            self.record(files)

    def finish(self, state: str) -> AnyRow:
        """Ends a phase of the drop: what it is then ("matching", "ready")."""
        with self.journal.begin() as connection:
            change(connection, drops, self.id, state=state, ended=now())
            return connection.execute(select(drops).where(drops.c.id == self.id)).one()

    def _accept(self, connection: Connection, files: list[dict[str, Any]], ids: dict[bytes, int]) -> None:
        """Samples that are not known yet get their ids here, in the order of their hashes, as their index has them."""
        moment = now()
        shas = [bytes.fromhex(file["sha256"]) for file in files]
        new = sorted({sha: file for sha, file in zip(shas, files, strict=True) if sha not in ids}.items())
        first = connection.execute(select(func.coalesce(func.max(samples.c.id), 0))).scalar_one() + 1
        ids.update((sha, first + number) for number, (sha, _) in enumerate(new))
        looks = itemgetter("bytes", "width", "height", "mode", "frames")
        names = ("id", "sha256", "bytes", "width", "height", "mode", "frames", "first_seen")
        add_many(connection, samples, names, [(ids[sha], sha, *looks(file), moment) for sha, file in new])
        found = [
            self._occurrence(ids[sha], file, self.look_up(file["path"]), moment)
            for sha, file in zip(shas, files, strict=True)
        ]
        self._see(connection, found, moment)

    def look_up(self, path: str) -> Said:
        """Class and group of a file: by the manifest where there is one, otherwise by its path."""
        name, key = self.said.get(path, NOTHING)
        return name or self.watched.class_of(path), key or self.watched.group_of(path)

    def _occurrence(self, sample: int, file: File, said: Said, moment: float) -> Row:
        return (
            sample, said[0], file["path"], str(self.folder), said[1], file["size"], file["mtime_ns"], self.id, moment,
        )  # fmt: skip

    def _see(self, connection: Connection, found: list[Row], moment: float) -> None:
        """Writes down occurrences, and the labels that their files have."""
        add_many(connection, occurrences, OCCURRENCE, found)
        source = "manifest" if self.watched.manifest else "folder"
        said = [
            (sample, name, source, source, moment, self.id) for sample, name, *_ in found if name is not None
        ]  # fmt: skip
        add_many(connection, labels, ("sample_id", "class_name", "source", "by", "at", "drop_id"), said)

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
        self._see(connection, found, moment)
        connection.execute(update(drops).where(drops.c.id == self.id).values(added=drops.c.added + len(found)))

    def _with_path(self, path: str, said: Mapping[str, Said]) -> Said:
        name, key = said[path]
        return name, key or self.watched.group_of(path)


def _find_samples(connection: Connection, shas: list[bytes]) -> dict[bytes, Known]:
    """Those that are known, each with its id and since when it is forgotten."""
    found: dict[bytes, Known] = {}
    for some in chunks(shas):
        query = f"SELECT sha256, id, forgotten FROM samples WHERE sha256 IN ({', '.join('?' * len(some))})"
        found |= {sha: (id_, since) for sha, id_, since in connection.exec_driver_sql(query, tuple(some))}
    return found


def leave_folders(journal: Engine, but: Iterable[Path]) -> None:
    """Samples are no longer seen in folders that are not watched any more. They stay in the store, with their roles."""
    watched = [str(folder) for folder in but]
    with journal.begin() as connection:
        for table in (occurrences, rejections):
            left = (table.c.folder.not_in(watched), table.c.gone.is_(None))
            connection.execute(update(table).where(*left).values(gone=now()))
