"""Switching what a real Triton serves: no request fails, and a crash or a fault anywhere leaves one whole version."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deploy import artifact, build
from deploy import repository as disk
from deploy import switch as switching
from deploy.access import Access
from deploy.config_pbtxt import MARK, Serving
from deploy.repository import RepositoryError
from deploy.server import Server, free_ports
from deploy.switch import STEPS, Switch, SwitchFailed, mend, run_step, undo
from deploy.triton import Triton, TritonRefused, TritonUnavailable
from tests.unit.deploy.models import (
    ROUNDING,
    answer,
    class_names,
    make_artifact,
    noise,
    order,
    rewrite,
    tree,
    write_pixels,
)

EIGHT, TEN = class_names(8, "old"), class_names(10, "new")
IMAGES = noise(40, seed=1)
ONE = Serving(instances=1)


@dataclass(frozen=True)
class Known:
    """An artifact, and what its graph answers of `IMAGES`, asked without anything of `deploy`."""

    folder: Path
    classes: list[str]
    answers: np.ndarray = field(repr=False)

    def agrees(self, found: np.ndarray, numbers: list[int]) -> bool:
        return found.shape == self.answers[numbers].shape and bool(
            np.abs(found - self.answers[numbers]).max() < ROUNDING
        )


def know(folder: Path, classes: list[str], seed: int) -> Known:
    made = make_artifact(folder, classes, seed)
    return Known(made, classes, answer(made / "model.onnx", IMAGES))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return know(tmp_path_factory.mktemp("old"), EIGHT, 1)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return know(tmp_path_factory.mktemp("new"), TEN, 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    with Server(folder / "repository", folder / "cache", log=folder / "log") as running:
        yield running


@pytest.fixture(scope="module")
def root(server: Server) -> Path:
    """The model repository."""
    return server.log.with_name("repository")


@pytest.fixture
def triton(server: Server) -> Iterator[Triton]:
    with Triton(server.address) as connection:
        yield connection


@pytest.fixture
def target(root: Path, triton: Triton, request: pytest.FixtureRequest) -> Iterator[str]:
    """A target of the test's own; it is gone afterwards."""
    name = f"t{zlib.crc32(request.node.name.encode())}"
    yield name
    for model in (name, f"{name}-candidate"):
        triton.unload(model)
        shutil.rmtree(root / model, ignore_errors=True)
    shutil.rmtree(disk.staging_folder(root) / name, ignore_errors=True)


def promote(switch: Switch, triton: Triton, steps: tuple[str, ...] = STEPS) -> None:
    for step in steps:
        assert run_step(step, switch, triton).endswith(tuple("abcdefghijklmnopqrstuvwxyz0123456789)"))


@pytest.fixture
def first(root: Path, target: str, triton: Triton, old: Known) -> Switch:
    """The target serves version 1 of eight classes: on disk and in Triton as after all steps."""
    switch = Switch(root, target, old.folder, 1, serving=ONE)
    promote(switch, triton, ("stage", "put", "load"))
    return switch


@pytest.fixture
def second(first: Switch, new: Known) -> Switch:
    """What is to serve next: ten classes."""
    return replace(first, artifact=new.folder, version=2, before=1)


def assert_served(triton: Triton, switch: Switch, known: Known) -> None:
    """This version alone is asked, on the disk and in Triton; its answers, labels and files are its own."""
    numbers = list(range(4))
    found, version = triton.infer(switch.target, IMAGES[:4])
    assert version == switch.version
    assert known.agrees(found, numbers)
    rows, version = triton.classify(switch.target, IMAGES[:4])
    assert version == switch.version
    assert [row[0][2] for row in rows] == [known.classes[known.answers[i].argmax()] for i in numbers]
    disk.verify_model(switch.repository, switch.target, switch.version)
    assert list(disk.versions(switch.repository, switch.target)) == [switch.version]
    folder = switch.repository / switch.target
    kept = {str(switch.version), "config.pbtxt", f"labels-{switch.version}.txt"}
    assert {path.name for path in folder.iterdir()} == kept
    assert ready(triton, switch.target) == [switch.version]
    assert_tidy(triton, switch)


def ready(triton: Triton, model: str) -> list[int]:
    return [state.version for state in triton.index().get(model, []) if state.state == "READY"]


def assert_tidy(triton: Triton, switch: Switch) -> None:
    """Nothing of a switch is left: no candidate, nothing staged, nothing hidden in the repository."""
    candidate = f"{switch.target}-candidate"
    assert not triton.is_ready(candidate)
    assert candidate not in triton.index()
    assert not [path.name for path in switch.repository.iterdir() if path.name.startswith(".")]
    staging = disk.staging_folder(switch.repository)
    assert [path for path in (staging / switch.target).rglob("*") if path.is_file()] == []
    assert [path.name for path in staging.iterdir() if path.name.startswith(".")] == []


class Clients:
    """Threads that ask without a pause, and look at each answer: what was wrong, and how many were right."""

    def __init__(self, address: str, target: str, known: dict[int, Known], threads: int = 3) -> None:
        self.faults: list[str] = []
        self.answered = dict.fromkeys(known, 0)
        self._address, self._target, self._known = address, target, known
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=[seed]) for seed in range(threads)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        with Triton(self._address) as triton:
            while not self._stop.is_set():
                numbers = random.integers(0, len(IMAGES), random.integers(1, 5)).tolist()
                try:
                    version, fault = self._look(triton, numbers, bool(random.integers(2)))
                except Exception as error:
                    version, fault = 0, f"{type(error).__name__}: {error}"
                with self._lock:
                    if fault:
                        self.faults.append(fault)
                    else:
                        self.answered[version] += 1

    def _look(self, triton: Triton, numbers: list[int], by_name: bool) -> tuple[int, str | None]:
        if not by_name:
            found, version = triton.infer(self._target, IMAGES[numbers])
            right = self._known[version].agrees(found, numbers)
            return version, None if right else f"version {version} answered otherwise than its graph"
        rows, version = triton.classify(self._target, IMAGES[numbers])
        known = self._known[version]
        names = [row[0][2] for row in rows]
        expected = [known.classes[known.answers[i].argmax()] for i in numbers]
        return version, None if names == expected else f"version {version} called {expected} by the names {names}"


# --- what should happen ---------------------------------------------------------------------------------------------


def test_the_first_promotion_serves(root: Path, target: str, triton: Triton, old: Known) -> None:
    switch = Switch(root, target, old.folder, 1, serving=ONE)
    for _ in range(2):  # the second time as after a crash
        promote(switch, triton)
        assert_served(triton, switch, old)


def test_no_request_fails_while_the_classes_change_and_change_back(
    server: Server,
    triton: Triton,
    first: Switch,
    second: Switch,
    old: Known,
    new: Known,
    eventually: Callable[..., None],
) -> None:
    """Eight classes, ten, and back by the earlier artifact under a new, higher version; all the while clients ask."""
    third = replace(first, version=3, before=2)
    with Clients(server.address, first.target, {1: old, 2: new, 3: old}) as clients:
        eventually(lambda: clients.answered[1] >= 50)
        promote(second, triton)
        eventually(lambda: clients.answered[2] >= 100)
        promote(third, triton)
        eventually(lambda: clients.answered[3] >= 50)
        promote(third, triton)  # all of it again, as after a crash
        again = clients.answered[3]
        eventually(lambda: clients.answered[3] >= again + 50)
    assert clients.faults == []
    assert sum(clients.answered.values()) >= 250
    assert_served(triton, third, old)


def test_the_version_before_is_loaded_until_the_new_one_has_answered(
    triton: Triton, first: Switch, second: Switch
) -> None:
    for step in STEPS[: STEPS.index("load")]:
        run_step(step, second, triton)
        assert ready(triton, first.target) == [1]
        assert triton.infer(first.target, IMAGES[:1])[1] == 1
    for step in ("load", "verify"):
        run_step(step, second, triton)
        assert ready(triton, first.target) == [1, 2]
        assert triton.infer(first.target, IMAGES[:1])[1] == 2
    run_step("retire", second, triton)
    assert ready(triton, first.target) == [2]


def test_another_input_size_can_take_over(triton: Triton, first: Switch, tmp_path: Path) -> None:
    large = make_artifact(tmp_path, EIGHT, 7, size=16)
    promote(replace(first, artifact=large, version=2, before=1), triton)
    images = noise(3, size=16)
    found, version = triton.infer(first.target, images)
    assert version == 2
    np.testing.assert_allclose(found, answer(large / "model.onnx", images), atol=ROUNDING)


def test_how_it_is_served_may_change_with_the_version(triton: Triton, first: Switch, second: Switch) -> None:
    second = replace(second, serving=Serving(max_batch_size=9, instances=1))
    with pytest.raises(TritonRefused, match="batch-size must be <= 4"):
        triton.infer(first.target, IMAGES[:9])
    promote(second, triton)
    assert triton.infer(first.target, IMAGES[:9])[1] == 2


# --- killed anywhere ------------------------------------------------------------------------------------------------


# A probe takes its candidate away again, and a verification asks: after each all is as it was after the step before.
LEAVE_SOMETHING = tuple(step for step in STEPS if step not in ("probe", "verify"))


def up_to(step: str) -> tuple[str, ...]:
    return STEPS[: STEPS.index(step) + 1]


@pytest.mark.parametrize("last", LEAVE_SOMETHING)
def test_killed_between_two_steps_all_steps_again_end_the_same(
    server: Server, triton: Triton, first: Switch, second: Switch, new: Known, last: str
) -> None:
    with Triton(server.address) as killed:
        promote(second, killed, up_to(last))
    promote(replace(second), triton)
    assert_served(triton, second, new)


@pytest.mark.parametrize("last", LEAVE_SOMETHING[:-1])
def test_killed_between_two_steps_it_can_be_taken_back(
    server: Server, triton: Triton, first: Switch, second: Switch, old: Known, last: str
) -> None:
    with Triton(server.address) as killed:
        promote(second, killed, up_to(last))
    for _ in range(2):
        undo(second, triton)
        assert_served(triton, first, old)


@pytest.mark.parametrize("last", LEAVE_SOMETHING[:-1])
def test_a_first_promotion_can_be_taken_back_to_nothing(
    root: Path, target: str, triton: Triton, old: Known, last: str
) -> None:
    switch = Switch(root, target, old.folder, 1, serving=ONE)
    promote(switch, triton, up_to(last))
    for _ in range(2):
        undo(switch, triton)
        assert not (root / target).exists()
        with pytest.raises(TritonRefused):
            triton.infer(target, IMAGES[:1])
        assert_tidy(triton, switch)
    promote(switch, triton)
    assert_served(triton, switch, old)


def leave_candidate(switch: Switch, triton: Triton) -> None:
    """What a kill in the middle of the probe leaves: the candidate in the repository, and loaded."""
    staged = disk.stage(switch.repository, switch.artifact, switch.target, switch.version, switch.serving)
    triton.load(disk.place_candidate(switch.repository, switch.target, staged))
    assert triton.is_ready(f"{switch.target}-candidate")


def test_a_candidate_that_was_left_is_cleaned_by_the_next_probe(
    triton: Triton, first: Switch, second: Switch, new: Known
) -> None:
    leave_candidate(replace(second, artifact=first.artifact), triton)  # of another artifact, even
    promote(second, triton)
    assert_served(triton, second, new)


def test_a_candidate_that_was_left_is_cleaned_by_undo(
    triton: Triton, first: Switch, second: Switch, old: Known
) -> None:
    leave_candidate(second, triton)
    undo(second, triton)
    assert_served(triton, first, old)


# --- candidates that cannot serve -----------------------------------------------------------------------------------


def wrong_golden(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with np.load(artifact / "golden.npz") as golden:
        images, probabilities = golden["images"], golden["probabilities"].copy()
    probabilities[-1] = probabilities[-1][::-1]
    np.savez(artifact / "golden.npz", images=images, probabilities=probabilities)
    rewrite(artifact, "golden.npz", (artifact / "golden.npz").read_bytes())
    return "^probe: the golden batch gave other answers than recorded: largest difference"


def junk_engine_file(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    rewrite(artifact, "model.onnx", b"junk")
    return r"^probe: .*model\.onnx is no graph that ONNX Runtime can run"


def broken_code(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    code = artifact.with_name("broken.py")
    code.write_text("class TritonPythonModel:\n    def initialize(self, args): raise ValueError('the seventh layer')\n")
    monkeypatch.setattr(disk, "MODEL_FILE", code)
    return "^probe: .*the seventh layer"


# No case whose code cannot be loaded comes before others: a backend process that ends as it starts has now and then
# taken this version of tritonserver with it, at the next load.
@pytest.mark.parametrize("spoil", [wrong_golden, junk_engine_file, broken_code])
def test_a_candidate_that_fails_the_probe_never_reaches_clients(
    server: Server,
    triton: Triton,
    first: Switch,
    second: Switch,
    old: Known,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, pytest.MonkeyPatch], str],
) -> None:
    artifact = Path(shutil.copytree(second.artifact, tmp_path / "artifact"))
    words = spoil(artifact, monkeypatch)
    second = replace(second, artifact=artifact)
    model = tree(first.repository / first.target)
    with Clients(server.address, first.target, {1: old}, threads=2) as clients:
        run_step("stage", second, triton)
        with pytest.raises(SwitchFailed, match=words):
            run_step("probe", second, triton)
        assert f"{first.target}-candidate" not in triton.index()
        assert not (first.repository / f"{first.target}-candidate").exists()
        assert tree(first.repository / first.target) == model
        undo(second, triton)
    assert clients.faults == []
    assert_served(triton, first, old)


def test_a_damaged_artifact_is_found_before_triton_is_asked(
    first: Switch, second: Switch, triton: Triton, old: Known, tmp_path: Path
) -> None:
    artifact = Path(shutil.copytree(second.artifact, tmp_path / "artifact"))
    (artifact / "model.onnx").write_bytes(b"junk")
    with pytest.raises(SwitchFailed, match=r"^stage: .*model\.onnx is damaged"):
        run_step("stage", replace(second, artifact=artifact), triton)
    assert_served(triton, first, old)


def test_a_version_that_fails_only_when_it_is_in_place_is_taken_back(
    triton: Triton, first: Switch, second: Switch, old: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = "        folder = Path(args"
    raises = "        if 'candidate' not in args['model_name']: raise ValueError('the seventh layer')\n"
    (tmp_path / "model.py").write_text(disk.MODEL_FILE.read_text().replace(begins, raises + begins))
    monkeypatch.setattr(disk, "MODEL_FILE", tmp_path / "model.py")
    promote(second, triton, ("stage", "probe", "put"))
    with pytest.raises(SwitchFailed, match=r"^load: .*the seventh layer"):
        run_step("load", second, triton)
    assert triton.infer(first.target, IMAGES[:1])[1] == 1
    undo(second, triton)
    assert_served(triton, first, old)


def edit_code(model: Path) -> None:
    (model / "2" / "model.py").write_text("raise ValueError('the seventh layer')")


def edit_labels(model: Path) -> None:
    (model / "labels-2.txt").write_text("".join(f"{name}\n" for name in TEN[::-1]))


def edit_configuration(model: Path) -> None:
    (model / "config.pbtxt").write_text(MARK + '\nname: "mine"')


def test_what_was_edited_before_the_load_is_put_right_and_loaded(
    triton: Triton, first: Switch, second: Switch, new: Known
) -> None:
    """Every file has its SHA-256 when Triton is told to load; the version before stays loaded as ever."""
    promote(second, triton, ("stage", "probe", "put"))
    for edit in (edit_code, edit_configuration, edit_labels):  # the second and the third as after a crash
        edit(second.repository / second.target)
        run_step("load", second, triton)
        disk.verify_model(second.repository, second.target, 2, 1)
        assert ready(triton, second.target) == [1, 2]
    promote(second, triton, ("verify", "retire"))
    assert_served(triton, second, new)


def test_a_manifest_that_lies_of_its_classes_is_found_when_it_is_verified(
    triton: Triton, first: Switch, second: Switch, old: Known, tmp_path: Path
) -> None:
    promote(second, triton, ("stage", "probe", "put", "load"))
    lying = Path(shutil.copytree(second.artifact, tmp_path / "artifact"))
    manifest = artifact.read_manifest(lying)
    (lying / "manifest.json").write_text(json.dumps({**manifest, "classes": TEN[::-1]}))
    with pytest.raises(SwitchFailed, match=r"^verify: class (\d) is called 'new\d' by Triton and 'new\d' by"):
        run_step("verify", replace(second, artifact=lying), triton)
    undo(second, triton)
    assert_served(triton, first, old)


@pytest.mark.parametrize("damage", ["truncate", "lie"])
def test_an_artifact_that_is_not_what_its_manifest_says_is_not_staged(
    triton: Triton, first: Switch, second: Switch, old: Known, tmp_path: Path, damage: str
) -> None:
    spoilt = Path(shutil.copytree(second.artifact, tmp_path / "artifact"))
    if damage == "truncate":
        os.truncate(spoilt / "model.onnx", 100)
    else:
        manifest = artifact.read_manifest(spoilt)
        manifest["files"]["model.onnx"]["sha256"] = "0" * 64
        (spoilt / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SwitchFailed, match=r"^stage: .*model\.onnx is damaged: SHA-256"):
        run_step("stage", replace(second, artifact=spoilt), triton)
    assert_served(triton, first, old)


def test_files_get_the_mode_that_is_asked_before_triton_reads_them(
    triton: Triton, first: Switch, second: Switch, new: Known
) -> None:
    promote(replace(second, access=Access(mode=0o640)), triton)
    assert_served(triton, second, new)
    paths = [second.repository / second.target, *(second.repository / second.target).rglob("*")]
    assert {(path.is_dir(), path.stat().st_mode & 0o777) for path in paths} == {(True, 0o750), (False, 0o640)}


def test_what_is_edited_by_hand_is_made_again_while_it_serves_on(
    triton: Triton, first: Switch, second: Switch, new: Known
) -> None:
    promote(second, triton)
    for edit in (edit_labels, edit_configuration, edit_code):
        edit(second.repository / second.target)
        assert mend(second, triton) is None  # it answers, and nobody was seen at the folder
        done = mend(second, triton, touched=True)
        assert str(done).startswith(f"{second.target} version 2 was made again in the repository, and served on: "), (
            edit
        )
        assert mend(second, triton, touched=True) is None
        assert_served(triton, second, new)


def test_a_version_folder_that_was_removed_comes_back_before_triton_misses_it(
    triton: Triton, first: Switch, old: Known
) -> None:
    """The next load would have fallen back to whatever else lies there."""
    shutil.rmtree(first.repository / first.target / "1")
    assert "was made again" in str(mend(first, triton, touched=True))
    assert_served(triton, first, old)


def test_a_version_that_was_never_loaded_is_not_verified(triton: Triton, second: Switch) -> None:
    promote(second, triton, ("stage", "probe"))
    with pytest.raises(SwitchFailed, match=r"^verify: Triton says of version 2: not loaded"):
        run_step("verify", second, triton)


def test_undo_leaves_the_version_before_serving_even_if_its_files_were_damaged(
    triton: Triton, first: Switch, second: Switch, old: Known
) -> None:
    """It serves from memory; undo has to end, so that mending it gets its turn."""
    (first.repository / first.target / "1" / "model.onnx").write_bytes(b"junk")
    run_step("stage", second, triton)
    undo(second, triton)
    assert triton.infer(first.target, IMAGES[:1])[1] == 1


def test_a_foreign_model_of_the_targets_name_is_left_alone(root: Path, target: str, triton: Triton, old: Known) -> None:
    (root / target / "1").mkdir(parents=True)
    (root / target / "config.pbtxt").write_text(f'name: "{target}" backend: "python"')
    before = tree(root / target)
    switch = Switch(root, target, old.folder, 1, serving=ONE)
    with pytest.raises(RepositoryError, match="was not made by relearnd"):
        run_step("stage", switch, triton)
    assert tree(root / target) == before


# --- Triton away, Triton restarted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["probe", "load", "verify", "retire"])
def test_where_triton_is_away_it_is_to_be_tried_again(
    server: Server, triton: Triton, first: Switch, second: Switch, old: Known, new: Known, step: str
) -> None:
    promote(second, triton, STEPS[: STEPS.index(step)])
    serving = triton.infer(first.target, IMAGES[:1])[1]
    with Triton(f"127.0.0.1:{free_ports(1)[0]}") as away:
        for _ in range(2):
            with pytest.raises(TritonUnavailable):
                run_step(step, second, away)
        if step != "retire":  # until then the version before lies there whole, and what a load would serve first
            disk.verify_version(first.repository / first.target / "1")
    assert not (first.repository / f"{first.target}-candidate").exists()
    assert triton.infer(first.target, IMAGES[:1])[1] == serving
    triton.load(first.target)  # somebody restarts it: what lies there can be served
    promote(second, triton, STEPS[STEPS.index(step) :])
    assert_served(triton, second, new)


def test_where_triton_is_away_undo_restores_the_disk_and_asks_to_be_called_again(
    triton: Triton, first: Switch, second: Switch, old: Known
) -> None:
    promote(second, triton, STEPS[: STEPS.index("retire")])
    with Triton(f"127.0.0.1:{free_ports(1)[0]}") as away, pytest.raises(TritonUnavailable):
        undo(second, away)
    triton.load(first.target)
    assert triton.infer(first.target, IMAGES[:1])[1] == 1
    undo(second, triton)
    assert_served(triton, first, old)


class Restarting:
    """A server of the test's own, that may be stopped or killed and comes back at the same ports, empty."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.root = folder / "repository"
        self.root.mkdir()
        self._start = (self.root, cache)
        self._options: dict[str, Any] = {"ports": tuple(free_ports(3)), "log": folder / "log"}
        self.server = Server(*self._start, **self._options)

    def kill(self) -> None:
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.stop()

    def start(self) -> None:
        self.server = Server(*self._start, **self._options)


@pytest.fixture
def restarting(tmp_path: Path, server: Server) -> Iterator[Restarting]:
    made = Restarting(tmp_path, server.log.with_name("cache"))
    yield made
    made.kill()


def test_after_a_restart_what_should_be_served_is_loaded_again(
    restarting: Restarting, old: Known, new: Known, eventually: Callable[..., None]
) -> None:
    with Triton(restarting.server.address) as triton:
        switch = Switch(restarting.root, "edge", old.folder, 1, serving=ONE)
        promote(switch, triton)
        assert mend(switch, triton) is None
        restarting.kill()
        with pytest.raises(TritonUnavailable):
            mend(switch, triton)
        restarting.start()
        eventually(triton.is_live)  # the connection is made anew within a second
        assert ready(triton, "edge") == []
        done = mend(switch, triton)
        assert done is not None
        assert done.startswith("edge version 1 was loaded again: ")
        assert_served(triton, switch, old)
        assert mend(switch, triton) is None

        following = replace(switch, artifact=new.folder, version=2, before=1)
        promote(following, triton, STEPS[: STEPS.index("verify")])
        restarting.kill()  # between load and verify
        restarting.start()
        eventually(triton.is_live)  # the connection is made anew within a second
        promote(following, triton, ("verify", "retire"))
        assert_served(triton, following, new)


def test_a_backend_process_that_died_is_mended(
    restarting: Restarting, old: Known, eventually: Callable[..., None]
) -> None:
    with Triton(restarting.server.address) as triton:
        switch = Switch(restarting.root, "edge", old.folder, 1, serving=ONE)
        promote(switch, triton)
        eventually(lambda: len(stubs(restarting.server)) == 1)  # those of the candidate and of the first load are gone
        (process,) = stubs(restarting.server)
        process.kill()
        eventually(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert mend(switch, triton) is not None
        assert_served(triton, switch, old)


def test_a_version_of_another_engine_takes_over(target: str, root: Path, triton: Triton, old: Known) -> None:
    """The same model, built for OpenVINO: the answers stay, what lies in the version's folder is the other engine's."""
    promote(Switch(root, target, old.folder, 1, serving=ONE), triton)
    model = old.folder.parents[1] / f"model-{len(EIGHT)}-1"
    built = build.run(order(model, old.folder.parent, engine="openvino"), {}, lambda *_, **__: None)
    switch = Switch(root, target, Path(built["path"]), 2, before=1, serving=ONE)
    promote(switch, triton)
    found, version = triton.infer(target, IMAGES[:4])
    assert (version, old.agrees(found, list(range(4)))) == (2, True)
    assert {"model.xml", "model.bin"} <= {file.name for file in (root / target / "2").iterdir()}
    assert mend(switch, triton) is None


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_int8_version_gives_in_triton_what_it_gave_at_build(
    target: str, root: Path, triton: Triton, old: Known, tmp_path: Path, engine: str
) -> None:
    rows = [("tune", EIGHT[number % len(EIGHT)]) for number in range(len(IMAGES))]
    model = old.folder.parents[1] / f"model-{len(EIGHT)}-1"
    index = write_pixels(tmp_path / "pixels", EIGHT, rows, IMAGES)
    inputs = order(model, tmp_path / "artifacts", engine=engine, precision="int8", pixels=str(index))
    folder = Path(build.run(inputs, {}, lambda *_, **__: None)["path"])
    promote(Switch(root, target, folder, 1, serving=ONE, tolerance=1e-3), triton)
    images, recorded = artifact.read_golden(folder)
    found, versions = triton.infer_all(target, images)
    assert versions == {1}
    np.testing.assert_allclose(found, recorded, atol=1e-3)


def test_one_dead_instance_of_two_is_found_and_mended(
    restarting: Restarting, old: Known, eventually: Callable[..., None]
) -> None:
    """A client that asks all the time keeps it busy with failures, so that a single question finds the other."""
    two = replace(ONE, instances=2)
    with Triton(restarting.server.address) as triton, Triton(restarting.server.address) as asking:
        switch = Switch(restarting.root, "edge", old.folder, 1, serving=two)
        promote(switch, triton)
        eventually(lambda: len(stubs(restarting.server)) == 2)
        assert triton.count_failures("edge", 1) == 0
        stop = threading.Event()

        def ask() -> None:
            while not stop.wait(0.05):
                with contextlib.suppress(TritonRefused):
                    asking.infer("edge", noise(1), 1)

        client = threading.Thread(target=ask)
        client.start()
        try:
            stubs(restarting.server)[0].kill()
            eventually(lambda: triton.count_failures("edge", 1) > 0)
            done = mend(switch, triton, suspected=True)
        finally:
            stop.set()
            client.join()
        assert "not healthy" in str(done)
        assert mend(switch, triton, suspected=True) is None
        assert_served(triton, switch, old)


def stubs(server: Server) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends meanwhile
            if process.name().startswith("triton_python") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def lose_folder(model: Path) -> None:
    shutil.rmtree(model / "1")


def lose_model(model: Path) -> None:
    shutil.rmtree(model)


def lose_labels(model: Path) -> None:
    (model / "labels-1.txt").unlink()


def tamper(model: Path) -> None:
    (model / "1" / "model.onnx").write_bytes(b"junk")


def change_configuration(model: Path) -> None:
    (model / "config.pbtxt").write_text("junk {")


@pytest.mark.parametrize("spoil", [lose_folder, lose_model, lose_labels, tamper, change_configuration])
def test_what_was_damaged_and_is_no_longer_served_is_made_again(
    triton: Triton, first: Switch, old: Known, spoil: Callable[[Path], None]
) -> None:
    triton.unload(first.target)
    spoil(first.repository / first.target)
    assert mend(first, triton) is not None
    assert_served(triton, first, old)


def test_what_cannot_be_mended_is_said(triton: Triton, first: Switch, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(first.artifact, tmp_path / "artifact"))
    shutil.rmtree(first.repository / first.target)
    triton.unload(first.target)
    (artifact / "model.onnx").unlink()
    with pytest.raises(SwitchFailed, match=rf"mending {first.target} failed: .*model\.onnx cannot be read"):
        mend(replace(first, artifact=artifact), triton)


def test_the_steps_are_those_that_can_be_run() -> None:
    assert STEPS == ("stage", "probe", "put", "load", "verify", "retire")
    assert all(callable(getattr(switching, step)) for step in STEPS)
