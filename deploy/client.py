"""A client to copy from: image files in, class names out, through Triton. It is this one file.

Needs `tritonclient[grpc]` (or `[http]`), numpy and Pillow alone.

    classify             twenty lines over gRPC, for images that are uint8 of the right size already
    Classifier           gRPC or HTTP; batches, several requests in flight, tried again where that may help
    AsyncClassifier      the same under asyncio
    prepare              an image file becomes the pixels that training made of it, bit for bit

    python client.py photo.jpg --url 127.0.0.1:8001 --model edge [--protocol http] [--resize crop]

What is refused (an unknown model, a wrong shape) is raised at once; what is only away (UNAVAILABLE, a deadline, no
connection) is asked again, waiting longer each time, until `seconds` are over in all.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

Images = NDArray[np.uint8]  # (n, height, width, 3), RGB
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds before it is asked again
# What says that nothing was answered, not that something is wrong: gRPC's words, and HTTP's numbers.
AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "502", "503", "504")
NOT_YET = ("is not at ready state", "no available versions")  # of a model that is being loaded
TOO_MANY = "batch-size must be"  # of a request with more images than the model takes at once


def classify(client: Any, model: str, images: Images) -> list[tuple[str, float, str]]:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model takes an image for."""

    name: str
    probability: float
    version: int  # of the model that answered


class AsyncClassifier:
    """A Triton model of relearnd under asyncio: `async with AsyncClassifier("127.0.0.1:8001", "edge") as model:`.

    seconds: for one call of a method, all its requests and all their tries. in_flight: requests at once. labels: the
    classes, where names are to be taken from a list of yours and not from the server. tls: with the system's
    authorities, or those of a PEM file; certificate and key are yours, as PEM files, where the server asks for them.
    headers: sent with each request, as {"authorization": "Bearer …"}.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        protocol: str = "grpc",
        seconds: float = 30.0,
        in_flight: int = 4,
        labels: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        tls: bool = False,
        authorities: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
    ) -> None:
        if protocol not in ("grpc", "http"):
            raise ValueError(f"protocol {protocol!r}: there are 'grpc' and 'http'")
        self.url, self.model, self.labels = url, model, labels
        self.seconds = seconds
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}  # as gRPC wants them
        self._tls, self._authorities, self._certificate, self._key = tls, authorities, certificate, key
        self._grpc = protocol == "grpc"
        self._in_flight = asyncio.Semaphore(in_flight)
        self._client: Any = None
        self._lost: tuple[type[Exception], ...] = (OSError, TimeoutError)  # no connection, or no answer in time
        self._limits: tuple[int, int, int] | None = None

    async def __aenter__(self) -> Self:
        if self._grpc:
            from tritonclient.grpc import aio as grpc

            self._protocol: Any = grpc
            files = (self._authorities, self._key, self._certificate)
            authorities, key, certificate = (str(file) if file else None for file in files)
            self._client = grpc.InferenceServerClient(
                self.url,
                ssl=self._tls,
                root_certificates=authorities,
                private_key=key,
                certificate_chain=certificate,
                channel_args=[("grpc.max_reconnect_backoff_ms", 1000)],
            )
        else:
            import aiohttp
            from tritonclient.http import aio as http

            self._protocol = http
            self._lost = (*self._lost, aiohttp.ClientError)
            self._client = http.InferenceServerClient(self.url, ssl=self._tls, ssl_context=self._open_tls())
        return self

    def _open_tls(self) -> ssl.SSLContext | None:
        if not self._tls:
            return None
        context = ssl.create_default_context(cafile=self._authorities)
        if self._certificate:
            context.load_cert_chain(self._certificate, self._key)
        return context

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, at: TracebackType | None) -> None:
        await self._client.close()

    async def limits(self) -> tuple[int, int, int]:
        """(height, width, images in one request) that the model takes, as the server says.

        It is asked once, and again where it refuses as many.
        """
        return await self._find_limits(time.monotonic() + self.seconds)

    async def classify(self, images: Images) -> list[Answer]:
        """The likeliest class of each image, of any number of them."""
        if self.labels is None:
            rows = await self._ask_all(images, class_count=1)
            cells = [(str(cell, "utf-8").split(":", 2), version) for row, version in rows for cell in row.reshape(-1)]
            return [Answer(name, float(probability), version) for (probability, _, name), version in cells]
        each = [(row, version) for rows, version in await self._ask_all(images, class_count=0) for row in rows]
        for row, version in each:
            if len(row) != len(self.labels):
                raise ValueError(f"version {version} knows {len(row)} classes, and `labels` names {len(self.labels)}")
        return [Answer(self.labels[int(row.argmax())], float(row.max()), version) for row, version in each]

    async def probabilities(self, images: Images) -> NDArray[np.float32]:
        """float32 (n, classes), in the order of the model's labels.

        All are answered by one version: where another is promoted between two requests, which may know other classes,
        all are asked again.
        """
        while True:
            found = await self._ask_all(images, class_count=0)
            if len({version for _, version in found}) <= 1:
                return np.concatenate([rows for rows, _ in found])

    async def classify_files(self, files: Iterable[Path | str], resize: str = "stretch") -> list[Answer]:
        """The same of image files, resized as training resized them (`input.resize` of its config.toml)."""
        height, width, _ = await self.limits()
        return await self.classify(np.stack([prepare(file, (height, width), resize) for file in files]))

    async def _ask_all(self, images: Images, class_count: int) -> list[tuple[Any, int]]:
        """What the model answers to each batch, and which version: several at a time, in their order."""
        from tritonclient.utils import InferenceServerException

        deadline = time.monotonic() + self.seconds
        try:
            return await self._ask_each(images, class_count, deadline)
        except InferenceServerException as error:
            if TOO_MANY not in (error.message() or ""):
                raise
        self._limits = None  # they were lowered since
        return await self._ask_each(images, class_count, deadline)

    async def _ask_each(self, images: Images, class_count: int, deadline: float) -> list[tuple[Any, int]]:
        *_, most = await self._find_limits(deadline)
        batches = [images[start : start + most] for start in range(0, len(images), most)]
        tasks = [asyncio.ensure_future(self._ask(batch, class_count, deadline)) for batch in batches]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # where one was refused, the others are not asked for nobody
            for task in tasks:
                task.cancel()

    async def _ask(self, images: Images, class_count: int, deadline: float) -> tuple[Any, int]:
        tensor = self._protocol.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        output = self._protocol.InferRequestedOutput("probabilities", class_count=class_count)
        async with self._in_flight:
            answer = await self._patiently("infer", deadline, self.model, [tensor], outputs=[output])
        response = answer.get_response()
        version = response.model_version if self._grpc else response["model_version"]
        return answer.as_numpy("probabilities"), int(version)

    async def _find_limits(self, deadline: float) -> tuple[int, int, int]:
        if self._limits is None:
            self._limits = await self._read_limits(deadline)
        return self._limits

    async def _read_limits(self, deadline: float) -> tuple[int, int, int]:
        form = {"as_json": True} if self._grpc else {}
        about = await self._patiently("get_model_metadata", deadline, self.model, **form)
        config = await self._patiently("get_model_config", deadline, self.model, **form)
        _, height, width, _ = (int(number) for number in about["inputs"][0]["shape"])
        return height, width, max(1, int((config["config"] if self._grpc else config).get("max_batch_size", 1)))

    async def _patiently(self, method: str, deadline: float, *arguments: Any, **named: Any) -> Any:
        """The answer of a method of Triton's client; tried again until the deadline where nobody answered."""
        from tritonclient.utils import InferenceServerException

        wait, named = FIRST_WAIT, {**named, "headers": self._headers}
        while True:
            left = deadline - time.monotonic()
            try:
                return await asyncio.wait_for(getattr(self._client, method)(*arguments, **named), max(left, 0.001))
            except (InferenceServerException, *self._lost) as error:
                refused = isinstance(error, InferenceServerException) and not is_away(error)
                if refused or deadline - time.monotonic() <= wait:
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # not all clients at once
            wait = min(wait * 2, LONGEST_WAIT)


def is_away(error: Any) -> bool:
    """Whether the server's error says that it could not answer now, rather than that the question is wrong.

    Of a model that it does not have at all Triton says UNAVAILABLE too.
    """
    words, status = error.message() or "", str(error.status() or "")
    return "is not found" not in words and (any(w in status for w in AWAY) or any(w in words for w in NOT_YET))


class Classifier:
    """A Triton model of relearnd: `with Classifier("127.0.0.1:8001", "edge") as model: model.classify_files(files)`.

    As AsyncClassifier, which does the work; used by one thread at a time.
    """

    def __init__(self, url: str, model: str, **options: Any) -> None:
        self._model = AsyncClassifier(url, model, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self._model.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, at: TracebackType | None) -> None:
        self._runner.run(self._model.__aexit__(kind, error, at))
        self._runner.close()

    def limits(self) -> tuple[int, int, int]:
        return self._runner.run(self._model.limits())

    def classify(self, images: Images) -> list[Answer]:
        return self._runner.run(self._model.classify(images))

    def probabilities(self, images: Images) -> NDArray[np.float32]:
        return self._runner.run(self._model.probabilities(images))

    def classify_files(self, files: Iterable[Path | str], resize: str = "stretch") -> list[Answer]:
        return self._runner.run(self._model.classify_files(files, resize))


# --- pixels as training made them -------------------------------------------------------------------------------

TURN = Image.Transpose
TURNS = {  # what makes an image upright, by EXIF's orientation
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip


def prepare(source: Path | str | bytes, size: tuple[int, int], resize: str = "stretch") -> NDArray[np.uint8]:
    """An image file, or its bytes, as uint8 (height, width, 3): what pipeline/images.py makes of it, bit for bit.

    Upright as its EXIF orientation says, RGB, transparency on white, bilinear with antialiasing. resize: "stretch" to
    the size whatever the proportions, or "crop": the largest centre of the right proportions.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        height, width = size
        orientation = read_orientation(image)
        if image.format == "JPEG":  # libjpeg decodes a large photo at a half, a quarter or an eighth of its size
            tall, wide = (width, height) if orientation > 4 else (height, width)
            if resize == "crop":
                scale = max(wide / image.width, tall / image.height)
                wide, tall = round(image.width * scale), round(image.height * scale)
            image.draft(None, (2 * wide, 2 * tall))
        rgb = to_rgb(image)
        upright = rgb.transpose(TURNS[orientation]) if orientation in TURNS else rgb
        box = centre(upright.size, size) if resize == "crop" else None
        if upright.size != (width, height):
            upright = upright.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(upright)


def read_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever odd bytes make Pillow raise: it is taken as it lies
        return 1


def centre(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box of the proportions (height, width) in the middle of an image of this (width, height)."""
    width, height = size
    scale = min(width / wanted[1], height / wanted[0])
    left, top = (width - scale * wanted[1]) / 2, (height - scale * wanted[0]) / 2
    return left, top, width - left, height - top


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits of gray, which Pillow itself would clip
        values = np.asarray(image).astype(np.float32)
        highest = float(values.max(initial=0.0))
        if image.mode.startswith("I;16") or highest > 255:
            values = values / 257.0
        elif image.mode == "F" and highest <= 1:
            values = values * 255
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def main(words: Sequence[str] | None = None) -> Iterator[str]:
    """A line for each file."""
    parser = argparse.ArgumentParser(description="Asks a Triton model of relearnd what images show.")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of Triton, of gRPC or HTTP")
    parser.add_argument("--model", required=True)
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--resize", choices=("stretch", "crop"), default="stretch", help="as training resized")
    asked = parser.parse_args(words)
    with Classifier(asked.url, asked.model, protocol=asked.protocol) as model:
        for file, answer in zip(asked.files, model.classify_files(asked.files, asked.resize), strict=True):
            yield f"{file}: {answer.name} ({answer.probability:.2f}), says version {answer.version}"


if __name__ == "__main__":
    for line in main():
        sys.stdout.write(f"{line}\n")
