"""From paths to samples: what changed in a watched folder, read by a child, written down batch by batch.

Nothing of the user's is modified, moved or deleted. The scan is the truth: what is on disk is compared with the
occurrences in the journal, so that whatever was missed (a daemon that was down, a full queue) is found by the next.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from daemon import roles
from daemon.config import Config
from daemon.journal import add, change, now
from daemon.schema import drops, groups, labels, occurrences, rejections, samples
from policies.facts import Role

Stat = tuple[int, int]  # size, mtime in nanoseconds
UNREADABLE: Stat = (-1, -1)  # of a file that may not be read: a change of its mode changes neither size nor mtime
BATCH = 128  # files that are made durable with one sync
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(slots=True)
class Difference:
    """What a folder holds, compared with what the journal knows of it."""

    read: list[str] = field(default_factory=list)  # new, or changed
    gone: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)  # changed a moment ago: to be looked at again
    unnamable: list[str] = field(default_factory=list)  # new, and their names are not text


def compare(connection: Connection, folder: Path, paths: Iterable[Path] | None, settle_seconds: float) -> Difference:
    """Compares the folder (or just these paths in it) with the journal.

    A folder that is missing or entirely empty while samples of it are known is taken to be away (unmounted), not
    emptied: raises FileNotFoundError. What is below a folder that cannot be listed stays as it is known.
    """
    known = dict(_known(connection, folder, paths))
    away: list[str] = []
    present = dict(_present(folder, paths, away))
    if paths is None and known and not present:
        raise FileNotFoundError(f"{folder}: is empty or away; the {len(known)} files known of it stay as they are")
    missing = known.keys() - set(map(_text, present))
    hidden = tuple(f"{_text(path)}/" for path in away)
    difference = Difference(gone=sorted(path for path in missing if not f"{path}/".startswith(hidden)))
    settled_before = time.time() - settle_seconds
    for path, (found, changed) in sorted(present.items()):
        if known.get(_text(path)) == found or (
            known.get(_text(path)) == UNREADABLE and not os.access(folder / path, os.R_OK)
        ):
            continue
        if path != _text(path):
            difference.unnamable.append(path)
            continue
        if paths is None and changed > settled_before:
            difference.fresh.append(path)
        else:
            difference.read.append(path)
    return difference


def _known(connection: Connection, folder: Path, paths: Iterable[Path] | None) -> Iterator[tuple[str, Stat]]:
    for table in (occurrences, rejections):
        query = select(table.c.path, table.c.size, table.c.mtime_ns).where(
            table.c.folder == str(folder), table.c.gone.is_(None)
        )
        if paths is None:
            for path, size, mtime in connection.execute(query):
                yield path, (size, mtime)
            continue
        for touched in paths:
            name = _text(str(touched.relative_to(folder)))
            below = (table.c.path >= f"{name}/") & (table.c.path < f"{name}0")  # "0" follows "/"
            for path, size, mtime in connection.execute(query.where((table.c.path == name) | below)):
                yield path, (size, mtime)


def _text(path: str) -> str:
    """The path as the journal can hold it: bytes that are not UTF-8, and control characters, are written as \\xNN.

    A line break in a class's name would be two lines of Triton's labels.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _present(folder: Path, paths: Iterable[Path] | None, away: list[str]) -> Iterator[tuple[str, tuple[Stat, float]]]:
    """Each file with its size and times; what is there but cannot be looked at is added to `away`."""
    prefix = len(str(folder)) + 1
    for start in [folder] if paths is None else paths:
        if any(part.startswith(".") for part in start.relative_to(folder).parts):
            continue
        for entry in _walk(_up_to_a_link(folder, start), away, prefix):
            try:
                found = Path(entry).stat()
            except FileNotFoundError:
                continue
            except OSError:
                away.append(entry[prefix:])
                continue
            yield entry[prefix:], ((found.st_size, found.st_mtime_ns), found.st_ctime)


def _up_to_a_link(folder: Path, start: Path) -> Path:
    """The first link on the way from the folder to this path, which is not followed; the path itself where none is."""
    parts = start.relative_to(folder).parts
    on_the_way = (folder.joinpath(*parts[:depth]) for depth in range(1, len(parts)))
    return next((path for path in on_the_way if path.is_symlink()), start)


def _walk(start: Path, away: list[str], prefix: int) -> Iterator[str]:
    try:
        watched = len(str(start)) < prefix  # which may be a link itself
        folder = start.is_dir() and (watched or not start.is_symlink())
    except OSError:  # what is above it may not be entered
        away.append(str(start)[prefix:])
        return
    if not folder:
        if os.path.lexists(start):
            yield str(start)
        return
    stack = [str(start)]
    while stack:
        at = stack.pop()
        try:
            entries = list(os.scandir(at))
        except FileNotFoundError:
            continue
        except OSError:
            away.append(at[prefix:])
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                stack.append(entry.path)
            else:
                yield entry.path


class Drop:
    """One drop being read: the job for its child, and what to write down of each line that the child says."""

    def __init__(self, config: Config, journal: Engine, folder: Path, difference: Difference) -> None:
        self.config = config
        self.journal = journal
        self.folder = folder
        self.unread = difference.read
        self.total = len(difference.read)
        self.batch = BATCH
        self.again: list[str] = []
        shares = config.settings.roles
        self._shares: dict[Role, float] = {
            "train": shares.train,
            "tune": shares.tune,
            "judge": shares.judge,
        }
        with journal.begin() as connection:
            self.id = add(
                connection,
                drops,
                folder=str(folder),
                state="reading",
                started=now(),
                added=0,
                gone=0,
                rejected=0,
            )
            _end(connection, self.folder, difference.gone)
            change(connection, drops, self.id, gone=len(difference.gone))
            self._counts = roles.count_roles(connection)

    def job(self, token: str) -> dict[str, Any]:
        """What the reading child is to do (daemon/decode.py)."""
        return {
            "token": token,
            "store": str(self.config.state / "store"),
            "files": [[str(self.folder), path] for path in self.unread],
            "max_pixels": self.config.settings.watch.max_megapixels * 1e6,
            "batch": self.batch,
        }

    def take(self, files: list[dict[str, Any]]) -> None:
        """Writes down a batch that the child has read and stored: one transaction."""
        self.unread = self.unread[len(files) :]
        self.record(files)

    def record(self, files: list[dict[str, Any]]) -> None:
        with self.journal.begin() as connection:
            good = [file for file in files if "sha256" in file]
            bad = [file for file in files if "reason" in file]
            self.again += [file["path"] for file in files if file.get("again")]
            _end(connection, self.folder, [file["path"] for file in files])
            for file in sorted(good, key=lambda file: str(file["sha256"])):
                self._accept(connection, file)
            for file in bad:
                self._reject(connection, file)
            connection.execute(
                update(drops)
                .where(drops.c.id == self.id)
                .values(added=drops.c.added + len(good), rejected=drops.c.rejected + len(bad))
            )

    def refuse(self, paths: list[str], reason: str, *, again: bool = False) -> None:
        """Rejects files unread, as they are: they are read when their content changes, or `again` at the next scan."""
        files = []
        for path in paths:
            try:
                found = (self.folder / path).stat()
            except OSError:
                continue
            size, mtime = UNREADABLE if again else (found.st_size, found.st_mtime_ns)
            files.append({"path": _text(path), "size": size, "mtime_ns": mtime, "reason": reason})
        self.record(files)

    def crashed(self, last_words: str, starved: bool = False) -> None:
        """The child died. Its files are read one by one from now on, until the one that kills it is found.

        starved: memory was short, which may be nothing of this file's: the next scan tries it again.
        """
        if self.batch == 1 and self.unread:
            words = next(reversed(last_words.strip().splitlines()), "killed")
            self.refuse(self.unread[:1], f"crashed the process that read it: {words}", again=starved)
            self.unread = self.unread[1:]
            self.batch = BATCH
        else:
            self.batch = 1

    def finish(self) -> None:
        with self.journal.begin() as connection:
            change(connection, drops, self.id, state="ready", ended=now())

    def _accept(self, connection: Connection, file: dict[str, Any]) -> None:
        sha = bytes.fromhex(file["sha256"])
        name = class_of(file["path"])
        connection.execute(
            upsert(samples)
            .values(
                sha256=sha,
                bytes=file["bytes"],
                width=file["width"],
                height=file["height"],
                mode=file["mode"],
                first_seen=now(),
            )
            .on_conflict_do_nothing()
        )
        sample, group = connection.execute(
            select(samples.c.id, samples.c.group_id).where(samples.c.sha256 == sha)
        ).one()
        connection.execute(
            insert(occurrences).values(
                folder=str(self.folder),
                path=file["path"],
                sample_id=sample,
                class_name=name,
                size=file["size"],
                mtime_ns=file["mtime_ns"],
                drop_id=self.id,
                first_seen=now(),
            )
        )
        if name is None:
            return
        connection.execute(
            insert(labels).values(
                sample_id=sample, class_name=name, source="folder", by="folder", at=now(), drop_id=self.id
            )
        )
        if group is None:
            self._give_role(connection, sample, sha, name)

    def _give_role(self, connection: Connection, sample: int, sha: bytes, name: str) -> None:
        counts = self._counts.setdefault(name, Counter())
        role = roles.furthest_behind(counts, self._shares, sha)
        counts[role] += 1
        group = add(connection, groups, key=sha.hex(), role=role, given=now())
        change(connection, samples, sample, group_id=group)

    def _reject(self, connection: Connection, file: dict[str, Any]) -> None:
        connection.execute(
            insert(rejections).values(
                folder=str(self.folder),
                path=file["path"],
                size=file["size"],
                mtime_ns=file["mtime_ns"],
                reason=file["reason"],
                drop_id=self.id,
                at=now(),
            )
        )


def class_of(path: str) -> str | None:
    """The class that a path below a watched folder says: its first folder. None: unlabelled."""
    first, slash, _ = path.partition("/")
    return first if slash else None


def close_interrupted(journal: Engine) -> None:
    """After a crash: drops that were being read count as they are; the start's scan finds what is missing."""
    with journal.begin() as connection:
        connection.execute(update(drops).where(drops.c.state == "reading").values(state="ready", ended=now()))


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


def _end(connection: Connection, folder: Path, paths: list[str]) -> None:
    """These paths no longer hold what was seen there."""
    for table in (occurrences, rejections):
        for start in range(0, len(paths), 500):
            connection.execute(
                update(table)
                .where(
                    table.c.folder == str(folder),
                    table.c.path.in_(paths[start : start + 500]),
                    table.c.gone.is_(None),
                )
                .values(gone=now())
            )
