"""The Triton model of a version folder, for the Python backend.

Beside it lie manifest.json (what is served), engine.py (how the engine loads it) and the engine's files. Requests
that Triton hands over together are run together. A bad request is answered with an error and harms no other.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Outcome = NDArray[np.float32] | str  # probabilities, or the words of what went wrong
NUMPY_2 = int(np.__version__.split(".")[0]) >= 2


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        size = manifest["input"]
        self.shape = (size["height"], size["width"], size["channels"])
        self.classes = len(manifest["classes"])
        threads = json.loads(args["model_config"])["parameters"]["threads"]["string_value"]
        self.run = load_engine(folder / "engine.py").load(folder, int(threads))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        batches = [read(pb_utils.get_input_tensor_by_name(r, "images")) for r in requests]
        faults = [self.find_fault(images) for images in batches]
        good = [images for images, fault in zip(batches, faults, strict=True) if fault is None]
        answers = iter(self.answer(good))
        return [respond(next(answers) if fault is None else fault) for fault in faults]

    def find_fault(self, images: Images) -> str | None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.shape:
            wanted = ", ".join(str(n) for n in self.shape)
            return f"images must be uint8 of shape (n, {wanted}), not {images.dtype} {images.shape}"
        return None

    def answer(self, batches: Sequence[Images]) -> Sequence[Outcome]:
        """For each batch its probabilities, or the words of what went wrong. One run for all of them."""
        if not batches:
            return []
        try:
            images = batches[0] if len(batches) == 1 else np.concatenate(batches)
            found = self.run(images)
            if found.shape != (len(images), self.classes):
                raise ValueError(f"the engine answered with shape {found.shape}")
            return np.split(found, np.cumsum([len(b) for b in batches])[:-1])
        except Exception as error:  # whatever it is, this process lives on and the client is told
            return [f"the engine failed: {error}"] * len(batches)


def respond(outcome: Outcome) -> Any:
    if isinstance(outcome, str):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(outcome))
    tensor = write("probabilities", np.ascontiguousarray(outcome, dtype=np.float32))
    return pb_utils.InferenceResponse(output_tensors=[tensor])


# The backend was compiled for numpy 1 and takes numpy 2's arrays for empty; DLPack it reads rightly.
def read(tensor: Any) -> Any:
    return np.from_dlpack(tensor) if NUMPY_2 else tensor.as_numpy()


def write(name: str, array: NDArray[np.float32]) -> Any:
    return pb_utils.Tensor.from_dlpack(name, Lent(array)) if NUMPY_2 else pb_utils.Tensor(name, array)


class Lent:
    """An array whose DLPack capsule leaves it to the backend alone to let go of it.

    The backend renames a capsule that it has taken to a name that numpy does not expect ("used_dlpack"), and numpy
    would complain of each in the log.
    """

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.array.__dlpack__(**options)
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def load_engine(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
