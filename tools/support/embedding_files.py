"""Embeddings on their way into a file: in parts that survive a kill, put together when all are there.

    <output>.partial/part-NNNNNN.safetensors      consecutive sequences: of each layer float32 [rows, width], names,
    lengths

`partial_output` has the rest. The output is written from the parts, of which one layer of one is in memory at a time.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from ...base import json_of
from ...datasets.files import whole
from ...trainer.checkpoints import Folder, Spec, safetensors_bytes
from ...trainer.errors import ConfigError
from .partial_output import PartialOutput, writing

PART_BYTES = 2**26
PART_SEQUENCES = 4096
LENGTHS = "lengths"  # no name of a module


class Part(NamedTuple):
    """Consecutive sequences, finished; read when they are asked for.

    Attributes:
        path: its file.
        sequences: how many.
        records: that were read up to its end.
    """

    path: Path
    sequences: int
    records: int

    @classmethod
    def find(cls, path: Path) -> "Part":
        """Return the part that a file holds."""
        try:
            empty = cls(path, 0, 0)
            found = cls(path, len(empty.lengths()), int(empty.metadata()["records"]))
            names = found.names()
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path}: not a part of an output: {error}; remove it and those after it") from None
        if len(names) != found.sequences:
            raise ConfigError(f"{path}: {len(names)} names of {found.sequences} sequences; remove it and those after it")
        return found

    def metadata(self) -> dict[str, str]:
        """Return the texts beside the numbers."""
        with safe_open(self.path, framework="pt") as file:
            return dict(file.metadata())

    def names(self) -> list[str]:
        """Return the names of the sequences."""
        names: list[str] = json_of(self.metadata()["names"].encode(), str(self.path), ConfigError)
        return names

    def lengths(self) -> list[int]:
        """Return the residues of each sequence."""
        return list(self.tensor(LENGTHS).tolist())

    def tensor(self, name: str) -> Tensor:
        """Return the numbers of a layer, float32 [rows, width]."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


class EmbeddingFile(PartialOutput):
    """A file of embeddings, see `PartialOutput`.

    Args:
        output: a `.safetensors` or `.parquet` file that is not there yet.
        plan: JSON values that decide the numbers.
        layers: names, in order.
        pooled: whether a sequence has one row or one per residue.
        metadata: texts that the output holds.
    """

    def __init__(
        self, output: Path, plan: Mapping[str, JsonValue], layers: Sequence[str], pooled: bool, metadata: dict[str, str]
    ) -> None:
        super().__init__(output, plan, [*WRITERS])
        self.layers, self.pooled, self.metadata = layers, pooled, metadata
        self.parts: list[Part] = []
        self._names: list[str] = []
        self._lengths: list[int] = []
        self._rows: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._bytes = 0
        self._read = 0

    @override
    def find_finished(self) -> None:
        self.parts = [Part.find(path) for path in sorted(self.partial.glob("part-*.safetensors"))]
        self.done = sum(part.sequences for part in self.parts)
        self.records = self._read = self.parts[-1].records if self.parts else 0

    def add(self, names: Sequence[str], lengths: Sequence[int], rows: dict[str, Tensor], records: int) -> None:
        """Take a batch of sequences. A part ends where a batch does, so that later batches are the same in a rerun.

        Args:
            names: of the sequences.
            lengths: residues of each.
            rows: of each layer float32 [rows, width], sequence after sequence.
            records: that have been read for them since the first one.

        Raises:
            ConfigError: a part cannot be written.
        """
        self._names += names
        self._read = records
        self._lengths += lengths
        for name in self.layers:
            self._rows[name].append(rows[name].cpu())
            self._bytes += rows[name].numel() * 4
        if self._bytes >= PART_BYTES or len(self._names) >= PART_SEQUENCES:
            self._flush()

    def finish(self) -> None:
        """Write the output.

        Raises:
            ConfigError: the output cannot be written.
        """
        self._flush()
        assert self.parts, "files of sequences hold one at the least"
        output = self.partial / self.output.name
        with writing(self.output):
            WRITERS[self.output.suffix](self, output)
            beside = []
            if self.output.suffix != ".parquet":
                names = f"{self.output.name}.names.txt"
                Folder(self.partial).write(names, ("".join(f"{n}\n" for n in part.names()).encode() for part in self.parts))
                beside = [names]
            self.publish(*beside)

    def widths(self) -> dict[str, int]:
        """Numbers per row of each layer."""
        with safe_open(self.parts[0].path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape()[1] for name in self.layers}

    def _flush(self) -> None:
        if not self._names:
            return
        tensors = {LENGTHS: torch.tensor(self._lengths)} | {name: torch.cat(rows) for name, rows in self._rows.items()}
        specs = {name: Spec.of(tensor) for name, tensor in tensors.items()}
        path = self.partial / f"part-{len(self.parts):06}.safetensors"
        with writing(self.output):
            content = safetensors_bytes(specs, tensors.values(), {"names": json.dumps(self._names), "records": str(self._read)})
            with whole(path) as unfinished:
                Folder(self.partial).write(unfinished.name, content)
        self.parts.append(Part(path, len(self._names), self._read))
        self.done, self.records = self.done + len(self._names), self._read
        self._names, self._lengths, self._bytes = [], [], 0
        self._rows = {name: [] for name in self.layers}


def _write_safetensors(file: EmbeddingFile, path: Path) -> None:
    """Write a tensor [sequences, width] per layer; without pooling one [residues, width] per layer and sequence."""
    widths = file.widths()
    specs: dict[str, Spec] = {}
    for layer in file.layers:
        if file.pooled:
            specs[layer] = Spec(torch.float32, (file.done, widths[layer]))
        else:
            lengths = (length for part in file.parts for length in part.lengths())
            specs |= {f"{layer}/{n}": Spec(torch.float32, (length, widths[layer])) for n, length in enumerate(lengths)}
    tensors = (part.tensor(layer) for layer in file.layers for part in file.parts)  # sequence after sequence
    Folder(path.parent).write(path.name, safetensors_bytes(specs, tensors, file.metadata))


def _write_parquet(file: EmbeddingFile, path: Path) -> None:
    """Columns name, length and one per layer: `width` numbers, or as many such lists as there are residues."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(part: Part, layer: str, width: int) -> pa.Array:
        rows = pa.FixedSizeListArray.from_arrays(pa.array(part.tensor(layer).flatten().numpy()), width)
        if file.pooled:
            return rows
        return pa.LargeListArray.from_arrays(pa.array(np.cumsum([0, *part.lengths()]), pa.int64()), rows)

    widths = file.widths()
    vectors = {layer: pa.list_(pa.float32(), width) for layer, width in widths.items()}
    fields = [(layer, vector if file.pooled else pa.large_list(vector)) for layer, vector in vectors.items()]
    schema = pa.schema([("name", pa.string()), ("length", pa.int64()), *fields], metadata=file.metadata)
    with pq.ParquetWriter(path, schema, use_dictionary=["name"]) as writer:
        for part in file.parts:
            columns = [column(part, layer, width) for layer, width in widths.items()]
            writer.write_table(pa.table([pa.array(part.names()), pa.array(part.lengths()), *columns], schema=schema))


WRITERS: dict[str, Callable[[EmbeddingFile, Path], None]] = {".safetensors": _write_safetensors, ".parquet": _write_parquet}
