"""A network as it would be served, untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.torch import load_file, save_file

from deploy.build import verify_model
from pipeline import sketch
from pipeline.embedding import Embedder
from pipeline.model import create_network, mean_and_std, state_of
from policies.job import StageError


def draw(folder: Path, said: Any, **changes: Any) -> dict[str, Any]:
    asked = {"architecture": "test_resnet", "classes": 5, "height": 32, "width": 40, "threads": 1, **changes}
    outputs: dict[str, Any] = sketch.run({**asked, "model": str(folder / "model")}, {}, said)
    return outputs


def test_it_answers_like_a_served_model(tmp_path: Path, said: Any) -> None:
    outputs = draw(tmp_path, said)
    model = Path(outputs["path"])
    about = verify_model(model)
    assert about["input"]["width"] == 40
    mean, std = mean_and_std(create_network("test_resnet", 5, (32, 40)), "none")
    assert (about["mean"], about["std"]) == (list(mean), list(std))  # for engines that take the network itself
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


def test_it_is_a_backbone_with_weights_that_are_given(tmp_path: Path, said: Any) -> None:
    trained = state_of(create_network("test_resnet", 3, (32, 40)))  # of other classes
    save_file(trained, tmp_path / "weights.safetensors")
    model = Path(draw(tmp_path, said, weights=str(tmp_path / "weights.safetensors"), resize="crop")["path"])
    held = load_file(model / "weights.safetensors")
    same = [name for name, value in held.items() if value.shape == trained[name].shape and value.equal(trained[name])]
    assert len(held) - len(same) == 2  # all but the head
    assert Embedder(model, threads=1).resize == "crop"
