"""Decode WAV and FLAC to clips of equal length, and turn clips into log-mel spectrograms on the device.

    bytes ─▶ header ─▶ start of the clip  ─▶ seek, decode the clip alone ─▶ place in the batch ─▶ LogMel, on the device
                       (the sample's draw)

An example of another kind of sample: it takes a decoder of a few methods. Needs the extra ``audio`` (soundfile, which
wraps libsndfile and lets other threads run while that decodes).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stoker.dataset.samples import Sample
from stoker.dataset.undecodable import UndecodableSample
from stoker.errors import DatasetError

__all__ = ["AudioClips", "LogMel", "UndecodableAudio"]

_FULL_SCALE = 32768
"""an amplitude of 1 in 16 bits"""
_MIN_RIFF = 44
_UNKNOWN_SIZE = 0xFFFFFFFF
"""placeholder for a WAV's size that was unknown, or that does not fit and follows behind (RF64, EBU Tech 3306)"""


class UndecodableAudio(UndecodableSample):
    """The bytes are not audio that can be decoded: empty, truncated, of another kind, or at another sample rate."""


class AudioClips:
    """Decodes WAV and FLAC to mono clips: [m, samples], float32 in -1 to 1 or int16.

    In training the sample's one draw u puts the clip's first frame at floor(u (n - samples + 1)) of the sound's n
    frames, so that every place is as likely as any other; in evaluation it is the middle one, (n - samples) // 2.
    Shorter sounds are followed by zeros. Channels are averaged. Only the clip is decoded.

    Nothing is resampled: choose a filter once, when the data set is prepared, rather than in every epoch. A sound at
    another rate counts as one that cannot be decoded. Damage outside the clip is not detected.

    Raises:
        DatasetError: soundfile or its library is not installed.
        ValueError: ``samples`` is below 1.
    """

    def __init__(
        self,
        sample_rate: int,
        samples: int,
        *,
        is_training: bool,
        dtype: Literal["float32", "int16"] = "float32",
    ) -> None:
        """``sample_rate`` in Hz; ``samples``: frames of a clip."""
        if samples < 1:
            raise ValueError(f"samples ({samples}) must be at least 1")
        _require_soundfile()
        self._sample_rate, self._samples, self._is_training = sample_rate, samples, is_training
        self._dtype = torch.float32 if dtype == "float32" else torch.int16
        self.draws = 1 if is_training else 0

    def empty(self, count: int) -> Tensor:
        return torch.empty((count, self._samples), dtype=self._dtype, pin_memory=torch.cuda.is_available())

    def decode(
        self, samples: Sequence[Sample], draws: NDArray[np.float64], out: Tensor
    ) -> dict[int, UndecodableSample]:
        failed: dict[int, UndecodableSample] = {}
        for i, sample in enumerate(samples):
            try:
                clip = self._clip(sample.data, float(draws[i, 0]) if self._is_training else 0.5)
            except UndecodableAudio as error:
                failed[i] = error
                continue
            out[i, : len(clip)] = torch.from_numpy(clip)
            out[i, len(clip) :] = 0
        return failed

    def _clip(self, data: memoryview, draw: float) -> NDArray[np.float32] | NDArray[np.int16]:
        """At most ``samples`` frames: [frames]."""
        import soundfile

        kind = _kind(data)
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as sound:
                if sound.samplerate != self._sample_rate:
                    raise UndecodableAudio(
                        f"the {kind} sound has {sound.samplerate} frames a second, not {self._sample_rate}; "
                        "resample it when the data set is prepared"
                    )
                spare = sound.frames - self._samples
                start = (int(draw * (spare + 1)) if self._is_training else spare // 2) if spare > 0 else 0
                wanted = min(sound.frames, self._samples)
                sound.seek(start)
                frames = sound.read(wanted, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = error.error_string.strip() or f"libsndfile's error {error.code}"
            raise UndecodableAudio(f"the {kind} sound cannot be decoded ({reason})") from None
        if len(frames) < max(1, wanted):
            raise UndecodableAudio(f"the {kind} sound is truncated: {len(frames)} frames where {wanted} should be")
        mono = frames.mean(axis=1, dtype=np.float32)
        if self._dtype == torch.float32:
            return mono
        # libsndfile's own reading as int16 makes zeros of float files, whose amplitudes it does not scale
        return np.clip(np.rint(mono * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


class LogMel(nn.Module):
    """Waveforms [m, samples], float32 or int16, to log-mel spectrograms: float32 [m, mels, 1 + samples // hop].

    The power of a short-time Fourier transform (Hann window of ``window`` samples, centred, ends mirrored) through
    ``mels`` triangles of height 1, evenly spaced from ``low_hz`` to ``high_hz`` on the mel scale of HTK, 2595 log10(1 +
    f / 700) (Young and others, *The HTK Book*, 3.4, section 5.4); then the natural logarithm, of ``floor`` at least.
    Runs where the module's buffers are, in float32 under autocast too.

    Raises:
        ValueError: invalid frequencies, or so many mels that one of them covers no frequency of the transform.
    """

    _window: Tensor
    _filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        *,
        mels: int = 64,
        window: int = 400,
        hop: int = 160,
        low_hz: float = 0.0,
        high_hz: float | None = None,
        floor: float = 1e-10,
    ) -> None:
        super().__init__()
        high_hz = sample_rate / 2 if high_hz is None else high_hz
        if not 0 <= low_hz < high_hz <= sample_rate / 2:
            raise ValueError(f"low_hz ({low_hz:g}) to high_hz ({high_hz:g}) must be within 0 to {sample_rate / 2:g}")
        self._size, self._hop, self._floor = window, hop, floor
        filters = _mel_filters(sample_rate, window // 2 + 1, mels, low_hz, high_hz)
        if not bool((filters > 0).any(dim=0).all()):
            raise ValueError(f"mels ({mels}) are too many for a window of {window}; lower mels or raise window")
        self.register_buffer("_window", torch.hann_window(window), persistent=False)
        self.register_buffer("_filters", filters, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            wave = waveform.float() / _FULL_SCALE if waveform.dtype == torch.int16 else waveform.float()
            spectrum = torch.stft(wave, self._size, self._hop, window=self._window, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            return (power.transpose(1, 2) @ self._filters).transpose(1, 2).clamp(min=self._floor).log()


def _mel_filters(sample_rate: int, frequencies: int, mels: int, low_hz: float, high_hz: float) -> Tensor:
    """The triangles' weights: float32 [frequencies, mels]."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    edges = 700 * (10 ** (torch.linspace(low, high, mels + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.linspace(0, sample_rate / 2, frequencies, dtype=torch.float64)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def _kind(data: memoryview) -> str:
    """``wav`` or ``flac``; libsndfile reads more kinds, but not all of them to the frame.

    Raises:
        UndecodableAudio: neither, or a WAV that is shorter than its header says, which libsndfile accepts.
    """
    start = bytes(data[:12])
    if start.startswith(b"fLaC"):
        return "flac"
    if start.startswith((b"RIFF", b"RF64")) and start[8:] == b"WAVE":
        size = int.from_bytes(start[4:8], "little")
        if start.startswith(b"RF64") and bytes(data[12:16]) == b"ds64":
            size = int.from_bytes(data[20:28], "little")
        if size != _UNKNOWN_SIZE and max(size + 8, _MIN_RIFF) > len(data):
            raise UndecodableAudio(f"the wav sound is truncated: {len(data)} bytes where {size + 8} should be")
        return "wav"
    if not start:
        raise UndecodableAudio("the sound is empty (0 bytes)")
    raise UndecodableAudio("not audio that stoker decodes (its first bytes are not those of a WAV or FLAC)")


def _require_soundfile() -> None:
    try:
        import soundfile  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: the package is installed, the library that it wraps is not
        raise DatasetError(
            f"audio cannot be decoded: soundfile does not load ({error}); install it: pip install 'stoker[audio]'"
        ) from None
