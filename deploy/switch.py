"""Putting a new version in front of Triton's clients without failing one of their requests, step by step.

The caller runs the steps of `STEPS` in order with `run_step` and writes down each before and after; every
step may be repeated after a crash. If one fails, `undo` leaves the version before serving. TritonUnavailable
means: nothing is wrong with the version, try the same step again later.

Why this order, by measurement under load: a load moves the clients to the newest version within the call, so
what is to be found wrong must be found before, under another name; the version before must stay loaded during
that load (requests that were on their way to it fail otherwise), so it goes only afterwards, by a second
load. Going back is a switch too: the earlier artifact under a new, higher version.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy import artifact, repository
from deploy.access import Access
from deploy.config_pbtxt import Serving
from deploy.triton import Triton, TritonError, TritonRefused

PROBE_SECONDS = 2.0
STEPS = ("stage", "probe", "put", "load", "verify", "retire")


class SwitchFailed(Exception):
    """The version cannot serve; the one before it does. The message says what was found."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One version that is to serve a target."""

    repository: Path
    target: str
    artifact: Path  # folder
    version: int  # higher than any that the target had
    before: int | None = None  # the version that serves now
    serving: Serving = field(default_factory=Serving)
    tolerance: float | None = None  # of a probability; None: that of the artifact's precision
    access: Access = field(default_factory=Access)  # of what is put into the repository


def run_step(step: str, switch: Switch, triton: Triton) -> str:
    """Takes one step; returns what was done in a sentence.

    Raises SwitchFailed (call `undo`), TritonUnavailable (try again later) or repository.RepositoryError (a
    person has to look; nothing has changed for the clients, call `undo` or try again).
    """
    try:
        return {"stage": stage, "probe": probe, "put": put, "load": load, "verify": verify, "retire": retire}[step](
            switch, triton
        )
    except (TritonRefused, artifact.ArtifactError) as error:
        raise SwitchFailed(f"{step}: {error}") from error


def stage(switch: Switch, triton: Triton) -> str:
    """The version's folder, complete beside the repository."""
    folder = stage_folder(switch)
    return f"version {switch.version} is complete in {folder}"


def probe(switch: Switch, triton: Triton) -> str:
    """Triton loads the version under another name and gives the recorded answers."""
    staged = stage_folder(switch)
    name = repository.place_candidate(switch.repository, switch.target, staged)
    try:
        load_model(switch, triton, name)
        difference = compare(switch, triton, name)
    finally:
        drop_candidate(switch, triton)
    return f"{name} gave the recorded answers (largest difference {difference:.2g})"


def put(switch: Switch, triton: Triton) -> str:
    """Version, labels and configuration in place, each file with its SHA-256; Triton has not been told yet."""
    stage_folder(switch, again=is_damaged_version(switch))
    repository.put(switch.repository, switch.target, switch.version, switch.before)
    return f"version {switch.version} is in place beside {switch.before or 'nothing'}"


def load(switch: Switch, triton: Triton) -> str:
    """From here on clients get the new version; the one before stays loaded."""
    if find_damage(switch, switch.before):
        put(switch, triton)
    load_model(switch, triton, switch.target)
    return f"Triton loaded {switch.target} version {switch.version}"


def verify(switch: Switch, triton: Triton) -> str:
    """The new version answers as recorded, under its own number, with its own labels."""
    fault = find_fault(switch, triton)
    if fault:
        reload(switch, triton)  # a Triton that was restarted meanwhile came back empty
        fault = find_fault(switch, triton)
    if fault:
        raise SwitchFailed(f"verify: {fault}")
    return f"version {switch.version} serves {switch.target} and gives the recorded answers"


def retire(switch: Switch, triton: Triton) -> str:
    """The versions before are unloaded, then their folders go."""
    repository.retire(switch.repository, switch.target, switch.version)
    load_model(switch, triton, switch.target)
    repository.clear(switch.repository, switch.target, switch.version)
    return f"version {switch.version} alone serves {switch.target}"


def undo(switch: Switch, triton: Triton, *, loaded: bool = True) -> str:
    """After a failed step: the version before, as it was, on disk and in Triton. May be repeated.

    `loaded`: whether Triton may have begun to load the new one; else the disk is all, and no Triton is needed. Where
    the version before was damaged meanwhile, it is left to `mend`, which makes it again. Raises TritonUnavailable where
    Triton is away: the disk is restored by then; call it again later.
    """
    drop_candidate(switch, triton)
    try:
        repository.restore(switch.repository, switch.target, switch.before)
        if not loaded:
            if switch.before is not None:
                repository.clear(switch.repository, switch.target, switch.before)
            return f"{switch.target} is served as before: nothing was loaded"
        if switch.before is None:
            triton.unload(switch.target)
            return f"{switch.target} serves nothing, as before"
        load_model(switch, triton, switch.target)
        repository.clear(switch.repository, switch.target, switch.before)
    except (TritonRefused, artifact.ArtifactError) as error:
        if switch.before is None:
            return f"{switch.target} is out of the repository, and could not be unloaded: {error}"
        return f"version {switch.before} cannot be put back as it is and has to be mended: {error}"
    return f"version {switch.before} serves {switch.target}, as before"


def leave(switch: Switch, triton: Triton) -> str:
    """The target goes from this Triton, which another has taken it over from. May be repeated.

    Raises SwitchFailed where Triton keeps it loaded, which serves on from memory then; else as `undo`.
    """
    drop_candidate(switch, triton)
    repository.restore(switch.repository, switch.target, None)
    try:
        triton.unload(switch.target)
    except TritonRefused as error:
        raise SwitchFailed(f"{switch.target} cannot be unloaded from {triton.address}: {error}") from error
    return f"{switch.target} is served by another Triton now, and is gone from {triton.address}"


def find_fault(switch: Switch, triton: Triton) -> str | None:
    """What is wrong with how Triton serves this version now; None: nothing. Raises TritonUnavailable."""
    try:
        if fault := find_index_fault(switch, triton):
            return fault
        compare(switch, triton, switch.target, switch.version)
        return find_label_fault(switch, triton)
    except (TritonRefused, artifact.ArtifactError) as error:
        return str(error)


@dataclass(frozen=True, slots=True)
class Question:
    """One image of the golden batch and its recorded answer: what an idle server is asked again and again."""

    images: NDArray[np.uint8]  # (1, H, W, 3)
    recorded: NDArray[np.float32]  # (1, classes)
    tolerance: float


def read_question(switch: Switch) -> Question | None:
    """None where the artifact, with its record, is gone."""
    if is_lost(switch.artifact):
        return None
    images, recorded = artifact.read_golden(switch.artifact)
    return Question(images[:1], recorded[:1], find_tolerance(switch))


def ask_each_instance(switch: Switch, triton: Triton, question: Question) -> str | None:
    """What is wrong with an answer of an idle server, whose instances answer in turn; None: nothing.

    Raises TritonUnavailable.
    """
    try:
        for _ in range(switch.serving.instances):
            found, _ = triton.infer(switch.target, question.images, switch.version)
            artifact.compare_golden(found, question.recorded, question.tolerance)
    except (TritonRefused, artifact.ArtifactError) as error:
        return str(error)
    return None


def find_index_fault(switch: Switch, triton: Triton) -> str | None:
    """What is wrong with this version by Triton's own word; None: it calls it ready."""
    states = {state.version: state for state in triton.index().get(switch.target, [])}
    state = states.get(switch.version)
    if state is None or state.state != "READY":
        return f"Triton says of version {switch.version}: {state.reason or state.state if state else 'not loaded'}"
    return None


def find_failing_instance(switch: Switch, triton: Triton, seconds: float = PROBE_SECONDS) -> str | None:
    """What one of the instances says to requests; None: all of them answer.

    A dead one is busy failing somebody's request most of the time, and a single question lands on another: as many
    as there are instances ask at once, for a while.
    """
    images, _ = artifact.read_golden(switch.artifact)
    deadline = time.monotonic() + seconds

    def ask(_: int) -> None:
        with triton.twin() as connection:
            while time.monotonic() < deadline:
                connection.infer(switch.target, images[:1], switch.version)

    number = switch.serving.instances + 1
    with ThreadPoolExecutor(number) as pool:
        try:
            list(pool.map(ask, range(number)))
        except TritonRefused as error:
            return str(error)
    return None


def mend(switch: Switch, triton: Triton, *, suspected: bool = False, touched: bool = False) -> str | None:
    """Makes Triton serve `switch.version` again if it does not: what was done in a sentence; None: nothing was wrong.

    For a Triton that was restarted and came back empty, a backend process that died, a folder that was
    damaged or removed. `suspected`: requests have failed, so that each instance is asked. `touched`: somebody may have
    been at the folder, so that every file is compared with its SHA-256; what serves is not loaded again for that.
    Where the artifact itself is gone there are no recorded answers to compare with: Triton's own word is taken then,
    and the version in the repository is loaded as it lies there. Raises SwitchFailed where even that does not help,
    TritonUnavailable where Triton is away.
    """
    comparable = not is_lost(switch.artifact)
    find = find_fault if comparable else find_index_fault
    fault = find(switch, triton)
    if fault is None and suspected and comparable:
        fault = find_failing_instance(switch, triton)
    damage = find_damage(switch) if fault or touched else None
    if fault is None and damage is None:
        return None
    try:
        if damage:
            stage_folder(switch, again=True)
            repository.put(switch.repository, switch.target, switch.version, None)
            repository.give(switch.repository, switch.target, switch.access)
        if fault:
            reload(switch, triton)
    except (TritonRefused, artifact.ArtifactError) as error:
        serves = "" if fault else "; it serves on from Triton's memory"
        raise SwitchFailed(f"mending {switch.target} failed: {error}; before: {fault or damage}{serves}") from error
    if fault is None:
        return f"{switch.target} version {switch.version} was made again in the repository, and served on: {damage}"
    still = find(switch, triton)
    if still:
        raise SwitchFailed(f"{switch.target} cannot be mended: {still}")
    return f"{switch.target} version {switch.version} was loaded again: {fault}"


def reload(switch: Switch, triton: Triton) -> None:
    """A load that Triton cannot take for done: it leaves a version alone whose files are older than its last load."""
    repository.touch(switch.repository, switch.target, switch.version)
    load_model(switch, triton, switch.target)


def load_model(switch: Switch, triton: Triton, name: str) -> None:
    """A load, once the files are whose they are to be."""
    repository.give(switch.repository, name, switch.access)
    triton.load(name)


def stage_folder(switch: Switch, again: bool = False) -> Path:
    order = (switch.artifact, switch.target, switch.version, switch.serving)
    return repository.stage(switch.repository, *order, again=again)


def is_lost(folder: Path) -> bool:
    """Whether an artifact cannot be compared with any more."""
    try:
        artifact.read_manifest(folder)
        artifact.read_golden(folder)
    except artifact.ArtifactError:
        return True
    return False


def find_damage(switch: Switch, before: int | None = None) -> str | None:
    """What of the files that serve the version (beside the one before) is not as it was written; None: nothing."""
    try:
        repository.verify_model(switch.repository, switch.target, switch.version, before)
    except artifact.ArtifactError as error:
        return str(error)
    return None


def is_damaged_version(switch: Switch) -> bool:
    """Whether the version was put already, and is not what was put."""
    if switch.version not in repository.versions(switch.repository, switch.target):
        return False
    try:
        repository.verify_version(switch.repository / switch.target / str(switch.version))
    except artifact.ArtifactError:
        return True
    return False


def drop_candidate(switch: Switch, triton: Triton) -> None:
    """Unloads the candidate where Triton is there to do it, and removes it from the repository."""
    with contextlib.suppress(TritonError):
        triton.unload(switch.target + repository.CANDIDATE)
    repository.remove_candidate(switch.repository, switch.target)


def compare(switch: Switch, triton: Triton, model: str, version: int | None = None) -> float:
    """The largest difference of Triton's answers to the golden batch from the record; `version` must answer."""
    images, recorded = artifact.read_golden(switch.artifact)
    found, numbers = triton.infer_all(model, images)
    if version is not None and numbers != {version}:
        raise artifact.ArtifactError(f"version {sorted(numbers)} answered instead of {version}")
    return artifact.compare_golden(found, recorded, find_tolerance(switch))


def find_tolerance(switch: Switch) -> float:
    """By how much a probability may differ from the record."""
    if switch.tolerance is not None:
        return switch.tolerance
    return artifact.find_tolerance(artifact.read_manifest(switch.artifact))


def find_label_fault(switch: Switch, triton: Triton) -> str | None:
    """Whether the classification extension names each class as the record does."""
    classes = artifact.read_manifest(switch.artifact)["classes"]
    images, _ = artifact.read_golden(switch.artifact)
    [named], _ = triton.classify(switch.target, images[:1], count=len(classes))
    for _, index, name in named:
        if name != classes[index]:
            return f"class {index} is called {name!r} by Triton and {classes[index]!r} by the artifact"
    return None
