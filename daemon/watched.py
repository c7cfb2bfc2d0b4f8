"""A watched folder: how its files come to their class and their group, and what in it is no image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.settings import Watch, WatchedFolder

Labels = Literal["folders", "manifest", "none"]


@dataclass(frozen=True, slots=True)
class Watched:
    """What config.toml says of one watched folder. Paths are relative to it, with "/"."""

    folder: Path
    labels: Labels = "folders"
    manifest: str = ""
    group: re.Pattern[str] | None = None
    done_marker: str = ""
    polling: bool = False

    @classmethod
    def of(cls, folder: Path, entry: WatchedFolder, watch: Watch) -> Watched:
        return cls(
            folder,
            entry.labels,
            entry.manifest,
            re.compile(entry.group) if entry.group else None,
            watch.done_marker if entry.done_marker is None else entry.done_marker,
            watch.polling if entry.polling is None else entry.polling,
        )

    def class_of(self, path: str) -> str | None:
        """The class that the path says: its first folder. None: it says none."""
        first, slash, _ = path.partition("/")
        return first if slash and self.labels == "folders" else None

    def group_of(self, path: str) -> str | None:
        """The user's key in the path, the same for all that must share a role. None: there is none."""
        found = self.group.search(path) if self.group else None
        return found["group"] if found else None

    def is_image(self, path: str) -> bool:
        """Whether the file is one to be read as an image: neither the manifest nor a done-marker."""
        return path != self.manifest and path.rpartition("/")[2] != self.done_marker
