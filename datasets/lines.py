"""Formats of which each line is a record: how files are cut, read, reopened and named by line; blank lines are skipped."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from .errors import DataError
from .files import DataFile, Storage
from .labels import Label
from .pieces import Piece
from .records import GROUP_BYTES, GROUP_DOCUMENTS, Records, Window, split_records

MAX_LINE_BYTES = 2**30
# To name a bad record by its line, the lines before it are counted; so many bytes take 0.1 s, or 1 s to inflate.
COUNTED_BYTES = 2**28

# From a line, without its end, to its document and what it states. Raises ValueError saying what is wrong with it.
ParseLine = Callable[[bytes], tuple[bytes, float]]


@dataclass(frozen=True)
class LineReader(ABC):
    """Documents in lines.

    Attributes:
        storage: Opens files.
        field: That holds the document.
        group_bytes: Bytes of the file that become a group.
        max_line_bytes: What a line may have.
        label: Where and what labels are; None: they are not read.
        format_name: Of `data.sources.format`.
    """

    storage: Storage
    field: str
    group_bytes: int = GROUP_BYTES
    max_line_bytes: int = MAX_LINE_BYTES
    label: Label | None = None
    format_name: ClassVar[str]

    @abstractmethod
    def parser(self, path: str) -> tuple[ParseLine, int]:
        """Return what parses the lines of a file, and the byte at which its records begin. Raises DataError."""

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """See `Reader`."""
        return split_records(self.storage, file, b"\n", target)

    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        """See `Reader`."""
        parse, begin = self.parser(piece.path)
        number = 1 if offset == 0 else None  # of the line, where it is known for nothing
        if offset < begin:
            offset, number = begin, 2
        with self.storage.open(piece.path) as file:
            window = Window(file, piece, offset)
            while window.fill(self.group_bytes):
                offset = window.offset
                whole = len(window.buffer) if window.over else window.buffer.rfind(b"\n") + 1
                lines = (window.take(whole) if whole else self._long_line(window, piece.path)).split(b"\n")
                yield from self._documents(parse, lines, piece.path, offset, number)
                number = None if number is None else number + len(lines) - 1

    def _long_line(self, window: Window, path: str) -> bytes:
        """Take a line that the buffer does not hold."""
        start = window.offset
        parts = []
        while window.fill(self.group_bytes):
            end = window.buffer.find(b"\n") + 1
            parts.append(window.take(end or len(window.buffer)))
            if end:
                break
            if window.offset - start > self.max_line_bytes:
                problem = f"a line has more than {self.max_line_bytes} bytes; is this {self.format_name}?"
                raise DataError(problem, file=path, offset=start)
        return b"".join(parts)

    def _documents(self, parse: ParseLine, lines: list[bytes], path: str, offset: int, number: int | None) -> Iterator[Records]:
        """Yield the documents of lines that begin at `offset`, of which the first is line `number` of the file."""
        documents: list[bytes] = []
        offsets: list[int] = []
        stated: list[float] | None = None if self.label is None else []
        for place, line in enumerate(lines):
            if not line or line.isspace():
                offset += len(line) + 1
                continue
            try:
                document, value = parse(line)
            except ValueError as problem:
                error = DataError(str(problem), file=path, record=number and number + place, offset=offset)
                yield Records(documents, offsets, error=error, bad_offset=offset, stated=stated)
                documents, offsets, stated = [], [], None if stated is None else []
            else:
                documents.append(document)
                offsets.append(offset)
                if stated is not None:
                    stated.append(value)
                if len(documents) == GROUP_DOCUMENTS:
                    yield Records(documents, offsets, stated=stated)
                    documents, offsets, stated = [], [], None if stated is None else []
            offset += len(line) + 1
        if documents:
            yield Records(documents, offsets, stated=stated)

    def locate(self, path: str, offset: int, index: int) -> tuple[int | None, int]:
        """Count lines from 1, if not too many; the byte is the line's first, as a document may begin anywhere in it."""
        return self._line_number(path, offset), offset

    def _line_number(self, path: str, offset: int) -> int | None:
        if offset > COUNTED_BYTES:
            return None
        lines = 1
        with self.storage.open(path) as file:
            for start in range(0, offset, GROUP_BYTES):
                lines += file.read(min(GROUP_BYTES, offset - start)).count(b"\n")
        return lines
