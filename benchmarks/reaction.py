"""How soon the daemon reacts: to a drop of 100 images, and to an edited constraint file; twenty times each.

    start_seconds    from the last file closed, beyond the settle time, to the first child being seen among the
                     daemon's own, looked for every two milliseconds
    decide_seconds   from the last file closed, beyond the settle time, to the decision in the journal, the champion
                     having been asked about the new images
    promote_seconds  from the constraint file saved to the first answer of the promoted version through Triton: the
                     stored candidate is verified, proven on the whole judge set, judged, probed and loaded in between

Goals: 1, 4 and 2 seconds at the median.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform

from benchmarks.results import publish, spread
from daemon import views
from daemon.demo.digits import Digit, cut
from daemon.demo.processes import ROOMY_MB, TARGET, TIGHT_MB, Workspace
from deploy.triton import Triton

TIMES = 20
IMAGES = 100
SIDE = 24  # pixels
EPOCHS = 12
SETTLE = 1.0  # of the workspace's config.toml
WAIT_SECONDS = 300.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="relearn-reaction-") as folder:
        workspace = Workspace(Path(folder) / "workspace", EPOCHS)
        # The drops are to be decided on, not trained on: what is measured is the reaction.
        config = workspace.folder / "config.toml"
        config.write_text(
            config.read_text() + '\n[policies.rule]\nalone = ["new_class"]\ntogether = []\n', encoding="utf-8"
        )
        try:
            workspace.start_triton()
            workspace.start_daemon()
            rows = list(measure(workspace))
        finally:
            workspace.stop()
    figures = {
        f"{what}_seconds": spread([row["seconds"] for row in rows if row["what"] == what])
        for what in ("start", "decide", "promote")
    }
    publish("reaction", rows, {key: value["median"] for key, value in figures.items()} | {"spread": figures})


def measure(workspace: Workspace) -> Iterator[dict[str, Any]]:
    waves = cut()
    for digit in (*waves.first, *waves.second):
        digit.save(workspace.images)
    until(lambda: workspace.version() == 1, "the first model is served")
    yield from react_to_edits(workspace)
    yield from react_to_drops(workspace)


def react_to_edits(workspace: Workspace) -> Iterator[dict[str, Any]]:
    """Tight and roomy constraints in turn; the first edit of all trains the small network, and is not counted."""
    probe = cut().held_back[0].as_sent()[None]
    workspace.constrain(TIGHT_MB)
    until(lambda: workspace.version() == 2, "the small model is served")
    settled(workspace)
    with Triton(workspace.url) as triton:
        for number in range(TIMES):
            before = triton.infer(TARGET, probe)[1]
            saved = time.time()
            workspace.constrain(TIGHT_MB if number % 2 else ROOMY_MB)
            until(partial(answers_newer, triton, probe, before), "another version answers", 0.005)
            yield {"what": "promote", "number": number, "seconds": time.time() - saved}
            settled(workspace)


def react_to_drops(workspace: Workspace, times: int = TIMES, mark: str = "") -> Iterator[dict[str, Any]]:
    """So many drops, one after another. mark: what their files' names begin with, other at each call."""
    assert workspace.daemon is not None
    rng = np.random.default_rng(list(mark.encode()))
    for number in range(times):
        decided = last_decision(workspace)["id"]
        closed = drop(workspace.images, rng, f"{mark}drop{number}")
        until(partial(has_child, workspace.daemon.pid), "a child starts", 0.002)
        yield {"what": "start", "number": number, "seconds": time.time() - closed - SETTLE}
        until(partial(decided_since, workspace, decided), "it is decided", 0.02)
        yield {"what": "decide", "number": number, "seconds": last_decision(workspace)["at"] - closed - SETTLE}
        settled(workspace)


def has_child(process: int) -> bool:
    return any(file.read_bytes() for file in Path(f"/proc/{process}/task").glob("*/children"))


def answers_newer(triton: Triton, probe: np.ndarray, version: int) -> bool:
    return triton.infer(TARGET, probe)[1] > version


def decided_since(workspace: Workspace, decision: int) -> bool:
    return bool(last_decision(workspace)["id"] > decision)


def drop(images: Path, rng: np.random.Generator, name: str) -> float:
    """Writes images that were never seen before, of ten classes; returns when the last was closed."""
    digits = by_class()
    for index in range(IMAGES):
        of_class = digits[str(index % 10)]
        picture = warp(of_class[int(rng.integers(len(of_class)))].pixels, rng)
        Image.fromarray(picture).save(images / str(index % 10) / f"{name}-{index}.png", compress_level=1)
    return time.time()


@cache
def by_class() -> dict[str, list[Digit]]:
    """The digits of the first two waves."""
    waves, found = cut(), dict[str, list[Digit]]()
    for digit in (*waves.first, *waves.second):
        found.setdefault(digit.name, []).append(digit)
    return found


def warp(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit (8, 8) as another hand would have written it: (SIDE, SIDE), turned, moved and scaled, under noise."""
    turn, scale = rng.normal(0, 0.15), SIDE / 8 * rng.uniform(0.8, 1.1)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    offset = np.array([3.5, 3.5]) - matrix @ (np.array([SIDE, SIDE]) / 2 - 0.5 + rng.normal(0, 1.5, 2))
    enlarged = affine_transform(pixels.astype(np.float32), matrix, offset, (SIDE, SIDE), order=1)
    noisy: np.ndarray = np.clip(enlarged + rng.normal(0, 24, enlarged.shape), 0, 255).astype(np.uint8)
    return noisy


def last_decision(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = workspace.look(lambda c: views.decisions(c, 1))[0]
    return found


def settled(workspace: Workspace) -> None:
    """Waits until nothing is under way, the tidying up after a switch included."""
    until(lambda: workspace.look(views.working) is None, "the cycle has ended")
    until(lambda: len(list((workspace.config.repository / TARGET).glob("[0-9]*"))) == 1, "the old version is gone")
    time.sleep(0.5)


def until(holds: Callable[[], Any], what: str, pause: float = 0.05, patience: float = WAIT_SECONDS) -> Any:
    deadline = time.monotonic() + patience
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:.0f} s until {what}")
        time.sleep(pause)
    return found


if __name__ == "__main__":
    main()
