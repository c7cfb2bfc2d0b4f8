"""The daemon's whole cycle on photos of clothes as people take them, beside a plain PyTorch loop of the same recipe.

`train/` of ../shared/data/clothing is dropped into a workspace whose target takes 224 x 224; the daemon fine-tunes
EfficientNet-Lite0 from ImageNet weights on two threads, builds, proves, measures and promotes it; `validation/`, which
the daemon never sees, is sent to Triton. Then the plain loop runs one epoch of the same images. Once for each seed.

    accuracy      of Triton's answers on `validation`, median over the seeds
    seconds       of training (all epochs, validation on `tune` included), median
    speed_ratio   the daemon's images/s in training divided by the plain loop's, median

Goals: at least .91, and at least 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.pretrained import ARCHITECTURE, write_weights
from benchmarks.results import publish, spread
from daemon import jobs, views
from daemon.children import CHECKOUT
from daemon.demo.processes import Workspace
from deploy.triton import Triton

ARCHIVE = CHECKOUT.parent / "shared" / "data" / "clothing" / "images.tar"
SEEDS = (0, 1, 2)
SIZE = 224
THREADS = 2
TARGET = "clothes"
WAIT_SECONDS = 1800.0

# What this machine was found to need for these photos; all else is at its default. See LOG.md.
TRAIN = {
    "epochs": 7,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "head_learning_rate_factor": 5.0,
    "trainable_stages": 2,
    "freeze_batch_norm": True,
    "label_smoothing": 0.1,
}

CONFIG = """\
version = 1

[roles]
train = 0.9
tune = 0.05
judge = 0.05

[model]
architectures = ["{architecture}"]
weights = "{weights}"

[input]
resize = "crop"

[train]
seed = {seed}
{train}

[compute]
threads = {threads}

[triton]
url = "{url}"
"""

CONSTRAINTS = f"""\
version = 1

[input]
height = {SIZE}
width = {SIZE}

[require]
accuracy_min = 0.5
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="relearn-photos-") as folder:
        work = Path(folder)
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(work / "photos", filter="data")
        weights = write_weights(work / "lite0.safetensors")
        rows = [run_once(work, weights, seed) for seed in SEEDS]
    figures = {name: spread([row[name] for row in rows]) for name in ("accuracy", "seconds", "speed_ratio")}
    medians = {name: value["median"] for name, value in figures.items()}
    publish("photos", rows, medians | {"spread": figures})


def run_once(work: Path, weights: Path, seed: int) -> dict[str, Any]:
    workspace = make_workspace(work / f"seed{seed}", weights, seed)
    photos = next(path for path in (work / "photos").rglob("train") if path.is_dir()).parent
    try:
        workspace.start_triton()
        workspace.start_daemon()
        began = time.monotonic()
        (photos / "train").rename(workspace.images / ".coming")
        for folder in sorted((workspace.images / ".coming").iterdir()):
            folder.rename(workspace.images / folder.name)  # a class appears as a whole
        wait_for_version(workspace)
        whole = time.monotonic() - began
        accuracy = ask(workspace, photos / "validation")
        epochs, outputs = history(workspace)
    finally:
        workspace.stop()
        restore(workspace.images, photos / "train")
    plain = run_plain(workspace, weights, seed)
    speed = float(np.median([epoch["images_per_second"] for epoch in epochs]))
    return {
        "seed": seed,
        "accuracy": accuracy,
        "tune_accuracy": outputs["tune_accuracy"],
        "seconds": outputs["seconds"],
        "whole_cycle_seconds": whole,
        "images_per_second": speed,
        "plain_images_per_second": plain,
        "speed_ratio": speed / plain,
    }


def make_workspace(folder: Path, weights: Path, seed: int) -> Workspace:
    """The demonstration's workspace, with a configuration and a target of its own."""
    workspace = Workspace(folder, epochs=1)
    url = workspace.url
    workspace.constraint_file.unlink()
    (folder / "constraints" / f"{TARGET}.toml").write_text(CONSTRAINTS, encoding="utf-8")
    train = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TRAIN.items())
    text = CONFIG.format(architecture=ARCHITECTURE, weights=weights, seed=seed, train=train, threads=THREADS, url=url)
    (folder / "config.toml").write_text(text, encoding="utf-8")
    return workspace


def wait_for_version(workspace: Workspace) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        cycles = workspace.cycles()
        if cycles and cycles[0]["outcome"]:
            if cycles[0]["outcome"] != "promoted":
                raise RuntimeError(f"the cycle ended as {cycles[0]['outcome']}: {cycles[0]['reason']}")
            return
        if time.monotonic() > deadline or (workspace.daemon and workspace.daemon.poll() is not None):
            raise TimeoutError(f"nothing was promoted; the daemon's log ends: {workspace.log('run')}")
        time.sleep(0.5)


def history(workspace: Workspace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    cycle = workspace.look(lambda c: views.cycles(c, 1))[0]
    outputs = next(stage["outputs"] for stage in cycle["stages"] if stage["name"] == "train")
    text = (Path(outputs["run"]) / "history.json").read_text(encoding="utf-8")
    return json.loads(text)["epochs"], outputs


def restore(images: Path, train: Path) -> None:
    """The photos go back, for the next seed."""
    train.mkdir()
    for folder in images.iterdir():
        if folder.is_dir() and folder.name != ".coming":
            folder.rename(train / folder.name)


def ask(workspace: Workspace, validation: Path) -> float:
    """Share of right answers of Triton's classification extension."""
    right = [said == true for true, said in answers(workspace, validation)]
    return float(np.mean(right))


def answers(workspace: Workspace, validation: Path) -> Iterator[tuple[str, str]]:
    with Triton(workspace.url, timeout=30.0) as triton:
        for file in sorted(validation.rglob("*.*")):
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image.convert("RGB"))
                sent = ImageOps.fit(upright, (SIZE, SIZE), Image.Resampling.BILINEAR)
            rows, _ = triton.classify(TARGET, np.asarray(sent, np.uint8)[None])
            yield file.parent.name, rows[0][0][2]


# --- the plain loop ---------------------------------------------------------------------------------------------------


def run_plain(workspace: Workspace, weights: Path, seed: int) -> float:
    """One epoch of the plain loop in a process of its own, with the daemon's own environment; images/s."""
    index = next((workspace.config.state / "pixels").rglob("*.npz"))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.photos", "plain", str(index), str(weights), str(seed)],
        env={**os.environ, **jobs.environment(THREADS), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])


def plain(index: Path, weights: Path, seed: int) -> None:
    """What one would write by hand: a data set, torchvision's transforms, a loop. Same images, layers and rates."""
    import timm
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torchvision.transforms import v2

    from pipeline.pixels import read_pixels

    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    pixels = read_pixels(index)
    samples = pixels.select("train")
    change = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, (0.6, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, number: int) -> Any:
            image = pixels.take(samples[number : number + 1])[0]
            return change(torch.from_numpy(image).permute(2, 0, 1)), int(pixels.labels[samples[number]])

    net: Any = timm.create_model(ARCHITECTURE, num_classes=len(pixels.classes))
    kept = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier.")}
    net.load_state_dict(kept, strict=False)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    trained = [*net.blocks[-2:].parameters(), *net.conv_head.parameters(), *net.bn2.parameters()]
    head = list(net.classifier.parameters())
    for parameter in [*trained, *head]:
        parameter.requires_grad_(True)
    net = net.to(memory_format=torch.channels_last)
    batch = int(TRAIN["batch_size"])
    loader = torch.utils.data.DataLoader(Photos(), batch, shuffle=True)
    rate = float(TRAIN["learning_rate"])
    groups = [{"params": trained, "lr": rate}, {"params": head, "lr": rate * 5}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [rate, rate * 5], total_steps=len(loader) * int(TRAIN["epochs"]), pct_start=0.1
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    began, seen = time.monotonic(), 0
    for images, labels in loader:
        optimizer.zero_grad()
        loss_of(net(images.contiguous(memory_format=torch.channels_last)), labels).backward()
        optimizer.step()
        schedule.step()
        seen += len(labels)
    print(json.dumps({"images_per_second": seen / (time.monotonic() - began)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
