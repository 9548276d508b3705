"""Token files that are parquet: a row is a document, a column holds its ids as a list, another one its loss weights.

A column `attention_mask` of such lists says which tokens are padding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
from typing_extensions import override

from ..errors import DataError
from ..files import DataFile
from ..readers import Piece
from .imported import TokenReader, Tokens

MASK = "attention_mask"
BATCH_BYTES = 2**24  # of a parquet column decoded together


@dataclass(frozen=True)
class ListReader(TokenReader):
    """Parquet columns that hold a list of ids, and perhaps one of loss weights, per document; pieces count rows.

    Attributes:
        column: Of the ids.
        weights_column: Of the weights or of a loss mask of 0 and 1; None: no weights.
        masked: Whether a column `attention_mask`, where there is one, says what padding is.
    """

    column: str
    weights_column: str | None
    masked: bool = True

    @property
    @override
    def weighted(self) -> bool:
        return self.weights_column is not None

    def _columns(self, schema: Any) -> list[str]:
        names = [self.column, *([self.weights_column] if self.weights_column else [])]
        return [*names, MASK] if self.masked and MASK in schema.names and MASK not in names else names

    @override
    def settings(self) -> dict[str, Any]:
        return {"import": "parquet", "column": self.column, "weights_column": self.weights_column}

    @override
    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut at the bounds of row groups, which are read whole. Raises DataError where a column is missing."""
        with self._open(file.path) as parquet:
            for column in self._columns(parquet.schema_arrow):
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

    @override
    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        with self._open(piece.path) as parquet:
            row = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if piece.start <= row < (piece.end or 0):
                    rows = max(1, min(4096, BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)))
                    at = row
                    for batch in parquet.iter_batches(rows, row_groups=[number], columns=self._columns(parquet.schema_arrow)):
                        yield self._tokens(batch, piece.path, at, group.total_byte_size * batch.num_rows / group.num_rows)
                        at += batch.num_rows
                row += group.num_rows

    def _tokens(self, batch: Any, path: str, row: int, stored: float) -> Tokens:
        lists = {column: batch.column(column) for column in self._columns(batch.schema)}
        for column, values in lists.items():
            missing = values.is_null().to_numpy(zero_copy_only=False)
            if missing.any():
                raise DataError(f"column {column!r} is null", file=path, record=row + int(missing.argmax()))
            if values.flatten().null_count:
                raise DataError(f"a list of column {column!r} holds a null; rows from this one on", file=path, record=row)
        lengths = {column: values.value_lengths().to_numpy(zero_copy_only=False) for column, values in lists.items()}
        own = lengths[self.column]
        for column, others in lengths.items():
            differ = own != others
            if differ.any():
                at = int(differ.argmax())
                what = "loss weights" if column == self.weights_column else f"values of {column}"
                problem = f"{own[at]} ids and {others[at]} {what}; there must be one for each"
                raise DataError(problem, file=path, record=row + at)
        flat = {column: values.flatten().to_numpy(zero_copy_only=False) for column, values in lists.items()}
        weights = flat[self.weights_column].astype(np.float32) if self.weights_column is not None else None
        padding = flat[MASK] == 0 if self.masked and MASK in flat else None
        return Tokens(flat[self.column], np.cumsum(own, dtype=np.int64), weights, stored, padding)

    def _check_type(self, path: str, schema: Any, column: str) -> None:
        if column not in schema.names:
            raise DataError(f"there is no column {column!r}; its columns are: {', '.join(map(repr, schema.names))}", file=path)
        found = schema.field(column).type
        types = pyarrow.types
        is_list = types.is_list(found) or types.is_large_list(found)
        weights, boolean = column == self.weights_column, is_list and types.is_boolean(found.value_type)
        if is_list and types.is_integer(found.value_type):
            return
        if boolean and column != self.column:
            return
        if is_list and weights and types.is_floating(found.value_type):
            return
        kind = "numbers" if weights else "integers"
        raise DataError(f"column {column!r} must hold lists of {kind}, and is of type {found}", file=path)

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(self.storage.local(path)) as parquet:
                yield parquet
        except DataError:
            raise
        # of a damaged footer also names that are no text, and numbers that do not fit
        except (pyarrow.ArrowException, OSError, ValueError, LookupError, MemoryError, OverflowError) as error:
            raise DataError(f"cannot be read as parquet: {error}", file=path) from None
