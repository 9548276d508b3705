"""parquet: a row is a record, its document in one column of strings; addresses are row numbers of the file.

Row groups are decoded one at a time and page by page, of the needed column only. To go on within a row group its rows
before are decoded again and dropped. A document that a small file holds once and many rows refer to is held once here
too: otherwise 500 bytes, a long value of zeros in thousands of rows, would take gigabytes. For that Arrow keeps every
value of the row group, so large ones that are stored as usual are read without: a group of 122 MB took 298 MiB for 58.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from typing_extensions import override

from ..errors import DataError
from ..files import DataFile
from .pieces import Piece
from .records import GROUP_DOCUMENTS, FieldReader, Records, whole_piece

READ_BYTES = 2**20
BATCH_ROWS = 16  # at least, where rows are large
SHARED_BYTES = 2**25  # of a row group: up to here values are shared between rows
INFLATED = 50  # times the bytes of the file in one row group: above it, too; text takes 2 to 10
STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


class ParquetReader(FieldReader):
    """Documents in rows; `a.b` as the field is field b of column a."""

    endings = (".parquet",)

    @override
    def split(self, file: DataFile, target: int) -> list[Piece]:
        if file.size <= target:
            return [piece._replace(end=None) for piece in whole_piece(file)]
        with self._open(file.path, whole=False) as (parquet, _):
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        rows = list(accumulate((group.num_rows for group in groups), initial=0))
        stored = list(accumulate((group.total_byte_size for group in groups), initial=0))
        places = [place * file.size // max(1, stored[-1]) for place in stored]
        cuts = [0]
        for number in range(1, len(groups)):
            if places[number] - places[cuts[-1]] >= target:
                cuts.append(number)
        cuts.append(len(groups))
        pieces = [Piece(file.path, rows[start], rows[end], places[end] - places[start]) for start, end in pairwise(cuts)]
        return [piece for piece in pieces if piece.end != piece.start]

    @override
    def divided(self, piece: Piece) -> Literal["bytes", "stripes", "never"]:
        return "stripes"

    @override
    def stripes(self, piece: Piece, size: int) -> Iterator[Piece]:
        """Cut a piece into stripes: as many rows of a row group as have some `size` bytes, decoded alone."""
        for row, columns in self._columns(piece, piece.start, size):
            yield Piece(piece.path, row, row + len(columns[0]), sum(column.nbytes for column in columns), columns)

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        decoded = self._columns(piece, offset, self.group_bytes) if piece.content is None else [(piece.start, piece.content)]
        for row, columns in decoded:
            skipped = max(0, offset - row)
            values, *labels = (column[skipped:] for column in columns)
            label_values = _plain(labels[0]).to_pylist() if labels else None
            yield from self._records(_documents(values), label_values, row + skipped, piece.path)

    def _columns(self, piece: Piece, offset: int, size: int) -> Iterator[tuple[int, list[pa.Array]]]:
        """Yield the row groups of a piece in parts: the first row of each, and its documents and labels.

        The rows before `offset` are left out, but for those of its part. A part has rows of some `size` bytes.
        """
        with self._open(piece.path, whole=True) as (parquet, columns):
            row = 0
            for number in range(parquet.num_row_groups):
                begin, row = row, row + parquet.metadata.row_group(number).num_rows
                if row > offset and (piece.end is None or begin < piece.end):
                    for at, arrays in self._row_group(parquet, number, columns, begin, size, piece.path):
                        if at + len(arrays[0]) > offset:
                            yield at, arrays
            if row < (piece.end or 0):
                raise DataError(f"has {row} rows, and had {piece.end} when it was found", file=piece.path)

    def _row_group(
        self, parquet: pq.ParquetFile, number: int, columns: list[list[str]], row: int, size: int, path: str
    ) -> Iterator[tuple[int, list[pa.Array]]]:
        """Yield the parts of a row group that begins at `row`, see `_columns`; `columns` come from `_open`."""
        metadata = parquet.metadata.row_group(number)
        end = row + metadata.num_rows
        # By the size of all columns: to ask for that of one aborts the process where a footer is damaged (Arrow 26).
        rows = size * metadata.num_rows // max(1, metadata.total_byte_size)
        rows = max(BATCH_ROWS, min(rows, GROUP_DOCUMENTS))
        wanted = [".".join(names) for names in columns]
        for batch in parquet.iter_batches(rows, row_groups=[number], columns=wanted, use_threads=False):
            # Lanes share a row group by its parts: so these must not hang on how many rows Arrow decodes at once.
            assert batch.num_rows == rows or row + batch.num_rows >= end, "Arrow gives as many rows as asked for"
            yield row, [_leaves(batch, names) for names in columns]
            row += batch.num_rows
        if row != end:
            raise DataError(f"row group {number} ends at row {row} of {end}: the file is damaged", file=path)

    def _records(self, values: list[bytes | None], labels: list[Any] | None, row: int, path: str) -> Iterator[Records]:
        documents: list[bytes] = []
        label_values: list[float] = []
        size = 0

        def group(problem: str | None = None) -> Records:
            records = Records(
                documents, [*range(row - len(documents), row)], label_values=None if labels is None else label_values
            )
            if problem is None:
                return records
            return records._replace(error=DataError(problem, file=path, record=row), bad_offset=row)

        for place, value in enumerate(values):
            try:
                if value is None:
                    raise ValueError(f"column {self.field!r} is null")
                number = 0.0 if labels is None or self.label is None else self.label.number(labels[place], value)
            except ValueError as problem:
                yield group(str(problem))
                documents, label_values, size = [], [], 0
            else:
                if documents and size + len(value) > self.group_bytes:
                    yield group()
                    documents, label_values, size = [], [], 0
                documents.append(value)
                label_values.append(number)
                size += len(value)
            row += 1
        if documents:
            yield group()

    @contextmanager
    def _open(self, path: str, whole: bool) -> Iterator[tuple[pq.ParquetFile, list[list[str]]]]:
        """Open a file and find the names that lead to the column of documents and, where they are read, of labels."""
        try:
            with self.storage.open_stored(path, whole) as raw:
                plain = pq.ParquetFile(raw)
                _check(plain, path)
                names, found = _find_column(plain.schema_arrow, self.field, path)
                columns = [self._check_strings(names, found, path)]
                parquet = pq.ParquetFile(
                    raw,
                    metadata=plain.metadata,
                    buffer_size=READ_BYTES,
                    page_checksum_verification=True,
                    read_dictionary=[".".join(names)] if found in STRINGS and _is_shared(plain, raw.seek(0, 2)) else [],
                )
                if self.label is not None:
                    columns.append(_find_column(parquet.schema_arrow, self.label.field, path)[0])
                yield parquet, columns
        except DataError:
            raise
        except (pa.ArrowException, ValueError, LookupError, MemoryError, OverflowError) as error:
            raise DataError(f"the parquet data is truncated or damaged: {error}", file=path) from error

    def _check_strings(self, names: list[str], found: pa.DataType, path: str) -> list[str]:
        """Return the names that lead to the column of documents. Raises DataError where it holds no strings."""
        content = found.value_type if pa.types.is_dictionary(found) else found
        if content in STRINGS or (self.numbers and pa.types.is_integer(content)):
            return names
        wanted = "strings or whole numbers" if self.numbers else "strings"
        problem = f"column {self.field!r} must hold {wanted}, and holds {found}"
        if pa.types.is_list(found) or pa.types.is_large_list(found):
            problem += "; make token shards of lists of ids by `cistron prepare --import parquet`"
        raise DataError(problem, file=path)

    def locate(self, path: str, offset: int, index: int) -> tuple[int, None]:
        """Return the address, which is the record, from 0; a byte of a compressed page has no place in the file."""
        return offset, None


def _find_column(schema: pa.Schema, column: str, path: str) -> tuple[list[str], pa.DataType]:
    """Return the names that lead to a column, and what it holds. Raises DataError where there is none."""
    names = [column] if column in schema.names else column.split(".")
    found: pa.DataType = pa.struct(schema)
    for name in names:
        if not pa.types.is_struct(found) or found.get_field_index(name) < 0:
            columns = ", ".join(map(repr, schema.names[:8])) or "none"
            raise DataError(f"there is no column {column!r}; its columns are: {columns}", file=path)
        found = found.field(name).type
    return names, found


def _leaves(batch: pa.RecordBatch, names: list[str]) -> pa.Array:
    """Return the values that some names lead to."""
    values = batch.column(names[0])
    for name in names[1:]:
        values = pc.struct_field(values, name)
    return values


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _documents(values: pa.Array) -> list[bytes | None]:
    """Return strings, or whole numbers as text, as bytes; rows with the same value of a dictionary share theirs."""
    if pa.types.is_dictionary(values.type):  # Arrow's has the values of all batches so far
        places = pc.unique(values.indices).drop_null()
        distinct = dict(zip(places.to_pylist(), _documents(values.dictionary.take(places)), strict=True))
        return [None if place is None else distinct[place] for place in values.indices.to_pylist()]
    if pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    documents: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
    return documents


def _is_shared(parquet: pq.ParquetFile, size: int) -> bool:
    """Tell whether rows of a file of `size` bytes are to share their values."""
    groups = (parquet.metadata.row_group(number).total_byte_size for number in range(parquet.num_row_groups))
    largest = max(groups, default=0)
    return largest <= SHARED_BYTES or largest > INFLATED * size


def _check(parquet: pq.ParquetFile, path: str) -> None:
    """Refuse a footer that contradicts itself."""
    rows = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != parquet.metadata.num_rows:
        raise DataError(
            f"the parquet data is damaged: {sum(rows)} rows in groups, {parquet.metadata.num_rows} in all", file=path
        )
