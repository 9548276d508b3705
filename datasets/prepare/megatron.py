"""Token files of Megatron-LM: ids in PREFIX.bin, and in PREFIX.idx where each document begins.

The format is that of megatron/core/datasets/indexed_dataset.py, little-endian. The index holds: the magic number
MMIDIDX and two zero bytes, uint64 version 1, uint8 code of the dtype, uint64 number of sequences, uint64 number of
document bounds; then int32 tokens and int64 first byte of each sequence, and int64 bounds of documents, counted in
sequences.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from ..errors import DataError
from ..files import DataFile, FileStore
from ..readers import Piece
from ..tokenizers import Ids
from .imported import CHUNK, TokenIndices, TokenReader, Tokens

MAGIC = b"MMIDIDX\x00\x00"
INDEX_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class MegatronReader(TokenReader):
    """PREFIX.bin and PREFIX.idx; a piece's start and end are numbers of documents.

    Attributes:
        eos_id: Ends documents.
        append_eos: Documents may lack it.
        pad_id: Id of padding that may follow it; None: there is none.
    """

    eos_id: int
    append_eos: bool
    pad_id: int | None = None

    @override
    def settings(self) -> dict[str, Any]:
        return {"import": "megatron"}

    @override
    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut where documents begin; the `.idx` file has no piece of its own. Raises DataError."""
        if file.path.endswith(".idx"):
            return []
        index = _MegatronIndex(file.path, self.storage)
        index.check(self.eos_id, self.append_eos, self.pad_id)
        itemsize = index.ids.dtype.itemsize
        cuts = range(0, len(index.ids), max(target // itemsize, 1))
        numbers = range(index.documents)
        starts = sorted({bisect_left(numbers, cut, key=index.begin) for cut in cuts} - {index.documents})
        return [
            Piece(file.path, start, end, (index.begin(end) - index.begin(start)) * itemsize)
            for start, end in pairwise([*starts, index.documents])
        ]

    @override
    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        assert piece.end is not None
        index = _MegatronIndex(piece.path, self.storage)
        bounds = index.begins(piece.start, piece.end + 1)
        first, last, ends = int(bounds[0]), int(bounds[-1]), bounds[1:]
        for start in range(first, max(last, first + 1), CHUNK):  # once where all documents are empty
            stop = min(start + CHUNK, last)
            low = np.searchsorted(ends, start, side="left" if start == first else "right")
            high = np.searchsorted(ends, stop, side="right")
            ids = index.ids[start:stop]
            yield Tokens(ids, ends[low:high] - start, None, ids.nbytes)


class _MegatronIndex:
    """An index and its ids, mapped.

    Attributes:
        documents: How many.
        ids: Of all documents.
    """

    def __init__(self, path: str, storage: FileStore) -> None:
        self._path = path.removesuffix(".bin") + ".idx"
        local = storage.local(self._path)
        with Path(local).open("rb") as file:
            header = file.read(len(MAGIC) + 25)
        if not header.startswith(MAGIC):
            raise self._error(f"not a Megatron index: it must begin with {MAGIC!r}, and begins with {header[:9]!r}")
        version, code = int.from_bytes(header[9:17], "little"), header[17] if len(header) > 17 else 0
        if version != 1 or code not in INDEX_DTYPES:
            known = ", ".join(f"{key} ({np.dtype(name).name})" for key, name in INDEX_DTYPES.items())
            raise self._error(f"expected version 1 and ids of dtype {known}, found version {version} and dtype {code}")
        sequences, bounds = (int.from_bytes(header[at : at + 8], "little") for at in (18, 26))
        needed = len(MAGIC) + 25 + sequences * 12 + bounds * 8
        if (size := Path(local).stat().st_size) < needed or sequences < 1 or bounds < 2:
            raise self._error(f"{sequences:,} sequences and {bounds:,} document bounds take {needed:,} bytes, it has {size:,}")
        self._sizes = np.memmap(local, "<i4", "r", offset=34, shape=(sequences,))
        self._pointers = np.memmap(local, "<i8", "r", offset=34 + 4 * sequences, shape=(sequences,))
        self._bounds = np.memmap(local, "<i8", "r", offset=34 + 12 * sequences, shape=(bounds,))
        self.documents = bounds - 1
        try:
            self.ids: Ids = np.memmap(storage.local(path), INDEX_DTYPES[code], "r")
        except ValueError as error:  # no bytes, or a part of an id at the end
            raise DataError(f"not {np.dtype(INDEX_DTYPES[code]).name} ids, as its index says: {error}", file=path) from None

    def begin(self, document: int) -> int:
        """Return a document's first token; behind the last one, the number of tokens."""
        return int(self.begins(document, document + 1)[0])

    def begins(self, start: int, stop: int) -> TokenIndices:
        """Return the first token of documents `start` to `stop` - 1, of which the last may be the end."""
        sequences = self._bounds[start:stop]
        pointers = np.full(len(sequences), self.ids.nbytes, dtype=np.int64)
        inside = sequences < len(self._pointers)
        pointers[inside] = self._pointers[sequences[inside]]
        return pointers // self.ids.dtype.itemsize

    def check(self, eos_id: int, append_eos: bool, pad_id: int | None) -> None:
        """Raise unless sequences follow one another, bounds rise, and documents end as claimed."""
        itemsize = self.ids.dtype.itemsize
        end = 0
        for at in range(0, len(self._sizes), CHUNK):
            sizes, pointers = self._sizes[at : at + CHUNK].astype(np.int64) * itemsize, self._pointers[at : at + CHUNK]
            if sizes.min() < 0 or pointers[0] != end or (pointers[1:] != pointers[:-1] + sizes[:-1]).any():
                raise self._error("its sequences do not lie one after another")
            end = int(pointers[-1] + sizes[-1])
        if end != self.ids.nbytes:
            raise self._error(f"its sequences take {end:,} bytes, and the .bin has {self.ids.nbytes:,}")
        if self._bounds[0] != 0 or self._bounds[-1] != len(self._sizes):
            problem = f"its documents are sequences {self._bounds[0]} to {self._bounds[-1]} of {len(self._sizes)}"
            raise self._error(f"{problem}; all must belong to a document")
        without = 0
        for at in range(0, self.documents, CHUNK):
            bounds = self._bounds[at : at + CHUNK + 1]
            if (bounds[1:] < bounds[:-1]).any():
                raise self._error("the bounds of its documents do not rise")
            begins = self.begins(at, min(at + CHUNK, self.documents) + 1)
            ends = begins[1:][begins[1:] > begins[:-1]]
            last = self.ids[ends - 1]
            # padding may hide an eos: whether it does is looked at when it is taken off
            without += int(np.count_nonzero((last != eos_id) & ((last != pad_id) if pad_id is not None else True)))
        if without and not append_eos:
            raise self._error(
                f"{without:,} of {self.documents:,} documents do not end with eos {eos_id}; if they were written without "
                "--append-eod, give --append-eos, otherwise name the tokenizer that they were written with"
            )

    def _error(self, problem: str) -> DataError:
        return DataError(problem, file=self._path)
