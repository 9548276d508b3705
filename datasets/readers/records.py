"""What readers give: documents in groups of up to a MiB, each with an address from which it can be read again.

A reader is a pure function of (piece, offset, first): opened at the address of any document or stretch it yields that
one and all later ones, byte for byte, whatever was read before. Its memory does not grow with the length of a document.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, NamedTuple

from ...base import Registry
from ..documents import Content
from ..errors import DataError
from ..files import TEXT_HEAD_BYTES, BgzfFile, ByteFile, DamagedError, DataFile, FileStore, Rewound, is_compressed, look_at_head
from .labels import Label
from .pieces import Piece, record_starts

GROUP_BYTES = 2**20
GROUP_DOCUMENTS = 1024
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
    """

    documents: list[bytes]
    offsets: list[int]
    first: bool = True
    last: bool = True
    error: DataError | None = None
    bad_offset: int = -1
    label_values: list[float] | None = None
    headers: Sequence[bytes] = ()

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
        content: What the bytes of its documents are; class attribute.
        endings: Of the names of its files, compression aside; class attribute.
        boundary: Its first byte ends a record, the one after that begins the next: there files can be cut; None: they
            cannot; class attribute.
        cut: Where a file can be cut into pieces for several lanes, as a message ends: "is split ..."; class attribute.
    """

    storage: FileStore
    group_bytes: int = field(default=GROUP_BYTES, kw_only=True)
    content: ClassVar[Content] = "text"
    endings: ClassVar[tuple[str, ...]] = ()
    boundary: ClassVar[bytes | None] = None
    cut: ClassVar[str] = "never"

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut a file at record starts into pieces of about `target` stored bytes; into one where it cannot be cut."""
        if self.boundary is None or file.size <= target:
            return whole_piece(file)
        with self.storage.open(file.path, whole=False) as opened:
            if isinstance(opened, BgzfFile):
                size = opened.size
            elif is_compressed(file.path):
                return whole_piece(file)
            else:
                size = file.size
            # Of a compressed file the size of a piece is its share, rounded so that all of them make up the file.
            starts = record_starts(opened, size, self.boundary, max(1, target * size // file.size))
        bounds = [*starts, size]
        stored = [bound * file.size // max(1, size) for bound in bounds]
        return [
            Piece(file.path, start, end, below - above)
            for (start, end), (above, below) in zip(pairwise(bounds), pairwise(stored), strict=True)
        ]

    @abstractmethod
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        """Yield the documents of `piece` from an address on; its beginning is (`piece.start`, True).

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


class Window:
    """A piece seen through a buffer that moves forward; a byte order mark at the file's beginning is passed over.

    Attributes:
        buffer: Bytes read and not yet taken.
        offset: Of the buffer's first byte.
        over: Whether nothing follows the buffer.

    Raises:
        DamagedError: The file ends before `offset`; `FileStore.open` names the file.
    """

    def __init__(self, file: ByteFile, piece: Piece, offset: int) -> None:
        if (at := file.seek(offset)) < offset:
            raise DamagedError(f"the file has {at} bytes uncompressed, and byte {offset} was asked for")
        self.buffer = b""
        self.offset = offset
        self.over = False
        self._file = file
        self._piece = piece
        if offset == 0 and self.fill(len(BOM)) and self.buffer.startswith(BOM):
            self.take(len(BOM))

    def fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes or the piece is over; tell whether it holds any.

        Raises:
            DataError: The file ends before the piece does.
        """
        end = self._piece.end
        missing = size - len(self.buffer)
        if missing > 0 and not self.over:
            at = self.offset + len(self.buffer)
            more = self._file.read(missing if end is None else min(missing, end - at))
            self.buffer = self.buffer + more if self.buffer else more
            at += len(more)
            self.over = len(more) < missing if end is None else at >= end
            if end is not None and len(more) < missing and not self.over:
                raise DataError(f"ends at byte {at}, and had {end} bytes when it was found", file=self._piece.path)
        return bool(self.buffer)

    def take(self, count: int) -> bytes:
        """Move over `count` bytes of the buffer."""
        data = self.buffer[:count]
        self.buffer = self.buffer[count:]
        self.offset += len(data)
        return data
