"""A stored model asked about images: its answers against the same graph run by hand."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.observe import run as observe
from policies.job import StageError

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def inputs(trained: Any, colours: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def order(samples: list[str], **more: Any) -> dict[str, Any]:
        return {
            "model": str(trained.model),
            "store": str(colours.store),
            "samples": samples,
            "answers": str(tmp_path / "answers.json"),
            "threads": 1,
            **more,
        }

    return order


@pytest.fixture
def samples(colours: Any) -> list[str]:
    """In no order of theirs, one of them twice."""
    names = [row[0] for row in colours.rows[:40]]
    return [*(names[at] for at in np.random.default_rng(0).permutation(40)), names[0]]


def by_hand(trained: Any, store: Path, samples: list[str]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(trained.model / "model.onnx", providers=["CPUExecutionProvider"])
    answers = []
    for sha in samples:
        with Image.open(io.BytesIO((store / sha[:2] / sha).read_bytes())) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        answers.append(session.run(None, {"images": pixels[None]})[0][0])
    return np.array(answers)


def test_its_answers_are_those_of_the_graph(
    inputs: Callable[..., dict[str, Any]], samples: list[str], trained: Any, colours: Any, said: Any
) -> None:
    outputs = observe(inputs(samples), {}, said)
    assert outputs["n"] == 41
    answers = json.loads(Path(outputs["answers"]).read_text())
    wanted = by_hand(trained, colours.store, samples)
    assert answers["samples"] == samples
    assert answers["predicted"] == wanted.argmax(1).tolist()
    assert len(set(answers["predicted"])) == 3
    assert np.abs(np.array(answers["confidence"]) - wanted.max(1)).max() < 1e-5
    assert said[-1][:3] == (41, 41, "image")


def test_images_come_to_the_models_input_as_its_manifest_says(
    inputs: Callable[..., dict[str, Any]], trained: Any, keep: Any, encode: Any, tmp_path: Path, said: Any
) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    manifest = json.loads((model / "manifest.json").read_text())
    image = np.zeros((32, 128, 3), np.uint8)
    image[:, 48:80, 2] = 220  # blue in the middle
    image[:, :48, 0] = image[:, 80:, 0] = 220  # between red
    sha = keep(tmp_path / "store", encode(image))
    predicted = {}
    for resize in ("crop", "stretch"):
        (model / "manifest.json").write_text(json.dumps({**manifest, "resize": resize}))
        observe(inputs([sha], model=str(model), store=str(tmp_path / "store")), {}, said)
        predicted[resize] = json.loads((tmp_path / "answers.json").read_text())["predicted"]
    assert predicted == {"crop": [2], "stretch": [0]}


def test_no_samples_have_no_answers(inputs: Callable[..., dict[str, Any]], said: Any, tmp_path: Path) -> None:
    assert observe(inputs([]), {}, said)["n"] == 0
    assert json.loads((tmp_path / "answers.json").read_text()) == {"samples": [], "predicted": [], "confidence": []}


def test_a_sample_that_is_gone_is_named(inputs: Callable[..., dict[str, Any]], said: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="f" * 64):
        observe(inputs(["f" * 64]), {}, said)
    assert not (tmp_path / "answers.json").exists()


def test_a_model_without_manifest_is_told(inputs: Callable[..., dict[str, Any]], said: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"manifest\.json cannot be read"):
        observe(inputs([], model=str(tmp_path)), {}, said)


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_graph_that_cannot_be_read_is_told(
    inputs: Callable[..., dict[str, Any]], trained: Any, said: Any, tmp_path: Path, content: bytes | None
) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    (model / "model.onnx").unlink()
    if content is not None:
        (model / "model.onnx").write_bytes(content)
    with pytest.raises(StageError, match=r"model\.onnx"):
        observe(inputs([], model=str(model)), {}, said)


def test_torch_is_not_loaded_for_it(inputs: Callable[..., dict[str, Any]], samples: list[str]) -> None:
    code = (
        "import json, sys; from pipeline import observe; "
        "observe.run(json.loads(sys.argv[1]), {}, lambda *a, **k: None); "
        "print(sorted({'torch', 'timm', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps(inputs(samples))],
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "[]\n"
