"""The demonstration's first wave, from the last file to the first answer, beside the plain script without a daemon.

The daemon settles, reads, decides, trains, builds, proves, measures, probes in Triton and promotes. The script reads
the same images, trains the same network for the same epochs with Lightning, exports it, writes a version folder and
loads it in Triton: what one would write by hand, run from the shell, its imports included. Both take turns, in one run.

    ratio     the daemon's seconds divided by the script's, median over the pairs
    seconds   the daemon's, median

Goal: at most 1.25. The rows tell the seconds stage by stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import publish, spread
from daemon import jobs, schema
from daemon.children import CHECKOUT
from daemon.demo.digits import SIZE, cut
from daemon.demo.processes import ARCHITECTURES, TARGET, Workspace
from daemon.demo.script import EPOCHS
from deploy.triton import Triton, TritonError

PAIRS = 5
BATCH = 64
TRAINED = 7  # of ten images, as in the demonstration's configuration
WAIT_SECONDS = 300.0

SERVED = """\
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            found = self.session.run(None, {"images": images})[0]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", found)]))
        return answers
"""

CONFIG = f"""\
name: "plain"
backend: "python"
max_batch_size: 8
input [{{ name: "images", data_type: TYPE_UINT8, dims: [{SIZE}, {SIZE}, 3] }}]
output [{{ name: "probabilities", data_type: TYPE_FP32, dims: [-1] }}]
instance_group [{{ count: 1, kind: KIND_CPU }}]
"""


def main() -> None:
    rows = []
    for number in range(PAIRS):
        with tempfile.TemporaryDirectory(prefix="relearn-cycle-") as folder:
            workspace = Workspace(Path(folder) / "workspace", EPOCHS)
            try:
                workspace.start_triton()
                first, second = (daemon, script) if number % 2 == 0 else (script, daemon)
                row = first(workspace) | second(workspace)
            finally:
                workspace.stop()
        rows.append({"pair": number, "ratio": row["daemon"] / row["script"], **row})
    figures = {"ratio": spread([r["ratio"] for r in rows]), "seconds": spread([r["daemon"] for r in rows])}
    publish("cycle", rows, {name: value["median"] for name, value in figures.items()} | {"spread": figures})


def daemon(workspace: Workspace) -> dict[str, float]:
    """Seconds from the last file to the first answer, and those of each stage."""
    probe = cut().held_back[0].as_sent()[None]
    workspace.start_daemon()
    until(workspace.target, "the daemon watches")
    for digit in cut().first:
        digit.save(workspace.images)
    closed = time.time()
    answered = until(lambda: answers(workspace, TARGET, probe), "the daemon's model answers")
    until(lambda: workspace.cycles()[0]["outcome"], "the switch is written down")
    seconds = stages(workspace, closed)
    assert workspace.daemon is not None
    workspace.daemon.terminate()
    workspace.daemon.wait(20)
    return {"daemon": answered - closed, **seconds}


def stages(workspace: Workspace, closed: float) -> dict[str, float]:
    """From the journal: when it decided, and how long each stage took."""

    def view(connection: Any) -> dict[str, float]:
        began = connection.execute(schema.cycles.select()).one().started
        found = {"daemon to decision": began - closed}
        for stage in connection.execute(schema.stages.select().order_by(schema.stages.c.id)):
            if stage.started and stage.ended:
                found[f"daemon {stage.name}"] = found.get(f"daemon {stage.name}", 0.0) + stage.ended - stage.started
        promotion = connection.execute(schema.promotions.select()).one()
        found["daemon switch"] = promotion.served - promotion.started
        return found

    found: dict[str, float] = workspace.look(view)
    return found


def script(workspace: Workspace) -> dict[str, float]:
    """Seconds of the plain script, from its start in the shell to the first answer; its images lie there already."""
    with tempfile.TemporaryDirectory(prefix="relearn-plain-") as folder:
        images = Path(folder)
        for number, digit in enumerate(cut().first):
            if number % 10 < TRAINED:  # the daemon keeps three of ten for tune and judge
                digit.save(images)
        probe = cut().held_back[0].as_sent()[None]
        threads = jobs.training_threads(0)
        command = [
            sys.executable,
            "-P",
            "-m",
            "benchmarks.cycle",
            "plain",
            str(images),
            str(workspace.config.repository),
        ]
        began = time.time()
        done = subprocess.run(
            [*command, workspace.url, str(threads)],
            env={**os.environ, **jobs.environment(threads), "PYTHONPATH": str(CHECKOUT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        answered = until(lambda: answers(workspace, "plain", probe), "the script's model answers")
    said = json.loads(done.stdout.splitlines()[-1])
    return {"script": answered - began, **{f"script {name}": value for name, value in said.items()}}


def answers(workspace: Workspace, model: str, probe: Any) -> float | None:
    with Triton(workspace.url, timeout=5.0) as triton:
        try:
            triton.infer(model, probe)
        except TritonError:
            return None
    return time.time()


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_SECONDS:.0f} s until {what}")
        time.sleep(0.02)
    return found


def plain(images: Path, repository: Path, url: str, threads: int) -> None:
    """What one would write by hand. Prints the seconds of its parts."""
    clock = [time.monotonic()]
    parts: dict[str, float] = {}

    def lap(name: str) -> None:
        now = time.monotonic()
        parts[name], clock[0] = now - clock[0], now

    import numpy as np
    import pytorch_lightning as pl
    import timm
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(threads)
    lap("imports")
    names = sorted(folder.name for folder in images.iterdir())
    read, labels = [], []
    for file in sorted(images.rglob("*.png")):
        with Image.open(file) as image:
            read.append(np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
        labels.append(names.index(file.parent.name))
    data = TensorDataset(torch.from_numpy(np.stack(read)), torch.tensor(labels))
    loader = DataLoader(data, BATCH, shuffle=True)
    lap("read")

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = timm.create_model(ARCHITECTURES[0], num_classes=len(names))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.net((batch.float().permute(0, 3, 1, 2) - 127.5) / 127.5), 1)

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.served = Served()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            pictures, truth = batch
            return nn.functional.cross_entropy(
                self.served.net((pictures.float().permute(0, 3, 1, 2) - 127.5) / 127.5), truth
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 3e-3)

    classifier = Classifier()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", **quiet).fit(classifier, loader)  # type: ignore[arg-type]
    lap("train")
    version = repository / "plain" / "1"
    version.mkdir(parents=True)
    torch.onnx.export(
        classifier.served.eval(),
        (torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8),),
        str(version / "model.onnx"),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"batch": {0: torch.export.Dim("batch")}},
        external_data=False,
    )
    lap("export")
    (version / "model.py").write_text(SERVED, encoding="utf-8")
    (repository / "plain" / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    with Triton(url) as triton:
        triton.load("plain")
    lap("load")
    print(json.dumps(parts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
