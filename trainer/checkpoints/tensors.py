"""Tensors of a checkpoint as safetensors files: one per rank, and `tensors.json`, which says where each piece is.

Any safetensors reader can open them. Sums are taken of the bytes on their way out, so that what a disk does to them
shows.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .folder import Folder

INDEX = "tensors.json"
OPEN_FILES = 64  # at a time
# https://github.com/huggingface/safetensors#format
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
METADATA = {"format": "pt"}  # of a file: the library whose tensors it holds
DTYPES = {name: dtype for dtype, name in NAMES.items()}


class Spec(NamedTuple):
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> "Spec":
        """Return those of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))


def header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    """Return how a safetensors file of these tensors begins; their data follows in the same order, without gaps."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.size
        entries[name] = {"dtype": NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def flat_bytes(tensor: Tensor) -> Tensor:
    """Return the data of a tensor of any type, row by row: uint8 [bytes], where the tensor is."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the data of a tensor of any type on any device, row by row."""
    return memoryview(cast("Any", flat_bytes(tensor.cpu()).numpy()))


def safetensors_bytes(
    specs: Mapping[str, Spec], tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file.

    Args:
        specs: type and shape of every tensor, by name.
        tensors: their data in the same order; one may hold several, or a part of one.
        metadata: texts that the header holds.
    """
    yield header(specs, metadata)
    yield from map(as_bytes, tensors)


@dataclass(frozen=True)
class TensorPiece:
    """Where the data of one piece of a tensor is: file and first byte; begin and extent in the tensor."""

    file: str
    begin: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, file: str, begin: int, shape: tuple[int, ...]) -> "TensorPiece":
        """Return the piece that is all of a tensor."""
        return cls(file, begin, (0,) * len(shape), shape)


Index = dict[str, tuple[Spec, list[TensorPiece]]]


def index_text(tensors: Index) -> str:
    """Return the text of `tensors.json`."""
    entries = {
        name: {
            "dtype": NAMES[dtype],
            "shape": shape,
            "pieces": [[piece.file, piece.begin, piece.offsets, piece.sizes] for piece in pieces],
        }
        for name, ((dtype, shape), pieces) in tensors.items()
    }
    return json.dumps(entries, separators=(",", ":"))


def read_index(folder: Folder) -> Index:
    """Return what `tensors.json` of a checkpoint says. Raises CheckpointError where it cannot be understood."""
    try:
        return {
            name: (
                Spec(DTYPES[entry["dtype"]], tuple(entry["shape"])),
                [TensorPiece(file, begin, tuple(offsets), tuple(sizes)) for file, begin, offsets, sizes in entry["pieces"]],
            )
            for name, entry in folder.read_json(INDEX).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder / INDEX}: not an index of tensors: {e!r}") from None


def file_index(path: Path) -> Index:
    """Return what a safetensors file on a disk holds.

    Raises:
        CheckpointError: its header is not sound, the file has another length than the header says, or a tensor has a
            type that torch has not.
    """
    try:
        with safe_open(path, framework="pt"):  # which finds what is not sound, and does not tell where data are
            pass
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            entries = json.loads(raw.read(length))
        entries.pop("__metadata__", None)
        specs = {name: Spec(DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in entries.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file that can be read: {error}") from None
    begins = {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items()}
    return {name: (spec, [TensorPiece.whole(path.name, begins[name], spec.shape)]) for name, spec in specs.items()}


class FileSet:
    """Files of a checkpoint, opened when they are first read. The newest few stay open.

    Args:
        folder: of the checkpoint.
        index: of its tensors.
    """

    def __init__(self, folder: Folder, index: Index) -> None:
        self.folder, self.index = folder, index
        self.data_begins: dict[str, int] = {}
        for piece in (piece for _, pieces in index.values() for piece in pieces):
            self.data_begins[piece.file] = min(piece.begin, self.data_begins.get(piece.file, piece.begin))
        self.files: dict[str, Any] = {}

    def __enter__(self) -> "FileSet":
        """Return the files, which the end of the block closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files that are open."""
        for file in self.files.values():
            file.close()
        self.files.clear()

    def read(self, dtype: torch.dtype, piece: TensorPiece, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """Return the part of a piece that begins at `offsets` within it; rows before and behind it are not read.

        Raises:
            OSError: the file cannot be read or is not what the index says.
        """
        file = self.files.get(piece.file) or self.open(piece.file)
        row_bytes = math.prod(piece.sizes[1:]) * dtype.itemsize
        tensor = torch.empty((*sizes[:1], *piece.sizes[1:]), dtype=dtype)
        file.seek(piece.begin + sum(offsets[:1]) * row_bytes)
        view, done = as_bytes(tensor), 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise OSError(f"{self.folder / piece.file}: ends within a tensor")
            done += count
        for dim in range(1, len(sizes)):
            tensor = tensor.narrow(dim, offsets[dim], sizes[dim])
        return tensor

    def whole(self, name: str) -> Tensor:
        """Return a tensor, put together from its pieces."""
        (dtype, shape), pieces = self.index[name]
        if len(pieces) == 1:
            return self.read(dtype, pieces[0], (0,) * len(shape), shape)
        whole = torch.empty(shape, dtype=dtype)
        for piece in pieces:
            place = whole
            for dim, (start, length) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
                place = place.narrow(dim, start, length)
            place.copy_(self.read(dtype, piece, (0,) * len(piece.sizes), piece.sizes))
        return whole

    def open(self, name: str) -> Any:
        """Open a file. Raises OSError where it is no safetensors file whose data begins where the index says."""
        if len(self.files) == OPEN_FILES:
            self.files.pop(next(iter(self.files))).close()
        self.files[name] = file = self.folder.open(name)
        if 8 + int.from_bytes(file.read(8), "little") != self.data_begins[name]:
            raise OSError(f"{self.folder / name}: not the safetensors file that {INDEX} is about")
        return file


class WholeTensors:
    """The model's tensors in a complete checkpoint, whatever layout wrote it, one at a time.

    Args:
        path: of the step folder.
        index: where its tensors are; None: `tensors.json` says so.
    """

    def __init__(self, path: Any, index: Index | None = None) -> None:
        index = read_index(Folder(path)) if index is None else index
        self.files = FileSet(Folder(path), index)
        self.index = {name.removeprefix("model."): entry for name, entry in index.items() if name.startswith("model.")}

    def names(self) -> list[str]:
        """Parameters, as `Decoder.state_dict` names them; of tied ones the first."""
        return list(self.index)

    def spec(self, name: str) -> Spec:
        """Return the type and shape of a parameter."""
        return self.index[name][0]

    def read(self, name: str) -> Tensor:
        """Return a whole parameter, on the CPU."""
        return self.files.whole(f"model.{name}")


def write_tensors(
    folder: Folder, specs: Mapping[str, Spec], read: Callable[[str], Tensor]
) -> tuple[dict[str, tuple[int, str]], str]:
    """Write whole tensors of a model, one at a time, as a single rank would.

    Returns:
        Bytes and checksum of the file by its name, and the text of `tensors.json`.
    """
    file = "rank-00000.safetensors"
    labels = {f"model.{name}@{','.join('0' for _ in spec.shape)}": spec for name, spec in specs.items()}

    def converted() -> Iterator[Tensor]:
        for name, (dtype, shape) in specs.items():
            tensor = read(name)
            assert tuple(tensor.shape) == shape
            yield tensor.to(dtype)

    index: Index = {}
    begin = len(header(labels, METADATA))
    for name, spec in specs.items():
        index[f"model.{name}"] = (spec, [TensorPiece.whole(file, begin, spec.shape)])
        begin += spec.size
    return {file: folder.write(file, safetensors_bytes(labels, converted(), METADATA))}, index_text(index)
