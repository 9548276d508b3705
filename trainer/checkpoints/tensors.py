"""Tensors of a checkpoint as safetensors files: one per rank, and `tensors.json`, which says where each piece is.

Any safetensors reader can open them. Sums are taken of the bytes on their way out, so that what a disk does to them
shows.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from torch import Tensor

from ...base import json_object, problems, shown
from ..errors import CheckpointError
from .folder import Folder
from .manifest import INDEX, MANIFEST, TENSORS, Files, files_of
from .tiling import DIMENSIONS, FEW, wrongly_covered

HEADER_BYTES = 10**8  # safetensors' own limit
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
    """Where the data of one piece of a tensor is.

    Attributes:
        file: its file.
        name: of the piece in that file.
        begin: first byte in the file.
        offsets: where in the tensor the piece begins.
        sizes: its extent there.
    """

    file: str
    name: str
    begin: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, file: str, name: str, begin: int, shape: tuple[int, ...]) -> "TensorPiece":
        """Return the piece that is all of a tensor."""
        return cls(file, name, begin, (0,) * len(shape), shape)


Index = dict[str, tuple[Spec, list[TensorPiece]]]


def piece_name(tensor: str, offsets: Iterable[int]) -> str:
    """Return the name of a piece in its file: that of the tensor, and where in it the piece begins."""
    return f"{tensor}@{','.join(map(str, offsets))}"


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


Text = Annotated[str, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Counts = Annotated[tuple[Count, ...], Field(max_length=DIMENSIONS)]


class IndexEntry(BaseModel):
    """What `tensors.json` says of a tensor."""

    model_config = ConfigDict(extra="forbid")

    dtype: Text
    shape: Counts
    pieces: list[tuple[Text, Count, Counts, Counts]]


ENTRIES = TypeAdapter(dict[str, IndexEntry])


def read_index(folder: Folder) -> Index:
    """Return what `tensors.json` of a checkpoint says, checked against its manifest.

    The files are left to `FileSet`, which compares what they say of themselves when it opens them first. Every process
    reads the whole index: 102,400 pieces took 3.9 s of a CPU, and some 1 KB each (estimated).

    Raises:
        CheckpointError: it cannot be understood, or a tensor's pieces are not in files of the manifest, or do not make
            up the tensor.
    """
    where, files = f"{folder / INDEX}", files_of(folder)
    try:
        entries = ENTRIES.validate_python(folder.read_json(INDEX))
    except ValidationError as error:
        first = error.errors()[0]
        place = ": ".join([str(first["loc"][0]), ".".join(map(str, first["loc"][1:]))]) if first["loc"] else "the file"
        raise CheckpointError(f"{where}: not an index of tensors: {place} = {shown(first['input'])}: {first['msg']}") from None
    index: Index = {}
    for name, entry in entries.items():
        if entry.dtype not in DTYPES:
            raise CheckpointError(f"{where}: {name}: dtype {shown(entry.dtype)}; known: {', '.join(DTYPES)}")
        spec = Spec(DTYPES[entry.dtype], entry.shape)
        pieces = [
            TensorPiece(file, piece_name(name, offsets), begin, offsets, sizes) for file, begin, offsets, sizes in entry.pieces
        ]
        if wrong := what_is_wrong(spec, pieces, files):
            raise CheckpointError(f"{where}: {name}: {wrong}")
        index[name] = (spec, pieces)
    return index


def what_is_wrong(spec: Spec, pieces: Sequence[TensorPiece], files: Files) -> str:
    """Return why pieces do not make up a tensor; empty where they do.

    Args:
        spec: of the tensor.
        pieces: as the index has them.
        files: that the manifest lists.
    """
    dtype, shape = spec

    def named(piece: TensorPiece) -> str:
        return f"its piece at {list(piece.offsets)} of extent {list(piece.sizes)} in {piece.file}"

    begins: set[tuple[int, ...]] = set()
    for piece in () if len(pieces) > FEW and are_inside(spec, pieces, files) else pieces:
        if piece.file not in files or not TENSORS.fullmatch(piece.file):
            return f"a piece of it is in {shown(piece.file)}, which is no file of tensors that {MANIFEST} lists"
        if not len(piece.offsets) == len(piece.sizes) == len(shape):
            return f"{named(piece)} has other dimensions than the tensor, {list(shape)}"
        if any(start + extent > size for start, extent, size in zip(piece.offsets, piece.sizes, shape, strict=True)):
            return f"{named(piece)} is not inside of the tensor, {list(shape)}"
        if not 8 < piece.begin <= piece.begin + Spec(dtype, piece.sizes).size <= files[piece.file][0]:
            return f"{named(piece)}, from byte {piece.begin} on, is not inside of the {files[piece.file][0]} bytes of that file"
        if piece.offsets in begins:
            return f"{named(piece)} begins where another one does"
        begins.add(piece.offsets)
    if wrong := wrongly_covered(shape, [(piece.offsets, piece.sizes) for piece in pieces]):
        element, count = wrong
        inside = lambda piece: all(  # noqa: E731
            begin <= at < begin + extent for at, begin, extent in zip(element, piece.offsets, piece.sizes, strict=True)
        )
        among = sorted({piece.file for piece in pieces if not count or inside(piece)})
        return (
            f"its element {list(element)} is in {count or 'none'} of its {len(pieces)} pieces, and must be in one "
            f"({', '.join(among[:4]) or 'it has no file'}{', ...' if among[4:] else ''})"
        )
    return ""


def are_inside(spec: Spec, pieces: Sequence[TensorPiece], files: Files) -> bool:
    """Return whether each of many pieces is inside of its tensor and its file, and begins where no other does.

    False where that would need numbers of more than 64 bits.
    """
    dtype, shape = spec
    known = {piece.file for piece in pieces}
    if not known <= files.keys() or not all(map(TENSORS.fullmatch, known)):
        return False
    if any(not len(piece.offsets) == len(piece.sizes) == len(shape) for piece in pieces):
        return False
    offsets, sizes = (np.array([getattr(piece, name) for piece in pieces], dtype=np.int64) for name in ("offsets", "sizes"))
    begins = np.array([piece.begin for piece in pieces], dtype=np.int64)
    ends = np.array([files[piece.file][0] for piece in pieces], dtype=np.int64)
    if not ((sizes <= np.array(shape)) & (offsets <= np.array(shape) - sizes)).all():
        return False
    if math.prod(shape) * dtype.itemsize >= 2**62 or (begins >= 2**62).any():
        return False
    stops = begins + sizes.prod(1) * dtype.itemsize
    return bool(((begins > 8) & (stops <= ends)).all()) and len({piece.offsets for piece in pieces}) == len(pieces)


class Header(BaseModel):
    """What the header of a safetensors file says of a tensor."""

    model_config = ConfigDict(extra="forbid")

    dtype: Text
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]


HEADERS = TypeAdapter(dict[str, Header])


def read_header(file: IO[bytes], where: str) -> dict[str, tuple[Spec, int]]:
    """Return type, shape and first byte of every tensor in a safetensors file, by name.

    Args:
        file: open for reading.
        where: its path, for messages.

    Raises:
        CheckpointError: the header is not sound, the tensors do not fill the file without gaps, or one has a type that
            torch has not.
    """

    def refused(reason: object) -> CheckpointError:
        return CheckpointError(f"{where}: not a whole safetensors file that can be read: {reason}")

    end = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(end - 8, HEADER_BYTES):
        raise refused(f"its header is said to have {length} bytes, the file has {end}")
    content = json_object(file.read(length), where, CheckpointError)
    content.pop("__metadata__", None)
    try:
        headers = HEADERS.validate_python(content)
    except ValidationError as error:
        raise refused(problems(error)[0]) from None
    found: dict[str, tuple[Spec, int]] = {}
    filled = 0
    for name, header in sorted(headers.items(), key=lambda entry: entry[1].data_offsets):
        if header.dtype not in DTYPES:
            raise refused(f"{name}: dtype {shown(header.dtype)}; known: {', '.join(DTYPES)}")
        spec = Spec(DTYPES[header.dtype], header.shape)
        if header.data_offsets != (filled, filled + spec.size):
            raise refused(f"{name}: data_offsets {list(header.data_offsets)}, it should be {[filled, filled + spec.size]}")
        found[name] = (spec, 8 + length + filled)
        filled += spec.size
    if 8 + length + filled != end:
        raise refused(f"it has {end} bytes, by its header {8 + length + filled}")
    return found


def file_index(path: Path) -> Index:
    """Return what a safetensors file on a disk holds.

    Raises:
        CheckpointError: it cannot be read, or as `read_header`.
    """
    try:
        with path.open("rb") as file:
            found = read_header(file, str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file that can be read: {error}") from None
    return {name: (spec, [TensorPiece.whole(path.name, name, begin, spec.shape)]) for name, (spec, begin) in found.items()}


class FileSet:
    """Files of a checkpoint, opened when they are first read, and checked then. The newest few stay open.

    Args:
        folder: of the checkpoint.
        index: of its tensors.
    """

    def __init__(self, folder: Folder, index: Index) -> None:
        self.folder, self.index = folder, index
        self.contents: dict[str, list[tuple[torch.dtype, TensorPiece]]] = {}  # of each file not yet checked
        for (dtype, _), pieces in index.values():
            for piece in pieces:
                self.contents.setdefault(piece.file, []).append((dtype, piece))
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
            OSError: the file cannot be read.
            CheckpointError: it is not what the index says.
        """
        file = self.files.get(piece.file) or self.open(piece.file)
        row_bytes = math.prod(piece.sizes[1:]) * dtype.itemsize
        tensor = torch.empty((*sizes[:1], *piece.sizes[1:]), dtype=dtype)
        file.seek(piece.begin + sum(offsets[:1]) * row_bytes)
        view, done = as_bytes(tensor), 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{self.folder / piece.file}: ends within a tensor")
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
        """Open a file. Raises CheckpointError where its header says something else than the index.

        Headers are read once: tensors in turn open the files of more than `OPEN_FILES` ranks again for each tensor.
        """
        if len(self.files) == OPEN_FILES:
            self.files.pop(next(iter(self.files))).close()
        file = self.folder.open(name)
        try:
            if name in self.contents:
                self.check(name, file)
                del self.contents[name]
        except BaseException:
            file.close()
            raise
        self.files[name] = file
        return file

    def check(self, name: str, file: Any) -> None:
        """Compare the header of a file with the index. Raises CheckpointError where they differ."""
        there = read_header(file, str(self.folder / name))
        stated = {piece.name: (Spec(dtype, piece.sizes), piece.begin) for dtype, piece in self.contents[name]}
        for piece in sorted(there.keys() | stated.keys()):
            if there.get(piece) != stated.get(piece):
                saying = [
                    f"{NAMES[entry[0].dtype]} {list(entry[0].shape)} from byte {entry[1]} on" if entry else "nothing of it"
                    for entry in (there.get(piece), stated.get(piece))
                ]
                raise CheckpointError(f"{self.folder / name}: {piece}: the header says {saying[0]}, {INDEX} {saying[1]}")


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
    labels = {piece_name(f"model.{name}", (0,) * len(spec.shape)): spec for name, spec in specs.items()}

    def converted() -> Iterator[Tensor]:
        for name, (dtype, shape) in specs.items():
            tensor = read(name)
            assert tuple(tensor.shape) == shape
            yield tensor.to(dtype)

    index: Index = {}
    begin = len(header(labels, METADATA))
    for label, (name, spec) in zip(labels, specs.items(), strict=True):
        index[f"model.{name}"] = (spec, [TensorPiece.whole(file, label, begin, spec.shape)])
        begin += spec.size
    return {file: folder.write(file, safetensors_bytes(labels, converted(), METADATA))}, index_text(index)
