"""Altered copies among many images: how many the index finds, and what it takes for copies that are none.

Three sets: CIFAR-10's training images, photos of clothes, and three scenes of a simulated fixed camera (camera.py), in
which nearly all images are alike. All originals are indexed at once, then altered copies of a sample of them, one
alteration at a time. Beside the index ImageHash's perceptual and difference hash, at their customary distances.

    recall        by set and alteration: the share of copies that are paired with their original
    false_pairs   per 10,000 images, among the originals: pairs that a look in full (alterations.shown_alike) does not
                  confirm; the natural sets hold real duplicates, which are told apart as `real_duplicates`
    largest_group the share of a fixed-camera scene that pairs chain together, at worst
    seconds       of processor time for indexing all originals of a set

Goals: at least .95 of every alteration but mirroring, at most 1 false pair, no group above .01.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.alterations import copies, shown_alike
from benchmarks.camera import scene
from benchmarks.results import publish
from daemon.children import CHECKOUT
from daemon.decode import decode
from daemon.duplicates import Index
from daemon.neighbours import among, between

DATA = CHECKOUT.parent / "shared" / "data"
ARCHIVES = {"cifar10": "cifar10/images.tar.gz", "clothing": "clothing/images.tar"}
SCENES = {"camera 0": 5.0, "camera 1": 5.0, "camera 2": 3.0}  # and how strong each part's own texture is
SCENE_IMAGES = 2000
SAMPLED = 1000  # originals of a set that are altered
CONFIRMED = 0.75  # correlation of the fine detail; of 300 random pairs the best was .46 and .71. See LOG.md
LOOKED_AT = 300  # pairs of a peer that are looked at in full; the share holds for all
PEERS = {"phash": (4, 8), "dhash": (4, 8)}
ALL = 10**9
JUDGED = ("set", "method", "pairs", "largest", "false", "real", "seconds")

Pairs = list[tuple[int, int]]


class Seen(NamedTuple):
    """What each method keeps of some images: descriptors, and hashes (images, 64) of -1 and 1 by their name."""

    descriptors: list[bytes]
    hashes: dict[str, list[Any]]

    def add(self, content: bytes) -> None:
        import imagehash

        image = _image(content)
        self.descriptors.append(decode(content, ALL)[1])
        for name in PEERS:
            bits = getattr(imagehash, name)(image).hash.ravel()
            self.hashes[name].append(np.where(bits, 1, -1).astype(np.float32))


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path, default=DATA, help="the folder with cifar10/ and clothing/")
    options.add_argument("--limit", type=int, default=ALL, help="images of each set, for a quick look")
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    for name, archive in ARCHIVES.items():
        with tempfile.TemporaryDirectory(prefix="relearn-duplicates-") as folder:
            with tarfile.open(chosen.data / archive) as packed:
                packed.extractall(folder, filter="data")
            files = sorted(file for file in Path(folder).rglob("*.jpg") if name != "cifar10" or "train" in file.parts)
            files = files[:: max(1, len(files) // chosen.limit)]
            rows += measure(name, (file.read_bytes() for file in files), files)
    for seed, (name, texture) in enumerate(SCENES.items()):
        rows += measure(name, map(_png, scene(seed, min(SCENE_IMAGES, chosen.limit), texture)), [])
    publish("duplicates", rows, figures(rows))


def _image(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG", compress_level=1)
    return written.getvalue()


def measure(name: str, images: Iterable[bytes], files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    originals, altered, sample = Seen([], {peer: [] for peer in PEERS}), dict[str, Seen](), list[int]()
    share = min(1.0, SAMPLED / max(1, len(files) or SCENE_IMAGES))
    for number, image in enumerate(images):
        originals.add(image)
        if rng.random() < share:
            sample.append(number)
            for what, copy in copies(_image(image), rng):
                altered.setdefault(what, Seen([], {peer: [] for peer in PEERS})).add(copy)
    yield of_index(name, originals, altered, sample, files)
    for peer, distances in PEERS.items():
        for distance in distances:
            yield of_peer(name, peer, distance, originals, altered, sample, files)


def of_index(
    name: str, originals: Seen, altered: dict[str, Seen], sample: list[int], files: Sequence[Path]
) -> dict[str, Any]:
    count = len(originals.descriptors)
    with tempfile.TemporaryDirectory(prefix="relearn-index-") as work:
        began = time.process_time()
        with Index(Path(work) / "index") as index:
            pairs = index.add(range(count), originals.descriptors)
        seconds = time.process_time() - began
        row = judge(name, "relearnd", pairs, count, files, ALL) | {"seconds": round(seconds, 2)}
        for what, seen in altered.items():
            folder = shutil.copytree(Path(work) / "index", Path(work) / "with copies", dirs_exist_ok=True)
            with Index(folder) as index:
                found = set(index.add(range(count, count + len(sample)), seen.descriptors))
            row[what] = float(
                np.mean([(original, count + number) in found for number, original in enumerate(sample)]).round(3)
            )
    return row


def of_peer(
    name: str,
    peer: str,
    distance: int,
    originals: Seen,
    altered: dict[str, Seen],
    sample: list[int],
    files: Sequence[Path],
) -> dict[str, Any]:
    """Of codes of -1 and 1 the squared distance is four times the number of bits that differ."""
    method, radius = f"{peer} {distance}", 2 * (distance + 0.5) ** 0.5
    hashes = np.array(originals.hashes[peer])
    near = among(hashes, radius, ALL)
    pairs = list(zip(near.one.tolist(), near.other.tolist(), strict=True))
    row = judge(name, method, pairs, len(hashes), files, LOOKED_AT)
    for what, seen in altered.items():
        found = between(np.array(seen.hashes[peer]), hashes, radius, ALL)
        hit = np.isin(np.arange(len(sample)), found.one[np.array(sample)[found.one] == found.other])
        row[what] = round(float(hit.mean()), 3)
    return row


def judge(name: str, method: str, pairs: Pairs, count: int, files: Sequence[Path], look_at: int) -> dict[str, Any]:
    """The pairs among originals: on natural sets how many are false, and everywhere the largest group's share."""
    said: dict[str, Any] = {"set": name, "method": method, "pairs": len(pairs), "largest": largest(pairs, count)}
    if not files:
        return said
    chosen = np.random.default_rng(0).permutation(len(pairs))[:look_at]
    real = [shown_alike(*(_image(files[at].read_bytes()) for at in pairs[k])) >= CONFIRMED for k in chosen]
    share = float(np.mean(real)) if real else 1.0
    said["false"] = round(len(pairs) * (1 - share) / count * 10_000, 2)
    said["real"] = round(len(pairs) * share)
    return said


def largest(pairs: Pairs, count: int) -> float:
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    _, group = connected_components(coo_array((np.ones(len(one)), (one, other)), (count, count)), directed=False)
    return round(float(np.bincount(group).max() / count), 5)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ours, peers = (
        [row for row in rows if row["method"] == "relearnd"],
        [row for row in rows if row["method"] != "relearnd"],
    )
    methods = list(dict.fromkeys(row["method"] for row in peers))
    of = {method: [row for row in peers if row["method"] == method] for method in methods}
    return {
        **_told(ours),
        "real_duplicates": {row["set"]: row["real"] for row in ours if "real" in row},
        "seconds": {row["set"]: row["seconds"] for row in ours},
        **{f"peer_{key}": {method: _told(of[method])[key] for method in methods} for key in _told([])},
    }


def _told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    groups = [row["largest"] for row in rows if row["set"] in SCENES]
    return {
        "recall": {row["set"]: {key: row[key] for key in row if key not in JUDGED} for row in rows},
        "false_pairs": {row["set"]: row["false"] for row in rows if "false" in row},
        "largest_group": max(groups, default=0.0),
    }


if __name__ == "__main__":
    main()
