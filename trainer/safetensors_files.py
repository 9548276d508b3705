"""safetensors files of others, read one tensor at a time; the library believes nothing of a header that it has not checked."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .storage import CheckpointError
from .tensor_files import DTYPES, Spec


class SafetensorsFile:
    """A file on disk.

    Attributes:
        path: where it is.
        specs: type and shape of every tensor, by name.
        begins: where in the file its data begin, by name.

    Args:
        path: where it is.

    Raises:
        CheckpointError: its header is not sound, the file has another length than the header says, or a tensor has a type
            that torch has not.
    """

    def __init__(self, path: Path) -> None:
        """Read the header."""
        self.path = path
        self.specs: dict[str, Spec] = {}
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    part = file.get_slice(name)
                    self.specs[name] = DTYPES[part.get_dtype()], tuple(part.get_shape())
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file that can be read: {error}") from None
        with path.open("rb") as raw:  # the library, which has found the header sound, does not tell where data are
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
        self.begins: dict[str, int] = {name: 8 + length + header[name]["data_offsets"][0] for name in self.specs}

    def read(self, name: str) -> Tensor:
        """The tensor of a name, on the CPU."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
