"""How files begin and end their lines: marks are no letters, and what is no text of the format says what it is."""

import gzip
import lzma
import struct
from pathlib import Path

import pytest
from cistron.datasets.errors import DataConfigError, DataError
from cistron.datasets.files import FileStore
from cistron.datasets.readers import DocumentJoiner, SequenceFiles, build_reader, located
from cistron.tests.helpers.corpora import compress

STORAGE = FileStore()
BOM = b"\xef\xbb\xbf"
CONTENT = {
    "text": (b"a\n", [b"a\n"]),
    "lines": (b"a\nb\n", [b"a", b"b"]),
    "jsonl": (b'{"text": "a"}\n{"text": "b"}\n', [b"a", b"b"]),
    "tsv": (b"text\tn\na\t1\nb\t2\n", [b"a", b"b"]),
    "csv": (b'text,n\na,1\n"b",2\n', [b"a", b"b"]),
    "fasta": (b">r\na\n>s\nb\n", [b"a", b"b"]),
}
ENDED_BY_CR = [format for format in CONTENT if format != "text"]


def read(format: str, path: Path, data: bytes) -> list[bytes]:
    path.write_bytes(data)
    reader, join = build_reader(format, "text", STORAGE), DocumentJoiner()
    documents = []
    for file in STORAGE.expand([str(path)]):
        for piece in reader.split(file, 2**30):
            for group in map(join, reader.groups(piece, piece.start, True)):
                documents += group.documents
                if group.error is not None:
                    raise located(reader, group.error, group.bad_offset)
    return documents


@pytest.mark.parametrize("suffix", ["", ".gz", ".bgz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize("format", CONTENT)
def test_a_byte_order_mark_is_never_a_letter(format: str, suffix: str, tmp_path: Path) -> None:
    data, documents = CONTENT[format]
    assert read(format, tmp_path / f"x{suffix}", compress(suffix, BOM + data)) == documents
    utf16 = compress(suffix, data.decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"this is text in UTF-16 or UTF-32 by its first bytes; convert it to UTF-8"):
        read(format, tmp_path / f"y{suffix}", utf16)


def test_a_mark_alone_is_nothing(tmp_path: Path) -> None:
    assert read("text", tmp_path / "x", BOM) == [b""]
    for format in ("lines", "jsonl", "fasta"):
        assert read(format, tmp_path / "x", BOM) == []


@pytest.mark.parametrize("format", ENDED_BY_CR)
def test_lines_that_end_by_carriage_returns_are_told(format: str, tmp_path: Path) -> None:
    data, documents = CONTENT[format]
    with pytest.raises(DataError, match=r"byte \d+: its lines end by a carriage return alone, .* as `tr '\\r' '\\n'` does"):
        read(format, tmp_path / "x", data.replace(b"\n", b"\r"))
    assert read(format, tmp_path / "x", data.replace(b"\n", b"\r\n")) == documents
    assert read("text", tmp_path / "x", b"a\rb\r") == [b"a\rb\r"], "where lines mean nothing"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (gzip.compress(b"x"), "this is gzip by its first bytes, and its name does not say so: it must end in .gz"),
        (lzma.compress(b"x"), "this is xz .* must end in .xz"),
        (b"PAR1....", 'a parquet file by its first bytes; read it with format = "parquet"'),
        (b"PK\x03\x04....", "a zip archive"),
        (b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "a tar archive by its first bytes; unpack it"),
        (struct.pack("<4I", 0x1A412743, 0, 1, 0), "a 2bit genome by its first bytes; convert it to FASTA by `twoBitToFa"),
        (struct.pack(">4I", 0x1A412743, 0, 1, 0), "a 2bit genome"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "a pointer of git-lfs by its first bytes; run `git lfs",
        ),
        (b"\x93NUMPY\x01\0", "a numpy file"),
    ],
    ids=["gzip", "xz", "parquet", "zip", "tar", "2bit", "2bit of other bytes", "git-lfs", "numpy"],
)
@pytest.mark.parametrize("format", CONTENT)
def test_what_is_no_text_is_told_by_its_first_bytes(format: str, head: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"x, byte 0: .*{said}"):
        read(format, tmp_path / "x", head + b"rest\n")
    if head[:2] != b"\x1f\x8b":
        with pytest.raises(DataError, match=r"x.gz, byte 0: .*(by its first bytes|compressed twice)"):
            read(format, tmp_path / "x.gz", gzip.compress(head))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"@r1 x\nACGTN\n+\n!!!!!\n@r2\nAC\n+r2\n!!\n", "this is FASTQ, with qualities; convert it, as `seqtk"),
        (b"@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:9\n", "this is SAM"),
        (
            b"LOCUS       NC_1  9 bp DNA\nORIGIN\n  1 acgt\n//\n",
            r"this is GenBank, .* SeqIO.convert\('x.gb', 'genbank'|this is GenBank",
        ),
        (b"\nID   X56734; SV 1; linear\nSQ\n", "this is EMBL or UniProt"),
        (b"##gff-version 3\nchr1\t.\n", "this is GFF or VCF"),
    ],
)
def test_other_formats_of_sequences_are_refused_by_name(data: bytes, said: str, tmp_path: Path) -> None:
    for name, content in (("x.fa", data), ("x.fa.gz", gzip.compress(data)), ("y.fa", BOM + data)):
        with pytest.raises(DataError, match=f"{name}, byte 0: {said}"):
            read("fasta", tmp_path / name, content)


def test_reads_named_as_such_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    for name, said in (("x.fq", "FASTQ"), ("x.fastq.gz", "FASTQ"), ("x.GBK", "GenBank")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataConfigError, match=f"{name}: by its name this is {said}"):
            SequenceFiles([str(tmp_path / name)])
    (tmp_path / "y.fq").write_bytes(b">r\nACGT\n")
    assert [one.data for one in SequenceFiles([str(tmp_path / "y.fq")], format="fasta")] == [b"ACGT"]


@pytest.mark.parametrize(
    ("data", "place", "said"),
    [
        (b">a\nACGT>b some words\nTT\n", "record a, byte 7", "'>' within a line of the sequence: a record begins here"),
        (b">a\nACGT\nGG>b\n", "record a, byte 10", "'>' within a line of the sequence"),
        (b">a\nACGT\n>b\nAC\x1a", "record b, byte 13", "the control byte 0x1a in a line of the sequence; remove it"),
        (b">a\nAC\0GT\n", "record a, byte 5", "a NUL byte in a line of the sequence"),
        (b">a\nACGT\n>b\rTTTT\r>c\rGG\n", "record b.*, byte 10", "a carriage return within a header"),
        (b">a\nACGT\r>b\rGG\n", "record a, byte 8", "'>' within a line"),
        (b">a\nAC\n" + BOM + b">b\nGG\n", "record a, byte 9", "'>' within a line"),
    ],
)
def test_files_that_were_joined_badly_are_bad_records(data: bytes, place: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"x.fa, {place}: {said}"):
        read("fasta", tmp_path / "x.fa", data)


def test_a_return_in_the_header_of_a_long_record_is_seen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"record b.*, byte 11: a carriage return within a header"):
        read("fasta", tmp_path / "x.fa", b">a\nACGTA\n>b\rTT\n" + b"A" * 3_000_000)


def test_a_line_within_a_long_record_may_hold_no_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="record b, byte 2500012: '>' within a line of the sequence"):
        read("fasta", tmp_path / "x.fa", b">a\nACGTA\n>b\n" + b"A" * 2_500_000 + b">c\nAA\n")
