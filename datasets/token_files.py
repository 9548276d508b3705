"""The formats of token files that people have: Megatron's `.bin` with `.idx`, plain dumps, parquet columns of lists.

Of a Megatron index (little-endian; Megatron-LM, megatron/core/datasets/indexed_dataset.py) is read: the magic number
MMIDIDX and two zero bytes, uint64 version 1, uint8 code of the dtype, uint64 sequences, uint64 document bounds; then int32
tokens and int64 first byte of each sequence, and int64 bounds of documents, counted in sequences.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet

from .errors import DataError
from .files import DataFile, Storage
from .importers import Places, Tokens
from .pieces import Piece
from .tokenizers import Ids

CHUNK = 2**20  # tokens looked at together
BATCH_BYTES = 2**24  # of a parquet column decoded together
MAGIC = b"MMIDIDX\x00\x00"
INDEX_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Documents of fewer tokens, or more, on average: then what is taken for an eos is none.
PLAUSIBLE = (2, 10**9)


@dataclass(frozen=True)
class MegatronReader:
    """PREFIX.bin and PREFIX.idx; a piece's start and end are numbers of documents.

    Attributes:
        storage: Finds the files.
        eos_id: Ends documents.
        append_eos: Documents may lack it.
    """

    storage: Storage
    eos_id: int
    append_eos: bool
    weighted = False

    def settings(self) -> dict[str, Any]:
        """See `TokenReader`."""
        return {"import": "megatron"}

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut at documents. The index has no pieces of its own."""
        if file.path.endswith(".idx"):
            return []
        index = _MegatronIndex(file.path, self.storage)
        index.check(self.eos_id, self.append_eos)
        itemsize = index.ids.dtype.itemsize
        cuts = range(0, len(index.ids), max(target // itemsize, 1))
        numbers = range(index.documents)
        starts = sorted({bisect_left(numbers, cut, key=index.begin) for cut in cuts} - {index.documents})
        return [
            Piece(file.path, start, end, (index.begin(end) - index.begin(start)) * itemsize)
            for start, end in pairwise([*starts, index.documents])
        ]

    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        """See `TokenReader`."""
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

    def first_document(self, piece: Piece) -> int | None:
        """See `TokenReader`."""
        return piece.start


class _MegatronIndex:
    """An index and its ids, mapped.

    Attributes:
        documents: How many.
        ids: Of all documents.
    """

    def __init__(self, path: str, storage: Storage) -> None:
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

    def begins(self, start: int, stop: int) -> Places:
        """Return the first token of documents `start` to `stop` - 1, of which the last may be the end."""
        sequences = self._bounds[start:stop]
        pointers = np.full(len(sequences), self.ids.nbytes, dtype=np.int64)
        inside = sequences < len(self._pointers)
        pointers[inside] = self._pointers[sequences[inside]]
        return pointers // self.ids.dtype.itemsize

    def check(self, eos_id: int, append_eos: bool) -> None:
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
            without += int(np.count_nonzero(self.ids[ends - 1] != eos_id))
        if without and not append_eos:
            raise self._error(
                f"{without:,} of {self.documents:,} documents do not end with eos {eos_id}; if they were written without "
                "--append-eod, give --append-eos, otherwise name the tokenizer that they were written with"
            )

    def _error(self, problem: str) -> DataError:
        return DataError(problem, file=self._path)


@dataclass(frozen=True)
class DumpReader:
    """One-dimensional `.npy` arrays, or raw `.bin` files; a piece's start and end are numbers of tokens.

    Attributes:
        storage: Finds the files.
        eos_id: Ends documents.
        append_eos: The last document may lack it.
        dtype: Of raw files; None where all are `.npy`, which state theirs.
    """

    storage: Storage
    eos_id: int
    append_eos: bool
    dtype: str | None
    weighted = False

    def settings(self) -> dict[str, Any]:
        """See `TokenReader`."""
        return {"import": "tokens", "dtype": self.dtype, "eos_id": self.eos_id}

    def _ids(self, path: str) -> Ids:
        local = self.storage.local(path)
        try:
            if path.endswith(".npy"):
                ids: npt.NDArray[Any] = np.load(local, mmap_mode="r")
            elif self.dtype is None:
                raise DataError("a raw dump does not say how its ids are written; give --dtype", file=path)
            else:
                ids = np.memmap(local, np.dtype(self.dtype).newbyteorder("<"), "r")
        except ValueError as error:  # also of numpy: no array, or a part of an element at the end
            if isinstance(error, DataError):
                raise
            raise DataError(f"not an array of ids: {error}", file=path) from None
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"expected integers in one dimension, found {ids.dtype} of shape {ids.shape}", file=path)
        if path.endswith(".npy") and self.dtype is not None and ids.dtype != np.dtype(self.dtype):
            raise DataError(f"--dtype is {self.dtype}, and this array is of {ids.dtype}", file=path)
        return ids

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut behind an eos, after a look at all of them."""
        ids = self._ids(file.path)
        ends = sum(int(np.count_nonzero(ids[at : at + CHUNK] == self.eos_id)) for at in range(0, len(ids), CHUNK))
        low, high = PLAUSIBLE
        if not low * ends <= len(ids) <= high * ends:
            mean = f"{len(ids) / ends:.2f} tokens a document" if ends else "so that there would be no end of a document"
            problem = f"{ends:,} of {len(ids):,} tokens are the eos {self.eos_id}, {mean}"
            raise DataError(f"{problem}; that is not the eos of this dump, or --dtype is not its dtype", file=file.path)
        if ids[-1] != self.eos_id and not self.append_eos:
            problem = f"its last document ends with {ids[-1]}, not the eos {self.eos_id}; give --append-eos to end it"
            raise DataError(problem, file=file.path)
        itemsize = ids.dtype.itemsize
        starts = [0]
        while (cut := self._behind_eos(ids, starts[-1] + max(target // itemsize, 1))) < len(ids):
            starts.append(cut)
        return [Piece(file.path, start, end, (end - start) * itemsize) for start, end in pairwise([*starts, len(ids)])]

    def _behind_eos(self, ids: Ids, start: int) -> int:
        """Return the first place at or after `start` that follows an eos; the end where there is none."""
        for at in range(start - 1, len(ids), CHUNK):
            found = ids[at : at + CHUNK] == self.eos_id
            if found.any():
                return at + int(found.argmax()) + 1
        return len(ids)

    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        """See `TokenReader`."""
        assert piece.end is not None
        ids = self._ids(piece.path)
        for start in range(piece.start, piece.end, CHUNK):
            part = ids[start : min(start + CHUNK, piece.end)]
            ends = np.flatnonzero(part == self.eos_id) + 1
            if start + len(part) == piece.end and part[-1] != self.eos_id:
                ends = np.append(ends, len(part))
            yield Tokens(part, ends, None, part.nbytes)

    def first_document(self, piece: Piece) -> int | None:
        """See `TokenReader`: the documents before are not counted."""
        return 0 if piece.start == 0 else None


@dataclass(frozen=True)
class ListReader:
    """Parquet columns that hold a list of ids, and perhaps one of loss weights, per document; pieces count rows.

    Attributes:
        storage: Finds the files.
        column: Of the ids.
        weights_column: Of the weights or of a loss mask of 0 and 1; None: no weights.
    """

    storage: Storage
    column: str
    weights_column: str | None

    @property
    def weighted(self) -> bool:
        """See `TokenReader`."""
        return self.weights_column is not None

    @property
    def _columns(self) -> list[str]:
        return [self.column, *([self.weights_column] if self.weights_column else [])]

    def settings(self) -> dict[str, Any]:
        """See `TokenReader`."""
        return {"import": "parquet", "column": self.column, "weights_column": self.weights_column}

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut at row groups."""
        with self._open(file.path) as parquet:
            for column in self._columns:
                self._check_type(file.path, parquet.schema_arrow, column)
            pieces: list[Piece] = []
            row = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                rows, size = group.num_rows, group.total_byte_size
                if pieces and pieces[-1].size + size <= target:
                    last = pieces.pop()
                    pieces.append(Piece(file.path, last.start, row + rows, last.size + size))
                elif rows:
                    pieces.append(Piece(file.path, row, row + rows, size))
                row += rows
        return pieces

    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        """See `TokenReader`."""
        with self._open(piece.path) as parquet:
            row = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if piece.start <= row < (piece.end or 0):
                    rows = max(1, min(4096, BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)))
                    at = row
                    for batch in parquet.iter_batches(rows, row_groups=[number], columns=self._columns):
                        yield self._tokens(batch, piece.path, at, group.total_byte_size * batch.num_rows / group.num_rows)
                        at += batch.num_rows
                row += group.num_rows

    def first_document(self, piece: Piece) -> int | None:
        """See `TokenReader`."""
        return piece.start

    def _tokens(self, batch: Any, path: str, row: int, stored: float) -> Tokens:
        lists = [batch.column(column) for column in self._columns]
        for column, values in zip(self._columns, lists, strict=True):
            missing = values.is_null().to_numpy(zero_copy_only=False)
            if missing.any():
                raise DataError(f"column {column!r} is null", file=path, record=row + int(missing.argmax()))
            if values.flatten().null_count:
                raise DataError(f"a list of column {column!r} holds a null; rows from this one on", file=path, record=row)
        lengths = [values.value_lengths().to_numpy(zero_copy_only=False) for values in lists]
        differ = lengths[0] != lengths[-1]
        if differ.any():
            at = int(differ.argmax())
            problem = f"{lengths[0][at]} ids and {lengths[1][at]} loss weights; there must be one for each"
            raise DataError(problem, file=path, record=row + at)
        flat = [values.flatten().to_numpy(zero_copy_only=False) for values in lists]
        weights = flat[1].astype(np.float32) if self.weights_column is not None else None
        return Tokens(flat[0], np.cumsum(lengths[0], dtype=np.int64), weights, stored)

    def _check_type(self, path: str, schema: Any, column: str) -> None:
        if column not in schema.names:
            raise DataError(f"there is no column {column!r}; its columns are: {', '.join(map(repr, schema.names))}", file=path)
        found = schema.field(column).type
        types = pyarrow.types
        is_list = types.is_list(found) or types.is_large_list(found)
        weights = column == self.weights_column
        if is_list and types.is_integer(found.value_type):
            return
        if is_list and weights and (types.is_floating(found.value_type) or types.is_boolean(found.value_type)):
            return
        kind = "numbers" if weights else "integers"
        raise DataError(f"column {column!r} must hold lists of {kind}, and is of type {found}", file=path)

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(self.storage.local(path)) as parquet:
                yield parquet
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"cannot be read as parquet: {error}", file=path) from None
