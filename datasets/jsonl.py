"""jsonl: one JSON object per line, the document in one of its fields; blank lines are skipped."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import DataError
from .files import DataFile, Storage
from .pieces import Piece
from .records import BOM, GROUP_BYTES, GROUP_DOCUMENTS, Records, Window, split_records

MAX_LINE_BYTES = 2**30
# To name a bad record by its line, the lines before it are counted; so many bytes take 0.1 s, or 1 s to inflate.
COUNTED_BYTES = 2**28

# Half of the time of json.loads goes into finding out how bytes are encoded and into skipping spaces around the value.
_parse = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class JsonlReader:
    """Documents in lines.

    Attributes:
        storage: Opens files.
        field: That holds the document.
        group_bytes: Bytes of the file that become a group.
        max_line_bytes: What a line may have.
    """

    storage: Storage
    field: str
    group_bytes: int = GROUP_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """See `Reader`."""
        return split_records(self.storage, file, b"\n", target)

    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        """See `Reader`."""
        with self.storage.open(piece.path) as file:
            window = Window(file, piece, offset)
            number = 1 if offset == 0 else None  # of the line, where it is known for nothing
            while window.fill(self.group_bytes):
                offset = window.offset
                whole = len(window.buffer) if window.over else window.buffer.rfind(b"\n") + 1
                lines = (window.take(whole) if whole else self._long_line(window, piece.path)).split(b"\n")
                yield from self._documents(lines, piece.path, offset, number)
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
                raise DataError(f"a line has more than {self.max_line_bytes} bytes; is this jsonl?", file=path, offset=start)
        return b"".join(parts)

    def _documents(self, lines: list[bytes], path: str, offset: int, number: int | None) -> Iterator[Records]:
        """Yield the documents of lines that begin at `offset`, of which the first is line `number` of the file."""
        documents: list[bytes] = []
        offsets: list[int] = []
        field = self.field
        for place, line in enumerate(lines):
            if not line or line.isspace():
                offset += len(line) + 1
                continue
            try:
                text = str(line, "utf-8")
                record, end = _parse(text)
                document = record[field].encode() if end == len(text) else self._document(line)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                try:
                    document = self._document(line)
                except ValueError as problem:
                    error = DataError(str(problem), file=path, record=number and number + place, offset=offset)
                    yield Records(documents, offsets, error=error, bad_offset=offset)
                    documents, offsets = [], []
                    offset += len(line) + 1
                    continue
            documents.append(document)
            offsets.append(offset)
            offset += len(line) + 1
            if len(documents) == GROUP_DOCUMENTS:
                yield Records(documents, offsets)
                documents, offsets = [], []
        if documents:
            yield Records(documents, offsets)

    def _document(self, line: bytes) -> bytes:
        """Return the document of a line with all the care that the fast way leaves out.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        try:
            record = json.loads(str(line.removeprefix(BOM), "utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found a {type(record).__name__}")
        if self.field not in record:
            fields = ", ".join(map(repr, list(record)[:8])) or "none"
            raise ValueError(f"there is no field {self.field!r}; its fields are: {fields}")
        text = record[self.field]
        if not isinstance(text, str):
            raise ValueError(f"field {self.field!r} must be a string, found a {type(text).__name__}")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"field {self.field!r} holds half a surrogate pair ({error.reason})") from None

    def locate(self, path: str, offset: int, index: int) -> tuple[int | None, int]:
        """Count lines from 1, if not too many; the byte is the line's first, as escapes make a string differ from it."""
        return self._line_number(path, offset), offset

    def _line_number(self, path: str, offset: int) -> int | None:
        if offset > COUNTED_BYTES:
            return None
        lines = 1
        with self.storage.open(path) as file:
            for start in range(0, offset, GROUP_BYTES):
                lines += file.read(min(GROUP_BYTES, offset - start)).count(b"\n")
        return lines
