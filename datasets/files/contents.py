"""What a file holds: by its first bytes, and inflated where it is xz or bzip2.

Files of other programs would be read as text, byte for byte. Python's own readers of xz and bzip2 take whatever follows
a member and is none for the end of the file.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..errors import DataError
from .bgzip import ByteFile, DamagedError
from .find import compression

HEAD_BYTES = 4096  # of a stored file, that are looked at
# Of a file of text. A line this long without a line feed is rare, and one with a carriage return rarer.
TEXT_HEAD_BYTES = 2**16
CR_ONLY = "its lines end by a carriage return alone, as on an old Macintosh; convert it, as `tr '\\r' '\\n'` does"
CHUNK = 2**16  # bytes read at once of a file that is inflated
SKIPPABLE = [bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)]  # frames of zstd that hold nothing
MAGIC = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *SKIPPABLE),
    "xz": (b"\xfd7zXZ\0",),
    # Of a block, or of the end where there is none.
    "bzip2": tuple(b"BZh%d" % size + begins for size in range(1, 10) for begins in (b"1AY&SY", b"\x17rE8P\x90")),
}
NAMED = {"gzip": ".gz", "zstd": ".zst", "xz": ".xz", "bzip2": ".bz2"}


class Foreign(NamedTuple):
    """A kind of file that holds no documents as they are read here.

    Attributes:
        name: What it is.
        starts: How it begins.
        remedy: What to do with it.
        at: The byte at which it begins so.
    """

    name: str
    starts: tuple[bytes, ...]
    remedy: str
    at: int = 0


UNPACK = "unpack it"
TABLE = "export it as jsonl or parquet"
KINDS = (
    Foreign("a parquet file", (b"PAR1",), 'read it with format = "parquet"'),
    Foreign("a zip archive", (b"PK\x03\x04",), UNPACK),
    Foreign("a tar archive", (b"ustar",), UNPACK, at=257),
    Foreign("a 7z archive", (b"7z\xbc\xaf\x27\x1c",), UNPACK),
    Foreign("lz4", (b"\x04\x22\x4d\x18",), "compress it by gzip, zstd, xz or bzip2"),
    Foreign("snappy", (b"\xff\x06\0\0sNaPpY",), "compress it by gzip, zstd, xz or bzip2"),
    Foreign(
        "text in UTF-16 or UTF-32", (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"), "convert it to UTF-8, as `iconv -t UTF-8` does"
    ),
    Foreign("a pointer of git-lfs", (b"version https://git-lfs.github.com/spec/",), "run `git lfs pull` where it was cloned"),
    Foreign("a 2bit genome", (b"\x1aA'C", b"C'A\x1a"), "convert it to FASTA by `twoBitToFa x.2bit x.fa`"),
    Foreign("a BAM file", (b"BAM\x01",), "convert it to FASTA by `samtools fasta x.bam > x.fa`"),
    Foreign("a CRAM file", (b"CRAM\x02", b"CRAM\x03"), "convert it to FASTA by `samtools fasta x.cram > x.fa`"),
    Foreign("a numpy file", (b"\x93NUMPY",), "make token shards of it by `cistron prepare --import tokens`"),
    Foreign("an HDF5 file", (b"\x89HDF\r\n\x1a\n",), TABLE),
    Foreign("an Arrow file", (b"ARROW1\0\0",), TABLE),
    Foreign("an Avro file", (b"Obj\x01",), TABLE),
    Foreign("an SQLite database", (b"SQLite format 3\0",), TABLE),
    Foreign("a PDF", (b"%PDF-1.", b"%PDF-2."), "extract its text"),
)


def compressed_by(head: bytes) -> str | None:
    """Return by which means bytes are compressed that begin so."""
    return next((name for name, starts in MAGIC.items() if head.startswith(starts)), None)


def foreign(path: str, head: bytes) -> str | None:
    """Return what a file holds that is no text, and what to do; None where nothing is seen.

    Args:
        path: Whose name tells whether it was inflated.
        head: How it begins, uncompressed.
    """
    if (means := compressed_by(head)) is not None:
        if compression(path) is None:
            return f"this is {means} by its first bytes, and its name does not say so: it must end in {NAMED[means]}"
        return f"it holds {means}, so that it was compressed twice; inflate it once"
    for kind in KINDS:
        if head[kind.at :].startswith(kind.starts):
            return f"this is {kind.name} by its first bytes; {kind.remedy}"
    return None


def miscompressed(path: str, stored: bytes) -> str | None:
    """Return in which way a file that is stored so is not compressed as its name says; None where it is."""
    if (means := compression(path)) is None or stored.startswith(MAGIC[means]):
        return None
    if (found := compressed_by(stored)) is not None:
        return f"its name says {means}, and its first bytes are of {found}: the name must end in {NAMED[found]}"
    what = next((f", but as {kind.name}" for kind in KINDS if stored[kind.at :].startswith(kind.starts)), "")
    return f"it does not begin as {means} does{what}; if it is not compressed, take that ending off its name"


class Rewound:
    """A file whose first bytes were read and are read again: what is compressed goes back at a cost."""

    def __init__(self, file: ByteFile, head: bytes) -> None:
        self._file, self._head, self._at = file, head, 0

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        if self._at >= len(self._head):
            return self._file.read(size)
        data = self._head[self._at : self._at + size]
        self._at += len(data)
        return data if len(data) == size else data + self._file.read(size - len(data))

    def seek(self, offset: int, /) -> int:
        """Go to a byte, and return its place or the file's size where there is none."""
        if self._at < len(self._head) and offset == self._at:
            return offset
        self._at = len(self._head)
        return self._file.seek(offset)


def look_at_head(path: str, head: bytes) -> None:
    """Refuse a file by how it begins, uncompressed. Raises DataError."""
    if (problem := foreign(path, head)) is not None:
        raise DataError(problem, file=path, offset=0)


def look_at_lines(path: str, head: bytes) -> None:
    """Refuse a file whose lines end by carriage returns alone. Raises DataError."""
    if b"\r" in head.rstrip(b"\r") and b"\n" not in head:
        raise DataError(CR_ONLY, file=path, offset=head.index(b"\r"))


class Decompressor(Protocol):
    """A member that is inflated, as `lzma` and `bz2` have it."""

    @property
    def eof(self) -> bool:
        """Whether the end of the member was met, so that what follows is another one."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether it gives nothing more without more stored bytes."""
        ...

    @property
    def unused_data(self) -> bytes:
        """Stored bytes behind its end."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return more of what the member holds."""
        ...


class InflatedFile:
    """A compressed file as its uncompressed bytes; going back inflates it again from its first.

    Args:
        raw: The file, as stored.
        begin: Begins a member.
        failures: What a member raises that is damaged.
        padding: Zeros may stand between members in multiples of so many; 0: not at all.
    """

    def __init__(self, raw: ByteFile, begin: Callable[[], Decompressor], failures: type[Exception], padding: int = 0) -> None:
        self._raw, self._begin, self._failures, self._padding = raw, begin, failures, padding
        self._member = begin()
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end.

        Raises:
            EOFError: The file ends within a member.
            DamagedError: It is damaged.
        """
        parts, missing = [], size
        while missing > 0 and (data := self._next(missing)):
            parts.append(data)
            missing -= len(data)
        self._at += size - missing
        return b"".join(parts)

    def seek(self, offset: int, /) -> int:
        """Go to a byte by inflating what lies before, and return its place, which is the size where there is none."""
        if offset < self._at:
            self._raw.seek(0)
            self._member, self._at = self._begin(), 0
        while self._at < offset and self.read(min(CHUNK, offset - self._at)):
            pass
        return self._at

    def _next(self, most: int) -> bytes:
        """Return some bytes, none at the end."""
        while True:
            stored = b""
            if self._member.eof:
                if not (stored := self._behind()):
                    return b""
                self._member = self._begin()
            elif self._member.needs_input and not (stored := self._raw.read(CHUNK)):
                raise EOFError
            try:
                data = self._member.decompress(stored, most)
            except self._failures as error:
                raise DamagedError(str(error)) from error
            if data:
                return data

    def _behind(self) -> bytes:
        """Return stored bytes from the beginning of the next member on, none where there is no other."""
        rest, zeros = self._member.unused_data or self._raw.read(CHUNK), 0
        while self._padding and rest and not (kept := rest.lstrip(b"\0")):
            zeros, rest = zeros + len(rest), self._raw.read(CHUNK)
        if self._padding and rest:
            zeros, rest = zeros + len(rest) - len(kept), kept
        if self._padding and zeros % self._padding:
            raise DamagedError(f"{zeros} zeros follow a member, where multiples of {self._padding} may")
        return rest
