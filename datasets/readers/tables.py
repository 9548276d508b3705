"""Tables: documents in a column that the first line names, with quotes (csv) or without (tsv)."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from typing_extensions import override

from ..errors import DataError
from .lines import MAX_LINE_BYTES, LineReader, ParseLine
from .pieces import Piece
from .records import BOM, GROUP_DOCUMENTS, READERS, FieldReader, Records, Window

HEADER_BYTES = 2**16
DELIMITERS = ",\t;"
HEADER_AGAIN = "the names of the columns again, as where tables are joined; remove the line"
QUOTED = 'a cell in quotes, with others doubled in it; read a quoted table by format = "csv", by tabs too'
# The module's own limit of a cell is 128 KiB, for the whole process.
csv.field_size_limit(MAX_LINE_BYTES)


class Columns(NamedTuple):
    """What the first line of a table says.

    Attributes:
        names: Of all columns.
        places: Of the documents' column, and of the labels'.
        begin: The byte at which the records begin.
        delimiter: Parts cells.
    """

    names: list[str]
    places: list[int]
    begin: int
    delimiter: str = "\t"


@dataclass(frozen=True)
class TableReader(LineReader, FieldReader):
    """Documents in one column of a table, of which every cell is text."""

    def head(self, path: str) -> bytes:
        """Return the first bytes of a file. Raises DataError where it is of another kind."""
        with self.storage.open(path, whole=False) as file:
            return self.begin(file, path, 0).read(HEADER_BYTES)

    def find(self, names: list[str]) -> list[int] | None:
        """Return the places of the wanted columns; None where there is not one of each."""
        wanted = [self.field, *([self.label.field] if self.label else [])]
        return [names.index(name) for name in wanted] if all(names.count(name) == 1 for name in wanted) else None

    def refuse(self, names: list[str], path: str) -> DataError:
        """Return the error of a table without the wanted columns."""
        missing = self.field if names.count(self.field) != 1 or self.label is None else self.label.field
        shown = ", ".join(map(repr, names[:8]))
        problem = f"there must be one column {missing!r}; the first line names: {shown}"
        if self.format_name == "tsv" and any(name.startswith('"') for name in names):
            problem += '; read a quoted table by format = "csv", by tabs too'
        return DataError(problem, file=path, record=1, offset=0)

    def value(self, cells: list[bytes], columns: Columns) -> tuple[bytes, float]:
        """Return the document and the label, or 0, of a record. Raises ValueError saying what is wrong with it."""
        if len(cells) != len(columns.names):
            raise ValueError(f"{len(cells)} cells; the first line names {len(columns.names)} columns")
        document = cells[columns.places[0]]
        try:
            text = document.decode("utf-8")
            label = cells[columns.places[-1]].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"not valid UTF-8 ({error.reason})") from None
        if text == self.field and [cell.decode("utf-8", "replace") for cell in cells] == columns.names:
            raise ValueError(HEADER_AGAIN)
        return document, 0.0 if self.label is None else self.label.number(label, document)


@READERS.add("tsv", says="a line of a table is a document")
class TsvReader(TableReader):
    """Cells parted by tabs; nothing is quoted."""

    format_name = "tsv"
    endings = (".tsv", ".tab")

    @override
    def parser(self, path: str) -> tuple[ParseLine, int]:
        line, newline, _ = self.head(path).partition(b"\n")
        if not newline:
            problem = f"the first line must name the columns, and another follow within {HEADER_BYTES} bytes"
            raise DataError(problem, file=path, record=1, offset=0)
        names = [cell.decode("utf-8", "replace") for cell in _cells(line.removeprefix(BOM))]
        if (places := self.find(names)) is None:
            raise self.refuse(names, path)
        columns = Columns(names, places, len(line) + 1)

        def parse(line: bytes) -> tuple[bytes, float]:
            document, label = self.value(_cells(line), columns)
            if document.startswith(b'"') and _is_quoted(document):
                raise ValueError(QUOTED)
            return document, label

        return parse, columns.begin


@READERS.add("csv", says="a record of a quoted table is a document")
class CsvReader(TableReader):
    """Cells that may stand in quotes, after RFC 4180: line ends and delimiters in them are text, quotes are doubled.

    Parted by commas, else by tabs or semicolons, as the first line gives the columns. A quote that is not closed, or
    followed by something else, hides where records begin, and so is an error of the file.
    """

    format_name = "csv"
    endings = (".csv",)
    boundary: ClassVar[bytes | None] = None  # a line may end within quotes
    cut: ClassVar[str] = "never"

    @override
    def parser(self, path: str) -> tuple[ParseLine, int]:
        raise NotImplementedError("records are no lines")

    def columns(self, path: str) -> Columns:
        """Return what the first line says. Raises DataError."""
        head = self.head(path)
        mark = len(BOM) if head.startswith(BOM) else 0
        found: list[list[str]] = []
        wrong: DataError | None = None
        for delimiter in DELIMITERS:
            try:
                row = next(self._rows(iter(io.BytesIO(head[mark:])), delimiter, mark, path), None)
            except DataError as error:  # quotes beside another delimiter
                wrong = wrong or error
                continue
            if row is None:
                raise DataError("the first line must name the columns", file=path, record=1, offset=0)
            names = [cell.decode("utf-8", "replace") for cell in row.cells]
            if (places := self.find(names)) is not None:
                return Columns(names, places, row.end, delimiter)
            found.append(names)
        raise wrong or self.refuse(max(found, key=len), path)

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        columns = self.columns(piece.path)
        offset = max(offset, columns.begin)
        with self.storage.open(piece.path) as file:
            lines = self._lines(Window(file, piece, offset), piece.path)
            documents: list[bytes] = []
            offsets: list[int] = []
            label_values: list[float] | None = [] if self.labelled else None
            size = 0
            for row in self._rows(lines, columns.delimiter, offset, piece.path):
                error = None
                try:
                    if row.problem:
                        raise ValueError(row.problem)
                    document, value = self.value(row.cells, columns)
                except ValueError as problem:
                    error, document, value = DataError(str(problem), file=piece.path, offset=row.start), b"", 0.0
                full = size + len(document) > self.group_bytes or len(documents) == GROUP_DOCUMENTS
                if error is not None or (documents and full):
                    bad_offset = -1 if error is None else row.start
                    yield Records(documents, offsets, error=error, bad_offset=bad_offset, label_values=label_values)
                    documents, offsets, label_values, size = [], [], None if label_values is None else [], 0
                if error is None:
                    documents.append(document)
                    offsets.append(row.start)
                    size += len(document)
                    if label_values is not None:
                        label_values.append(value)
            if documents:
                yield Records(documents, offsets, label_values=label_values)

    def _lines(self, window: Window, path: str) -> Iterator[bytes]:
        """Yield lines with their ends."""
        while window.fill(self.group_bytes):
            whole = len(window.buffer) if window.over else window.buffer.rfind(b"\n") + 1
            yield from io.BytesIO(window.take(whole) if whole else self._long_line(window, path))

    def _rows(self, lines: Iterator[bytes], delimiter: str, at: int, path: str) -> Iterator["Row"]:
        """Yield the records of lines that begin at byte `at`, blank ones left out. Raises DataError."""
        start = end = at

        def texts() -> Iterator[str]:
            nonlocal end
            for line in lines:
                end += len(line)
                if end - start > self.max_line_bytes:
                    problem = f"a record has more than {self.max_line_bytes} bytes; is a quote not closed?"
                    raise DataError(problem, file=path, offset=start)
                yield line.decode("latin-1")  # a byte is a letter, so that no byte is lost

        rows = csv.reader(texts(), delimiter=delimiter, strict=True)
        while True:
            cells: list[str] | None
            problem = ""
            try:
                if (cells := next(rows, None)) is None:
                    return
            except csv.Error as error:
                if "new-line" not in str(error):
                    told = f"a quote is not closed, or followed by something else, in the record that begins here ({error})"
                    raise DataError(told, file=path, record=self.locate(path, start, 0)[0], offset=start) from None
                cells, problem = [""], "a carriage return within a line, outside of quotes; remove it"
            if problem or (cells and not (len(cells) == 1 and cells[0].isspace())):
                yield Row(start, end, [cell.encode("latin-1") for cell in cells], problem)
            start = end


class Row(NamedTuple):
    """A record of a table: where it begins and ends, and its cells or what is wrong with it."""

    start: int
    end: int
    cells: list[bytes]
    problem: str


def _cells(line: bytes) -> list[bytes]:
    """Return the cells of a line, which may end as in files of Windows."""
    return line.removesuffix(b"\r").split(b"\t")


def _is_quoted(cell: bytes) -> bool:
    """Tell whether a cell was quoted by a program, which doubles the quotes in it."""
    inner = cell[1:-1]
    return len(cell) > 2 and cell.endswith(b'"') and b'""' in inner and b'"' not in inner.replace(b'""', b"")
