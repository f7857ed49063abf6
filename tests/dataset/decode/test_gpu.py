"""Decoding for the GPU: everything but nvJPEG itself runs on the CPU here; nvJPEG is compared where there is a GPU."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode

from made import write_dataset
from stoker.dataset import Loader, Sample
from stoker.dataset.decode import TrainingImages, TrainingImagesOnGpu
from stoker.dataset.format.jpeg import read_marks
from stoker.dataset.loader import _Makers
from stoker.errors import DatasetError, RecipeError
from stoker.recipe import Augment, Data
from stoker.recipe.data_fields import Resizing
from stoker.storage import Location

CPU = torch.device("cpu")
SIDE = 48


class CpuBatch:
    """torchvision's CPU decoder by the interface of nvJPEG's: all of a batch or an error. Counts."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        self.calls.append(len(encoded))
        return [torch.ops.image.decode_jpeg(one, ImageReadMode.RGB.value, False) for one in encoded]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sample(data: bytes, orientation: int = 1) -> Sample:
    return Sample(0, "key", 0, memoryview(data), "shard", 0, orientation, read_marks(data))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x112] = orientation
    return found


def on_gpu(augment: Augment | None = None) -> tuple[TrainingImagesOnGpu, CpuBatch]:
    batch = CpuBatch()
    decoder = TrainingImagesOnGpu(SIDE, augment or Augment(), device=CPU, decode_batch=batch)
    batch.calls.clear()  # what it tried itself on
    return decoder, batch


def difference(samples: list[Sample], decoder: TrainingImagesOnGpu) -> torch.Tensor:
    """How far from the CPU's decoder, by sample: [n, 3, S, S]."""
    draws = np.random.default_rng(1).random((len(samples), TrainingImages.draws))
    exact = TrainingImages(SIDE, Augment())
    expected, made = exact.empty(len(samples)), decoder.empty(len(samples))
    assert not exact.decode(samples, draws, expected)
    assert not decoder.decode(samples, draws, made)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert made.dtype == torch.uint8
    return (made.cpu().int() - expected.int()).abs()


JPEGS = {
    "marked": [sample(stored(picture(200, 150, n), quality=92, restart_marker_blocks=13)) for n in range(4)],
    "unmarked": [sample(stored(picture(200, 150, n), quality=92)) for n in range(4)],
    "marked, turned": [
        sample(stored(picture(160, 120, n), exif=exif(n), restart_marker_blocks=5), n) for n in range(1, 9)
    ],
    "unmarked, turned": [sample(stored(picture(160, 120, n), exif=exif(n))) for n in range(1, 9)],
    "grey": [sample(stored(picture(160, 120).convert("L"), restart_marker_blocks=k)) for k in (0, 20)],
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_are_decoded_in_one_call_to_the_cpus_pixels_but_for_rounding(kind: str) -> None:
    decoder, batch = on_gpu()
    assert int(difference(JPEGS[kind], decoder).max()) <= 1
    assert batch.calls == [len(JPEGS[kind])]


OTHERS = {
    "png": stored(picture(90, 70), "PNG"),
    "webp": stored(picture(90, 70), "WEBP"),
    "cmyk": stored(picture(90, 70).convert("CMYK")),
    "cmyk, marked": stored(picture(90, 70).convert("CMYK"), restart_marker_blocks=12),
    "rgb": stored(picture(90, 70), keep_rgb=True),
    "rgb, marked": stored(picture(90, 70), keep_rgb=True, restart_marker_blocks=12),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_nvjpeg_would_not_decode_alike_goes_to_the_cpus_decoder(kind: str) -> None:
    decoder, batch = on_gpu()
    assert int(difference([sample(OTHERS[kind])], decoder).max()) == 0
    assert batch.calls == []


def _cut_behind_a_thumbnail() -> bytes:
    """A JPEG with a whole one in its EXIF segment, itself cut short."""
    image, thumbnail = stored(picture(160, 120)), stored(picture(16, 16))
    segment = b"Exif\0\0" + thumbnail
    whole = image[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + image[2:]
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("bad", [b"", b"this is no image", stored(picture(160, 120))[:900], _cut_behind_a_thumbnail()])
def test_a_corrupt_image_is_told_by_its_place_without_a_try_on_the_gpu(bad: bytes) -> None:
    good = JPEGS["marked"][0]
    decoder, batch = on_gpu()
    draws = np.random.default_rng(3).random((3, TrainingImages.draws))
    out, alone = decoder.empty(3), decoder.empty(1)

    failed = decoder.decode([good, sample(bad), good], draws, out)
    decoder.decode([good], draws[2:], alone)

    assert list(failed) == [1]
    assert str(failed[1])
    assert torch.equal(out[2], alone[0])
    assert batch.calls == [2, 1]


def test_one_image_that_nvjpeg_refuses_spoils_no_other() -> None:
    refused = JPEGS["unmarked"][1]

    def picky(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if any(len(one) == len(refused.data) for one in encoded):
            raise RuntimeError("Failed to decode: 4")
        return CpuBatch()(encoded, device)

    decoder = TrainingImagesOnGpu(SIDE, Augment(), device=CPU, decode_batch=picky)
    found = difference(JPEGS["unmarked"], decoder).amax(dim=(1, 2, 3))
    assert found[1] == 0  # the CPU's own
    assert int(found.max()) <= 1


def test_a_refused_image_is_found_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample(stored(picture(64, 48, n), quality=92)) for n in range(32)]
    marked, calls = bytes(samples[21].data), []

    def picky(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        calls.append(len(encoded))
        if any(one.numpy().tobytes() == marked for one in encoded):
            raise RuntimeError("Failed to decode: 4")
        return CpuBatch()(encoded, device)

    decoder = TrainingImagesOnGpu(SIDE, Augment(), device=CPU, decode_batch=picky)
    calls.clear()
    found = difference(samples, decoder).amax(dim=(1, 2, 3))
    assert found[21] == 0  # the CPU's own
    assert int(found.max()) <= 1
    assert sorted(calls, reverse=True) == [32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1]


def test_threads_feed_the_decoder_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=60)

    def meeting(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if len(encoded) > 1:  # not what it tries itself on
            together.wait()
        return CpuBatch()(encoded, device)

    decoder = TrainingImagesOnGpu(SIDE, Augment(), device=CPU, decode_batch=meeting)
    draws = np.random.default_rng(3).random((4, TrainingImages.draws))
    places = [decoder.empty(4) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        failed = list(pool.map(lambda out: decoder.decode(JPEGS["marked"], draws, out), places))
    assert failed == [{}, {}]
    assert torch.equal(*places)


def test_running_out_of_memory_is_no_corrupt_image() -> None:
    calls = CpuBatch()

    def full(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if calls.calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return calls(encoded, device)

    decoder = TrainingImagesOnGpu(SIDE, Augment(), device=CPU, decode_batch=full)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.decode(JPEGS["marked"], np.zeros((4, TrainingImages.draws)), decoder.empty(4))


def test_a_torchvision_without_nvjpeg_is_refused_in_one_line() -> None:
    def missing(encoded: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("not compiled with nvJPEG support\nsome frames of C++")

    with pytest.raises(RecipeError, match=r"^data\.decode is gpu, but .*nvJPEG support\); set data\.decode to cpu$"):
        TrainingImagesOnGpu(SIDE, Augment(), device=CPU, decode_batch=missing)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(str(tmp_path_factory.mktemp("data")), {"train": [30], "validation": [5]}, size=(60, 50))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_that_wants_a_gpu_where_there_is_none_is_refused_before_a_sample_is_read(root: Location) -> None:
    data = Data(url=root.url, decode="gpu")
    with pytest.raises(
        RecipeError, match=r"^data\.decode is gpu, but this process sees no CUDA device; set .* to cpu$"
    ):
        Loader(root, "train", global_batch=4, micro_batch=4, data=data)
    evaluation = Loader(root, "validation", global_batch=4, micro_batch=4, data=data, shuffled=False)
    assert next(iter(evaluation)).images.device == CPU


def test_the_loader_gives_it_whole_micro_batches_and_names_the_corrupt(root: Location, tmp_path: object) -> None:
    decoder, batch = on_gpu()
    data = Data(url=root.url, image_size=SIDE, decode_threads=3)
    made = list(Loader(root, "train", global_batch=10, micro_batch=5, data=data, decoder=decoder, epochs=1))
    exact = list(Loader(root, "train", global_batch=10, micro_batch=5, data=data))
    assert batch.calls == [5] * 6
    for one, other in zip(made, exact, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert int((one.images.int() - other.images.int()).abs().max()) <= 1

    damaged = write_dataset(str(tmp_path), {"train": [30]}, broken=7)
    with pytest.raises(DatasetError, match=r"sample 000007 at offset \d+: not an image"):
        list(Loader(damaged, "train", global_batch=10, micro_batch=5, data=data, decoder=decoder))


def test_as_images_grow_they_are_decoded_on_the_device_that_the_loader_began_with() -> None:
    """An epoch's decoder is made by a thread whose current device is the first one, whichever the rank's is."""
    decoder, batch = on_gpu()
    resizing = Resizing(from_size=32, start_epoch=0, end_epoch=2, multiple=8)
    data = Data(url="/none", image_size=SIDE, decode="gpu", resizing=resizing)
    makers = _Makers(data, decoder, True, True)
    for epoch, side in ((0, 32), (1, 40), (2, SIDE)):
        made = makers(epoch).decoder
        assert isinstance(made, TrainingImagesOnGpu)
        assert made.empty(2).shape == (2, 3, side, side)
        assert made.empty(2).device == CPU
        batch.calls.clear()
        made.decode(JPEGS["marked"], np.zeros((4, TrainingImages.draws)), made.empty(4))
        assert batch.calls == [4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", JPEGS)
def test_nvjpegs_images_are_within_two_levels_of_the_cpus_in_the_mean(kind: str) -> None:
    decoder = TrainingImagesOnGpu(SIDE, Augment())
    assert decoder.empty(1).device.type == "cuda"
    assert float(difference(JPEGS[kind], decoder).float().mean()) <= 2
