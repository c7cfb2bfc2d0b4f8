"""A network as it would be served, untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploy.build import verify_model
from pipeline import sketch
from policies.job import StageError


def draw(folder: Path, said: Any, **changes: Any) -> dict[str, Any]:
    asked = {"architecture": "test_resnet", "classes": 5, "height": 32, "width": 40, "threads": 1, **changes}
    outputs: dict[str, Any] = sketch.run({**asked, "model": str(folder / "model")}, {}, said)
    return outputs


def test_it_answers_like_a_served_model(tmp_path: Path, said: Any) -> None:
    outputs = draw(tmp_path, said)
    model = Path(outputs["path"])
    assert verify_model(model)["input"]["width"] == 40
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    (answers,) = session.run(["probabilities"], {"images": np.zeros((3, 32, 40, 3), np.uint8)})
    assert answers.shape == (3, 5)
    assert np.allclose(answers.sum(1), 1, atol=1e-5)
    assert outputs["parameters"] * 4 / 1e6 == pytest.approx(outputs["weights_mb"], rel=0.02)


def test_the_same_network_is_drawn_each_time(tmp_path: Path, said: Any) -> None:
    about = [json.loads((Path(draw(tmp_path, said)["path"]) / "manifest.json").read_text()) for _ in range(2)]
    assert about[0]["weights"]["sha256"] == about[1]["weights"]["sha256"]


def test_what_cannot_be_made_is_said(tmp_path: Path, said: Any) -> None:
    with pytest.raises(StageError, match="is not known; nearest: test_resnet"):
        draw(tmp_path, said, architecture="test_resnett")
