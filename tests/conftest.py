"""What tests of several packages share: small images, a workspace, waiting for a condition."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parent.parent
Png = Callable[..., Path]


@pytest.fixture
def png() -> Png:
    """Writes a small PNG of noise: `png(file, seed)`; the same seed gives the same bytes."""

    def write(file: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        temporary = file.with_name(f".{file.name}")
        Image.fromarray(pixels).save(temporary, format="PNG")
        temporary.rename(file)
        return file

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace as `relearn init` writes it."""
    folder = tmp_path / "workspace"
    for name in ("images", "constraints", "triton"):
        (folder / name).mkdir(parents=True)
    shutil.copy(CHECKOUT / "config.toml", folder / "config.toml")
    shutil.copy(CHECKOUT / "constraints" / "edge.toml", folder / "constraints" / "edge.toml")
    return folder


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds: `eventually(lambda: …, seconds=20)`; fails at the deadline."""

    def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come to hold in time"
            threading.Event().wait(0.02)

    return wait
