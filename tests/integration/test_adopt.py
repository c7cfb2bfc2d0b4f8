"""`relearn adopt` as a user runs it, with the real daemon and the real Triton; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.linear_model import LogisticRegression

from daemon.demo.clients import accuracy
from daemon.demo.digits import SIZE
from daemon.demo.processes import TARGET
from deploy.client import prepare
from deploy.triton import Triton
from tests.acceptance.house import House

CLASSES = "0123456789"
OPTIONS = ("--scale", "255", "--mean", "0.5", "--std", "0.25", "--logits")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A workspace without an image; the daemon and Triton run."""
    made = House(tmp_path_factory.mktemp("adopt") / "workspace")
    try:
        made.start_triton()
        made.start_daemon()
        (made.folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
        made.until(made.target, "the constraint file is read")
        yield made
    finally:
        made.stop()


def write_classifier(file: Path, house: House, turned: int = 0) -> Path:
    """Logistic regression of the digits, exported as many are: float32 planes, a batch of one, logits.

    turned: so many classes further every answer is.
    """
    digits = house.some(CLASSES)
    planes = (np.stack([digit.as_sent() for digit in digits]).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    small = planes.reshape(len(planes), 3, 8, SIZE // 8, 8, SIZE // 8).mean((3, 5)).reshape(len(planes), -1)
    fitted = LogisticRegression(C=0.1, max_iter=200).fit(small, [int(digit.name) for digit in digits])
    nodes = [
        helper.make_node("AveragePool", ["x"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["small", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["y"]),
    ]
    held = {
        "flat": np.array([1, small.shape[1]], np.int64),
        "weights": np.roll(fitted.coef_, turned, 0).T.astype(np.float32),
        "bias": np.roll(fitted.intercept_, turned).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(CLASSES)])],
        [numpy_helper.from_array(values, name) for name, values in held.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


def adopt(house: House, file: Path, *options: str, here: bool = False) -> tuple[int, str]:
    done = (house.here if here else house)(
        "adopt", TARGET, str(file), "--classes", str(house.folder / "classes.txt"), *options
    )
    return done.returncode, done.stdout + done.stderr


def test_what_cannot_be_adopted_changes_nothing(house: House) -> None:
    file = write_classifier(house.folder / "theirs.onnx", house)
    short = house.folder / "short.txt"
    short.write_text("cat\ncat\n")
    for (code, said), words in (
        (adopt(house, file, here=True), "say it by --scale, --mean and --std"),
        (adopt(house, house.folder / "classes.txt", here=True), "is no ONNX file"),
        (adopt(house, file, *OPTIONS, "--layout", "hwcn", here=True), "write nchw or nhwc"),
        (adopt(house, file, "--mean", "a,b,c", here=True), "write one number, or three"),
        (adopt(house, file, *OPTIONS, "--classes", str(short), here=True), "short.txt:2: 'cat' stands in line 1 too"),
    ):
        assert (code, words in " ".join(said.split())) == (2, True), said
    done = house("adopt", "edgy", str(file), "--classes", str(house.folder / "classes.txt"), *OPTIONS)
    assert (done.returncode, "edgy.toml: is not there" in " ".join(done.stderr.split())) == (2, True)
    assert house.cycles() == []
    assert not list((house.config.state / "models").glob("*"))


def test_a_model_is_adopted_before_there_is_an_image_and_proven_by_the_first(house: House) -> None:
    """The first champion, on a person's word; then what it is worth on the images that come."""
    code, said = adopt(house, write_classifier(house.folder / "theirs.onnx", house), *OPTIONS)
    assert (code, "it is built, proven and measured next" in " ".join(said.split())) == (0, True), said
    house.until(lambda: house.version() == 1 and house.at_rest(), "it is served")
    (cycle,) = house.cycles()
    assert (cycle["trigger"], cycle["outcome"]) == ("adopt", "promoted")
    assert "it is proven on nothing, and served on the word of" in cycle["reason"]
    right, version, _ = accuracy(house.url, TARGET, house.waves.held_back)
    assert (version, right > 0.85) == (1, True)
    (shown,) = [row for row in house.view("models") if row["serves"]]
    assert (shown["architecture"], bool(shown["adopted"]), shown["judge_accuracy"]) == (
        "adopted:theirs.onnx",
        True,
        None,
    )
    assert shown["measurement"]["latency_p95_ms"] > 0
    assert "adopted by" in house("models").stdout

    house.drop(house.some("0123", count=12))  # too few to train on
    house.until(lambda: len(house.cycles()) > 1 and house.at_rest(), "it is proven")
    cycle = house.cycles()[-1]
    assert (cycle["trigger"], cycle["outcome"]) == ("proof", "kept")
    assert "the adopted champion is" in cycle["reason"]
    assert house.target()["champion"]["judge_accuracy"] > 0.7
    explained = house.view("explain", f"d{cycle['decision']}")
    assert (explained["action"], explained["replayed"]) == ("prove", "the same")
    assert house.sql("select count(*) from observations")[0][0] > 0  # and asked about what came, as any champion


def test_the_answers_to_its_files_say_how_a_client_prepares_images(house: House) -> None:
    """Those of Triton are right; those of a client that leaves EXIF alone say so."""
    done = house("check-client", TARGET)
    assert (done.returncode, "prepared as training prepares them" in " ".join(done.stdout.split())) == (0, True)
    view = house.view("check-client", TARGET)
    assert "bgr" in view["not_shown"]  # to a network of gray digits all channels are one
    answers, size = house.folder / "answers.json", (SIZE, SIZE)
    lying = [Image.open(file).convert("RGB").resize(size, Image.Resampling.BILINEAR) for file in view["files"]]
    with Triton(house.url) as triton:
        for pixels, code, way in (
            ([prepare(file, size) for file in view["files"]], 0, "as training"),
            ([np.asarray(image) for image in lying], 1, "not upright"),
        ):
            found, _ = triton.infer_all(TARGET, np.stack(pixels))
            answers.write_text(json.dumps(dict(zip(view["files"], found.tolist(), strict=True))))
            done = house.here("check-client", TARGET, "--answers", str(answers), "--json")
            said = json.loads(done.stdout)
            assert (done.returncode, said["whose"], said["likeliest"]) == (code, "your client's", way)
    answers.write_text("{}")
    done = house("check-client", TARGET, "--answers", str(answers))
    assert (done.returncode, "has no answer to specimen-1.jpg" in " ".join(done.stderr.split())) == (2, True)


def test_with_a_champion_the_adopted_is_a_challenger_like_any_other(house: House) -> None:
    assert house.version() == 1
    before = len(house.cycles())
    code, said = adopt(house, write_classifier(house.folder / "worse.onnx", house, turned=1), *OPTIONS)
    assert (code, "a challenger like any other" in " ".join(said.split())) == (0, True), said
    house.until(lambda: len(house.cycles()) > before and house.at_rest(), "it is judged")
    cycle = house.cycles()[-1]
    assert (cycle["trigger"], cycle["outcome"], house.version()) == ("adopt", "kept", 1)
    assert "does not meet the constraints" in cycle["reason"]
    assert house.sql("select state from requests where kind = 'adopt'") == [("done",), ("done",)]
