"""Decode training crops on the GPU: nvJPEG through torchvision, a whole micro-batch at a time.

    draws ─▶ box ─▶ the crop's own JPEG ─┐ one call  ┌─▶ pixels on the GPU ─crop, resample, flip─▶ place in the batch
                    (or the whole JPEG)  └─ nvJPEG ──┘
    what nvJPEG cannot decode, or decodes unlike libjpeg ─▶ the CPU's decoder ─▶ place in the batch

Same crops, flips and corrupt samples as ``TrainingImages``; pixels differ a little, because nvJPEG rounds the inverse
transform and enlarges subsampled chroma in its own way. Evaluation therefore stays on the CPU, where it is exact.

Each thread has a stream of its own: while nvJPEG decodes the micro-batch of one (torchvision lets in one call at a
time), others cut their JPEGs, resample, and decode what nvJPEG cannot.

Neither its speed nor its accuracy, beyond the bound in its test, has been measured on a GPU yet.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode  # registers torch.ops.image too

from stoker.dataset.decode.crop import CROP_DRAWS, random_resized_crop, stored_box, turned
from stoker.dataset.decode.image import image_header
from stoker.dataset.decode.training import TrainingImages
from stoker.dataset.format.image_header import ImageHeader, read_header
from stoker.dataset.format.jpeg import Box, crop_jpeg
from stoker.dataset.samples import Sample
from stoker.dataset.undecodable import UndecodableImage, UndecodableSample
from stoker.errors import RecipeError
from stoker.recipe import Augment

__all__ = ["DecodeBatch", "TrainingImagesOnGpu", "decode_by_nvjpeg"]

DecodeBatch = Callable[[list[Tensor], torch.device], list[Tensor]]
"""JPEGs (uint8 [bytes], on the CPU) to stored pixels on the device (uint8 [3, H, W], RGB): all, or RuntimeError"""

_TURNED = 5
_SOS, _EOI = b"\xff\xda", b"\xff\xd9"


def decode_by_nvjpeg(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode a batch of JPEGs by nvJPEG, as ``torchvision.io.decode_jpeg`` does, without its deprecation warning."""
    return torch.ops.image.decode_jpegs_cuda(encoded, ImageReadMode.RGB.value, device)


@dataclass(frozen=True)
class _Cut:
    """A JPEG for nvJPEG, uint8 [bytes]; ``box``: the crop in its stored pixels, None if not chosen yet."""

    encoded: Tensor
    orientation: int
    box: Box | None = None


class TrainingImagesOnGpu:
    """Decodes for training on a GPU: uint8 [m, 3, image_size, image_size], channels_last, RGB, upright, on ``device``.

    Crop, flip and the use of the draws are those of :class:`TrainingImages`. Truncated JPEGs, those in CMYK or stored
    as RGB, images of other kinds, and whatever nvJPEG refuses are decoded on the CPU, which also reports what is wrong
    with a corrupt one. The choice depends on a sample's bytes and draws alone.

    The loader passes it a micro-batch in one call. A batch is complete when it is yielded, for use on the device's
    default stream; on another one, call its ``record_stream``.

    ``device`` and ``decode_batch`` are parameters so that everything but nvJPEG can be tested without a GPU.

    Raises:
        RecipeError: there is no CUDA device, or torchvision is built without nvJPEG.
    """

    draws = 1 + CROP_DRAWS

    def __init__(
        self,
        image_size: int,
        augment: Augment,
        *,
        device: torch.device | None = None,
        decode_batch: DecodeBatch = decode_by_nvjpeg,
    ) -> None:
        if device is None:
            if not torch.cuda.is_available():
                raise RecipeError("data.decode is gpu, but this process sees no CUDA device; set data.decode to cpu")
            # the current device is each thread's own, and decode threads would take the first
            device = torch.device("cuda", torch.cuda.current_device())
        self._image_size, self._augment, self._device, self._decode_batch = image_size, augment, device, decode_batch
        self._on_cpu = TrainingImages(image_size, augment)
        self._batches = _stream_on(device)
        self._threads = threading.local()
        self._probe()

    def sized(self, image_size: int) -> TrainingImagesOnGpu:
        """The same decoder for images of another size, on the same device: also where another thread asks for it."""
        return TrainingImagesOnGpu(image_size, self._augment, device=self._device, decode_batch=self._decode_batch)

    def _probe(self) -> None:
        """Decode a tiny JPEG: afterwards a failure is the image's fault."""
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        try:
            self._decode_batch([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], self._device)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(
                f"data.decode is gpu, but torchvision cannot decode on {self._device} ({reason}); "
                "set data.decode to cpu"
            ) from None

    def empty(self, count: int) -> Tensor:
        shape = (count, 3, self._image_size, self._image_size)
        with _inside(self._batches):
            out = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last, device=self._device)
        if self._batches:  # the consumer uses the batch there, and must be done before the memory is reused
            out.record_stream(torch.cuda.default_stream(self._device))
        return out

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        cuts = {i: cut for i, sample in enumerate(samples) if (cut := self._cut(sample, draws[i].tolist()))}
        stream = self._stream_of_thread()
        with _inside(stream):
            pixels = self._pixels({i: cut.encoded for i, cut in cuts.items()})
            for i, whole in pixels.items():
                self._place(whole, cuts[i], draws[i], out[i])
            failed = self._decode_on_cpu(samples, draws, out, [i for i in range(len(samples)) if i not in pixels])
            if stream:  # nvJPEG writes by a stream of its own: pixels are released only when this one is done with them
                stream.synchronize()
        return failed

    def _cut(self, sample: Sample, draws: list[float]) -> _Cut | None:
        """The JPEG for nvJPEG to decode, or None if the CPU must decode the sample."""
        marks, orientation = sample.marks, sample.orientation
        if marks is None:
            return _whole_jpeg(sample.data)
        header = read_header(sample.data[: marks.scan])
        if header is None or not _is_for_nvjpeg(header):
            return None
        size = (marks.height, marks.width) if orientation >= _TURNED else (marks.width, marks.height)
        box = stored_box(random_resized_crop(draws[1:], *size, self._augment), marks.width, marks.height, orientation)
        try:
            encoded, within = crop_jpeg(sample.data, marks, box)
        except ValueError:
            return None  # the CPU's decoder reports what is wrong
        return _Cut(torch.frombuffer(encoded, dtype=torch.uint8), orientation, within)

    def _pixels(self, encoded: dict[int, Tensor]) -> dict[int, Tensor]:
        """The pixels of those that can be decoded; torchvision fails a whole batch if one cannot be: halves follow."""
        if not encoded:
            return {}
        try:
            return dict(zip(encoded, self._decode_batch(list(encoded.values()), self._device), strict=True))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if len(encoded) == 1:
                return {}
        items, half = list(encoded.items()), len(encoded) // 2
        return self._pixels(dict(items[:half])) | self._pixels(dict(items[half:]))

    def _place(self, pixels: Tensor, cut: _Cut, draws: NDArray[np.float64], out: Tensor) -> None:
        """Crop, resample with antialiasing and flip: one image [3, H, W] to its place [3, S, S]."""
        if cut.box is None:
            pixels = turned(pixels, cut.orientation)
            left, top, width, height = random_resized_crop(
                draws[1:].tolist(), pixels.shape[2], pixels.shape[1], self._augment
            )
            crop = pixels[:, top : top + height, left : left + width]
        else:
            left, top, width, height = cut.box
            crop = turned(pixels[:, top : top + height, left : left + width], cut.orientation)
        side = [self._image_size, self._image_size]
        # CUDA resamples no uint8; torchvision's own resize goes this way too
        resized = functional.interpolate(crop[None].float(), side, mode="bilinear", antialias=True)[0]
        out.copy_((resized.flip(-1) if draws[0] < self._augment.flip else resized).round_().clamp_(0, 255))

    def _decode_on_cpu(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor, places: list[int]
    ) -> dict[int, UndecodableSample]:
        if not places:
            return {}
        made = self._on_cpu.empty(len(places))
        failed = self._on_cpu.decode([samples[i] for i in places], draws[places], made)
        for k, i in enumerate(places):
            if k not in failed:
                out[i].copy_(made[k])
        return {places[k]: error for k, error in failed.items()}

    def _stream_of_thread(self) -> torch.cuda.Stream | None:
        """The calling thread's own stream, so that threads overlap each other and the training step."""
        if not hasattr(self._threads, "stream"):
            self._threads.stream = _stream_on(self._device)
        return self._threads.stream


def _stream_on(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _inside(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return torch.cuda.stream(stream) if stream else nullcontext()


def _whole_jpeg(data: memoryview) -> _Cut | None:
    """An unmarked JPEG as a whole, or None if the CPU must decode it or report what is wrong with it."""
    try:
        header = image_header(data)
    except UndecodableImage:
        return None
    stored = bytes(data)
    # nvJPEG may accept a truncated image; the last EOI is then that of a thumbnail in front of the scan
    if not _is_for_nvjpeg(header) or stored.rfind(_EOI) < stored.rfind(_SOS):
        return None
    return _Cut(torch.frombuffer(bytearray(data), dtype=torch.uint8), header.orientation)


def _is_for_nvjpeg(header: ImageHeader) -> bool:
    """Whether it is a JPEG in grey or YCbCr: Adobe's segment may say that three channels are RGB."""
    return header.kind == "jpg" and header.components in {1, 3} and header.adobe_transform != 0
