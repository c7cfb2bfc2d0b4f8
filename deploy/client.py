"""A client to copy from: images in, class names out, through Triton.

Needs `tritonclient[grpc]` and numpy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def classify(client: Any, model: str, images: NDArray[np.uint8]) -> list[tuple[str, float, str]]:
    """(class name, probability, version that answered) for each image of uint8 (n, height, width, 3).

    client: a `tritonclient.grpc.InferenceServerClient`; one for all requests, it may be shared by threads.
    The images have the size that the constraint file says; n is at most the model's max_batch_size.
    """
    from tritonclient import grpc

    tensor = grpc.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    output = grpc.InferRequestedOutput(
        "probabilities", class_count=1
    )  # the classification extension: names, not numbers
    answer = client.infer(model, [tensor], outputs=[output], client_timeout=10.0)
    version = answer.get_response().model_version
    cells = [cell.decode() for cell in answer.as_numpy("probabilities").reshape(-1)]
    return [(cell.split(":", 2)[2], float(cell.split(":", 2)[0]), version) for cell in cells]
