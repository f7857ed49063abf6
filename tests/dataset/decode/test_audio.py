"""Audio through the loader: exactly the frames of the files, at any position and on any rank."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from made import write_samples
from stoker.dataset import Loader, Sample
from stoker.dataset.decode import AudioClips, LogMel, UndecodableAudio, audio
from stoker.dataset.order import key_of, uniform
from stoker.errors import DatasetError
from stoker.recipe import Data
from stoker.storage import Location

soundfile = pytest.importorskip("soundfile")

RATE = 8000
CLIP = 500


def frames(length: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-30000, 30000, length).astype(np.int16)


def encoded(sound: NDArray[np.int16], kind: str, rate: int = RATE, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind.upper(), **options)
    return file.getvalue()


def sample(data: bytes, number: int = 0) -> Sample:
    return Sample(number, "key", 0, memoryview(data), "shard", 0)


def clip_of(data: bytes, draw: float | None = None, dtype: str = "int16") -> torch.Tensor:
    decoder = AudioClips(RATE, CLIP, is_training=draw is not None, dtype=dtype)  # type: ignore[arg-type]
    out = decoder.empty(1)
    failed = decoder.decode([sample(data)], np.array([[draw]] if draw is not None else [[]]), out)
    if failed:
        raise failed[0]
    return out[0]


SOUNDS = [frames(length, seed) for seed, length in enumerate([700, 500, 499, 3000, 1, 9000] * 8)]
SHARDS = [range(20), range(20, 23), range(23, len(SOUNDS))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    kinds = ("wav", "flac")
    members = [[(kinds[n % 2], encoded(SOUNDS[n], kinds[n % 2]), n % 3) for n in shard] for shard in SHARDS]
    return write_samples(str(tmp_path_factory.mktemp("sounds")), members)


def loader(root: Location, *, rank: int = 0, world_size: int = 1, is_training: bool = True) -> Loader:
    return Loader(
        root,
        "train",
        global_batch=8,
        micro_batch=2,
        data=Data(url=root.url, block_samples=4, last_batch="pad"),
        seed=5,
        shuffled=is_training,
        rank=rank,
        world_size=world_size,
        decoder=AudioClips(RATE, CLIP, is_training=is_training, dtype="int16"),
    )


def clips(loader: Loader) -> dict[int, list[int]]:
    """Frames by the sample's number."""
    found: dict[int, list[int]] = {}
    for batch in loader:
        assert torch.equal(batch.labels[: batch.size], batch.numbers[: batch.size] % 3)
        pairs = zip(batch.numbers.tolist(), batch.inputs.tolist(), strict=True)
        found |= {number: clip for number, clip in pairs if number >= 0}
    return found


def cut(number: int, start: int) -> list[int]:
    piece = SOUNDS[number][start : start + CLIP].tolist()
    return piece + [0] * (CLIP - len(piece))


def test_training_clips_begin_where_the_samples_draw_says(root: Location) -> None:
    draws = uniform(key_of("augment", 5, 0), range(len(SOUNDS)), 1)[:, 0]
    starts = [int(u * (max(len(sound) - CLIP, 0) + 1)) for u, sound in zip(draws, SOUNDS, strict=True)]
    assert clips(loader(root)) == {n: cut(n, start) for n, start in enumerate(starts)}


def test_evaluation_clips_are_the_middle_of_each_sound(root: Location) -> None:
    expected = {n: cut(n, max(len(sound) - CLIP, 0) // 2) for n, sound in enumerate(SOUNDS)}
    assert clips(loader(root, is_training=False)) == expected


@pytest.mark.parametrize("world_size", [2, 3])
def test_clips_are_the_same_at_any_world_size(root: Location, world_size: int) -> None:
    shared: dict[int, list[int]] = {}
    for rank in range(world_size):
        shared |= clips(loader(root, rank=rank, world_size=world_size))
    assert shared == clips(loader(root))


def test_clips_are_the_same_after_a_resume(root: Location) -> None:
    begun, seen = loader(root), dict[int, list[int]]()
    for batch in begun:
        seen |= dict(zip(batch.numbers.tolist(), batch.inputs.tolist(), strict=True))
        if batch.step == 2 and batch.micro_batch == 3:
            break
    resumed = loader(root)
    resumed.load_state_dict(begun.state_dict())
    rest = clips(resumed)
    assert not rest.keys() & seen.keys()
    assert rest | seen == clips(loader(root))


def test_a_draw_reaches_the_first_and_the_last_place() -> None:
    sound = frames(CLIP + 9)
    data = encoded(sound, "flac")
    assert clip_of(data, 0.0).tolist() == sound[:CLIP].tolist()
    assert clip_of(data, 1 - 2**-53).tolist() == sound[9:].tolist()


def test_floats_are_the_amplitudes_of_the_frames() -> None:
    sound = frames(CLIP)
    assert torch.equal(clip_of(encoded(sound, "wav"), dtype="float32"), torch.from_numpy(sound / np.float32(32768)))


def test_float_files_make_the_same_int16_as_integer_ones() -> None:
    sound = frames(CLIP)
    data = encoded((sound / 32768).astype(np.float32), "wav", subtype="FLOAT")  # type: ignore[arg-type]
    assert clip_of(data).tolist() == sound.tolist()


def test_wavs_of_64_bits_are_read_too() -> None:
    data = encoded(frames(CLIP), "rf64")
    assert data.startswith(b"RF64")
    assert clip_of(data).tolist() == frames(CLIP).tolist()


def test_channels_are_averaged() -> None:
    left, right = frames(CLIP, 1), frames(CLIP, 2)
    mixed = clip_of(encoded(np.stack([left, right], axis=1), "flac"), dtype="float32")
    assert torch.equal(mixed, torch.from_numpy((left.astype(np.float32) + right) / 65536))


def _with_a_byte_changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF, data[middle + 1] ^ 0x55]) + data[middle + 2 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the sound is empty"),
        (b"OggS of another kind", "its first bytes are not those of a WAV or FLAC"),
        (b"RIFF\x04\x00\x00\x00WAVE", "the wav sound is truncated"),
        (encoded(frames(400), "wav")[:-1], "the wav sound is truncated: 843 bytes where 844"),
        (encoded(frames(400), "rf64")[:-1], "the wav sound is truncated"),
        (encoded(frames(400), "flac")[:600], "the flac sound"),
        (encoded(frames(400), "flac")[:30], "the flac sound cannot be decoded"),
        (_with_a_byte_changed(encoded(frames(400), "flac")), "the flac sound"),
        (encoded(frames(0), "wav"), "the wav sound is truncated: 0 frames"),
        (encoded(frames(400), "wav", rate=16000), "has 16000 frames a second, not 8000; resample it"),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableAudio, match=reason):
        clip_of(data)


def test_what_cannot_be_decoded_is_told_by_its_place_and_spoils_no_other() -> None:
    good = encoded(frames(CLIP), "wav")
    decoder = AudioClips(RATE, CLIP, is_training=False, dtype="int16")
    out = decoder.empty(3)

    failed = decoder.decode([sample(good), sample(good[:90]), sample(good)], np.empty((3, 0)), out)

    assert list(failed) == [1]
    assert out[[0, 2]].tolist() == [frames(CLIP).tolist()] * 2


def test_a_corrupt_sound_is_named_by_the_loader(tmp_path: Path) -> None:
    sounds = [("flac", encoded(frames(600), "flac"), 0), ("flac", encoded(frames(600), "flac")[:700], 1)] * 4
    damaged = write_samples(str(tmp_path), [sounds])
    with pytest.raises(DatasetError, match=r"000000\.tar, sample 00000\d at offset \d+: the flac sound"):
        list(loader(damaged))


def test_the_module_loads_without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    spec = importlib.util.spec_from_file_location("loaded_again", audio.__file__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_missing_soundfile_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DatasetError, match=r"soundfile does not load .*pip install 'stoker\[audio\]'"):
        AudioClips(RATE, CLIP, is_training=True)


def _reference(wave: NDArray[np.float64], rate: int, mels: int, window: int, hop: int) -> NDArray[np.float64]:
    """Frame by frame and triangle by triangle, by the book."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    padded = np.pad(wave, window // 2, mode="reflect")
    taper = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)])
    found = np.zeros((mels, 1 + len(wave) // hop))
    step = mel(rate / 2) / (mels + 1)
    for t in range(found.shape[1]):
        power = np.abs(np.fft.fft(padded[t * hop : t * hop + window] * taper)) ** 2
        for m in range(mels):
            low, middle, high = (700 * (10 ** ((m + k) * step / 2595) - 1) for k in range(3))
            for k in range(window // 2 + 1):
                hz = k * rate / window
                if low < hz <= middle:
                    found[m, t] += power[k] * (hz - low) / (middle - low)
                elif middle < hz < high:
                    found[m, t] += power[k] * (high - hz) / (high - middle)
    return np.log(np.maximum(found, 1e-10))


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_log_mel_is_that_of_the_book(dtype: str) -> None:
    time = np.arange(RATE // 4) / RATE
    tones = 0.4 * np.sin(2 * math.pi * 440 * time) + 0.1 * np.sin(2 * math.pi * 1700 * time)
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(time))
    whole = np.rint((tones + noise) * 32768).astype(np.int16)
    wave = torch.from_numpy(whole) if dtype == "int16" else torch.from_numpy(whole / np.float32(32768))

    made = LogMel(RATE, mels=20, window=256, hop=100)(wave[None])

    expected = _reference(whole / 32768, RATE, 20, 256, 100)
    assert made.shape == (1, 20, 1 + len(time) // 100)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made[0].numpy(), expected, atol=1e-3)


def test_silence_is_the_logarithm_of_the_floor() -> None:
    assert torch.equal(LogMel(RATE, floor=1e-6)(torch.zeros(1, CLIP)), torch.full((1, 64, 4), 1e-6).log())


@pytest.mark.parametrize("options", [{"mels": 200}, {"low_hz": 5000.0}, {"high_hz": 4001.0}])
def test_mels_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"too many for a window|must be within 0 to 4000"):
        LogMel(RATE, **options)  # type: ignore[arg-type]
