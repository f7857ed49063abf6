"""A safetensors file as a sequence of pieces, without a second copy of its tensors in memory.

The bytes are those that ``safetensors.torch.save`` gives, in the same order, so a hash of the file means the same
however it was written. Format: https://huggingface.co/docs/safetensors, section "Format" (8 bytes of header length,
little endian; a JSON header, padded with spaces to a multiple of 8; the tensors, row-major, without gaps).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["tensor_pieces"]

# ascending in the order in which the library sorts; it writes the last ones first, names ascending among equals
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {kind: place for place, kind in enumerate(_NAMES)}


def tensor_pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The file that holds ``tensors``, which are contiguous and on the CPU, header first, then one piece a tensor.

    Raises:
        TypeError: a tensor has a type that a checkpoint cannot hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name}: a checkpoint cannot hold tensors of {tensor.dtype}")
    names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    header, start = {}, 0
    for name in names:
        tensor = tensors[name]
        stop = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        if tensors[name].numel():
            yield tensors[name].reshape(-1).view(torch.uint8).numpy().data
