"""The artifact folder: what an engine built of a model, every file under its SHA-256.

    <artifact id>/
        model.onnx …    the engine's own files
        labels.txt      one class a line, in the order of the probabilities
        golden.npz      images uint8 (n, H, W, 3), and the engine's own answers: probabilities float32 (n, C)
        specimen-1.jpg … specimens.json     JPEG files, and what it answers to them (deploy/specimens.py)
        stand_in.onnx   where no engine could answer at build: the graph that did, in ONNX Runtime
        manifest.json   written last: its existence means that the folder is complete

No engine is imported here: the daemon reads artifacts too.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import durable
from policies.job import StageError

FORMAT = 1
MANIFEST = "manifest.json"
LABELS = "labels.txt"
GOLDEN = "golden.npz"
STAND_IN = "stand_in.onnx"
SPECIMENS = ("specimens.json", *(f"specimen-{number}.jpg" for number in range(1, 5)))
GOLDEN_TOLERANCE = 1e-3  # largest difference of a probability: other processors round otherwise, no more
# Half precision moved a probability by up to 0.006. An int8 graph differed by up to 0.05 between ways of running the
# same sums on one processor; on processors without VNNI int8 sums saturate and whole answers change (a network of
# 99% agreed with itself on 95%), which is to be found and not to be allowed for.
TOLERANCES = {"fp16": 0.02, "int8": 0.1}

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


class ArtifactError(StageError):
    """The folder is incomplete or damaged. Remove it and build it again."""


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {"sha256", "bytes"}} of these files of the folder."""
    return {
        name: {"sha256": durable.hash_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }


def name_artifact(model: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The artifact's id: 16 hex digits over its model's id, and names and hashes of the engine's files and labels."""
    told = (GOLDEN, *SPECIMENS)  # of what it is, and not what it is
    pairs = sorted((name, entry["sha256"]) for name, entry in files.items() if name not in told)
    return hashlib.sha256(json.dumps([model, pairs]).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a model, artifact or version folder.

    Raises ArtifactError where there is none to read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: the folder is not complete; make it again") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the folder again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{path} has format {found!r}, this version reads {FORMAT}; make the folder again")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, once every file that it names has the SHA-256 that it names (ArtifactError otherwise)."""
    manifest = read_manifest(folder)
    if "files" not in manifest:
        raise ArtifactError(f"{folder / MANIFEST} lists no files: the folder is no artifact")
    for name, entry in manifest["files"].items():
        check_file(folder / name, entry["sha256"])
    return manifest


def check_file(path: Path, sha256: str) -> None:
    """Raises ArtifactError, naming the file, where it is missing or its SHA-256 is another."""
    try:
        found = durable.hash_file(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); make the folder again") from error
    if found != sha256:
        raise ArtifactError(
            f"{path} is damaged: SHA-256 {found[:12]}…, the manifest says {sha256[:12]}…; make the folder again"
        )


def read_golden(folder: Path) -> tuple[Images, Probabilities]:
    """The recorded batch: images uint8 (n, H, W, 3) and the engine's answers float32 (n, C)."""
    path = folder / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["images"], arrays["probabilities"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make the folder again") from error


def find_tolerance(manifest: Mapping[str, Any]) -> float:
    """By how much a probability of this artifact may differ from the record, on whatever machine answers."""
    return TOLERANCES.get(manifest["precision"], GOLDEN_TOLERANCE)


def compare_golden(found: Probabilities, recorded: Probabilities, tolerance: float = GOLDEN_TOLERANCE) -> float:
    """The largest absolute difference of the two batches' probabilities.

    Raises ArtifactError where the shapes differ, an answer is not a number, or the difference exceeds
    `tolerance`.
    """
    if found.shape != recorded.shape:
        raise ArtifactError(f"the golden batch gave answers of shape {found.shape}, recorded {recorded.shape}")
    difference = float(np.abs(found - recorded).max(initial=0.0))
    if not difference <= tolerance:  # also true of NaN
        raise ArtifactError(
            f"the golden batch gave other answers than recorded: largest difference {difference:.3g}, "
            f"allowed {tolerance:.3g}"
        )
    return difference
