"""Stage `prove`: the built engine answers judge and tune, so that accuracy is of what will serve.

Each judge sample is asked once: the daemon says which of them the artifact has not answered yet. Where this machine
cannot run it, its stand-in answers and the outputs say so: "stand_in" is then a sentence.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import artifact, durable
from deploy.device import answerer
from deploy.engines import Runner
from deploy.opened import open_artifact
from deploy.pixels import Pixels, check_size, read_pixels
from policies.job import Outputs, Report, StageError

BATCH = 32  # images a run
AHEAD = 4  # batches for each thread that are in memory at once
NICE = 5


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """Verifies files and golden answers, then asks for the judge samples; writes the `answers` file.

    "known" of the inputs is what was answered before, or None: "answered_by" whom, "ask" the file with the hashes (32
    bytes each) of the judge samples that are left, "tune" what was said of tune on the same images, or None. It holds
    as long as the same answers here; the outputs say in "answered_by" who does, None for a stand-in.
    """
    began = time.monotonic()
    folder = Path(inputs["artifact"] or earlier["build"]["path"])
    manifest = artifact.verify(folder)
    opened = open_artifact(folder, manifest, inputs["threads"])
    runner = opened.run
    images, recorded = artifact.read_golden(folder)
    artifact.compare_golden(runner(images), recorded, artifact.find_tolerance(manifest))
    pixels = read_pixels(Path(inputs["pixels"]))
    check_size(pixels, manifest["input"], inputs["pixels"], f"artifact {manifest['id']}")
    answered_by = None if opened.stand_in else answerer(manifest["engine"])
    known = _find_known(inputs.get("known"), answered_by)
    judge, said_of_tune = pixels.select("judge"), known["tune"]
    asked = judge if known["ask"] is None else choose(pixels, judge, Path(known["ask"]))
    tune = pixels.select("tune")[: 0 if said_of_tune else None]
    advance = count_images(report, len(asked) + len(tune))
    workers = max(1, len(os.sched_getaffinity(0)) // inputs["threads"])
    judged = answer(runner, pixels, asked, advance, len(manifest["classes"]), workers)
    tuned = answer(runner, pixels, tune, advance, len(manifest["classes"]), workers)
    write_answers(Path(inputs["answers"]), pixels, asked, judged, manifest["classes"])
    return {
        "artifact": manifest["id"],
        "answers": inputs["answers"],
        "answered_by": answered_by,
        "judge_samples": len(judge),
        "asked": len(asked),
        **(said_of_tune or _say_of_tune(inputs.get("tune"), pixels, tune, tuned, manifest["classes"])),
        "stand_in": opened.stand_in,
        "seconds": time.monotonic() - began,
    }


def _find_known(said: Mapping[str, Any] | None, answered_by: str | None) -> Mapping[str, Any]:
    """What the daemon knows, where the same answers now: a library may have been upgraded since."""
    return said if said and said["answered_by"] == answered_by else {"ask": None, "tune": None}


def choose(pixels: Pixels, samples: NDArray[np.int64], file: Path) -> NDArray[np.int64]:
    """Those of the samples whose hashes (32 bytes each) stand in the file."""
    packed = file.read_bytes()
    wanted = {packed[start : start + 32] for start in range(0, len(packed), 32)}
    return np.array([i for i in samples if pixels.shas[i].tobytes() in wanted], np.int64)


def _say_of_tune(
    recorded: str | None, pixels: Pixels, tune: NDArray[np.int64], found: NDArray[np.float32], classes: list[str]
) -> dict[str, Any]:
    return {
        "tune_accuracy": accuracy(pixels, tune, found, classes),
        "parity": compare(recorded, pixels.hexes(tune), found) if recorded else None,
    }


def count_images(report: Report, total: int) -> Callable[[int], None]:
    """A function that adds to the number of images done and reports it about twice a second."""
    done, last = 0, 0.0

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if now - last > 0.5 or done == total:
            last = now
            report(done, total, "image")

    return advance


def answer(
    runner: Runner,
    pixels: Pixels,
    samples: NDArray[np.int64],
    advance: Callable[[int], None],
    classes: int,
    workers: int,
) -> NDArray[np.float32]:
    """Probabilities float32 (n, classes) for these samples, by so many threads: each asks as it will be asked."""
    found = [np.empty((0, classes), np.float32)]
    batches = pixels.batches(samples, BATCH)
    with ThreadPoolExecutor(workers, initializer=_step_back) as pool:
        while some := list(islice(batches, AHEAD * workers)):
            try:
                found += pool.map(runner, some)
            except ValueError as error:
                raise StageError(f"proving failed: {error}") from error
            advance(sum(map(len, some)))
    return np.concatenate(found)


def _step_back() -> None:
    """This thread takes what those that serve leave: Linux has a priority for each."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def accuracy(
    pixels: Pixels, samples: NDArray[np.int64], found: NDArray[np.float32], classes: list[str]
) -> float | None:
    """Share of right answers, compared by class name: the artifact may know other classes than the snapshot."""
    if not len(samples):
        return None
    named = [classes[i] for i in found.argmax(axis=1)]
    labels = [pixels.classes[i] for i in pixels.labels[samples]]
    right = sum(a == b for a, b in zip(named, labels, strict=True))
    return float(right / len(samples))


def write_answers(
    path: Path, pixels: Pixels, samples: NDArray[np.int64], found: NDArray[np.float32], classes: list[str]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = {
        "samples": pixels.hexes(samples),
        "labels": [pixels.classes[i] for i in pixels.labels[samples]],
        "predicted": [classes[i] for i in found.argmax(axis=1)],
        "confidence": [round(float(p), 6) for p in found.max(axis=1, initial=0.0)],
    }
    durable.write_text(path, json.dumps(answers))


def compare(recorded: str, samples: list[str], found: NDArray[np.float32]) -> dict[str, Any] | None:
    """How far the engine's probabilities are from those of the framework that trained, on the samples both have."""
    try:
        with np.load(recorded, allow_pickle=False) as arrays:
            shas, theirs = arrays["sha"], arrays["probabilities"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StageError(f"{recorded} cannot be read ({error}); export the model again") from error
    places = {sha.tobytes().hex(): i for i, sha in enumerate(shas)}
    pairs = [(places[sha], i) for i, sha in enumerate(samples) if sha in places]
    if not pairs or theirs.shape[1] != found.shape[1]:
        return None
    theirs, ours = theirs[[a for a, _ in pairs]], found[[b for _, b in pairs]]
    return {
        "samples": len(pairs),
        "max_abs_difference": float(np.abs(theirs - ours).max()),
        "agreement": float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean()),
    }
