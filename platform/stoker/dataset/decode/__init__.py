"""Decode samples to arrays: whole images, the crops that training needs, and other kinds of sample.

A decoder is a small object (:class:`Decoder`); pass your own to :class:`stoker.dataset.Loader` for another kind.

Names are imported lazily: the cost model of an image needs no torch.
"""

from typing import TYPE_CHECKING

from stoker.lazy import lazy_names

if TYPE_CHECKING:
    from stoker.dataset.decode.audio import AudioClips, LogMel, UndecodableAudio
    from stoker.dataset.decode.crop import random_resized_crop
    from stoker.dataset.decode.decoder import Decoder, UndecodableSample
    from stoker.dataset.decode.evaluation import EvaluationImages, evaluation_image
    from stoker.dataset.decode.gpu import TrainingImagesOnGpu
    from stoker.dataset.decode.image import UndecodableImage, decode, image_header
    from stoker.dataset.decode.opacity import decode_opacity
    from stoker.dataset.decode.training import TrainingImages

__all__ = [
    "AudioClips",
    "Decoder",
    "EvaluationImages",
    "LogMel",
    "TrainingImages",
    "TrainingImagesOnGpu",
    "UndecodableAudio",
    "UndecodableImage",
    "UndecodableSample",
    "decode",
    "decode_opacity",
    "evaluation_image",
    "image_header",
    "random_resized_crop",
]

_HOMES = {
    "AudioClips": "audio",
    "Decoder": "decoder",
    "EvaluationImages": "evaluation",
    "LogMel": "audio",
    "TrainingImages": "training",
    "TrainingImagesOnGpu": "gpu",
    "UndecodableAudio": "audio",
    "UndecodableImage": "image",
    "UndecodableSample": "decoder",
    "decode": "image",
    "decode_opacity": "opacity",
    "evaluation_image": "evaluation",
    "image_header": "image",
    "random_resized_crop": "crop",
}

__getattr__ = lazy_names(__name__, _HOMES)
