"""safetensors files of others, read one tensor at a time, and nothing believed of their headers that was not checked.

https://github.com/huggingface/safetensors describes the format; `tensor_files.header` makes what is read here.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from .storage import CheckpointError
from .tensor_files import DTYPES, Spec, as_bytes, data_bytes

MAX_HEADER = 100_000_000  # bytes; the library's own limit


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
                    if begin != end or last != begin + data_bytes(spec):
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
