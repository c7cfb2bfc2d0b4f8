"""Constraint files: what is read, what is refused with line and key, and how an edit reaches the journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from daemon import targets
from daemon.constraint_file import parse, read, take_in, target_of
from daemon.errors import ConfigError
from daemon.journal import AnyRow, open_journal
from daemon.schema import constraint_files
from policies.facts import Requirement

CHECKOUT = Path(__file__).resolve().parents[3]
FILE = Path("/constraints/edge.toml")
VALID = """\
version = 1
[input]
height = 32
width = 48
[require]
latency_p95_ms = 5.0
accuracy_min = 0.9
[require.recall_min]
"a b" = 0.8
[prefer]
minimize = "artifact_mb"
"""


def error_of(text: str, file: Path = FILE) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, file)
    return str(caught.value)


def test_the_example_is_valid() -> None:
    requirement = read(CHECKOUT / "constraints" / "edge.toml")
    assert (requirement.target, requirement.height, requirement.accelerator) == ("edge", 224, "cpu")
    assert requirement.prefer == "accuracy"


def test_a_requirement_is_what_the_file_says() -> None:
    assert parse(VALID, FILE) == Requirement(
        target="edge",
        accelerator="cpu",
        height=32,
        width=48,
        latency_p95_ms=5.0,
        accuracy_min=0.9,
        recall_min={"a b": 0.8},
        prefer="artifact_mb",
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("latency_p95_ms = 5.0", "latency_p95 = 5.0", ":6: unknown key 'require.latency_p95'; did you mean "),
        ("[prefer]", "[prefers]", ":10: unknown key 'prefers'; did you mean 'prefer'?"),
        ("[require]", "[request]", ":5: unknown key 'request'"),
        ("height = 32\n", "", ":2: input.height is missing: add it"),
        ("version = 1\n", "", ":1: version is missing: add it"),
        ("version = 1", "version = 2", ":1: version: "),
        ("height = 32", "height = 4", ":3: input.height: "),
        ("[input]", '[accelerator]\nkind = "tpu"\n[input]', ":3: accelerator.kind: "),
        ("height = 32", "height = 32.5", ":3: input.height: "),
        ("latency_p95_ms = 5.0", 'latency_p95_ms = "fast"', ":6: require.latency_p95_ms: "),
        ("latency_p95_ms = 5.0", "latency_p95_ms = -5.0", ":6: require.latency_p95_ms is -5"),
        ("latency_p95_ms = 5.0", "latency_p95_ms = inf", ":6: require.latency_p95_ms is inf"),
        ("latency_p95_ms = 5.0", "batch_size = 0", ":6: require.batch_size is 0: it must be at least 1"),
        ("latency_p95_ms = 5.0", f"batch_size = {10**23}", f":6: require.batch_size is {10**23}: it must be at most"),
        ("latency_p95_ms = 5.0", "latency_p95_ms = true", ":6: require.latency_p95_ms: "),
        ("height = 32", "height = 32.0", ":3: input.height: "),
        ("height = 32", 'height = "32"', ":3: input.height: "),
        ("version = 1", "version = true", ":1: version: "),
        ("accuracy_min = 0.9", "accuracy_min = 95", "it must lie from 0 to 1 (for 95% write 0.95)"),
        ("accuracy_min = 0.9", "accuracy_min = nan", ":7: require.accuracy_min is nan"),
        ('"a b" = 0.8', '"a b" = 1.8', ":9: require.recall_min.a b is 1.8"),
        ('"a b" = 0.8', '"a b" = "high"', ":9: require.recall_min.a b: "),
        ('minimize = "artifact_mb"', 'minimize = "cost"', ":11: prefer.minimize: "),
        ('minimize = "artifact_mb"', 'minimize = "artifact_mb"\nmaximize = "accuracy"', ":11: prefer.minimize: "),
        ("[require]", "[require", ": not valid TOML: "),
    ],
)
def test_what_is_wrong_names_file_line_and_key(old: str, new: str, said: str) -> None:
    assert VALID.count(old) == 1
    found = error_of(VALID.replace(old, new))
    assert found.startswith(f"{FILE}:")
    assert said in found
    assert "\n" not in found


def test_every_error_is_said_at_once() -> None:
    text = VALID.replace("height = 32", "height = 4").replace("accuracy_min", "accuracy")
    assert len(error_of(text).splitlines()) == 2


@pytest.mark.parametrize("name", ["my edge", "edge-candidate", "é", "-edge", "a.b"])
def test_a_name_that_triton_cannot_have_is_refused(name: str) -> None:
    assert "rename the file" in error_of(VALID, Path(f"/constraints/{name}.toml"))


@pytest.mark.parametrize(
    ("name", "target"),
    [("edge.toml", "edge"), (".edge.toml", None), ("#edge.toml", None), ("edge.toml~", None), ("notes.md", None)],
)
def test_leavings_of_editors_are_no_targets(name: str, target: str | None) -> None:
    assert target_of(Path("/constraints") / name) == target


@pytest.fixture
def journal(tmp_path: Path) -> Engine:
    state = tmp_path / "state"
    state.mkdir()
    return open_journal(state, migrate=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "constraints"
    made.mkdir()
    (made / "edge.toml").write_text(VALID)
    return made


def taken(journal: Engine, folder: Path) -> list[AnyRow]:
    with journal.begin() as connection:
        return take_in(connection, folder)


def in_force(journal: Engine) -> dict[str, Requirement]:
    with journal.connect() as connection:
        return targets.requirements(connection)


def test_a_valid_file_is_taken_in_once(journal: Engine, folder: Path) -> None:
    (row,) = taken(journal, folder)
    assert (row.target, row.error, row.gone, row.text) == ("edge", None, False, VALID)
    assert in_force(journal)["edge"].latency_p95_ms == 5.0
    assert taken(journal, folder) == []


def test_an_invalid_edit_leaves_the_last_valid_one(journal: Engine, folder: Path) -> None:
    taken(journal, folder)
    (folder / "edge.toml").write_text(VALID.replace("height = 32", "hight = 32"))
    (row,) = taken(journal, folder)
    assert row.requirement is None
    assert f"{folder}/edge.toml:3: unknown key 'input.hight'; did you mean 'input.height'?" in row.error
    assert in_force(journal)["edge"].height == 32
    assert taken(journal, folder) == []
    (folder / "edge.toml").write_text(VALID.replace("height = 32", "height = 64"))
    assert [row.error for row in taken(journal, folder)] == [None]
    assert in_force(journal)["edge"].height == 64


def test_undoing_an_invalid_edit_is_a_new_row(journal: Engine, folder: Path) -> None:
    taken(journal, folder)
    (folder / "edge.toml").write_text("nonsense")
    taken(journal, folder)
    (folder / "edge.toml").write_text(VALID)
    assert [row.error for row in taken(journal, folder)] == [None]


def test_a_file_that_was_never_valid_gives_no_target(journal: Engine, folder: Path) -> None:
    (folder / "edge.toml").write_text("version = 1\n")
    (row,) = taken(journal, folder)
    assert row.error
    assert in_force(journal) == {}


def test_a_removed_file_leaves_the_target_unmanaged_until_it_comes_back(journal: Engine, folder: Path) -> None:
    taken(journal, folder)
    (folder / "edge.toml").unlink()
    (row,) = taken(journal, folder)
    assert row.gone
    assert in_force(journal) == {}
    assert taken(journal, folder) == []
    (folder / "edge.toml").write_text(VALID)
    (row,) = taken(journal, folder)
    assert not row.gone
    assert "edge" in in_force(journal)


def test_targets_are_apart_and_what_cannot_be_read_is_an_error(journal: Engine, folder: Path) -> None:
    (folder / "phone.toml").write_text(VALID.replace("width = 48", "width = 32"))
    (folder / "away.toml").mkdir()
    (folder / ".edge.toml.swp").write_text("x")
    (folder / "bytes.toml").write_bytes(b"\xff\xfe")
    rows = {row.target: row for row in taken(journal, folder)}
    assert rows.keys() == {"edge", "phone", "away", "bytes"}
    assert "is no regular file" in rows["away"].error
    assert "bytes.toml:1: is not UTF-8 text" in rows["bytes"].error
    assert {name: found.width for name, found in in_force(journal).items()} == {"edge": 48, "phone": 32}
    with journal.connect() as connection:
        assert len(connection.execute(select(constraint_files)).all()) == 4


@pytest.mark.parametrize("name", ["\udcff.toml", "new\nline.toml"])
def test_a_name_that_no_text_can_hold_is_refused_like_any_other(journal: Engine, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"version = 1")
    (row,) = [row for row in taken(journal, folder) if row.target != "edge"]
    assert "the file's name is the Triton model's" in row.error
    assert "\n" not in row.error
    assert taken(journal, folder) == []


@pytest.mark.parametrize(
    ("serve", "servers", "server", "said"),
    [
        ("", ("main",), "", None),
        ("", (), "", None),
        ('[serve]\ntriton = "b"', ("a", "b"), "b", None),
        ("", ("a", "b"), None, "serve.triton is missing: say which serves it; the servers of config.toml are a, b"),
        ('[serve]\ntriton = "c"', ("a", "b"), None, "serve.triton is 'c', which is none of them: the servers of"),
        ('[serve]\ntritn = "b"', ("a", "b"), None, "unknown key 'serve.tritn'; did you mean 'serve.triton'?"),
    ],
)
def test_where_it_is_served(serve: str, servers: tuple[str, ...], server: str | None, said: str | None) -> None:
    text = f"version = 1\n[input]\nheight = 32\nwidth = 32\n{serve}\n"
    if said is None:
        assert parse(text, FILE, servers).server == server
        return
    with pytest.raises(ConfigError) as caught:
        parse(text, FILE, servers)
    line = 6 if serve else 1
    assert str(caught.value).startswith(f"{FILE}:{line}: {said}")


def test_where_it_is_served_asks_for_no_other_model() -> None:
    text = "version = 1\n[input]\nheight = 32\nwidth = 32\n[serve]\ntriton = '{}'\n"
    assert parse(text.format("a"), FILE) == parse(text.format("b"), FILE)
