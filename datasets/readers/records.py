"""What readers give: documents in groups of up to a MiB, each with an address from which it can be read again.

A reader is a pure function of (piece, offset, first): opened at the address of any document or stretch it yields that
one and all later ones, byte for byte, whatever was read before. Its memory does not grow with the length of a document.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from ...base import Registry
from ..documents import Content
from ..errors import DataError
from ..files import TEXT_HEAD_BYTES, BgzfFile, ByteFile, DamagedError, DataFile, FileStore, Rewound, is_compressed, look_at_head
from .labels import Label
from .pieces import Piece

GROUP_BYTES = 2**20
GROUP_DOCUMENTS = 1024
# Read at once where a record's end is looked for behind a piece, at first, and where its first record is.
TAIL_BYTES, SEARCH_BYTES = 2**12, 2**16
# A stripe of more bytes, which has one long record, is read from the file again and not held.
MAX_HELD_BYTES = 2**24
BOM = b"\xef\xbb\xbf"  # at the head of a file it is no part of a record


class Records(NamedTuple):
    """Consecutive documents, at most `GROUP_DOCUMENTS` and `GROUP_BYTES` or one that is longer by itself.

    Attributes:
        documents: UTF-8 bytes, maybe none.
        offsets: Where each begins; for a document that continues, where this stretch of it does.
        first: Whether documents[0] opens its document, or continues that of the group before.
        last: Whether documents[-1] ends its document, or goes on in the next group.
        error: A bad record directly after the documents; the reader continues after it. Its name may be missing where
            it is costly to find, see `located`. With no documents and `first` false, the document that continues from
            the group before is bad.
        bad_offset: Address of the bad record; -1 where there is none.
        label_values: Label of each document: the number of its class, or a value; None where labels are not read.
        headers: Of FASTA, the header line of each document, without a line end; empty for one that continues.
        ahead: Where documents[-1] goes on in another piece, so that no group follows: its next letter.
    """

    documents: list[bytes]
    offsets: list[int]
    first: bool = True
    last: bool = True
    error: DataError | None = None
    bad_offset: int = -1
    label_values: list[float] | None = None
    headers: Sequence[bytes] = ()
    ahead: bytes = b""

    @property
    def continues_bad(self) -> bool:
        """Whether the document that the group before left open turned out bad, and goes no further."""
        return self.error is not None and not self.first and not self.documents


class DocumentJoiner:
    """Joins the stretches that a long document comes in.

    Called with all groups of a piece, one after the other, it returns each with whole documents only. A document stands
    in the group that ends it, with the address and the header of its first stretch. One that turned out bad has this
    address too.

    Args:
        head: Bytes of a document that are kept; None: all.
    """

    def __init__(self, head: int | None = None) -> None:
        self._head = head
        self._parts: list[bytes] = []  # of the document that is open
        self._start = 0  # address of the first
        self._header = b""
        self._first = True  # whether the first opens the document

    def __call__(self, group: Records) -> Records:
        """Return the documents that end in a group, and the bad record behind them."""
        assert group.last or group.label_values is None, "records with labels come whole"
        assert not group.ahead, "a document that lanes share is not joined"
        head = self._head
        documents, offsets, first = [data[:head] for data in group.documents], list(group.offsets), group.first
        headers = list(group.headers)
        if self._parts and documents:
            if head is None or sum(map(len, self._parts)) < head:
                self._parts.append(documents[0])
            if len(documents) == 1 and not group.last:
                return Records([], [])
            documents[0], offsets[0], first = b"".join(self._parts)[:head], self._start, self._first
            if headers:
                headers[0] = self._header
            self._parts = []
        if group.continues_bad and self._parts:
            group, first, self._parts = group._replace(bad_offset=self._start), self._first, []
        if documents and not group.last:
            self._first = len(documents) > 1 or first
            self._parts, self._start = [documents.pop()], offsets.pop()
            self._header = headers.pop() if headers else b""
        return Records(documents, offsets, first, True, group.error, group.bad_offset, group.label_values, headers)


@dataclass(frozen=True)
class Reader(ABC):
    """One file format, of files reached through a storage; picklable, as it travels to worker processes.

    Attributes:
        storage: Opens files.
        group_bytes: Bytes of the file, or of documents, that become a group or a stretch.
        unit: Bytes at whose multiples a longer document may be cut, so that lanes share it; None: none is.
        content: What the bytes of its documents are; class attribute.
        endings: Of the names of its files, compression aside; class attribute.
        boundary: Its first byte ends a record, the one after that begins the next; None: records end otherwise; class
            attribute.
    """

    storage: FileStore
    group_bytes: int = field(default=GROUP_BYTES, kw_only=True)
    unit: int | None = field(default=None, kw_only=True)
    content: ClassVar[Content] = "text"
    endings: ClassVar[tuple[str, ...]] = ()
    boundary: ClassVar[bytes | None] = None

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut a file into pieces of about `target` stored bytes, by its size alone; into one where it cannot be cut."""
        if self.boundary is None or file.size <= target:
            return whole_piece(file)
        length = self.length(file)
        return whole_piece(file) if length is None else even_pieces(file, length, -(-file.size // target))

    def length(self, file: DataFile) -> int | None:
        """Return the uncompressed bytes of a file that can be read from anywhere, None of others."""
        if not is_compressed(file.path):
            return file.size
        with self.storage.open(file.path, whole=False) as opened:
            return opened.size if isinstance(opened, BgzfFile) else None

    def divided(self, piece: Piece) -> Literal["bytes", "stripes", "never"]:
        """Return how a piece of a file can be divided among lanes, see `pieces`."""
        if self.boundary is None:
            return "never"
        return "stripes" if piece.end is None else "bytes"

    def stripes(self, piece: Piece, size: int) -> Iterator[Piece]:
        """Cut a piece that is read from its beginning on into stripes: the records that begin in each `size` bytes.

        A stripe has its content, unless that has more than `MAX_HELD_BYTES`.

        Raises:
            DataError: As `groups`.
        """
        assert self.boundary is not None
        with self.storage.open(piece.path) as file:
            window = Window(self.begin(file, piece.path, piece.start), piece, piece.start)
            while window.fill(1):
                start, searched, dropped = window.offset, size - window.offset % size - 1, 0
                window.fill(searched + TAIL_BYTES)
                while (found := window.buffer.find(self.boundary, searched)) < 0 and not window.over:
                    searched = max(len(window.buffer) - 1, searched)
                    if len(window.buffer) > MAX_HELD_BYTES or dropped:
                        dropped += len(window.take(searched))
                        searched = 0
                    window.fill(max(2 * len(window.buffer), SEARCH_BYTES))
                content = window.take(found + 1 if found >= 0 else len(window.buffer))
                yield Piece(piece.path, start, window.offset, len(content), None if dropped else content)

    @contextmanager
    def opened(self, piece: Piece) -> Iterator[ByteFile]:
        """Open the file of a piece, or what was read of it already."""
        if piece.content is None:
            with self.storage.open(piece.path) as file:
                yield file
        else:
            yield HeldBytes(piece.content, piece.start)

    @abstractmethod
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        """Yield the documents that begin in `piece` from an address on; its beginning is (`piece.start`, True).

        Raises:
            DataError: The file cannot be read, ends early, or is damaged in a way that hides where records begin.
        """

    def begin(self, file: ByteFile, path: str, offset: int) -> ByteFile:
        """Return an open file that is read from `offset` on, after a look at its first bytes where that is 0.

        Raises:
            DataError: By these bytes it is a file of another kind.
        """
        if offset:
            return file
        head = file.read(TEXT_HEAD_BYTES)
        self.look(path, head)
        return Rewound(file, head)

    def look(self, path: str, head: bytes) -> None:
        """Refuse a file by how it begins, uncompressed. Raises DataError."""
        look_at_head(path, head)

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int | None]:
        """Return (record, byte in the file) of byte `index` of the document data that begins at `offset`.

        Reads the file again: for error messages only.
        """
        return None, None


@dataclass(frozen=True)
class FieldReader(Reader):
    """A format whose records have named fields or columns, so that a label may stand beside the document.

    Attributes:
        field: Holds the document.
        label: Where and what labels are; None: they are not read.
        numbers: Whether whole numbers are documents too, as decimal text.
    """

    field: str
    label: Label | None = None
    numbers: bool = False


# Each module of a format registers its class. None: token shards, which are mapped and not read.
READERS: Registry[type[Reader] | None] = Registry("format")
READERS.add("tokens", says="shards by `cistron prepare`")(None)


def located(reader: Reader, error: DataError, address: int) -> DataError:
    """Return an error of `Records` with its record's name, for a message: it may have to read much of the file."""
    record = reader.locate(error.file, address, 0)[0] if error.record is None else error.record
    return DataError(error.problem, file=error.file, record=record, offset=error.offset)


def wrong_byte(reader: Reader, path: str, address: int, index: int, problem: str) -> DataError:
    """Return an error about byte `index` of the document data at `address`, with its record and its place."""
    record, offset = reader.locate(path, address, index)
    return DataError(problem, file=path, record=record, offset=offset)


def whole_piece(file: DataFile) -> list[Piece]:
    """Return a file uncut, or nothing if it has no bytes."""
    end = None if is_compressed(file.path) else file.size
    return [Piece(file.path, 0, end, file.size)] if file.size else []


def even_pieces(file: DataFile, length: int, count: int) -> list[Piece]:
    """Return `count` pieces of a file that has `length` bytes or rows; fewer if it has not as many."""
    count = max(min(count, length), 1)
    bounds = [place * length // count for place in range(count + 1)]
    stored = [place * file.size // count for place in range(count + 1)]
    return [Piece(file.path, bounds[place], bounds[place + 1], stored[place + 1] - stored[place]) for place in range(count)]


def ends_early(piece: Piece, at: int) -> DataError:
    """Return the error of a file that ends at a byte within a piece."""
    return DataError(f"ends at byte {at}, and had {piece.end} bytes when it was found", file=piece.path)


class HeldBytes:
    """A part of a file in memory, as a file."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content, self._start, self._at = content, start, 0

    def seek(self, offset: int, /) -> int:
        """Go to a byte of the file, which lies in the part."""
        self._at = offset - self._start
        return offset

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the part."""
        data = self._content[self._at : self._at + size]
        self._at += len(data)
        return data


class Window:
    """A piece seen through a buffer that moves forward; a byte order mark at the file's beginning is passed over.

    With a `boundary`, the piece stands for the records that begin between its bounds. What lies before the first of
    them is passed over, and the last one is read to its end.

    Args:
        file: Of the piece.
        piece: Its part.
        offset: Where to begin: at the piece's start, or within one of its records.
        boundary: Of its reader; None: the piece is bounded by its bytes.
        first: Whether a record begins at `offset`, or somewhere behind it where that is the piece's start.

    Attributes:
        buffer: Bytes read and not yet taken.
        offset: Of the buffer's first byte.
        over: Whether nothing follows the buffer.

    Raises:
        DamagedError: The file ends before `offset`; `FileStore.open` names the file.
    """

    def __init__(self, file: ByteFile, piece: Piece, offset: int, boundary: bytes | None = None, first: bool = True) -> None:
        self.buffer = b""
        self.offset = offset
        self.over = False
        self._file = file
        self._piece = piece
        self._boundary = boundary if piece.content is None else None
        self._last = b""  # the byte before the next one of the file
        self._tail = TAIL_BYTES
        if first and piece.end is not None and offset >= piece.end:
            self.over = True
        elif self._boundary is not None and first and offset == piece.start > 0:
            self._find_first(self._boundary)
        elif (at := file.seek(offset)) < offset:
            raise DamagedError(f"the file has {at} bytes uncompressed, and byte {offset} was asked for")
        elif offset == 0 and self.fill(len(BOM)) and self.buffer.startswith(BOM):
            self.take(len(BOM))

    def _find_first(self, boundary: bytes) -> None:
        """Move to the first record that begins in the piece."""
        begin, end = self._piece.start - 1, self._piece.end
        assert end is not None
        self._file.seek(begin)
        data = b""
        while begin < end - 1:
            more = self._file.read(min(SEARCH_BYTES, end - begin + len(boundary)))
            if not more:
                raise ends_early(self._piece, begin + len(data))
            data += more
            if (found := data.find(boundary)) >= 0:
                begin += found + 1
                if begin >= end:
                    break
                # What was read behind the piece is looked at again.
                self.buffer, self.offset = data[found + 1 : found + 1 + end - begin], begin
                self._last = self.buffer[-1:]
                self._file.seek(begin + len(self.buffer))
                return
            begin += len(data) - len(boundary) + 1
            data = data[len(data) - len(boundary) + 1 :]
        self.over, self.offset = True, end

    def fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes or the piece is over; tell whether it holds any.

        Raises:
            DataError: The file ends before the piece does.
        """
        end = self._piece.end
        while (missing := size - len(self.buffer)) > 0 and not self.over:
            at = self.offset + len(self.buffer)
            behind = end is not None and at >= end
            if behind and self._boundary is None:
                self.over = True
                break
            wanted = missing if end is None else min(missing, self._tail) if behind else min(missing, end - at)
            more = self._file.read(wanted)
            if len(more) < wanted:
                if end is not None and at + len(more) < end:
                    raise ends_early(self._piece, at + len(more))
                self.over = True
            if behind:
                assert self._boundary is not None
                self._tail *= 2
                if (found := (self._last + more).find(self._boundary)) >= 0:
                    more, self.over = more[: max(found + 1 - len(self._last), 0)], True
            self._last = more[-1:] or self._last
            self.buffer = self.buffer + more if self.buffer else more
        return bool(self.buffer)

    def take(self, count: int) -> bytes:
        """Move over `count` bytes of the buffer."""
        data = self.buffer[:count]
        self.buffer = self.buffer[count:]
        self.offset += len(data)
        return data
