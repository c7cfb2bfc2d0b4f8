"""The switch on disk: what lies in the repository is whole at every moment, and is only what was put there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy import build
from deploy import repository as disk
from deploy.artifact import ArtifactError
from deploy.config_pbtxt import Serving
from deploy.repository import RepositoryError
from tests.unit.deploy.models import (
    class_names,
    make_artifact,
    make_model,
    names,
    order,
    read_json,
    rewrite,
    silent,
    tree,
)

Start = Callable[..., subprocess.Popen[str]]
SERVING = Serving(max_batch_size=8, instances=2, threads=3)
SECONDS = 60.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Artifacts: of eight classes, of ten, of another input size, and another of the first kind."""
    folder = tmp_path_factory.mktemp("artifacts")
    eight, ten = class_names(8, "a"), class_names(10, "b")
    return [
        make_artifact(folder, eight),
        make_artifact(folder, ten),
        make_artifact(folder, eight, 5, size=16),
        make_artifact(folder, eight, 7),
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model repository."""
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


def stage(root: Path, artifact: Path, version: int, target: str = "edge", **other: Any) -> Path:
    return disk.stage(root, artifact, target, version, SERVING, **other)


def switch(root: Path, artifact: Path, version: int, before: int | None = None) -> None:
    """All that a promotion does on disk."""
    stage(root, artifact, version)
    disk.put(root, "edge", version, before)
    disk.retire(root, "edge", version)
    disk.clear(root, "edge", version)


def configuration(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def served(root: Path, name: str = "edge") -> list[int]:
    """The versions that a load would serve now; each must be whole, and the labels those of the newest."""
    assert not [path for path in root.iterdir() if path.name.startswith(".")], "Triton takes it for a model"
    model = root / name
    if not model.exists():
        return []
    config = configuration(model)
    assert config.name == name
    versions = list(config.version_policy.specific.versions)
    manifests = [disk.verify_version(model / str(version)) for version in versions]
    labels = (model / config.output[0].label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == manifests[-1]["classes"]
    size = manifests[-1]["input"]
    assert list(config.input[0].dims) == [size["height"], size["width"], 3]
    return versions


def test_a_version_is_staged_beside_the_repository(root: Path, built: list[Path]) -> None:
    staged = stage(root, built[0], 3)
    assert staged == root.with_name("repository.staging") / "edge" / "3"
    assert root not in staged.parents
    assert names(root) == []
    assert staged.stat().st_dev == root.stat().st_dev
    assert names(staged) == ["engine.py", "labels.txt", "manifest.json", "model.onnx", "model.py"]
    assert names(disk.staging_folder(root)) == ["edge"]


def test_a_version_for_tritons_own_backend_holds_what_that_opens_and_no_code(root: Path, built: list[Path]) -> None:
    serving = replace(SERVING, flavour="onnxruntime")
    staged = disk.stage(root, built[0], "edge", 1, serving)
    assert names(staged) == ["labels.txt", "manifest.json", "model.onnx"]
    disk.put(root, "edge", 1, None)
    config = configuration(root / "edge")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    assert list(config.output[0].dims) == [8]
    assert served(root) == [1]
    disk.verify_model(root, "edge", 1)
    disk.touch(root, "edge", 1)


@pytest.mark.parametrize(
    ("before", "flavour", "artifact", "together"),
    [
        ("onnxruntime", "onnxruntime", 3, [1, 2]),
        ("python", "onnxruntime", 3, [2]),
        ("onnxruntime", "python", 3, [2]),
        ("onnxruntime", "onnxruntime", 1, [2]),  # of other classes
        ("onnxruntime", "onnxruntime", 2, [2]),  # of another input
    ],
)
def test_only_what_one_configuration_can_load_is_served_beside(
    root: Path, built: list[Path], before: Any, flavour: Any, artifact: int, together: list[int]
) -> None:
    disk.stage(root, built[0], "edge", 1, replace(SERVING, flavour=before))
    disk.put(root, "edge", 1, None)
    disk.stage(root, built[artifact], "edge", 2, replace(SERVING, flavour=flavour))
    disk.put(root, "edge", 2, 1)
    assert served(root) == together
    assert names(root / "edge")[:2] == ["1", "2"]


def test_an_artifact_that_cannot_be_served_so_is_not_staged(root: Path, built: list[Path]) -> None:
    with pytest.raises(ArtifactError, match=r"^an artifact of onnxruntime is served as onnxruntime or python, not as"):
        disk.stage(root, built[0], "edge", 1, replace(SERVING, flavour="tensorrt_plan"))
    assert names(root) == []


def test_a_stand_in_is_not_served(root: Path, tmp_path: Path) -> None:
    """A plan answers in Triton itself, by the code that all plans share; it is built for a GPU that is elsewhere."""
    model = make_model(tmp_path / "model", class_names(4))
    inputs = order(model, tmp_path / "artifacts", engine="tensorrt_rtx", options={"compute_capability": "8.9"})
    staged = stage(root, Path(build.run(inputs, {}, silent)["path"]), 1)
    assert names(staged) == ["engine.py", "labels.txt", "manifest.json", "model.plan", "model.py", "plan.json"]
    assert (staged / "engine.py").read_bytes() == (Path(disk.__file__).parent / "plan.py").read_bytes()


def test_a_version_holds_the_artifact_and_the_code_that_answers(root: Path, built: list[Path]) -> None:
    staged = stage(root, built[0], 3)
    given = read_json(built[0] / "manifest.json")
    manifest = disk.verify_version(staged)
    assert sorted(manifest.pop("files")) == ["engine.py", "labels.txt", "model.onnx", "model.py"]
    assert manifest == {
        "format": 1,
        "target": "edge",
        "version": 3,
        "artifact": given["id"],
        "model": given["model"],
        "engine": "onnxruntime",
        "classes": given["classes"],
        "input": given["input"],
        "serving": {"flavour": "python", "max_batch_size": 8, "queue_delay_us": 0, "instances": 2, "threads": 3},
    }
    assert (staged / "model.onnx").read_bytes() == (built[0] / "model.onnx").read_bytes()
    deploy = Path(disk.__file__).parent
    assert (staged / "model.py").read_bytes() == (deploy / "model_template" / "model.py").read_bytes()
    assert (staged / "engine.py").read_bytes() == (deploy / "engines" / "onnxruntime.py").read_bytes()
    assert (staged / "model.onnx").stat().st_nlink == 1  # no change of the artifact's file reaches what serves


def test_staging_again_makes_it_again(root: Path, built: list[Path]) -> None:
    staged = stage(root, built[0], 3)
    (staged / "model.onnx").write_bytes(b"junk")
    (staged / "more").write_text("left")
    assert stage(root, built[0], 3) == staged
    assert names(staged) == ["engine.py", "labels.txt", "manifest.json", "model.onnx", "model.py"]
    disk.verify_version(staged)


def test_a_damaged_artifact_is_not_staged(root: Path, built: list[Path], tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(built[0], tmp_path / "damaged"))
    (artifact / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged"):
        stage(root, artifact, 1)
    assert not (disk.staging_folder(root) / "edge").exists()


def test_the_first_version_makes_the_model(root: Path, built: list[Path]) -> None:
    stage(root, built[0], 1)
    disk.put(root, "edge", 1, None)
    assert served(root) == [1]
    assert names(root) == ["edge"]
    assert names(root / "edge") == ["1", "config.pbtxt", "labels-1.txt"]
    config = configuration(root / "edge")
    assert config.max_batch_size == 8
    assert config.instance_group[0].count == 2
    assert config.parameters["threads"].string_value == "3"
    assert not (disk.staging_folder(root) / "edge" / "1").exists()


def test_the_next_version_is_served_beside_the_one_before(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    before = tree(root / "edge" / "1")
    stage(root, built[1], 2)
    assert served(root) == [1]
    disk.put(root, "edge", 2, 1)
    assert served(root) == [1, 2]
    assert configuration(root / "edge").output[0].label_filename == "labels-2.txt"
    disk.retire(root, "edge", 2)
    assert served(root) == [2]
    assert names(root / "edge") == ["1", "2", "config.pbtxt", "labels-1.txt", "labels-2.txt"]  # it may still be asked
    assert tree(root / "edge" / "1") == before
    disk.clear(root, "edge", 2)
    assert served(root) == [2]
    assert names(root / "edge") == ["2", "config.pbtxt", "labels-2.txt"]
    assert not [path for path in disk.staging_folder(root).rglob("*") if path.is_file()]


def test_a_put_can_be_taken_back(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    before = tree(root)
    stage(root, built[1], 2)
    disk.put(root, "edge", 2, 1)
    for _ in range(2):
        disk.restore(root, "edge", 1)
        assert served(root) == [1]
        disk.clear(root, "edge", 1)
        assert tree(root) == before


def test_what_is_staged_only_is_taken_back_too(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    before = tree(root)
    stage(root, built[1], 2)
    disk.restore(root, "edge", 1)
    disk.clear(root, "edge", 1)
    assert tree(root) == before
    assert tree(disk.staging_folder(root)) == {}


def test_the_first_put_is_taken_back_to_nothing(root: Path, built: list[Path]) -> None:
    stage(root, built[0], 1)
    disk.put(root, "edge", 1, None)
    for _ in range(2):
        disk.restore(root, "edge", None)
        assert names(root) == []
    assert tree(disk.staging_folder(root)) == {}


@pytest.mark.parametrize("name", ["engine.py", "labels.txt", "manifest.json", "model.onnx", "model.py"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_version_that_was_tampered_with_is_found(root: Path, built: list[Path], name: str, how: str) -> None:
    switch(root, built[0], 1)
    disk.verify_model(root, "edge", 1)
    file = root / "edge" / "1" / name
    content = file.read_bytes()
    file.unlink()
    if how == "changed":
        file.write_bytes(content[:-2] + b"x" + content[-1:])
    for verify in (
        lambda: disk.verify_version(root / "edge" / "1"),
        lambda: disk.verify_model(root, "edge", 1),
        lambda: disk.retire(root, "edge", 1),
    ):
        with pytest.raises(ArtifactError, match=str(file)):
            verify()


@pytest.mark.parametrize("name", ["config.pbtxt", "labels-1.txt"])
@pytest.mark.parametrize("content", [b"others", b"\xff", None], ids=["others", "no text", "missing"])
def test_a_model_that_was_tampered_with_is_found(
    root: Path, built: list[Path], name: str, content: bytes | None
) -> None:
    switch(root, built[0], 1)
    file = root / "edge" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ArtifactError, match=str(file)):
        disk.verify_model(root, "edge", 1)
    disk.put(root, "edge", 1, None)  # as `mend` does it
    disk.verify_model(root, "edge", 1)


def test_a_tampered_version_can_be_made_and_put_again(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    (root / "edge" / "1" / "model.py").write_text("others")
    assert stage(root, built[0], 1) == root / "edge" / "1"  # not made again unless it is asked for
    stage(root, built[0], 1, again=True)
    disk.put(root, "edge", 1, None)
    disk.verify_model(root, "edge", 1)
    assert served(root) == [1]


def test_a_tampered_version_is_not_put(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    staged = stage(root, built[1], 2)
    (staged / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged"):
        disk.put(root, "edge", 2, 1)
    assert served(root) == [1]


def test_a_damaged_version_before_is_not_served_beside_the_new_one(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    (root / "edge" / "1" / "model.onnx").write_bytes(b"junk")
    stage(root, built[1], 2)
    disk.put(root, "edge", 2, 1)
    assert served(root) == [2]


def test_versions_are_those_that_were_put(root: Path, built: list[Path]) -> None:
    assert disk.versions(root, "edge") == {}
    for number in (2, 10):
        stage(root, built[0], number)
        assert number not in disk.versions(root, "edge")
        disk.put(root, "edge", number, None)
    stage(root, built[0], 1, target="other")
    disk.put(root, "other", 1, None)
    (root / "edge" / "11").mkdir()  # no manifest
    shutil.copytree(root / "other" / "1", root / "edge" / "12")  # of another target
    shutil.copytree(root / "edge" / "2", root / "edge" / "13.old")
    found = disk.versions(root, "edge")
    assert list(found) == [2, 10]  # as numbers, not as text; 2 is not served, and not free to be given again
    assert found[10]["version"] == 10


def test_a_number_that_is_taken_keeps_what_was_put_under_it(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    before = tree(root)
    assert stage(root, built[1], 1) == root / "edge" / "1"
    disk.put(root, "edge", 1, None)
    assert tree(root) == before


def test_an_input_of_another_size_is_not_warmed_up_beside_the_old_one(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    assert configuration(root / "edge").model_warmup
    stage(root, built[2], 2)
    disk.put(root, "edge", 2, 1)
    assert served(root) == [1, 2]
    assert not configuration(root / "edge").model_warmup
    disk.retire(root, "edge", 2)
    assert configuration(root / "edge").model_warmup


def test_a_candidate_is_a_model_of_its_own(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    before = tree(root)
    staged = stage(root, built[1], 2)
    given = tree(staged)
    for _ in range(2):  # it may be there already, from a probe that was cut off
        assert disk.place_candidate(root, "edge", staged) == "edge-candidate"
    assert served(root, "edge-candidate") == [1]
    config = configuration(root / "edge-candidate")
    assert (config.instance_group[0].count, config.max_batch_size) == (1, 8)
    assert tree(root / "edge-candidate" / "1") == given
    for _ in range(2):
        disk.remove_candidate(root, "edge")
        assert tree(root) == before
    assert tree(staged) == given
    disk.put(root, "edge", 2, 1)
    assert served(root) == [1, 2]


@pytest.mark.parametrize("target", ["", ".hidden", "a/b", "../x", "a b", "edge-candidate", "-x", "ü"])
def test_a_name_that_cannot_be_a_models_is_refused(root: Path, built: list[Path], target: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be a model's name"):
        stage(root, built[0], 1, target=target)
    assert names(root) == names(disk.staging_folder(root)) == []


@pytest.mark.parametrize("target", ["edge", "Edge_2", "7", "line.1-b", "_x"])
def test_names_that_can_be_a_models(root: Path, built: list[Path], target: str) -> None:
    stage(root, built[0], 1, target=target)
    disk.put(root, target, 1, None)
    assert served(root, target) == [1]


@pytest.mark.parametrize("name", ["edge", "edge-candidate"])
def test_a_model_of_somebody_else_is_left_alone(root: Path, built: list[Path], tmp_path: Path, name: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.plan").write_text("theirs")
    (root / name / "config.pbtxt").write_text(f'name: "{name}"')
    before = tree(root)
    with pytest.raises(RepositoryError, match="was not made by relearnd and is left alone"):
        disk.place_candidate(root, "edge", stage(root, built[0], 2))
    for attempt in (
        lambda: disk.put(root, name, 2, None),
        lambda: disk.restore(root, name, None),
        lambda: disk.remove_candidate(root, "edge"),
    )[: 2 if name == "edge" else 3]:
        with pytest.raises(RepositoryError):
            attempt()
    assert tree(root) == before


def test_a_model_of_ours_whose_configuration_was_lost_is_still_ours(root: Path, built: list[Path]) -> None:
    switch(root, built[0], 1)
    (root / "edge" / "config.pbtxt").unlink()
    stage(root, built[1], 2)
    disk.put(root, "edge", 2, 1)
    assert served(root) == [1, 2]


def test_what_a_crash_left_beside_the_repository_is_swept(root: Path, built: list[Path]) -> None:
    staging = disk.staging_folder(root)
    for name in (".stage-x", ".model-x", ".retired"):
        (staging / name / "deep").mkdir(parents=True)
    (staging / ".config.pbtxt.7.tmp").write_text("half")
    switch(root, built[0], 1)
    switch(root, built[1], 2, before=1)
    assert names(staging) == ["edge"]


def test_a_repository_that_is_missing_is_named(tmp_path: Path, built: list[Path]) -> None:
    with pytest.raises(RepositoryError, match=r"the model repository .* is missing; make the folder, or correct"):
        stage(tmp_path / "none", built[0], 1)
    assert names(tmp_path) == []


def test_staging_that_cannot_be_made_is_named(root: Path, built: list[Path]) -> None:
    disk.staging_folder(root).write_text("in the way")
    with pytest.raises(RepositoryError, match=r"repository\.staging: File exists"):
        stage(root, built[0], 1)


def test_a_repository_on_another_file_system_than_its_staging_is_refused(tmp_path: Path, built: list[Path]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if Path(elsewhere).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is but one file system here")
        (tmp_path / "repository").symlink_to(elsewhere)
        with pytest.raises(RepositoryError, match="are on different file systems"):
            stage(tmp_path / "repository", built[0], 1)
        assert names(Path(elsewhere)) == []


# --- no room, no right ----------------------------------------------------------------------------------------------

STAGE = """
import json, os, resource, sys
from pathlib import Path
from deploy import repository
from deploy.config_pbtxt import Serving
root, artifact, limit, user, step = sys.argv[1:]
if step == "put":
    repository.stage(Path(root), Path(artifact), "edge", 2, Serving())
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
if int(user):
    os.setgid(int(user)); os.setuid(int(user))
try:
    if step == "stage":
        repository.stage(Path(root), Path(artifact), "edge", 2, Serving())
    repository.put(Path(root), "edge", 2, 1)
except repository.RepositoryError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "step"), [(100, "stage"), (400, "stage"), (10, "put")], ids=["graph", "code", "labels"]
)
def test_a_full_disk_leaves_what_serves_whole(
    root: Path, built: list[Path], start: Start, limit: int, step: str
) -> None:
    """A limit on the size of files stands for the full disk: writing ends in the middle of one of them."""
    switch(root, built[0], 1)
    before = tree(root)
    said, errors = start("-c", STAGE, root, built[1], limit, 0, step).communicate(timeout=SECONDS)
    assert "File too large; the version that serves is untouched" in said, errors
    assert served(root) == [1]
    assert {name: content for name, content in tree(root).items() if not name.startswith("edge/2/")} == before
    assert not list(disk.staging_folder(root).glob(".[!r]*"))
    switch(root, built[1], 2, 1)  # there is room again
    assert served(root) == [2]


@pytest.fixture
def open_root(built: list[Path]) -> Iterator[Path]:
    """A repository in a folder that every user may pass through."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "repository"
        root.mkdir()
        shutil.copytree(built[1], Path(folder) / "artifact")
        switch(root, built[0], 1)
        yield root
        for path in (root, disk.staging_folder(root), root / "edge"):
            path.chmod(0o755)


@pytest.mark.parametrize("place", ["repository", "repository.staging", "repository/edge"])
def test_a_folder_that_may_not_be_written_is_named_and_nothing_changes(
    open_root: Path, start: Start, place: str
) -> None:
    root, user = open_root, os.getuid()
    if user == 0:
        user = 65534  # nobody; to root every folder is open
        for path in (root, disk.staging_folder(root), *root.rglob("*"), *disk.staging_folder(root).rglob("*")):
            os.chown(path, user, user)
    closed = root.parent / place
    closed.chmod(0o555)
    before = tree(root)
    arguments = (root, root.parent / "artifact", resource.RLIM_INFINITY, user if os.getuid() == 0 else 0, "stage")
    said, errors = start("-c", STAGE, *arguments).communicate(timeout=SECONDS)
    assert str(closed if place != "repository/edge" else root.parent) in said, errors
    assert "cannot be written; give this user the right to" in said or "Permission denied" in said
    assert tree(root) == before
    assert served(root) == [1]


# --- killed at any moment -------------------------------------------------------------------------------------------


def first(root: Path, built: list[Path]) -> Callable[[], None]:
    stage(root, built[0], 1)
    return lambda: disk.put(root, "edge", 1, None)


def following(root: Path, built: list[Path]) -> Callable[[], None]:
    switch(root, built[0], 1)
    stage(root, built[1], 2)

    def put() -> None:
        stage(root, built[1], 2)  # as the step does it: what was put already is found where it is
        disk.put(root, "edge", 2, 1)

    return put


def retiring(root: Path, built: list[Path]) -> Callable[[], None]:
    following(root, built)()

    def retire() -> None:
        disk.retire(root, "edge", 2)
        disk.clear(root, "edge", 2)

    return retire


def undoing(root: Path, built: list[Path]) -> Callable[[], None]:
    following(root, built)()

    def undo() -> None:
        disk.remove_candidate(root, "edge")
        disk.restore(root, "edge", 1)
        disk.clear(root, "edge", 1)

    return undo


def trying(root: Path, built: list[Path]) -> Callable[[], None]:
    switch(root, built[0], 1)

    def probe() -> None:
        disk.place_candidate(root, "edge", stage(root, built[1], 2))

    return probe


def mending(root: Path, built: list[Path]) -> Callable[[], None]:
    switch(root, built[0], 1)
    (root / "edge" / "1" / "labels.txt").write_text("others\n")

    def mend() -> None:
        stage(root, built[0], 1, again=True)
        disk.put(root, "edge", 1, None)

    return mend


def run_killed(step: Callable[[], None], rename: int) -> bool:
    """Runs the step in a child that ends, with nothing tidied up, right before its n-th rename. True: it was killed."""
    child = os.fork()
    if child == 0:
        count = 0
        status = 3  # a failure of its own

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal count
                count += 1
                if count == rename:
                    os._exit(9)
                return function(*arguments)

            return call

        try:
            for name in ("rename", "replace"):
                setattr(Path, name, counted(getattr(Path, name)))
            step()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside the threads of others
@pytest.mark.parametrize(
    ("prepare", "moments", "meanwhile", "end"),
    [
        (first, 3, [[], [1]], [1]),
        (following, 3, [[1], [1, 2]], [1, 2]),
        (retiring, 3, [[1, 2], [2]], [2]),
        (undoing, 3, [[1, 2], [1]], [1]),
        (trying, 4, [[1]], [1]),
    ],
    ids=["first", "following", "retiring", "undoing", "trying"],
)
def test_killed_before_any_rename_one_whole_thing_lies_there_and_repeating_ends_well(
    root: Path,
    built: list[Path],
    prepare: Callable[[Path, list[Path]], Callable[[], None]],
    moments: int,
    meanwhile: list[list[int]],
    end: list[int],
) -> None:
    step = prepare(root, built)
    folders = (root, disk.staging_folder(root))
    kept = [(folder, folder.with_name(f"{folder.name}.kept")) for folder in folders]
    for folder, tmp in kept:
        shutil.copytree(folder, tmp)
    moment = 0
    found = []
    while True:
        moment += 1
        for folder, tmp in kept:
            shutil.rmtree(folder)
            shutil.copytree(tmp, folder)
        killed = run_killed(step, moment)
        found.append(served(root))
        assert found[-1] in meanwhile
        step()
        assert served(root) == end
        if not killed:
            break
    assert moment > moments  # there were as many renames as are known of, at the least
    assert found[0] == meanwhile[0]


def test_killed_while_mending_it_is_whole_after_the_next_time(root: Path, built: list[Path]) -> None:
    step = mending(root, built)
    moment = 1
    while run_killed(step, moment):
        step()
        assert served(root) == [1]
        (root / "edge" / "1" / "labels.txt").write_text("others\n")
        moment += 1
    assert moment > 3
    assert served(root) == [1]


def test_a_candidate_whose_batch_is_wrong_is_staged_as_it_is(root: Path, built: list[Path], tmp_path: Path) -> None:
    """What an artifact answers is for the probe to see: the golden batch itself is no part of a version."""
    artifact = Path(shutil.copytree(built[0], tmp_path / "other"))
    np.savez(artifact / "golden.npz", images=np.zeros(1), probabilities=np.zeros(1))
    rewrite(artifact, "golden.npz", (artifact / "golden.npz").read_bytes())
    staged = stage(root, artifact, 1)
    assert "golden.npz" not in json.loads((staged / "manifest.json").read_text())["files"]
