"""Reading a small file that a person wrote: whatever lies at its path, it costs no more than an error."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from daemon.errors import ConfigError

LARGEST = 1_000_000  # bytes


def read_text(file: Path) -> str:
    """The text of a regular file, a byte order mark (as Windows editors write it) taken off.

    Raises FileNotFoundError, and ConfigError for all else that keeps it from being read. A pipe or a device is never
    waited for.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{file}: is no regular file (but a folder, device, pipe or socket)")
            content = os.read(descriptor, LARGEST + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise ConfigError(f"{file}: is larger than {LARGEST / 1e6:g} MB: this is no file of settings")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: is not UTF-8 text: {error.reason}") from None


def parse_toml(text: str, file: Path) -> dict[str, Any]:
    """Raises ConfigError, which names the file (and tomllib the line)."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers with more digits than Python reads
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
