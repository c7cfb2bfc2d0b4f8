"""Removes the bytes of forgotten images for good: from artifacts, decoded images, embeddings, and the store, last.

Each step may be repeated. Rows are overwritten where they lie and lose their name afterwards, so that a kill in between
leaves nothing that would not be found again; what knows an image by its place is removed before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon import store
from daemon.audit_rows import KEPT
from deploy import artifact, durable
from deploy.artifact import GOLDEN, MANIFEST

NOBODY = "forgotten"  # in a shard's list of images, for a row that is overwritten
_SAMPLES, _EMBEDDINGS = ".samples.npy", ".embeddings.npy"  # as pipeline/embedding_cache.py calls them
Pictures = set[str]  # hashes of decoded images


def erase(state: Path, shas: Collection[bytes]) -> list[str]:
    """Removes all bytes of these images. Returns the artifacts that lost their golden batch with them.

    Nothing that reads drops, embeds, or builds with these images may run meanwhile.
    """
    lost = erase_golden(state / "artifacts", find_pictures(state / "pixels", shas))
    erase_pixels(state / "pixels", shas)
    erase_embeddings(state / "embeddings", shas)
    shutil.rmtree(state / "audits", ignore_errors=True)  # what audits were last asked, and said
    erase_copies(state / "store", shas)
    return lost


def erase_copies(folder: Path, shas: Collection[bytes]) -> None:
    """The copies in the store."""
    touched = set()
    for sha in shas:
        copy = store.place(folder, sha.hex())
        with contextlib.suppress(FileNotFoundError):
            copy.unlink()
            touched.add(copy.parent)
    for parent in touched:
        durable.sync(parent)


def find_pictures(folder: Path, shas: Collection[bytes]) -> Pictures:
    """What the decoded images of these samples look like, at every size."""
    found: Pictures = set()
    for about, rows in _shards_of(folder, shas):
        with contextlib.suppress(OSError, ValueError):
            array = np.load(about.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            found |= {_hash(array[row]) for row in rows}
    return found


def erase_golden(folder: Path, pictures: Pictures) -> list[str]:
    """Takes these images, with their answers, out of the batches that artifacts are compared on.

    An artifact of whose batch nothing is left is named: it has to be built again. The manifest is written first, so
    that a kill leaves an artifact that counts as damaged, and is built again.
    """
    lost = []
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")) if pictures else ():
        try:
            images, answers = artifact.read_golden(manifest.parent)
            about = artifact.read_manifest(manifest.parent)
        except artifact.ArtifactError:
            continue
        kept = [row for row, image in enumerate(images) if _hash(image) not in pictures]
        if len(kept) == len(images):
            continue
        _write_golden(manifest.parent, about, images[kept], answers[kept])
        if not kept:
            lost.append(manifest.parent.name)
    return lost


def _write_golden(folder: Path, about: dict[str, Any], images: NDArray[Any], answers: NDArray[Any]) -> None:
    aside = folder / f".{GOLDEN}.tmp"
    with aside.open("wb") as file:
        np.savez(file, images=images, probabilities=answers)
    durable.sync(aside)
    described = artifact.describe_files(folder, [aside.name])[aside.name]
    durable.write_json(folder / MANIFEST, {**about, "files": {**about["files"], GOLDEN: described}})
    durable.move(aside, folder / GOLDEN)


def erase_pixels(folder: Path, shas: Collection[bytes]) -> None:
    """Overwrites their rows in the decoded images; the indices that name them go first.

    What has no list of its images, since a child was killed while it wrote, may be of them, and goes too.
    """
    for size in sorted(path for path in folder.glob("*") if path.is_dir()):
        with _locked(size):
            for array in (*size.glob("*.npy"), *size.glob(".*.tmp")):
                if array.suffix == ".tmp" or not array.with_suffix(".json").exists():
                    array.unlink()
            for index in size.glob("*.npz"):
                if _names_any(index, shas):
                    index.unlink()
            for about, rows in _shards_of(folder, shas, size.name):
                _blank(about.with_suffix(".npy"), rows)
                names = _read(about)
                durable.write_json(about, {"shas": [NOBODY if at in rows else name for at, name in enumerate(names)]})


def _shards_of(folder: Path, shas: Collection[bytes], size: str = "*") -> Iterator[tuple[Path, set[int]]]:
    """The lists that name any of these samples, each with their rows."""
    asked = {sha.hex() for sha in shas}
    for about in sorted(folder.glob(f"{size}/*.json")):
        if rows := {at for at, name in enumerate(_read(about)) if name in asked}:
            yield about, rows


def _read(about: Path) -> list[str]:
    """The samples of a shard; none where it cannot be read, and is decoded anew."""
    try:
        return list(json.loads(about.read_text(encoding="utf-8"))["shas"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _names_any(index: Path, shas: Collection[bytes]) -> bool:
    """Whether a snapshot's index says where one of them lies; yes, where it cannot be read."""
    try:
        with np.load(index, allow_pickle=False) as stored:
            rows = stored["sha"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return True
    return not {row.tobytes() for row in rows}.isdisjoint(shas)


def erase_embeddings(folder: Path, shas: Collection[bytes]) -> None:
    """Overwrites what any model knows them by, then their names; what lost its list of names goes.

    What the last audit in folds left goes as a whole: its classifiers have learnt from them.
    """
    for model in sorted(path for path in folder.glob("*") if path.is_dir()):
        with _locked(model):
            shutil.rmtree(model / KEPT, ignore_errors=True)
            for places in model.glob("places.*"):
                places.unlink()
            for values in (*model.glob(f"*{_EMBEDDINGS}"), *model.glob(".*.tmp")):
                names = values.with_name(values.name.removesuffix(_EMBEDDINGS) + _SAMPLES)
                if values.suffix == ".tmp" or not names.exists():
                    values.unlink()
            for names in sorted(model.glob(f"*{_SAMPLES}")):
                _erase_chunk(names, shas)


def _erase_chunk(samples: Path, shas: Collection[bytes]) -> None:
    try:
        names = np.load(samples, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return
    rows = {at for at, name in enumerate(names) if name.tobytes() in shas}
    if rows:
        _blank(samples.with_name(samples.name.removesuffix(_SAMPLES) + _EMBEDDINGS), rows)
        _blank(samples, rows)


def _blank(file: Path, rows: Collection[int]) -> None:
    """Zeros in these rows of an array, in place: nobody reads them any more, and a copy would leave the old bytes."""
    try:
        array = np.load(file, mmap_mode="r+", allow_pickle=False)
    except (FileNotFoundError, ValueError):
        return
    array[sorted(rows)] = 0
    array.flush()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(image: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + str(image.shape).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The lock of pipeline/pixels.py and pipeline/embedding_cache.py: a child may be adding to the folder."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
