"""What the stages of a step are asked to do, what a training depends on, and how answers become rows."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import jobs, outcomes, schema
from daemon.config import Config, dump
from daemon.errors import NotFound
from daemon.ground import Ground
from daemon.jobs import StagePlan
from daemon.journal import add, change, get
from daemon.stock import artifact_folder, model_folder
from policies.facts import Measurement, from_dict
from policies.steps import Build, Measure, Prove, Sketch, Train

World = Any  # tests/unit/daemon/conftest.py


@pytest.fixture
def ground(config: Config, world: World) -> Ground:
    """What a first cycle stands on."""
    world.samples("cat", "train", 2)
    world.samples("cat", "judge", 2)
    id_ = world.cycle()
    row = world.row(schema.cycles)
    return Ground(id_, config.state, dump(config), world.requirement(), row.snapshot_id, classes=2)


FP32 = "onnxruntime:fp32"
DEVICES = {"onnxruntime": "this machine"}
VARIANT = {
    "engine": "tensorrt_rtx",
    "engine_version": "1.7",
    "precision": "int8",
    "device": "sm89",
    "unverified": "no GPU",
}


def plan(journal: Engine, ground: Ground, step: Train | Build | Prove | Sketch | Measure) -> dict[str, StagePlan]:
    with journal.connect() as connection:
        return {stage.name: stage for stage in jobs.plan(step, ground, connection, DEVICES)}


def packages(stages: dict[str, StagePlan]) -> dict[str, str]:
    return {name: stage.package for name, stage in stages.items()}


def test_a_training(journal: Engine, ground: Ground) -> None:
    stages = plan(journal, ground, Train("resnet18"))
    assert packages(stages) == dict.fromkeys(["pixels", "train", "evaluate", "export"], "pipeline")
    assert stages["pixels"].inputs == {
        "snapshot": str(ground.state / "snapshots" / f"{ground.snapshot}.snapshot"),
        "store": str(ground.state / "store"),
        "cache": str(ground.state / "pixels"),
        "height": 32,
        "width": 32,
        "resize": "stretch",
    }
    assert stages["train"].inputs == {
        "run": str(ground.state / "runs" / ground.recipe("resnet18")),
        "architecture": "resnet18",
        "weights": "none",
        "height": 32,
        "width": 32,
        "settings": ground.settings["train"],
        "max_artifact_mb": 20.0,
        "track": {
            "mode": "offline",
            "project": "relearnd",
            "folder": str(ground.state),
            "group": f"cycle {ground.cycle}",
        },
    }
    assert stages["export"].inputs == {"models": str(ground.state / "models")}


def test_a_build_is_proven_and_measured_at_once(journal: Engine, ground: Ground, world: World) -> None:
    world.model("m", ground.cycle)
    stages = plan(journal, ground, Build("m", "openvino:int8"))
    assert packages(stages) == {"pixels": "pipeline", "build": "deploy", "prove": "deploy", "measure": "deploy"}
    assert stages["build"].inputs == {
        "model": str(model_folder(ground.state, "m")),
        "artifacts": str(ground.state / "artifacts"),
        "engine": "openvino",
        "precision": "int8",
        "options": {"compute_capability": "", "max_batch_size": 64},
        "pixels": str(ground.pixels_index),
    }
    assert stages["prove"].inputs["artifact"] is None  # that of the build
    assert stages["prove"].inputs["answers"] == str(ground.work("answers") / "m-openvino-int8.json")
    required = {"batch_size": 1, "concurrency": 1, "threads": 1, "seconds_max": 4.0}
    assert stages["measure"].inputs == {"artifact": None, **required}


@pytest.mark.parametrize(("measure", "names"), [(False, ["pixels", "prove"]), (True, ["pixels", "prove", "measure"])])
def test_a_stored_artifact_is_proven(
    journal: Engine, ground: Ground, world: World, measure: bool, names: list[str]
) -> None:
    world.artifact("a", ground.cycle)
    stages = plan(journal, ground, Prove("a", measure))
    assert list(stages) == names
    folder = str(artifact_folder(ground.state, "a"))
    assert {stage.inputs["artifact"] for name, stage in stages.items() if name != "pixels"} == {folder}
    assert stages["prove"].inputs["answers"].endswith("/answers/a.json")
    assert stages["prove"].inputs["known"] is None  # daemon/proofs.py


def test_parity_is_asked_where_the_model_brings_its_answers(journal: Engine, ground: Ground, world: World) -> None:
    world.model("m", ground.cycle)
    assert plan(journal, ground, Build("m", "openvino:int8"))["prove"].inputs["tune"] is None
    answers_of_its_own = model_folder(ground.state, "m") / "tune.npz"
    answers_of_its_own.touch()
    assert plan(journal, ground, Build("m", "openvino:int8"))["prove"].inputs["tune"] == str(answers_of_its_own)


def test_measuring_is_under_the_load_that_is_required(journal: Engine, ground: Ground, world: World) -> None:
    world.artifact("a", ground.cycle)
    loaded = dataclasses.replace(ground, requirement=world.requirement(batch_size=4, concurrency=2))
    inputs = plan(journal, loaded, Prove("a", measure=True))["measure"].inputs
    assert (inputs["batch_size"], inputs["concurrency"]) == (4, 2)


DOUBTFUL: dict[str, Any] = {
    "latency_p95_ms": 5.1,  # 5 are asked for
    "raw": {"latency_p50_ms": 2.0, "latency_p95_ms": 6.375, "latency_p99_ms": 8.0, "throughput": 500.0},
    "clear": {"latency_p50_ms": 2.0, "latency_p95_ms": 6.375, "latency_p99_ms": 8.0, "throughput": 500.0},
    "uncertainty": {"latency_p95_ms": 0.05, "throughput": 0.05, "memory_mb": 0.02},
    "reference": {"latency_p50_ms": 0.125, "latency_p95_ms": 0.2, "latency_p99_ms": 0.2, "throughput": 8000.0},
    "reference_device": "this machine",
}


def test_what_is_in_doubt_is_measured_until_it_is_told(journal: Engine, ground: Ground, world: World) -> None:
    """As corrected: the stage is told how fast the reference is known to be, and what was left open so."""
    for name in ("a", "quiet"):
        world.artifact(name, ground.cycle)
    world.measure("quiet", **{**DOUBTFUL, "reference": {**DOUBTFUL["reference"], "latency_p50_ms": 0.1}})
    world.measure("a", **DOUBTFUL)
    loaded = dataclasses.replace(ground, requirement=world.requirement(latency_p95_ms=5.0, throughput_min=100.0))
    inputs = plan(journal, loaded, Measure("a"))["measure"].inputs
    assert inputs["artifact"] == str(artifact_folder(ground.state, "a"))
    assert inputs["doubts"] == {"latency_p95_ms": 5.0}
    assert inputs["quiet"]["latency_p50_ms"] == 0.1
    assert inputs["seconds_max"] == 4 * ground.settings["measure"]["seconds_max"]


def test_an_architecture_is_drawn_once_for_all_engines(journal: Engine, ground: Ground) -> None:
    stages = plan(journal, ground, Sketch("net", "openvino:int8"))
    assert list(stages) == ["pixels", "sketch", "build", "measure"]
    assert (stages["sketch"].inputs["classes"], stages["build"].inputs["precision"]) == (2, "int8")
    model = Path(stages["sketch"].inputs["model"])
    assert stages["build"].inputs["model"] == str(model)
    assert model.is_relative_to(ground.folder)
    model.mkdir(parents=True)
    (model / "manifest.json").touch()
    assert list(plan(journal, ground, Sketch("net", "onnxruntime:fp32"))) == ["pixels", "build", "measure"]


@pytest.mark.parametrize("step", [Build("nonesuch", FP32), Prove("nonesuch", measure=False)])
def test_what_is_not_stored_is_not_planned(journal: Engine, ground: Ground, step: Build | Prove) -> None:
    with pytest.raises(NotFound, match="nonesuch"):
        plan(journal, ground, step)


# --- recipe -------------------------------------------------------------------------------------------------------


def changed(ground: Ground, key: str, value: Any) -> Ground:
    settings = copy.deepcopy(dict(ground.settings))
    *sections, last = key.split(".")
    place = settings
    for section in sections:
        place = place[section]
    assert place[last] != value
    place[last] = value
    return dataclasses.replace(ground, settings=settings)


TRAIN = {
    "epochs": 21, "batch_size": 65, "optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.5, "momentum": 0.5,
    "scheduler": "cosine", "warmup_share": 0.5, "head_learning_rate_factor": 2.0, "trainable_stages": 1,
    "freeze_batch_norm": True, "label_smoothing": 0.5, "sampling": "balanced", "early_stopping_patience": 3, "seed": 1,
    "precision": "bf16-mixed", "accelerator": "cpu", "augment.crop_min": 0.5, "augment.flip": False,
    "augment.rotate_degrees": 1.0, "augment.brightness": 0.5, "augment.contrast": 0.5,
}  # fmt: skip
MATTERS = {f"train.{key}": value for key, value in TRAIN.items()} | {"input.resize": "crop", "model.weights": "timm"}
DOES_NOT = {
    "model.architectures": ["resnet18"], "compute.threads": 3, "compute.nice": 1, 
    "promotion.margin": 0.5, "policies.cooldown.minutes": 1.0, "build.engines": ["openvino"],
    "measure.seconds_max": 9.0, "log.level": "debug", "roles.judge": 0.2, "wandb.mode": "disabled",
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), MATTERS.items())
def test_a_recipe_is_another_where_a_setting_of_the_training_is(ground: Ground, key: str, value: Any) -> None:
    assert changed(ground, key, value).recipe("resnet18") != ground.recipe("resnet18")


def test_every_setting_of_the_training_is_tried_above(ground: Ground) -> None:
    train = ground.settings["train"]
    flat = {f"augment.{key}" for key in train["augment"]} | set(train)
    assert flat - {"augment", "optimizers"} == set(TRAIN)


def test_the_contenders_are_of_the_recipe_where_they_race(ground: Ground) -> None:
    fewer = {"sgd": 1.0, "adamw": 1.0}
    assert changed(ground, "train.optimizers", fewer).recipe("net") == ground.recipe("net")
    raced = changed(ground, "train.optimizer", "auto")
    assert changed(raced, "train.optimizers", fewer).recipe("net") != raced.recipe("net")


@pytest.mark.parametrize(("key", "value"), DOES_NOT.items())
def test_a_recipe_is_the_same_where_a_setting_of_something_else_is_changed(
    ground: Ground, key: str, value: Any
) -> None:
    assert changed(ground, key, value).recipe("resnet18") == ground.recipe("resnet18")


@pytest.mark.parametrize(
    ("limits", "same"),
    [
        ({"height": 64}, False),
        ({"width": 64}, False),
        ({"latency_p95_ms": 1.0}, True),
        ({"artifact_max_mb": 1.0}, True),
        ({"accuracy_min": 0.9}, True),
        ({"batch_size": 4}, True),
        ({"target": "other"}, True),  # two targets of one input size share their trainings
    ],
)
def test_a_recipe_depends_on_the_input_size_alone_of_what_is_required(
    ground: Ground, limits: dict[str, Any], same: bool
) -> None:
    other = dataclasses.replace(ground, requirement=dataclasses.replace(ground.requirement, **limits))
    assert (other.recipe("resnet18") == ground.recipe("resnet18")) is same


def test_a_recipe_is_of_one_architecture_and_snapshot(ground: Ground) -> None:
    other = dataclasses.replace(ground, snapshot="another")
    again = dataclasses.replace(ground, cycle=99, state=Path("/elsewhere"))
    assert len({ground.recipe("a"), ground.recipe("b"), other.recipe("a")}) == 3
    assert again.recipe("a") == ground.recipe("a")


def test_a_recipe_is_another_where_the_weights_file_was_replaced(ground: Ground, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"one")
    given = changed(ground, "model.weights", str(weights))
    before = given.recipe("resnet18")
    weights.write_bytes(b"another")
    assert given.recipe("resnet18") != before


# --- record -------------------------------------------------------------------------------------------------------


def record(journal: Engine, ground: Ground, step: str, name: str, **outputs: Any) -> None:
    """A stage of this step has ended with these outputs; its one attempt took seven seconds."""
    with journal.begin() as connection:
        about = {"step": step, "name": name, "state": "running", "attempts": 1}
        stage = add(connection, schema.stages, cycle_id=ground.cycle, **about)
        times = {"token": "t", "started": 10.0, "ended": 17.0, "outcome": "done"}
        add(connection, schema.attempts, stage_id=stage, number=1, **times)
        outcomes.record(connection, ground, get(connection, schema.stages, stage), outputs)


def test_a_training_that_goes_on_to_its_export_makes_a_model(journal: Engine, ground: Ground, world: World) -> None:
    record(journal, ground, "train net", "train", run="/runs/1")
    record(journal, ground, "train net", "evaluate", accuracy=0.5)
    assert world.rows(schema.models) == []
    exported = {"model": "m", "classes": ["cat"], "tune_accuracy": 0.5}
    record(journal, ground, "train net", "export", **exported)
    model = world.row(schema.models)
    assert (model.id, model.architecture, model.classes) == ("m", "net", ["cat"])
    assert (model.snapshot_id, model.cycle_id, model.recipe) == (ground.snapshot, ground.cycle, ground.recipe("net"))
    assert (model.height, model.width, model.tune_accuracy, model.train_seconds) == (32, 32, 0.5, 7.0)


def test_what_was_made_again_is_the_same_row_and_no_longer_gone(journal: Engine, ground: Ground, world: World) -> None:
    world.artifact("a", ground.cycle)
    with journal.begin() as connection:
        for table in (schema.models, schema.artifacts):
            change(connection, table, "a", gone=2.0)
    record(journal, ground, "train net", "export", model="a", classes=["cat"], tune_accuracy=0.5)
    record(journal, ground, "build a", "build", artifact="a", artifact_mb=1.0, **VARIANT)
    assert world.row(schema.models).gone is world.row(schema.artifacts).gone is None


def test_a_build_makes_an_artifact(journal: Engine, ground: Ground, world: World) -> None:
    world.model("m", ground.cycle)
    record(journal, ground, "build m tensorrt_rtx:int8", "build", artifact="a", artifact_mb=2.5, **VARIANT)
    artifact = world.row(schema.artifacts)
    assert (artifact.id, artifact.model_id, artifact.artifact_mb) == ("a", "m", 2.5)
    assert (artifact.engine, artifact.precision, artifact.device) == ("tensorrt_rtx", "int8", "sm89")
    assert artifact.unverified == "no GPU"


def test_a_measurement_reads_back_as_it_was_said(journal: Engine, ground: Ground, world: World) -> None:
    world.artifact("a", ground.cycle, architecture="net")
    world.measure("a")
    figures = world.row(schema.measurements).figures
    record(journal, ground, "prove a", "measure", artifact="a", **figures)
    row = world.rows(schema.measurements)[1]
    assert (row.artifact_id, row.architecture, row.figures) == ("a", "net", figures)
    assert from_dict(Measurement, row.figures).latency_p95_ms == 2.0


def test_a_training_that_stopped_early_makes_a_size_and_no_model(journal: Engine, ground: Ground, world: World) -> None:
    record(journal, ground, "train vit_b", "train", stop="unfit", weights_mb=344.0, reason="too large")
    row = world.row(schema.measurements)
    assert (row.artifact_id, row.architecture, row.figures) == (None, "vit_b", {"weights_mb": 344.0})
    assert world.rows(schema.models) == []


def test_pixels_make_no_row(journal: Engine, ground: Ground, world: World) -> None:
    record(journal, ground, "train net", "pixels", pixels="/pixels")
    assert world.rows(schema.models) == world.rows(schema.measurements) == []


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_child_computes_with_the_threads_it_is_given() -> None:
    found = jobs.environment(3)
    assert {found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"


def test_training_leaves_a_core_to_those_who_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    cores: set[int] = set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cores)
    assert (jobs.training_threads(0), jobs.training_threads(5)) == (7, 5)
    cores = {0}
    assert jobs.training_threads(0) == 1


@pytest.mark.parametrize(
    ("package", "cluster", "found"),
    [
        ("pipeline", "", ("pipeline", ["job.json"])),
        ("pipeline", "10.0.0.1:6379", ("pipeline.remote", ["10.0.0.1:6379", "pipeline", "job.json", "5"])),
        ("deploy", "10.0.0.1:6379", ("deploy", ["job.json"])),  # it measures this machine
    ],
)
def test_a_cluster_does_what_needs_no_engine(package: str, cluster: str, found: object) -> None:
    assert jobs.command(package, "job.json", 5, cluster) == found


@pytest.mark.parametrize(
    ("servers", "most"),
    [
        ({"max_batch_size": 8}, 64),  # as a version froze it that knew one server
        ({"max_batch_size": 100}, 100),
        ([{"max_batch_size": 8}, {"max_batch_size": 128}], 128),
    ],
)
def test_an_engine_takes_the_largest_batches_of_any_server(servers: Any, most: int) -> None:
    settings = {"build": {"compute_capability": ""}, "triton": servers}
    assert jobs.engine_inputs(settings, "onnxruntime:fp32")["options"]["max_batch_size"] == most
