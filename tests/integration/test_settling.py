"""Five hundred files that come as people bring them make one drop, and none is read half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from daemon import schema
from daemon.journal import AnyRow, open_journal
from tests.hostile import image

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = 500
PAUSES = 10
SETTLE = 1.0  # seconds
POLL = 0.3
Bring = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small images, beside the watched folder."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(FILES):
        file = folder / ("cat" if number % 2 else "dog") / f"{number:04}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(image(size=(8, 8), seed=number))
    return folder


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def by_cp(source: Path, images: Path) -> None:
    run("cp", "-r", *sorted(source.iterdir()), images)


def by_rsync(source: Path, images: Path) -> None:
    run("rsync", "-a", f"{source}/", images)


def by_temporary_names(source: Path, images: Path) -> None:
    """As rsync does it: written beside under a name that begins with a dot, then renamed."""
    for file in sorted(source.rglob("*.png")):
        target = images / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target.with_name(f".{file.name}.Xy12Zq")).rename(target)


def by_tar(source: Path, images: Path) -> None:
    archive = source.with_suffix(".tar")
    run("tar", "-C", source, "-cf", archive, "cat", "dog")
    run("tar", "-C", images, "-xf", archive)


def by_mv(source: Path, images: Path) -> None:
    """Whole folders at once, from the same file system."""
    aside = images.with_name("aside")
    shutil.copytree(source, aside)
    for folder in sorted(aside.iterdir()):
        folder.rename(images / folder.name)


def slowly(source: Path, images: Path) -> None:
    """With pauses between files and inside of them, each shorter than the settle time; five seconds in all."""
    for number, file in enumerate(sorted(source.rglob("*.png"))):
        target = images / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        content = file.read_bytes()
        with target.open("wb") as stream:
            stream.write(content[:40])
            stream.flush()
            if number % (FILES // PAUSES) == 0:
                time.sleep(0.5 * SETTLE)
            stream.write(content[40:])


@contextmanager
def daemon(workspace: Path, polling: bool) -> Iterator[None]:
    settings = [f"watch.settle_seconds={SETTLE}", f"watch.polling_seconds={POLL}", "triton.url=127.0.0.1:9"]
    command = [sys.executable, "-P", "-m", "daemon", "run", "--workspace", str(workspace)]
    command += [word for value in [*settings, f"watch.polling={str(polling).lower()}"] for word in ("--set", value)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "looked through" in line:
                break
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def drops_of(workspace: Path) -> Iterator[Callable[[], list[AnyRow]]]:
    journal = open_journal(workspace / "state")

    def drops() -> list[AnyRow]:
        with journal.connect() as connection:
            return list(connection.execute(select(schema.drops)))

    yield drops
    journal.dispose()


@pytest.fixture
def bring_to(
    workspace: Path, source: Path, new_journal: Path, eventually: Callable[..., None]
) -> Callable[[Bring, bool], AnyRow]:
    """Brings the files to a daemon; the one drop that it made of them."""

    def run(bring: Bring, polling: bool) -> AnyRow:
        (workspace / "state").mkdir()
        shutil.copy(new_journal, workspace / "state")
        with daemon(workspace, polling), drops_of(workspace) as drops:
            bring(source, workspace / "images")
            eventually(lambda: (rows := drops()) and rows[-1].state == "ready", seconds=60)
            time.sleep(2 * SETTLE)  # for a second one, which there must not be
            (row,) = drops()
            return row

    return run


# To a daemon that polls, `cp`, `tar` and `rsync` are what `slowly` and temporary names are.
@pytest.mark.parametrize("polling", [False, True], ids=["notified", "polled"])
@pytest.mark.parametrize("bring", [by_temporary_names, by_mv, slowly])
def test_what_comes_together_is_one_drop(
    bring: Bring, polling: bool, bring_to: Callable[[Bring, bool], AnyRow]
) -> None:
    row = bring_to(bring, polling)
    assert (row.added, row.rejected, row.gone) == (FILES, 0, 0)


RSYNC = pytest.param(by_rsync, marks=pytest.mark.skipif(shutil.which("rsync") is None, reason="there is no rsync here"))


@pytest.mark.parametrize("bring", [by_cp, by_tar, RSYNC])
def test_what_a_program_brings_is_one_drop(bring: Bring, bring_to: Callable[[Bring, bool], AnyRow]) -> None:
    row = bring_to(bring, False)
    assert (row.added, row.rejected, row.gone) == (FILES, 0, 0)
