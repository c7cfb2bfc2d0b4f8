"""What goes wrong with a real Triton and its repository in the midst of a switch: the old version serves on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import artifact, durable
from deploy import repository as disk
from deploy.config_pbtxt import Serving
from deploy.repository import RepositoryError
from deploy.server import Server, free_ports
from deploy.switch import STEPS, Switch, SwitchFailed, mend, run_step, undo
from deploy.triton import Triton, TritonUnavailable
from tests.unit.deploy.models import class_names, make_artifact

ONE = Serving(instances=1)
Eventually = Callable[..., None]


class Place:
    """A Triton that may be killed and comes back at the same ports, empty."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        self.root.mkdir()
        ports: Any = tuple(free_ports(3))
        self._start: Callable[[], Server] = lambda: Server(self.root, folder / "cache", ports=ports, log=folder / "log")
        self.server = self._start()

    def kill(self) -> None:
        if self.server.process.poll() is None:
            os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.stop()

    def back(self) -> None:
        """Running, whatever a test before has done to it."""
        if self.server.process.poll() is not None:
            self.server.stop()
            self.server = self._start()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    made.kill()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("built")
    return make_artifact(folder, class_names(3, "old"), 1), make_artifact(folder, class_names(4, "new"), 2)


@pytest.fixture
def triton(place: Place) -> Iterator[Triton]:
    place.back()
    with Triton(place.server.address, load_timeout=30.0) as connection:
        yield connection


@pytest.fixture
def first(place: Place, triton: Triton, built: tuple[Path, Path], request: pytest.FixtureRequest) -> Switch:
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    switch = Switch(place.root, name, built[0], 1, serving=ONE)
    for step in STEPS:
        run_step(step, switch, triton)
    return switch


@pytest.fixture
def second(first: Switch, built: tuple[Path, Path]) -> Switch:
    return replace(first, artifact=built[1], version=2, before=1)


def serves(triton: Triton, switch: Switch) -> bool:
    images, recorded = artifact.read_golden(switch.artifact)
    found, versions = triton.infer_all(switch.target, images[:2])
    return versions == {switch.version} and bool(np.allclose(found, recorded[:2], atol=1e-3))


def go_on(switch: Switch, triton: Triton, step: str) -> None:
    for each in STEPS[STEPS.index(step) :]:
        run_step(each, switch, triton)


# --- a Triton that fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise MemoryError('9 GB')", "MemoryError|9 GB"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "."),  # as the kernel does where memory ends
    ],
    ids=["error", "killed"],
)
def test_out_of_memory_while_it_loads(
    place: Place,
    triton: Triton,
    first: Switch,
    second: Switch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    words: str,
) -> None:
    begins = "        folder = Path(args"
    spoilt = disk.MODEL_FILE.read_text().replace(begins, f"        {code}\n{begins}")
    (tmp_path / "model.py").write_text(spoilt)
    with monkeypatch.context() as broken:
        broken.setattr(disk, "MODEL_FILE", tmp_path / "model.py")
        run_step("stage", second, triton)
        with pytest.raises(SwitchFailed, match=rf"^probe: .*({words})"):
            run_step("probe", second, triton)
    undo(second, triton)
    assert serves(triton, first)
    go_on(second, triton, "stage")  # with memory enough
    assert serves(triton, second)


@pytest.mark.parametrize("done", ["stage", "put", "load"])
def test_a_triton_that_disappears_in_the_middle_of_a_load(
    place: Place, triton: Triton, first: Switch, second: Switch, eventually: Eventually, done: str
) -> None:
    """It is killed while it is at it: in the probe, the load, or the last load."""
    for step in STEPS[: STEPS.index(done) + 1]:
        run_step(step, second, triton)
    following = STEPS[STEPS.index(done) + 1]
    killing = threading.Timer(0.05, lambda: os.killpg(place.server.process.pid, signal.SIGKILL))
    killing.start()
    with contextlib.suppress(TritonUnavailable):  # the usual end; a step that was quicker than the kill is as good
        run_step(following, second, triton)
    killing.join()
    place.server.process.wait()
    with pytest.raises(TritonUnavailable):
        run_step("verify", second, triton)
    place.back()
    eventually(triton.is_live)
    go_on(second, triton, following)
    assert serves(triton, second)


@pytest.mark.parametrize("after", [0, 1, 2], ids=["folder", "labels", "configuration"])
def test_a_triton_that_comes_back_between_the_three_files_of_the_switch(
    place: Place,
    triton: Triton,
    first: Switch,
    second: Switch,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """The daemon is cut off after that file, Triton is killed and comes back empty: whichever it loads is whole."""
    written: list[Path] = []
    write = durable.write_text

    def cut_off(path: Path, *rest: Any) -> None:
        if path.parent == second.repository / second.target:  # the version's own manifest comes earlier
            if len(written) == after:
                raise OSError(5, "cut off")
            written.append(path)
        write(path, *rest)

    for step in STEPS[: STEPS.index("put")]:
        run_step(step, second, triton)
    with monkeypatch.context() as cut:
        cut.setattr(durable, "write_text", cut_off)
        if after < 2:
            with pytest.raises(RepositoryError):
                run_step("put", second, triton)
        else:
            run_step("put", second, triton)
    place.kill()
    place.back()
    eventually(triton.is_live)
    triton.load(first.target)
    assert serves(triton, second if after == 2 else first)
    go_on(second, triton, "put")
    assert serves(triton, second)


# --- a repository that takes nothing --------------------------------------------------------------------------------


def fail(words: str, number: int) -> Callable[..., None]:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, words)

    return failing


@pytest.mark.parametrize(
    ("where", "number", "words"),
    [
        ("shutil.copyfile", 28, "No space left on device"),
        ("deploy.durable.write_text", 30, "Read-only file system"),
        ("deploy.durable.move", 18, "Invalid cross-device link"),
    ],
    ids=["full", "read-only", "another device"],
)
def test_a_repository_that_takes_nothing(
    triton: Triton,
    first: Switch,
    second: Switch,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    number: int,
    words: str,
) -> None:
    """The file system is made to say so: none can be mounted here, and root may write where others may not."""
    with monkeypatch.context() as broken:
        broken.setattr(where, fail(words, number))
        with pytest.raises(RepositoryError, match=rf"{words}; the version that serves is untouched"):
            for step in STEPS:
                run_step(step, second, triton)
        assert serves(triton, first)
        assert mend(first, triton) is None
    go_on(second, triton, "stage")
    assert serves(triton, second)


def test_a_folder_of_somebody_else_in_our_model_s_place_is_never_touched(
    place: Place, triton: Triton, first: Switch
) -> None:
    """Somebody moved ours away and put theirs there, while ours serves from memory."""
    model = place.root / first.target
    shutil.rmtree(model)
    model.mkdir()
    (model / "config.pbtxt").write_text("theirs")
    with pytest.raises(RepositoryError, match="was not made by relearnd and is left alone"):
        mend(first, triton, touched=True)
    assert (model / "config.pbtxt").read_text() == "theirs"
    assert serves(triton, first)
