"""Files to documents, in chunks of at most a MiB, each with an address from which it can be read again.

A reader is a pure function of (piece, offset, first): opened at a chunk's `offset` and `first` it yields that chunk and
all later ones, byte for byte. Its memory does not grow with the length of a document.
"""

import json
import sys
from collections.abc import Iterator
from typing import IO, NamedTuple, Protocol

from .errors import DataConfigError, DataError
from .files import open_binary
from .pieces import Piece

CHUNK_BYTES = 2**20
BOM = b"\xef\xbb\xbf"  # at the head of a file it is no part of a record; json.loads skips it by itself


class Chunk(NamedTuple):
    """A stretch of one document.

    Attributes:
        data: UTF-8 bytes; may be empty.
        offset: Where it begins in the (uncompressed) file.
        first: Whether it opens its document.
        last: Whether it ends its document.
    """

    data: bytes
    offset: int
    first: bool
    last: bool


class Reader(Protocol):
    """One file format.

    Attributes:
        boundary: The bytes that precede or open a record, at the second of which (or after which) a file may be split;
            None where a file is one document.
    """

    boundary: bytes | None

    def chunks(self, piece: Piece, offset: int, first: bool) -> Iterator[Chunk]:
        """Yield the chunks of `piece` from an address on; its beginning is (`piece.start`, True)."""
        ...

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Return (record, byte in the file) of byte `index` of the document data that begins at `offset`.

        Reads the file again: for error messages only.
        """
        ...


class TextReader:
    """One file, one document."""

    boundary: bytes | None = None

    def chunks(self, piece: Piece, offset: int, first: bool) -> Iterator[Chunk]:
        """Yield the file's bytes as they are."""
        with open_binary(piece.path) as file:
            file.seek(offset)
            last = False
            while not last:
                data = file.read(CHUNK_BYTES)
                last = len(data) < CHUNK_BYTES
                yield Chunk(data, offset, first, last)
                offset += len(data)
                first = False

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Add: file and document are the same bytes."""
        return None, offset + index


class JsonlReader:
    """One JSON object per line, the document in one of its fields; blank lines are skipped."""

    boundary: bytes | None = b"\n"

    def __init__(self, field: str) -> None:
        self.field = field

    def chunks(self, piece: Piece, offset: int, first: bool) -> Iterator[Chunk]:
        """Yield one chunk per line."""
        with open_binary(piece.path) as file:
            file.seek(offset)
            while piece.end is None or offset < piece.end:
                line = file.readline()
                if not line:
                    return
                if not line.isspace():
                    yield Chunk(self._document(line, piece.path, offset), offset, True, True)
                offset += len(line)

    def _document(self, line: bytes, path: str, offset: int) -> bytes:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._error(f"not valid JSON ({error})", path, offset) from None
        if not isinstance(record, dict):
            raise self._error(f"expected a JSON object, found a {type(record).__name__}", path, offset)
        if self.field not in record:
            fields = ", ".join(map(repr, list(record)[:8])) or "none"
            raise self._error(f"there is no field {self.field!r}; its fields are: {fields}", path, offset)
        text = record[self.field]
        if not isinstance(text, str):
            raise self._error(f"field {self.field!r} must be a string, found a {type(text).__name__}", path, offset)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise self._error(f"field {self.field!r} holds half a surrogate pair ({error.reason})", path, offset) from None

    def _error(self, problem: str, path: str, offset: int) -> DataError:
        record, offset = self.locate(path, offset, 0)
        return DataError(problem, file=path, record=record, offset=offset)

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Count lines from 1; the byte is the line's first, as escapes make a string differ from the file's bytes."""
        lines = 1
        with open_binary(path) as file:
            while file.tell() < offset:
                lines += file.read(min(CHUNK_BYTES, offset - file.tell())).count(b"\n")
        return lines, offset


class _Cursor:
    """A place in a file that moves forward; bytes are read as they are looked at, and let go a chunk later."""

    def __init__(self, file: IO[bytes], offset: int, end: int | None) -> None:
        file.seek(offset)
        self.offset = offset
        self._file = file
        self._end = end
        self._buffer = b""
        self._at = 0  # of byte `offset` in the buffer
        self._ended = False

    def find(self, needle: bytes, limit: int) -> int | None:
        """Return how many of the next `limit` bytes lie before `needle`, None where it is not wholly among them."""
        while True:
            found = self._buffer.find(needle, self._at, self._at + limit)
            if found >= 0:
                return found - self._at
            if self._ended or len(self._buffer) - self._at >= limit:
                return None
            at = self.offset + len(self._buffer) - self._at
            more = self._file.read(CHUNK_BYTES if self._end is None else min(CHUNK_BYTES, self._end - at))
            self._buffer, self._at, self._ended = self._buffer[self._at :] + more, 0, len(more) < CHUNK_BYTES

    def take(self, count: int) -> bytes:
        """Move over the next `count` bytes, or fewer at the end, of those looked at."""
        data = self._buffer[self._at : self._at + count]
        self.offset += len(data)
        self._at += len(data)
        return data

    def back(self, count: int) -> None:
        """Return over `count` of the bytes just taken."""
        self.offset -= count
        self._at -= count

    def line(self) -> bytes:
        """Move over a line with its line feed; nothing at the end."""
        length = self.find(b"\n", sys.maxsize)
        return self.take(sys.maxsize if length is None else length + 1)


class FastaReader:
    r"""A record is a document: everything between two header lines, line ends removed, case kept.

    A chunk is cut before a line feed, never after one. So `\n>` always lies within one chunk, and a chunk that does not
    open its record cannot begin with a header.
    """

    boundary: bytes | None = b"\n>"

    def chunks(self, piece: Piece, offset: int, first: bool) -> Iterator[Chunk]:
        """Yield the sequences of `piece` in chunks of at most `CHUNK_BYTES` of the file."""
        with open_binary(piece.path) as file:
            cursor = _Cursor(file, offset, piece.end)
            if offset > piece.start:  # inside a record, whose header lies before
                yield from self._record(cursor, first)
            while line := cursor.line():
                content = line.removeprefix(BOM)
                if content.startswith(b">"):
                    yield from self._record(cursor, True)
                elif content.strip():
                    problem = f"expected a header line beginning with '>', found {line[:40]!r}"
                    raise DataError(problem, file=piece.path, offset=cursor.offset - len(line))

    def _record(self, cursor: _Cursor, first: bool) -> Iterator[Chunk]:
        last = False
        while not last:
            # Directly after a header line, a header means that the record is empty.
            length = 0 if first and cursor.find(b">", 1) == 0 else cursor.find(b"\n>", CHUNK_BYTES)
            last = length is not None
            offset = cursor.offset
            data = cursor.take(CHUNK_BYTES if length is None else length)
            if length is None:
                last = len(data) < CHUNK_BYTES
                if not last and data.endswith(b"\n"):
                    cursor.back(1)
            yield Chunk(data.translate(None, b"\r\n"), offset, first, last)
            first = False

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Walk the file: the name of the last header before `offset`, and the byte that `index` residues later is."""
        name: str | None = None
        with open_binary(path) as file:
            while file.tell() < offset:
                line = file.readline().removeprefix(BOM)
                if line.startswith(b">"):
                    name = (line[1:].decode("utf-8", errors="replace").split() or [""])[0]
            file.seek(offset)
            while data := file.read(CHUNK_BYTES):
                kept = len(data.translate(None, b"\r\n"))
                if index < kept:
                    residues = [place for place, byte in enumerate(data) if byte not in b"\r\n"]
                    return name, offset + residues[index]
                index -= kept
                offset += len(data)
        return name, offset


def build_reader(format: str, field: str) -> Reader:
    """Return the reader of a source's format: `text`, `jsonl` (whose documents are in `field`) or `fasta`."""
    if format == "text":
        return TextReader()
    if format == "jsonl":
        return JsonlReader(field)
    if format == "fasta":
        return FastaReader()
    raise DataConfigError(f"data.sources.format: {format!r} is not one of 'text', 'jsonl', 'fasta'")
