"""Formats whose lines are records, such as jsonl: how they are cut, read, reopened, named; blank lines are skipped."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import override

from ..errors import DataError
from ..files import look_at_lines
from .pieces import Piece
from .records import BOM, GROUP_BYTES, GROUP_DOCUMENTS, READERS, FieldReader, Reader, Records, Window

MAX_LINE_BYTES = 2**30
# To name a bad record by its line, the lines before it are counted; so many bytes take 0.1 s, or 1 s to inflate.
COUNTED_BYTES = 2**28
# From a line, without its end, to its document and its label. Raises ValueError saying what is wrong with it.
ParseLine = Callable[[bytes], tuple[bytes, float]]


@dataclass(frozen=True)
class LineReader(Reader):
    """Documents in lines.

    Attributes:
        max_line_bytes: What a line may have.
        format_name: Of `data.sources.format`; class attribute.
    """

    max_line_bytes: int = field(default=MAX_LINE_BYTES, kw_only=True)
    format_name: ClassVar[str]
    boundary: ClassVar[bytes | None] = b"\n"
    cut: ClassVar[str] = "where it is uncompressed or in bgzip's blocks"

    @property
    def labelled(self) -> bool:
        """Whether labels are read beside documents."""
        return isinstance(self, FieldReader) and self.label is not None

    @override
    def look(self, path: str, head: bytes) -> None:
        super().look(path, head)
        look_at_lines(path, head)

    @abstractmethod
    def parser(self, path: str) -> tuple[ParseLine, int]:
        """Return what parses the lines of a file, and the byte at which its records begin. Raises DataError."""

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        parse, begin = self.parser(piece.path)
        number = 1 if offset == 0 else None  # of the line, where it is known for nothing
        if offset < begin:
            offset, number = begin, 2
        with self.storage.open(piece.path) as file:
            window = Window(self.begin(file, piece.path, offset), piece, offset)
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
        label_values: list[float] | None = [] if self.labelled else None
        for place, line in enumerate(lines):
            if not line or line.isspace():
                offset += len(line) + 1
                continue
            try:
                document, value = parse(line)
            except ValueError as problem:
                error = DataError(str(problem), file=path, record=number and number + place, offset=offset)
                yield Records(documents, offsets, error=error, bad_offset=offset, label_values=label_values)
                documents, offsets, label_values = [], [], None if label_values is None else []
            else:
                documents.append(document)
                offsets.append(offset)
                if label_values is not None:
                    label_values.append(value)
                if len(documents) == GROUP_DOCUMENTS:
                    yield Records(documents, offsets, label_values=label_values)
                    documents, offsets, label_values = [], [], None if label_values is None else []
            offset += len(line) + 1
        if documents:
            yield Records(documents, offsets, label_values=label_values)

    def locate(self, path: str, offset: int, index: int) -> tuple[int | None, int]:
        """Count lines from 1, if not too many; the byte is the line's first, as a document may begin anywhere in it."""
        if offset > COUNTED_BYTES:
            return None, offset
        with self.storage.open(path) as file:
            before = (file.read(min(GROUP_BYTES, offset - start)) for start in range(0, offset, GROUP_BYTES))
            return 1 + sum(data.count(b"\n") for data in before), offset


# Half of the time of json.loads goes into finding out how bytes are encoded and into skipping spaces around the value.
_parse = json.JSONDecoder().raw_decode
MISSING = object()  # null is a value


@READERS.add("jsonl", says="a line is a document")
@dataclass(frozen=True)
class JsonlReader(LineReader, FieldReader):
    """Documents in one field of JSON objects, an object per line; `a.b` is key b of the object at a, or a key "a.b"."""

    format_name = "jsonl"
    endings = (".jsonl", ".ndjson", ".json")

    @override
    def parser(self, path: str) -> tuple[ParseLine, int]:
        return self._record, 0

    def _record(self, line: bytes) -> tuple[bytes, float]:
        """Return the document of a line, and its label or 0."""
        try:
            text = str(line, "utf-8")
            record, end = _parse(text)
            value = record[self.field] if self.field in record else at_key(record, self.field)
            document = value.encode() if end == len(text) else None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            document = None
        if document is None:
            record = self._object(line)
            document = self._document(record)
        return document, 0.0 if self.label is None else self.label.number(at_key(record, self.label.field), document)

    def _object(self, line: bytes) -> dict[str, Any]:
        """Return the JSON object of a line with all the care that the fast way leaves out.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        try:
            record = json.loads(str(line.removeprefix(BOM), "utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found a {type(record).__name__}")
        return record

    def _document(self, record: dict[str, Any]) -> bytes:
        """Return the document of a record. Raises ValueError, saying what is wrong with it."""
        text = at_key(record, self.field, MISSING)
        if text is MISSING:
            fields = ", ".join(map(repr, list(record)[:8])) or "none"
            raise ValueError(f"there is no field {self.field!r}; its fields are: {fields}")
        return self._value(text)

    def _value(self, text: Any) -> bytes:
        """Return the document that a field's value is. Raises ValueError, saying what is wrong with it."""
        if self.numbers and type(text) is int:
            text = str(text)
        if not isinstance(text, str):
            wanted = "a string or a whole number" if self.numbers else "a string"
            raise ValueError(f"field {self.field!r} must be {wanted}, found a {type(text).__name__}")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"field {self.field!r} holds half a surrogate pair ({error.reason})") from None


def at_key(record: Any, name: str, otherwise: Any = None) -> Any:
    """Return what a key holds; where there is none of the name, `a.b` is key b of the object at a."""
    if name in record:
        return record[name]
    for part in name.split("."):
        if not isinstance(record, dict) or part not in record:
            return otherwise
        record = record[part]
    return record
