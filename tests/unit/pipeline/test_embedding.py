"""The embedding inside a stored model's graph, and the chunks in which embeddings are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch

from pipeline import embedding
from pipeline.embedding import Embedder, embed_all, find_embedding
from pipeline.embedding_cache import Cache
from pipeline.export import export_graph
from pipeline.model import Served
from policies.job import StageError

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "mobilenetv3_small_050"])
def test_it_is_what_timm_s_classifier_looks_at(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3).eval()
    side = int(net.pretrained_cfg["input_size"][1])
    model = tmp_path / "model"
    model.mkdir()
    export_graph(Served(net, HALF, HALF).eval(), (side, side), model / "model.onnx")
    about = {"graph": {"file": "model.onnx"}, "input": {"height": side, "width": side}, "resize": "stretch"}
    (model / "manifest.json").write_text(json.dumps(about))
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    found = Embedder(model, 1).embed(images)
    with torch.inference_mode():
        scaled = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        wanted = net.forward_head(net.forward_features(scaled), pre_logits=True).flatten(1).numpy()
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, atol=1e-4)


def test_a_graph_without_a_classifier_has_none() -> None:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    with pytest.raises(StageError, match="no classifier"):
        find_embedding(graph)


def test_a_damaged_graph_is_said_so(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.model, tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(StageError, match=r"model\.onnx cannot be loaded"):
        Embedder(tmp_path / "model", 1)


def test_each_image_is_embedded_once(trained: Any, colours: Any, tmp_path: Path, said: Any) -> None:
    samples = [bytes.fromhex(sha) for sha, _, _ in colours.rows[:7]]
    store = colours.store
    first = embed_all(trained.model, store, tmp_path / "kept", samples[:5], 1, said).values
    both = embed_all(trained.model, store, tmp_path / "kept", samples[::-1], 1, said).values
    assert np.array_equal(both[::-1][:5], first)
    assert sorted(file.name for file in (tmp_path / "kept").glob("*.npy")) == [
        "000001.embeddings.npy", "000001.samples.npy", "000002.embeddings.npy", "000002.samples.npy",
    ]  # fmt: skip
    assert (Cache(tmp_path / "kept").find(samples) >= 0).all()


def test_what_was_embedded_before_a_kill_is_kept(
    trained: Any, colours: Any, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK", 2)
    monkeypatch.setattr(embedding, "KEEP", 4)
    samples = [bytes.fromhex(sha) for sha, _, _ in colours.rows[:9]]

    def die(done: float, *_about: Any, **_figures: Any) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_all(trained.model, colours.store, tmp_path / "kept", samples, 1, die)
    assert (Cache(tmp_path / "kept").find(samples)[:, 0] >= 0).sum() == 4
    whole = embed_all(trained.model, colours.store, tmp_path / "kept", samples, 1, said)
    assert whole.usable.all()
    assert sum(len(np.load(file)) for file in (tmp_path / "kept").glob("*.samples.npy")) == 9


def test_a_chunk_that_was_cut_off_is_made_again(trained: Any, colours: Any, tmp_path: Path, said: Any) -> None:
    samples = [bytes.fromhex(sha) for sha, _, _ in colours.rows[:3]]
    first = embed_all(trained.model, colours.store, tmp_path / "kept", samples, 1, said).values
    (tmp_path / "kept" / "000001.samples.npy").unlink()  # it is written last
    again = embed_all(trained.model, colours.store, tmp_path / "kept", samples, 1, said).values
    assert np.array_equal(again, first)


def test_what_is_missing_or_damaged_in_the_store_is_left_out_and_named(
    trained: Any, colours: Any, tmp_path: Path, said: Any
) -> None:
    names = [sha for sha, _, _ in colours.rows[:6]]
    store = tmp_path / "store"
    shutil.copytree(colours.store, store)
    (store / names[1][:2] / names[1]).unlink()
    (store / names[4][:2] / names[4]).write_bytes(b"damaged")
    samples = [bytes.fromhex(name) for name in names]
    found = embed_all(trained.model, store, tmp_path / "kept", samples, 1, said)
    assert found.usable.tolist() == [True, False, True, True, False, True]
    assert [names[1] in found.left_out[0], names[4] in found.left_out[1]] == [True, True]
    whole = embed_all(trained.model, colours.store, tmp_path / "kept", samples, 1, said)
    assert whole.usable.all()
    assert np.array_equal(whole.values[found.usable], found.values[found.usable])
    nothing = embed_all(trained.model, tmp_path / "none", tmp_path / "new", samples[:2], 1, said)
    assert (len(nothing.values), nothing.usable.any(), len(nothing.left_out)) == (2, False, 2)


def test_an_embedding_that_is_no_number_is_left_out_and_named(tmp_path: Path, said: Any) -> None:
    samples = [bytes([row] * 32) for row in range(3)]
    values = np.ones((3, 2), np.float32)
    values[1, 0] = np.nan
    Cache(tmp_path).add(samples, values)
    found = embed_all(tmp_path, tmp_path, tmp_path, samples, 1, said)
    assert found.usable.tolist() == [True, False, True]
    assert found.left_out == [f"the embedding of {samples[1].hex()} is no number"]
    assert np.isfinite(found.values).all()
