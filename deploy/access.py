"""Whose the files in a model repository are, and who may read them: Triton often runs as another user."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Access:
    """What is asked of files; nothing by default."""

    owner: str = ""  # "user:group", by name or number
    mode: int | None = None  # of files; a folder may be entered by whoever may read it

    def give(self, folder: Path) -> None:
        """Makes the folder and all in it so, where it is not. Raises OSError where that is not allowed."""
        if self == Access():
            return
        for path in (folder, *folder.rglob("*")):
            self._give(path)

    def _give(self, path: Path) -> None:
        stat = path.lstat()
        if self.owner and (wanted := find_ids(self.owner)) != (stat.st_uid, stat.st_gid):
            os.chown(path, *wanted, follow_symlinks=False)
        if self.mode is None or path.is_symlink():
            return
        mode = self.mode | (self.mode & 0o444) >> 2 if path.is_dir() else self.mode
        if stat.st_mode & 0o777 != mode:
            path.chmod(mode)


def find_ids(owner: str) -> tuple[int, int]:
    """The numbers of "user:group". Raises KeyError where there is no such user or group here."""
    user, _, group = owner.partition(":")
    return (
        int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid,
        int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid,
    )


def find_unknown(owner: str) -> str | None:
    """A sentence on an owner that this machine does not know; None: it does."""
    with contextlib.suppress(KeyError):
        if owner:
            find_ids(owner)
        return None
    return f"{owner!r}: this machine knows no such user or group; name one it knows, or give numbers"
