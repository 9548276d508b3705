"""Files to documents, in chunks of at most a MiB, each with an address from which it can be read again.

A reader is a pure function of (piece, offset, first): opened at a chunk's `offset` and `first` it yields that chunk and
all later ones, byte for byte. Its memory does not grow with the length of a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from .errors import DataConfigError, DataError
from .files import open_binary
from .pieces import Piece

CHUNK_BYTES = 2**20


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
        except ValueError as error:
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
            raise self._error(
                f"field {self.field!r} holds half a surrogate pair ({error.reason})", path, offset
            ) from None

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


class FastaReader:
    r"""A record is a document: everything between two header lines, line ends removed, case kept.

    A chunk is cut before a line feed, never after one. So `\n>` always lies within one chunk, and a chunk that does not
    open its record cannot begin with a header.
    """

    boundary: bytes | None = b"\n>"

    def chunks(self, piece: Piece, offset: int, first: bool) -> Iterator[Chunk]:
        """Yield the sequences of `piece` in chunks of at most `CHUNK_BYTES` of the file."""
        with open_binary(piece.path) as file:
            file.seek(offset)
            buffer, position = b"", 0  # buffer[position] is byte `offset` of the file
            ended = False
            in_record = offset > piece.start

            def fill() -> None:
                nonlocal buffer, position, ended
                at = offset + len(buffer) - position
                wanted = CHUNK_BYTES if piece.end is None else min(CHUNK_BYTES, piece.end - at)
                more = file.read(wanted)
                buffer, position, ended = buffer[position:] + more, 0, len(more) < CHUNK_BYTES

            while True:
                if not in_record:
                    line_end = buffer.find(b"\n", position)
                    if line_end < 0 and not ended:
                        fill()
                        continue
                    line = buffer[position : line_end + 1] if line_end >= 0 else buffer[position:]
                    if line and not line.isspace() and not line.startswith(b">"):
                        raise DataError(
                            f"expected a header line beginning with '>', found {line[:40]!r}",
                            file=piece.path,
                            offset=offset,
                        )
                    offset, position = offset + len(line), position + len(line)
                    if line.startswith(b">"):
                        in_record, first = True, True
                    elif not line:
                        return
                    continue
                limit = position + CHUNK_BYTES
                if first and buffer.startswith(b">", position):
                    end, last = position, True
                else:
                    end = buffer.find(b"\n>", position, limit)
                    last = end >= 0
                if not last:
                    if len(buffer) < limit and not ended:
                        fill()
                        continue
                    end = min(len(buffer), limit)
                    last = len(buffer) < limit
                    if not last and buffer[end - 1 : end] == b"\n":
                        end -= 1
                yield Chunk(buffer[position:end].translate(None, b"\r\n"), offset, first, last)
                offset, position = offset + end - position, end
                first, in_record = False, not last

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Walk the file: the name of the last header before `offset`, and the byte that `index` residues later is."""
        name: str | None = None
        at = 0
        with open_binary(path) as file:
            while at < offset:
                line = file.readline(CHUNK_BYTES)
                if line.startswith(b">"):
                    words = line[1:].split(maxsplit=1)
                    name = words[0].decode("utf-8", errors="replace") if words else ""
                at += len(line)
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
