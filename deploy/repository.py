"""The switch on disk: how a version comes into Triton's model repository, and how it leaves it.

    <repository>/<target>/                    a model of Triton; all that lies here was put here by this module
        config.pbtxt                          names the versions served and the labels: replacing it is the switch
        labels-7.txt                          the labels of version 7
        7/ manifest.json model.py engine.py … a version, every file under its SHA-256 (no code in native flavours)
    <repository>.staging/<target>/7/          the same version before it is put, on the same file system
    <repository>.staging/.retired/            what is on its way out

Each function may be repeated after a crash in its midst. At every moment between two renames a load by Triton
serves one complete thing: a version that config.pbtxt does not name is not served, and the labels are those
that it names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy import artifact, durable
from deploy.access import Access
from deploy.config_pbtxt import FLAVOURS, MARK, Serving, find_misfit, write_config
from deploy.engines import source_file

CONFIG = "config.pbtxt"
MODEL_FILE = Path(__file__).with_name("model_template") / "model.py"
NOT_SERVED = (artifact.GOLDEN, artifact.STAND_IN, *artifact.SPECIMENS)
CANDIDATE = "-candidate"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class RepositoryError(Exception):
    """The model repository cannot be written as it stands; what it served before is untouched.

    The message says why.
    """


def staging_folder(repository: Path) -> Path:
    """Beside the repository and not in it: Triton takes every folder in it for a model."""
    return repository.with_name(repository.name + ".staging")


def check_repository(repository: Path) -> None:
    """Raises RepositoryError where the repository is missing, read-only, or on another device than its staging."""
    staging = staging_folder(repository)
    if not repository.is_dir():
        raise RepositoryError(f"the model repository {repository} is missing; make the folder, or correct its path")
    with translated(repository):
        staging.mkdir(exist_ok=True)
        for folder in (repository, staging):
            if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
                raise RepositoryError(f"{folder} cannot be written; give this user the right to")
        if repository.stat().st_dev != staging.stat().st_dev:
            raise RepositoryError(
                f"{repository} and {staging} are on different file systems, so that no version can be renamed into "
                "place; make the repository a folder inside the mounted file system, not its root"
            )


def stage(
    repository: Path, artifact_folder: Path, target: str, version: int, serving: Serving, again: bool = False
) -> Path:
    """Makes the version's folder beside the repository, on disk and verified; returns it.

    A version that has been put already is returned where it is, unless it is to be made `again`. Raises
    RepositoryError (the disk is full, for one) and ArtifactError (the artifact is damaged, or cannot be served so).
    """
    check_repository(repository)
    check_target(repository, target)
    if not again and version in versions(repository, target):
        return repository / target / str(version)
    facts = artifact.verify(artifact_folder)
    if misfit := find_misfit(facts, serving):
        raise artifact.ArtifactError(misfit)
    staged = staging_folder(repository) / target / str(version)
    with translated(staged):
        sweep(repository)
        durable.remove_tree(staged)
        staged.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".stage-", dir=staging_folder(repository)) as temporary:
            work = Path(temporary) / "version"
            work.mkdir(mode=0o755)
            fill_version(work, artifact_folder, facts, target, version, serving)
            durable.move(work, staged)
    verify_version(staged)
    return staged


def sweep(repository: Path) -> None:
    """Removes what a crash left half made beside the repository."""
    for pattern in (".stage-*", ".model-*", ".*.tmp"):
        for rest in staging_folder(repository).glob(pattern):
            durable.remove_tree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)


def fill_version(
    work: Path, artifact_folder: Path, facts: Mapping[str, Any], target: str, version: int, serving: Serving
) -> None:
    """What a version holds: the artifact's files, and in the flavour `python` the code of the model and its engine."""
    native = FLAVOURS[serving.flavour].files
    names = [*native, artifact.LABELS] if native else [name for name in facts["files"] if name not in NOT_SERVED]
    for name in names:
        shutil.copyfile(artifact_folder / name, work / name)
    if not native:
        shutil.copyfile(MODEL_FILE, work / "model.py")
        shutil.copyfile(source_file(facts["engine"]), work / "engine.py")
        names += ["model.py", "engine.py"]
    manifest = {
        "format": artifact.FORMAT,
        "target": target,
        "version": version,
        "artifact": facts["id"],
        "model": facts["model"],
        "engine": facts["engine"],
        "classes": facts["classes"],
        "input": facts["input"],
        "serving": asdict(serving),
        "files": artifact.describe_files(work, names),
    }
    durable.sync_tree(work)
    durable.write_json(work / artifact.MANIFEST, manifest)


def verify_version(folder: Path) -> dict[str, Any]:
    """The version's manifest, once every file has its SHA-256. Raises ArtifactError, naming the file."""
    return artifact.verify(folder)


def verify_model(repository: Path, target: str, version: int, before: int | None = None) -> None:
    """Raises ArtifactError, naming the file, where what serves this version is not all there and whole.

    before: the version that is served beside it; None: it alone is.
    """
    manifests = [*whole(repository / target, before), verify_version(repository / target / str(version))]
    for name, text in compose_model(target, manifests).items():
        path = repository / target / name
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise artifact.ArtifactError(f"{path} cannot be read: {error}") from error
        if found != text:
            raise artifact.ArtifactError(f"{path} was changed by somebody else")


def fingerprint(repository: Path, target: str) -> tuple[tuple[str, int, int], ...]:
    """Name, bytes and time of change of each file in the target's model: another one where somebody was at it.

    Raises RepositoryError where it cannot be read.
    """
    model = repository / target
    found = []
    with translated(model):
        for path in sorted(model.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((str(path.relative_to(model)), stat.st_size * path.is_file(), stat.st_mtime_ns))
    return tuple(found)


def give(repository: Path, name: str, access: Access) -> None:
    """Makes a model's files whose and how they are to be. Raises RepositoryError where that is not allowed."""
    with translated(repository / name):
        access.give(repository / name)


def place_candidate(repository: Path, target: str, staged: Path) -> str:
    """Puts the staged version in the repository as version 1 of a model of its own; returns that model's name."""
    name = target + CANDIDATE
    remove_candidate(repository, target)
    with translated(repository / name), fresh_model(repository, name) as work:
        shutil.copytree(staged, work / "1", copy_function=link_or_copy)
        manifest = artifact.read_manifest(staged)
        write_model(work, name, [{**manifest, "version": 1, "serving": {**manifest["serving"], "instances": 1}}])
    return name


def remove_candidate(repository: Path, target: str) -> None:
    """Removes the candidate's model from the repository; it may be gone already."""
    check_owner(repository, target + CANDIDATE)
    discard(repository, repository / (target + CANDIDATE))


def put(repository: Path, target: str, version: int, before: int | None) -> None:
    """Puts the staged version in place, to be served together with the one before it (None: the target's first).

    The version's folder comes first and is not served, then its labels; replacing config.pbtxt is the switch.
    """
    check_target(repository, target)
    model, staged = repository / target, staging_folder(repository) / target / str(version)
    with translated(model):
        if not model.exists():
            with fresh_model(repository, target) as work:
                shutil.copytree(staged, work / str(version), copy_function=link_or_copy)
                write_model(work, target, [artifact.read_manifest(staged)])
        elif staged.exists():
            discard(repository, model / str(version))
            durable.move(staged, model / str(version))
        newest = verify_version(model / str(version))
        write_model(model, target, [*whole(model, before), newest])
    durable.remove_tree(staged)


def whole(model: Path, version: int | None) -> list[dict[str, Any]]:
    """The manifest of this version where it is undamaged: a damaged one could not be loaded beside another."""
    with contextlib.suppress(artifact.ArtifactError):
        return [] if version is None else [verify_version(model / str(version))]
    return []


def retire(repository: Path, target: str, version: int) -> None:
    """Lets config.pbtxt name this version alone.

    The older ones are still there until `clear` moves them out.
    """
    with translated(repository / target):
        write_model(repository / target, target, [verify_version(repository / target / str(version))])


def touch(repository: Path, target: str, version: int) -> None:
    """Makes the version's files as new as now, which is what Triton looks at."""
    with translated(repository / target), contextlib.suppress(FileNotFoundError):
        for file in (repository / target / str(version)).iterdir():
            os.utime(file)


def clear(repository: Path, target: str, version: int) -> None:
    """Moves every other version of ours, and their labels, out of the model and deletes them.

    Triton must not serve them.
    """
    model = repository / target
    with translated(model):
        for number in versions(repository, target):
            if number != version:
                discard(repository, model / str(number))
        for labels in model.glob("labels-*.txt"):
            if labels.name != name_labels(version):
                labels.unlink(missing_ok=True)


def restore(repository: Path, target: str, version: int | None) -> None:
    """Back to this version alone, as before `put`; None: the target served nothing, its model goes.

    The next load serves it. The newer version's folder goes with `clear`.
    """
    durable.remove_tree(staging_folder(repository) / target)
    if version is None:
        check_owner(repository, target)
        discard(repository, repository / target)
    else:
        retire(repository, target, version)


def versions(repository: Path, target: str) -> dict[int, dict[str, Any]]:
    """The versions of ours that lie in the target's model, by number, with their manifests."""
    found = {}
    for folder in (repository / target).glob("[0-9]*"):
        with contextlib.suppress(artifact.ArtifactError, ValueError):
            manifest = artifact.read_manifest(folder)
            if manifest.get("target") == target.removesuffix(CANDIDATE):
                found[int(folder.name)] = manifest
    return dict(sorted(found.items()))


def numbers(repository: Path, target: str) -> list[int]:
    """All version numbers that are taken in the target's model, whoever put a folder there."""
    return [int(folder.name) for folder in (repository / target).glob("[0-9]*") if folder.name.isdecimal()]


def check_versions(repository: Path, target: str) -> None:
    """Raises RepositoryError where a version lies in the target's model that relearnd did not put there."""
    ours = versions(repository, target)
    strange = [str(repository / target / str(n)) for n in sorted(numbers(repository, target)) if n not in ours]
    if strange:
        raise RepositoryError(f"{', '.join(strange)} was not put there by relearnd and is left alone: take it away")


def check_target(repository: Path, target: str) -> None:
    """Raises RepositoryError where the name cannot be a model's, or the model there is somebody else's."""
    if not NAME.fullmatch(target) or target.endswith(CANDIDATE):
        raise RepositoryError(f"{target!r} cannot be a model's name: use letters, digits, '_', '-' and '.'")
    check_owner(repository, target)


def check_owner(repository: Path, name: str) -> None:
    model = repository / name
    if model.exists() and not is_marked(model) and not versions(repository, name):
        raise RepositoryError(
            f"{model} was not made by relearnd and is left alone; move it away, or name the constraint file otherwise"
        )


def is_marked(model: Path) -> bool:
    try:
        return (model / CONFIG).read_text(encoding="utf-8", errors="replace").startswith(MARK)
    except OSError:
        return False


def write_model(model: Path, name: str, manifests: list[dict[str, Any]]) -> None:
    """Labels, then configuration, for these versions (the newest last), each replaced in one step."""
    aside = model.parent if model.parent.name.startswith(".") else staging_folder(model.parent)
    for file, text in compose_model(name, manifests).items():
        durable.write_text(model / file, text, aside)


def compose_model(name: str, manifests: list[dict[str, Any]]) -> dict[str, str]:
    """File -> text: the labels of the newest version (the last one), then the configuration.

    It names all of them, but those that Triton could not load by it.
    """
    newest = manifests[-1]
    numbers = [manifest["version"] for manifest in manifests if suits(manifest, newest)]
    labels = name_labels(newest["version"])
    # A warm-up has the newest version's input, which an older one of another size would refuse.
    same = all(manifest["input"] == newest["input"] for manifest in manifests)
    serving, classes = Serving(**newest["serving"]), len(newest["classes"])
    config = write_config(name, newest["input"], numbers, labels, serving, warm_up=same, classes=classes)
    return {labels: "".join(f"{c}\n" for c in newest["classes"]), CONFIG: config}


def suits(manifest: dict[str, Any], newest: dict[str, Any]) -> bool:
    """Whether a version can be loaded by a configuration that is written for the newest one.

    It names one backend, and Triton's own compare it with the graph's shapes.
    """
    flavour = newest["serving"]["flavour"]
    shapes = [(each["input"], len(each["classes"])) for each in (manifest, newest)]
    same = FLAVOURS[flavour].open_output or shapes[0] == shapes[1]
    return bool(manifest["serving"]["flavour"] == flavour and same)


def name_labels(version: int) -> str:
    return f"labels-{version}.txt"


@contextlib.contextmanager
def fresh_model(repository: Path, name: str) -> Iterator[Path]:
    """A folder beside the repository that becomes the model `name` in one rename when the block ends well."""
    with tempfile.TemporaryDirectory(prefix=".model-", dir=staging_folder(repository)) as temporary:
        work = Path(temporary) / name
        work.mkdir(mode=0o755)
        yield work
        durable.sync_tree(work)
        durable.move(work, repository / name)


def discard(repository: Path, folder: Path) -> None:
    """Takes the folder out of the repository in one rename, then deletes it. It may be gone already."""
    retired = staging_folder(repository) / ".retired"
    with translated(folder):
        retired.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            durable.move(folder, Path(tempfile.mkdtemp(dir=retired)) / folder.name)
    durable.remove_tree(retired)


def link_or_copy(source: str, destination: str) -> None:
    """A hard link where the file system has them: these files are ours and never written again."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns what the operating system says into a RepositoryError that names the path."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or path  # of a copy it is where to that is full
        raise RepositoryError(f"{where}: {error.strerror or error}; the version that serves is untouched") from error
