"""Which rank writes and reads which pieces of a checkpoint's tensors, as torch.distributed.checkpoint plans it.

Its own files are pickles; these are safetensors (tensors.py), and reading them executes nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

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

from .folder import Folder
from .tensors import (
    METADATA,
    FileSet,
    Index,
    Spec,
    TensorPiece,
    flat_bytes,
    header,
    index_text,
    piece_name,
    read_index,
    safetensors_bytes,
)

SLAB_BYTES = 2**30


Plan = TypeVar("Plan")


class PlansAsTheyAre:
    """What torch's storage classes must have and these do not need: the planners' plans are carried out as they are."""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin anew: there is nothing to forget."""

    def prepare_local_plan(self, plan: Plan) -> Plan:
        """Return this rank's plan."""
        return plan

    def prepare_global_plan(self, plans: list[Plan]) -> list[Plan]:
        """Return all ranks' plans."""
        return plans

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Get ready to write."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Get ready to read."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return whether torch may choose this class for a path by itself: no."""
        return False


class RankFile(PlansAsTheyAre, StorageWriter):
    """This rank's file of a run's checkpoints: planned once with all ranks, then staged and written by each save.

    Planning gathers every rank's pieces on one; with 512 ranks of 2,000 pieces each it would take a minute of every
    save.

    Args:
        rank: this one.
        staging: memory for copies of the pieces; None: they are written from where they are, and training waits.
    """

    def __init__(self, rank: int, staging: "HostBuffer | None") -> None:
        self.name, self.staging = f"rank-{rank:05d}.safetensors", staging
        self.planner = DefaultSavePlanner(flatten_state_dict=False)
        self.planned = False
        self.items: dict[str, WriteItem] = {}
        self.specs: dict[str, Spec] = {}
        self.index = ""  # on the coordinator, text of tensors.json
        self.data: Iterable[Tensor] = ()  # all pieces, one after another

    def plan(self, tensors: dict[str, Any]) -> None:
        """Agree on who writes what of tensors of these names, types and layouts."""
        dcp_save(tensors, storage_writer=self, planner=self.planner)
        self.planned = True

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Keep this rank's part of the plan; say where in the file the pieces will be."""
        items = [(label(item.index), cast("TensorWriteData", item.tensor_data), item) for item in plan.items]
        items.sort(key=lambda entry: -entry[1].properties.dtype.itemsize)  # so that each is aligned in the file
        self.items = {name: item for name, _, item in items}
        self.specs = {name: Spec(data.properties.dtype, tuple(data.chunk.sizes)) for name, data, _ in items}
        assert len(self.specs) == len(items), "two pieces of one name"
        results, begin = [], len(header(self.specs, METADATA))
        for name, data, item in items:
            piece = TensorPiece(self.name, name, begin, tuple(data.chunk.offsets), tuple(data.chunk.sizes))
            size = self.specs[name].size
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
            index[name] = (Spec(stored.properties.dtype, tuple(stored.size)), [])
        for result in (result for by_rank in results for result in by_rank):
            index[result.index.fqn][1].append(result.storage_data)
        self.index = index_text(index)

    def stage(self, tensors: dict[str, Any]) -> None:
        """Take hold of the present values, or of copies. Raises RuntimeError where there is no memory for these."""
        self.planner.set_up_planner(tensors)
        pieces = {name: cast("Tensor", self.planner.resolve_data(item)) for name, item in self.items.items()}
        self.data = self.staging.copy(pieces, self.specs) if self.staging else pieces.values()

    def write(self, folder: Folder) -> dict[str, tuple[int, str]]:
        """Write the file; returns its bytes and checksum by name, nothing if this rank has no pieces."""
        if not self.specs:
            return {}
        return {self.name: folder.write(self.name, safetensors_bytes(self.specs, self.data, METADATA))}


class HostBuffer:
    """Host memory for one copy of this rank's pieces, pinned where there is a GPU, and used again by every save.

    It is taken in slabs, across whose borders pieces may lie: torch's allocator of pinned memory rounds each request up
    to a power of two, so that one for the 11.2 GiB of an 8B model on 8 ranks would take 16.
    """

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.slabs: list[Tensor] = []

    def copy(self, tensors: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> list[Tensor]:
        """Copy tensors, and return the slabs that hold their bytes without gaps; they last until the next call.

        Args:
            tensors: by name.
            specs: of each, in the order of their bytes; the same in every call.

        Raises:
            RuntimeError: there is no memory for the copies.
        """
        if not self.slabs:
            sizes = slab_sizes(sum(spec.size for spec in specs.values()))
            self.slabs = [torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned) for size in sizes]
        begin = 0
        for name, spec in specs.items():
            data = flat_bytes(tensors[name])
            assert len(data) == spec.size, name
            while len(data):
                room = self.slabs[begin // SLAB_BYTES][begin % SLAB_BYTES :]
                count = min(len(room), len(data))
                room[:count].copy_(data[:count], non_blocking=self.pinned)
                data, begin = data[count:], begin + count
        if self.pinned:
            torch.cuda.synchronize()
        return self.slabs


def slab_sizes(size: int) -> list[int]:
    """Return the bytes of each slab of a copy of `size` bytes: whole ones, and what is left."""
    whole, rest = divmod(size, SLAB_BYTES)
    return [SLAB_BYTES] * whole + [rest] * (rest > 0)


def pinned_bytes(size: int) -> int:
    """Return what torch's allocator of pinned memory takes for a request: the next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def staging_bytes(size: int, *, pinned: bool) -> int:
    """Return the host memory that the copy of a rank's `size` bytes of a checkpoint takes."""
    return sum(pinned_bytes(slab) if pinned else slab for slab in slab_sizes(size))


def label(index: MetadataIndex) -> str:
    """Return the name of a piece in its file."""
    return piece_name(index.fqn, index.offset or ())


class CheckpointReader(PlansAsTheyAre, StorageReader):
    """Reads pieces, or parts of them, into tensors of any layout.

    Args:
        folder: of the checkpoint.
        index: where its tensors are; None: `tensors.json` says so.
    """

    def __init__(self, folder: Folder, index: Index | None = None) -> None:
        self.folder = folder
        self.index = read_index(folder) if index is None else index

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
