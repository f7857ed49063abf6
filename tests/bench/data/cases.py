"""The cases of bench-data: the Python that each runs in, the module that measures it, and its role in comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CASES", "Case", "Environment", "Role", "chosen"]

Environment = Literal["own", "peers", "ffcv"]
Role = Literal["stoker", "streaming", "local", "raw", "resume", "decode", "memory"]


@dataclass(frozen=True)
class Case:
    """``measure`` names the module below ``bench.data`` whose ``measure(place, **arguments)`` is called."""

    name: str
    role: Role
    measure: str
    arguments: dict[str, str | int] = field(default_factory=dict)
    environment: Environment = "peers"

    @property
    def kind(self) -> str:
        """The format of the set that it reads."""
        loader = str(self.arguments.get("loader", ""))
        return _KINDS.get(loader, "imagenet_shape" if self.role == "memory" else "stoker")

    @property
    def is_ours(self) -> bool:
        return self.environment == "own" and self.name.startswith("stoker")


_KINDS = {
    "webdataset_peer": "webdataset",
    "litdata_peer": "litdata",
    "mosaicml_peer": "mds",
    "huggingface_peer": "parquet",
    "ray_parquet_peer": "parquet",
    "ray_images_peer": "folder",
    "imagefolder_peer": "folder",
    "spdl_peer": "folder",
    "dali_peer": "folder",
    "dali_webdataset_peer": "webdataset",
    "ffcv_peer": "ffcv",
}


def _ours(name: str, role: Role, measure: str, **arguments: str | int) -> Case:
    return Case(f"stoker, {name}", role, measure, arguments, "own")


def _peers(role: Role, source: str, loaders: dict[str, tuple[str, str]], decoders: Sequence[str]) -> list[Case]:
    return [
        Case(f"{name}, {decoder}, {source}", role, "epoch", {"loader": loader, "decoder": decoder, "source": source})
        for loader, (name, own) in loaders.items()
        for decoder in (decoders if own == "any" else [own])
    ]


_STREAMING = {
    "webdataset_peer": ("WebDataset", "any"),
    "litdata_peer": ("LitData", "any"),
    "mosaicml_peer": ("MosaicML Streaming", "any"),
    "huggingface_peer": ("Hugging Face datasets", "any"),
    "ray_parquet_peer": ("Ray Data, Parquet", "any"),
    "ray_images_peer": ("Ray Data, images", "pillow"),
}
_LOCAL = {
    "imagefolder_peer": ("ImageFolder", "any"),
    "spdl_peer": ("SPDL", "any"),
    "dali_peer": ("DALI", "dali"),
    "dali_webdataset_peer": ("DALI, WebDataset reader", "dali"),
}
_DECODERS = ("torchvision", "pillow", "simplejpeg")
_CLIENTS = ("obstore", "boto3", "http.client", "pycurl")

CASES: tuple[Case, ...] = (
    _ours("S3", "stoker", "ours_epoch", source="s3"),
    *_peers("streaming", "s3", _STREAMING, _DECODERS),
    _ours("node cache", "stoker", "ours_epoch", source="cache"),
    _ours("local", "stoker", "ours_epoch", source="local"),
    *_peers("local", "local", _LOCAL, _DECODERS),
    Case("FFCV, ffcv, local", "local", "epoch", {"loader": "ffcv_peer", "decoder": "ffcv", "source": "local"}, "ffcv"),
    _ours("decode alone", "decode", "ours_decode"),
    _ours("1 thread", "stoker", "ours_epoch", source="local", decode_threads=1),
    _ours("2 threads", "stoker", "ours_epoch", source="local", decode_threads=2),
    _ours("raw", "raw", "ours_raw"),
    Case("s3fs", "raw", "clients", {"client": "s3fs"}, "own"),
    *(Case(client, "raw", "clients", {"client": client}) for client in _CLIENTS),
    _ours("resume", "resume", "resume", loader="ours_resume"),
    *(
        Case(f"{_STREAMING[loader][0]}, resume", "resume", "resume", {"loader": loader})
        for loader in ("webdataset_peer", "litdata_peer", "mosaicml_peer")
    ),
    _ours("memory at ImageNet's shape", "memory", "ours_memory"),
)


def chosen(patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose name holds one of ``patterns``, case apart; all of them if there is none.

    Raises:
        ValueError: a pattern is in no name.
    """
    for pattern in patterns:
        if not any(pattern.lower() in case.name.lower() for case in CASES):
            raise ValueError(f"--only {pattern}: matches no case; choose from: {'; '.join(c.name for c in CASES)}")
    return tuple(c for c in CASES if not patterns or any(pattern.lower() in c.name.lower() for pattern in patterns))
