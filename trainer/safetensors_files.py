"""safetensors files with one tensor in memory at a time: the format's own library wants all of a file at once to write it.

    8 bytes      length of the header, little-endian
    header       JSON: name -> {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, padded with spaces to 8 bytes
    data         the tensors' bytes, little-endian, one after another without a gap; offsets count from here

https://github.com/huggingface/safetensors describes it. A file's bytes depend on nothing but names, order and values.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the library's own limit

Spec = tuple[torch.dtype, tuple[int, ...]]


def byte_count(spec: Spec) -> int:
    """Bytes of a tensor of this type and shape."""
    dtype, shape = spec
    return dtype.itemsize * math.prod(shape)


def write_safetensors(path: Path, specs: Mapping[str, Spec], read: Callable[[str], Tensor]) -> None:
    """Write a file, flushed to disk.

    Args:
        path: of the file, which must not exist.
        specs: type and shape of every tensor, in the order of the file.
        read: gives the tensor of a name, of that shape, on the CPU; it is converted to the type.

    Raises:
        OSError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + byte_count(spec)
        header[name] = {"dtype": NAMES[spec[0]], "shape": list(spec[1]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in specs.items():
            tensor = read(name)
            assert tuple(tensor.shape) == shape, name
            file.write(as_bytes(tensor.to(dtype).contiguous()))
        file.flush()
        os.fsync(file.fileno())


class SafetensorsFile:
    """A file on disk.

    Attributes:
        path: where it is.
        specs: type and shape of every tensor, in the header's order.

    Args:
        path: where it is.

    Raises:
        CheckpointError: its header is not sound, or the file has another length than the header says.
    """

    def __init__(self, path: Path) -> None:
        """Read the header."""
        self.path = path
        self.specs: dict[str, Spec] = {}
        self._begins: dict[str, int] = {}
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8 - length
            try:
                if length > MAX_HEADER or size < 0:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                end = 0
                for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                    self.specs[name] = spec = DTYPES[entry["dtype"]], tuple(entry["shape"])
                    begin, last = entry["data_offsets"]
                    if begin != end or last != begin + byte_count(spec):
                        raise ValueError(f"{name} at bytes {begin} to {last}, after byte {end}")
                    self._begins[name], end = 8 + length + begin, last
                if end != size:
                    raise ValueError(f"{size} bytes of data where the header says {end}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from None

    def read(self, name: str) -> Tensor:
        """The tensor of a name, on the CPU."""
        dtype, shape = self.specs[name]
        tensor = torch.empty(shape, dtype=dtype)
        with self.path.open("rb") as file:
            file.seek(self._begins[name])
            file.readinto(as_bytes(tensor))
        return tensor


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
