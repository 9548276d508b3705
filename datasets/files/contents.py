"""What a file holds, by its first bytes: compressed data, and files of other programs that would be read as text."""

from typing import NamedTuple

from .find import compression

HEAD_BYTES = 4096  # of a file, that are looked at
SKIPPABLE = [bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)]  # frames of zstd that hold nothing
MAGIC = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *SKIPPABLE),
    "xz": (b"\xfd7zXZ\0",),
    "bzip2": tuple(b"BZh%d1AY&SY" % size for size in range(1, 10)),
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
