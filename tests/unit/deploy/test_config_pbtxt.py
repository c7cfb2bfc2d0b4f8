"""The configuration that is written is the one that Triton's own protocol reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.config_pbtxt import FLAVOURS, MARK, Flavour, Serving, find_misfit, write_config

SIZE = {"height": 6, "width": 8, "channels": 3}
SERVING = Serving(max_batch_size=16, queue_delay_us=250, instances=3, threads=5)


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config(**other: Any) -> Any:
    given = {"name": "edge", "size": SIZE, "versions": [7], "labels": "labels-7.txt", "serving": SERVING}
    return parse(write_config(**(given | other)))


NATIVE: dict[Flavour, dict[str, Any]] = {
    "onnxruntime": {
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "file": "model.onnx",
        "kind": "KIND_CPU",
        "parameters": {"intra_op_thread_count": "5", "inter_op_thread_count": "1"},
    },
    "openvino": {
        "platform": "",
        "backend": "openvino",
        "file": "model.xml",
        "kind": "KIND_CPU",
        "parameters": {"INFERENCE_NUM_THREADS": "5", "NUM_STREAMS": "1"},
    },
    "tensorrt_plan": {
        "platform": "tensorrt_plan",
        "backend": "tensorrt",
        "file": "model.plan",
        "kind": "KIND_GPU",
        "parameters": {},
    },
}


@pytest.mark.parametrize("flavour", NATIVE)
def test_tritons_own_backends_are_told_what_they_ask(flavour: Flavour) -> None:
    found = config(serving=replace(SERVING, flavour=flavour), classes=4)
    [group] = found.instance_group
    kinds = model_config_pb2.ModelInstanceGroup.Kind
    assert {
        "platform": found.platform,
        "backend": found.backend,
        "file": found.default_model_filename,
        "kind": kinds.Name(group.kind),
        "parameters": {key: value.string_value for key, value in found.parameters.items()},
    } == NATIVE[flavour]
    assert (group.count, found.max_batch_size) == (3, 16)
    assert list(found.output[0].dims) == [4]  # they compare it with the graph's own


def test_every_flavour_is_tried_here() -> None:
    assert set(FLAVOURS) == {"python", *NATIVE}


@pytest.mark.parametrize("flavour", NATIVE)
def test_tritons_own_backends_need_the_number_of_classes(flavour: Flavour) -> None:
    with pytest.raises(ValueError, match=f"^the flavour {flavour} needs the number of classes$"):
        config(serving=Serving(flavour=flavour))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("native", FLAVOURS)
def test_an_artifact_fits_its_own_flavour_and_python(native: str, flavour: Flavour) -> None:
    facts = {"engine": "abacus", "flavour": native, "max_batch_size": None}
    found = find_misfit(facts, Serving(flavour=flavour))
    assert (found is None) is (flavour in ("python", native))
    if found:
        assert found.startswith("an artifact of abacus is served as ")
        assert found.endswith(f", not as {flavour}")


def test_an_artifact_of_before_there_were_flavours_is_served_by_python() -> None:
    assert find_misfit({"engine": "onnxruntime"}, Serving()) is None
    assert find_misfit({"engine": "onnxruntime"}, Serving(flavour="onnxruntime")) is not None


@pytest.mark.parametrize(
    ("flavour", "most", "fits"), [("tensorrt_plan", 8, True), ("tensorrt_plan", 9, False), ("python", 9, True)]
)
def test_a_plan_has_a_largest_batch(flavour: Flavour, most: int, fits: bool) -> None:
    facts = {"engine": "tensorrt", "flavour": "tensorrt_plan", "max_batch_size": 8}
    found = find_misfit(facts, Serving(flavour=flavour, max_batch_size=most))
    assert found == (None if fits else "the plan was built for batches up to 8, and serving.max_batch_size is 9")


def test_its_ends_are_complete() -> None:
    found = config()
    assert (found.name, found.backend, found.max_batch_size) == ("edge", "python", 16)
    (images,) = found.input
    assert (images.name, images.data_type, list(images.dims)) == ("images", model_config_pb2.TYPE_UINT8, [6, 8, 3])
    (answers,) = found.output
    assert (answers.name, answers.data_type) == ("probabilities", model_config_pb2.TYPE_FP32)
    assert list(answers.dims) == [-1]  # versions may know different numbers of classes
    assert answers.label_filename == "labels-7.txt"


@pytest.mark.parametrize("versions", [[7], [8, 3]])
def test_the_versions_to_serve_are_named(versions: list[int]) -> None:
    policy = config(versions=versions).version_policy
    assert policy.WhichOneof("policy_choice") == "specific"
    assert list(policy.specific.versions) == sorted(versions)


def test_how_it_is_served_is_written() -> None:
    found = config()
    assert found.HasField("dynamic_batching")
    assert found.dynamic_batching.max_queue_delay_microseconds == 250
    assert not found.dynamic_batching.preferred_batch_size
    (group,) = found.instance_group
    assert (group.count, group.kind) == (3, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert {key: value.string_value for key, value in found.parameters.items()} == {"threads": "5"}


@pytest.mark.parametrize(("most", "sizes"), [(16, [1, 16]), (1, [1])])
def test_it_is_warmed_up_with_the_smallest_and_the_largest_batch(most: int, sizes: list[int]) -> None:
    found = config(serving=Serving(max_batch_size=most))
    assert [sample.batch_size for sample in found.model_warmup] == sizes
    for sample in found.model_warmup:
        assert list(sample.inputs) == ["images"]
        images = sample.inputs["images"]
        assert (images.data_type, list(images.dims)) == (model_config_pb2.TYPE_UINT8, [6, 8, 3])
        assert images.random_data
    assert len({sample.name for sample in found.model_warmup}) == len(sizes)


def test_without_warm_up_all_else_is_the_same() -> None:
    without, whole = config(), config(warm_up=False)
    without.ClearField("model_warmup")
    assert without == whole


def test_it_bears_the_mark_by_which_it_is_known() -> None:
    assert write_config("edge", SIZE, [1], "l", SERVING).startswith(f"{MARK}\n")


@pytest.mark.parametrize("text", ['with "quotes"', "back\\slash", "naïve", "a\tb\nc", "日本"])
def test_names_of_all_kinds_are_written_so_that_they_are_read(text: str) -> None:
    found = config(name=text, labels=text)
    assert (found.name, found.output[0].label_filename) == (text, text)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"versions": []}, r"versions from 1 upwards, not \[\]"),
        ({"versions": [2, 0]}, r"versions from 1 upwards, not \[2, 0\]"),
        ({"serving": Serving(max_batch_size=0)}, r"serving\.max_batch_size must be at least 1, not 0"),
        ({"serving": Serving(instances=0)}, r"serving\.instances must be at least 1, not 0"),
        ({"serving": Serving(threads=-1)}, r"serving\.threads must be at least 1, not -1"),
        ({"serving": Serving(queue_delay_us=-1)}, r"serving\.queue_delay_us must not be negative, it is -1"),
        ({"serving": Serving(flavour="abacus")}, "there is no flavour 'abacus'; there are: python"),  # type: ignore[arg-type]
    ],
)
def test_what_triton_would_not_take_is_refused(other: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**other)
