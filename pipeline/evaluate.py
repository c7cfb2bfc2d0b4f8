"""How the trained network answers the tune samples: accuracy, by class, what it confuses, what it gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.durable import replacing, write_json
from pipeline.model import Served
from pipeline.pixels import Pixels, read_pixels
from pipeline.run_folder import load_trained, training_of
from policies.job import Outputs, Report

BATCH = 64
Floats = NDArray[np.float32]


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: the best weights' answers on tune, into the run folder's evaluation.json and tune.npz."""
    torch.set_num_threads(int(inputs["threads"]))
    folder, recipe = training_of(earlier)
    pixels = read_pixels(Path(earlier["pixels"]["pixels"]))
    samples = pixels.select("tune")
    probabilities = answer(load_trained(folder, recipe), pixels, samples, recipe.settings.accelerator, report)
    with replacing(folder.tune) as aside, aside.open("wb") as file:
        np.savez(file, sha=pixels.shas[samples], probabilities=probabilities)
    evaluation = score(pixels.classes, pixels.shas[samples], pixels.labels[samples], probabilities)
    write_json(folder.evaluation, evaluation)
    return {
        "tune_samples": len(samples),
        "tune_accuracy": evaluation["accuracy"],
        "tune_loss": evaluation["loss"],
        "failed": len(evaluation["failed"]),
    }


def answer(served: Served, pixels: Pixels, samples: NDArray[np.int64], accelerator: str, report: Report) -> Floats:
    """Probabilities float32 (n, classes), in full precision whatever the training used."""
    device = "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"
    torch.backends.cudnn.allow_tf32 = False
    served = served.to(device).to(memory_format=torch.channels_last).eval()
    answers = np.empty((len(samples), len(pixels.classes)), np.float32)
    with torch.inference_mode():
        for start in range(0, len(samples), BATCH):
            images = torch.from_numpy(pixels.take(samples[start : start + BATCH])).to(device)
            answers[start : start + BATCH] = served(images).float().cpu().numpy()
    report(len(samples), len(samples), "image")
    return answers


def score(
    classes: Sequence[str], shas: NDArray[np.uint8], labels: NDArray[np.int32], probabilities: Floats
) -> dict[str, Any]:
    """The figures of n answers: rows of `confusion` are true classes, columns predicted ones.

    Accuracy and loss (mean cross-entropy) are None where there are no samples.
    """
    predicted = probabilities.argmax(1) if len(labels) else np.empty(0, np.int64)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, predicted), 1)
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    wrong = np.flatnonzero(predicted != labels)
    return {
        "samples": len(labels),
        "accuracy": float(np.mean(predicted == labels)) if len(labels) else None,
        "loss": float(-np.log(np.maximum(given, 1e-12)).mean()) if len(labels) else None,
        "by_class": [
            {"name": name, "samples": int(row.sum()), "correct": int(row[number])}
            for number, (name, row) in enumerate(zip(classes, confusion, strict=True))
        ],
        "confusion": confusion.tolist(),
        "failed": [
            {
                "sha": shas[at].tobytes().hex(),
                "true": classes[labels[at]],
                "predicted": classes[predicted[at]],
                "probability": float(probabilities[at, predicted[at]]),
            }
            for at in wrong
        ],
    }
