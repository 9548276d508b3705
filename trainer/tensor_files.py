"""Tensors of a checkpoint as safetensors files: one per rank, and `tensors.json`, which says where each piece is.

torch.distributed.checkpoint plans who writes which piece and which pieces a rank needs in another layout. Its own files are
pickles; reading these executes nothing, and any safetensors reader can open them. Sums are taken of the bytes on their way out,
so that what a disk does to them later shows.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from .storage import CheckpointError, Folder

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
DTYPES = {name: dtype for dtype, name in NAMES.items()}

Spec = tuple[torch.dtype, tuple[int, ...]]


def data_bytes(spec: Spec) -> int:
    """Bytes of a tensor of this type and shape."""
    return math.prod(spec[1]) * spec[0].itemsize


def header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    """How a safetensors file of these tensors begins; their data follows in the same order, without gaps."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + data_bytes(spec)
        entries[name] = {"dtype": NAMES[spec[0]], "shape": spec[1], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def as_bytes(tensor: Tensor) -> memoryview:
    """The data of a tensor of any type on any device, row by row."""
    array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(cast("Any", array))


@dataclass(frozen=True)
class Piece:
    """Where the data of one piece of a tensor is: the file, its first byte, and where in the tensor it begins and how far."""

    file: str
    begin: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


Index = dict[str, tuple[Spec, list[Piece]]]


class RankFile(StorageWriter):
    """This rank's file of a run's checkpoints: planned once together with the others, then staged and written by each save.

    Planning gathers every rank's pieces on one; with 512 ranks of 2,000 pieces each it would take a minute of every save.

    Args:
        rank: this one.
        staging: memory for copies of the pieces; None: they are written from where they are, while nobody changes them.
    """

    def __init__(self, rank: int, staging: "Staging | None") -> None:
        self.name, self.staging = f"rank-{rank:05d}.safetensors", staging
        self.planner = DefaultSavePlanner(flatten_state_dict=False)
        self.planned = False
        self.items: dict[str, WriteItem] = {}
        self.specs: dict[str, Spec] = {}
        self.head = b""
        self.index = ""  # on the coordinator, text of tensors.json
        self.pieces: dict[str, Tensor] = {}

    def plan(self, tensors: dict[str, Any]) -> None:
        """Agree on who writes what of tensors of these names, types and layouts."""
        dcp_save(tensors, storage_writer=self, planner=self.planner)
        self.planned = True

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Keep this rank's part of the plan; say where in the file the pieces will be."""
        items = [(label(item.index), cast("TensorWriteData", item.tensor_data), item) for item in plan.items]
        items.sort(key=lambda entry: -entry[1].properties.dtype.itemsize)  # so that each is aligned in the staging memory
        self.items = {name: item for name, _, item in items}
        self.specs = {name: (data.properties.dtype, tuple(data.chunk.sizes)) for name, data, _ in items}
        assert len(self.specs) == len(items), "two pieces of one name"
        self.head = header(self.specs, {"format": "pt"})
        results, begin = [], len(self.head)
        for name, data, item in items:
            piece = Piece(self.name, begin, tuple(data.chunk.offsets), tuple(data.chunk.sizes))
            size = data_bytes(self.specs[name])
            results.append(WriteResult(index=item.index, size_in_bytes=size, storage_data=piece))
            begin += size
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: keep where everything will be."""
        index: Index = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            index[name] = ((stored.properties.dtype, tuple(stored.size)), [])
        for result in (result for by_rank in results for result in by_rank):
            index[result.index.fqn][1].append(result.storage_data)
        self.index = index_text(index)

    def stage(self, tensors: dict[str, Any]) -> None:
        """Take hold of the present values, or of copies. Raises RuntimeError where there is no memory for these."""
        self.planner.set_up_planner(tensors)
        pieces = {name: cast("Tensor", self.planner.resolve_data(item)) for name, item in self.items.items()}
        self.pieces = self.staging.copy(pieces, self.specs) if self.staging else pieces

    def write(self, folder: Folder) -> dict[str, tuple[int, str]]:
        """Write the file; returns its bytes and checksum by name, nothing if this rank has no pieces."""
        return {self.name: folder.write(self.name, self.stream())} if self.pieces else {}

    def stream(self) -> Iterator[bytes | memoryview]:
        """The bytes of the file."""
        yield self.head
        for tensor in self.pieces.values():
            yield as_bytes(tensor)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the folder is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never chosen by path."""
        return False


class Staging:
    """Host memory for one copy of this rank's pieces, pinned where there is a GPU, and used again by every save."""

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.memory = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensors: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> dict[str, Tensor]:
        """Copies of the tensors; they last until the next call."""
        size = sum(data_bytes(spec) for spec in specs.values())
        if len(self.memory) < size:
            self.memory = torch.empty(0, dtype=torch.uint8)  # the old memory goes before the new one comes
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
        copies, begin = {}, 0
        for name, (dtype, shape) in specs.items():
            end = begin + data_bytes((dtype, shape))
            copies[name] = self.memory[begin:end].view(dtype).view(shape)
            copies[name].copy_(tensors[name].detach(), non_blocking=self.pinned)
            begin = end
        if self.pinned:
            torch.cuda.synchronize()
        return copies


def label(index: MetadataIndex) -> str:
    """Name of a piece in its file: that of the tensor, and where in it the piece begins."""
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def index_text(tensors: Index) -> str:
    """The text of `tensors.json`."""
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
    """What `tensors.json` of a checkpoint says. Raises CheckpointError where it cannot be understood."""
    try:
        return {
            name: (
                (DTYPES[entry["dtype"]], tuple(entry["shape"])),
                [Piece(file, begin, tuple(offsets), tuple(sizes)) for file, begin, offsets, sizes in entry["pieces"]],
            )
            for name, entry in folder.read_json(INDEX).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder / INDEX}: not an index of tensors: {e!r}") from None


class CheckpointReader(StorageReader):
    """Reads pieces, or parts of them, into tensors of any layout.

    Args:
        folder: of the checkpoint.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.index = read_index(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Types, shapes and pieces of all tensors."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=dtype),
                    torch.Size(shape),
                    [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in pieces],
                )
                for name, ((dtype, shape), pieces) in self.index.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors that the plan names, converted to their types."""
        places = {
            MetadataIndex(name, piece.offsets): (dtype, piece)
            for name in {item.storage_index.fqn for item in plan.items}
            for (dtype, _), pieces in [self.index[name]]
            for piece in pieces
        }
        wanted = [(*places[item.storage_index], item) for item in plan.items]
        wanted.sort(key=lambda want: (want[1].file, want[1].begin))
        with FileSet(self.folder, self.index) as files:
            for dtype, piece, item in wanted:
                target = planner.resolve_tensor(item).detach()
                source = files.read(dtype, piece, item.storage_offsets, item.lengths)
                target.copy_(source.view(target.shape))
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one load to the next."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never chosen by path."""
        return False


class FileSet:
    """Files of a checkpoint, opened when they are first read. The newest few stay open.

    Args:
        folder: of the checkpoint.
        index: of its tensors.
    """

    def __init__(self, folder: Folder, index: Index) -> None:
        self.folder = folder
        self.data_begins: dict[str, int] = {}
        for piece in (piece for _, pieces in index.values() for piece in pieces):
            self.data_begins[piece.file] = min(piece.begin, self.data_begins.get(piece.file, piece.begin))
        self.files: dict[str, Any] = {}

    def __enter__(self) -> "FileSet":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        for file in self.files.values():
            file.close()
        self.files.clear()

    def read(self, dtype: torch.dtype, piece: Piece, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The part of a piece that begins at `offsets` within it; rows before and behind it are not read.

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
    """

    def __init__(self, path: Any) -> None:
        index = read_index(Folder(path))
        self.files = FileSet(Folder(path), index)
        self.index = {name.removeprefix("model."): entry for name, entry in index.items() if name.startswith("model.")}

    def names(self) -> list[str]:
        """Parameters, as `Decoder.state_dict` names them; of tied ones the first."""
        return list(self.index)

    def spec(self, name: str) -> Spec:
        """Type and shape of a parameter."""
        return self.index[name][0]

    def read(self, name: str) -> Tensor:
        """A whole parameter, on the CPU."""
        (dtype, shape), pieces = self.index[name]
        if len(pieces) == 1:
            return self.files.read(dtype, pieces[0], (0,) * len(shape), shape)
        whole = torch.empty(shape, dtype=dtype)
        for piece in pieces:
            place = whole
            for dim, (start, length) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
                place = place.narrow(dim, start, length)
            place.copy_(self.files.read(dtype, piece, (0,) * len(piece.sizes), piece.sizes))
        return whole


def write_tensors(
    folder: Folder, specs: Mapping[str, Spec], read: Callable[[str], Tensor]
) -> tuple[dict[str, tuple[int, str]], str]:
    """Write whole tensors of a model, one at a time, as a single rank would.

    Returns:
        Bytes and checksum of the file by its name, and the text of `tensors.json`.
    """
    file = "rank-00000.safetensors"
    labels = {f"model.{name}@{','.join('0' for _ in shape)}": (dtype, shape) for name, (dtype, shape) in specs.items()}
    head = header(labels, {"format": "pt"})

    def stream() -> Iterator[bytes | memoryview]:
        yield head
        for name, (dtype, shape) in specs.items():
            tensor = read(name)
            assert tuple(tensor.shape) == shape
            yield as_bytes(tensor.to(dtype))

    tensors: Index = {}
    begin = len(head)
    for name, spec in specs.items():
        tensors[f"model.{name}"] = (spec, [Piece(file, begin, (0,) * len(spec[1]), spec[1])])
        begin += data_bytes(spec)
    return {file: folder.write(file, stream())}, index_text(tensors)
