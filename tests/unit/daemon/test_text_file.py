"""Files that a person wrote, or that lie where one should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.errors import ConfigError
from daemon.text_file import parse_toml, read_text


def test_text_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes("\ufeffname = 'é'\n".encode())
    assert read_text(file) == "name = 'é'\n"


def test_what_is_not_there_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.toml")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_nothing_but_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for, and /dev/zero never ends."""
    file = tmp_path / "a.toml"
    {"pipe": os.mkfifo, "device": lambda at: at.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](file)
    with pytest.raises(ConfigError, match=r"a\.toml: is no regular file"):
        read_text(file)


def test_a_huge_file_is_none_of_settings(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        read_text(tmp_path / "a.toml")


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=r"a\.toml:2: is not UTF-8 text"):
        read_text(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train\n", "not valid TOML"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "9" * 5_000, "not valid TOML: .*digits"),
    ],
)
def test_what_is_no_toml_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_toml(text, tmp_path / "a.toml")


def test_toml_is_read(tmp_path: Path) -> None:
    assert parse_toml("[a]\nb = 1\n", tmp_path / "a.toml") == {"a": {"b": 1}}
