"""Mangled files of every format and compression: the documents of a parser that reads all at once, or an error.

A file that the independent parser below takes is read to the same documents and bad records, whole, in pieces and from
any address on; of one that it refuses a DataError is raised. Nothing else is, and no file ends early in silence.
"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.readers import Reader, Records
from cistron.datasets.readers.fasta import FastaReader
from cistron.datasets.readers.lines import JsonlReader
from cistron.datasets.readers.parquet import ParquetReader
from cistron.datasets.readers.text import TextReader
from cistron.tests.helpers.corpora import compress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STORAGE = FileStore()
DOCUMENTS = ["ACGT" * 20, "a", "", "Caché\t>" * 12, "TTgg\u2028", "C" * 130]
NAMES = itertools.count()
BGZIP_HEAD = b"\x1f\x8b\x08\x04\6\0BC\2\0"
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)


Document = bytes | None  # None: a bad record


def _jsonl() -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False).encode() + b"\r\n" for text in DOCUMENTS)


def _fasta() -> bytes:
    return b"".join(b">r%d some text\n%s\n" % (n, text.encode()) for n, text in enumerate(DOCUMENTS))


def _parquet() -> bytes:
    target = io.BytesIO()
    table = pa.table({"id": list(range(7)), "text": pa.array([*DOCUMENTS, None], pa.string())})
    pq.write_table(table, target, row_group_size=3, write_page_checksum=True)
    return target.getvalue()


BASES = {"text": "".join(DOCUMENTS).encode(), "jsonl": _jsonl(), "fasta": _fasta(), "parquet": _parquet()}


@st.composite
def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """Return `data` after up to three bit flips, cuts, splices, repetitions or insertions."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        other = draw(st.integers(0, len(data)))
        low, high = sorted((at, other))
        match draw(st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "overwrite"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:low] + data[high:]
            case "repeat":
                data = data[:high] + data[low:]
            case "insert":
                data = data[:at] + draw(st.binary(max_size=40)) + data[at:]
            case "overwrite":
                new = draw(
                    st.sampled_from([b"\0" * 9, b"\xff" * 9, b"\n>", b"\n\n", b"\r", b"\xef\xbb\xbf", b'"}', b'{"text":'])
                )
                data = data[:at] + new + data[at + len(new) :]
    return data


def _inflations(suffix: str, data: bytes) -> list[bytes | None]:
    """Return what independent programs make of compressed bytes, None where one finds them damaged or not all there."""
    if suffix == ".zst":
        return [_arrow(data, "zstd")]
    if suffix == ".bgz" and data[:4] + data[10:16] == BGZIP_HEAD:
        return [_bgzip(data)]
    if suffix in (".xz", ".bz2"):
        return [
            _members(
                data,
                bz2.BZ2Decompressor if suffix == ".bz2" else partial(lzma.LZMADecompressor, lzma.FORMAT_XZ),
                suffix == ".xz",
            )
        ]
    # Only one of them takes zeros between members, only the other looks at reserved flags.
    return [_arrow(data, "gzip"), _gzip(data)] if suffix else [data]


def _arrow(data: bytes, name: str) -> bytes | None:
    try:
        return bytes(pa.input_stream(pa.BufferReader(data), compression=name).read())
    except OSError:
        return None


def _members(data: bytes, start: Callable[[], Any], padded: bool) -> bytes | None:
    found = b""
    while data:
        member = start()
        try:
            found += member.decompress(data)
        except (OSError, lzma.LZMAError):
            return None
        if not member.eof:
            return None
        data = member.unused_data
        while padded and data.startswith(b"\0\0\0\0"):
            data = data[4:]
    return found


def _gzip(data: bytes) -> bytes | None:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def _bgzip(data: bytes) -> bytes | None:
    """Walk over the sizes that the blocks state; the last one must be empty."""
    at, parts = 0, [b"."]
    while at < len(data):
        if data[at : at + 4] + data[at + 10 : at + 16] != BGZIP_HEAD or at + 18 > len(data):
            return None
        end = at + 1 + int.from_bytes(data[at + 16 : at + 18], "little")
        part = _gzip(data[at:end]) if end <= len(data) else None
        # one member in a block: cut anywhere, it is none
        if part is None or _gzip(data[at : end - 1]) is not None or len(part) != int.from_bytes(data[end - 4 : end], "little"):
            return None
        parts.append(part)
        at = end
    return None if parts[-1] else b"".join(parts[1:])


def _parse(format: str, data: bytes) -> list[Document] | None:
    """Return the documents of uncompressed bytes, by another way than the readers'."""
    if format != "parquet":
        data = data.removeprefix(b"\xef\xbb\xbf")
    if format == "text":
        return [data]
    if format == "jsonl":
        return [_parse_line(line) for line in data.split(b"\n") if line.strip()]
    if format == "parquet":
        try:
            metadata, _ = pq.read_metadata(pa.BufferReader(data)), pq.read_schema(pa.BufferReader(data)).names
            column = pq.read_table(pa.BufferReader(data), columns=["text"], page_checksum_verification=True)["text"]
            # Arrow does not mind a footer that contradicts itself.
            groups = sum(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
            whole = len(column) == metadata.num_rows == groups
            return list(column.cast(pa.binary()).to_pylist()) if whole else None
        except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError):
            return None
    documents: list[Document] = []
    before, *records = re.split(rb"^>", data, flags=re.MULTILINE)
    if before.strip():
        documents.append(None)
    for record in records:
        header, *lines = record.split(b"\n")
        residues = b"".join(lines).replace(b"\r", b"")
        bad = not residues or min(residues) <= 0x20 or b">" in residues or any(line.startswith(b";") for line in lines)
        bad = bad or b"\r" in header[:-1]
        documents.append(None if bad else residues)
    return documents


def _parse_line(line: bytes) -> Document:
    try:
        text = json.loads(line.decode("utf-8-sig"))["text"]
        return text.encode() if isinstance(text, str) else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _flat(groups: Iterator[Records]) -> list[tuple[Document, int, bool, bool]]:
    """Return stretches and bad records with their offset, and whether they open and end a document."""
    found: list[tuple[Document, int, bool, bool]] = []
    for group in groups:
        for place, document in enumerate(group.documents):
            opens, ends = place > 0 or group.first, place < len(group.documents) - 1 or group.last
            found.append((document, group.offsets[place], opens, ends))
        if group.error is not None:
            found.append((None, group.bad_offset, not group.continues_bad, True))
    return found


def _join(stretches: list[tuple[Document, int, bool, bool]]) -> list[Document]:
    documents: list[Document] = []
    ended = True
    for document, _, opens, ends in stretches:
        assert opens == ended
        if opens:
            documents.append(document)
        else:
            documents[-1] = None if document is None else (documents[-1] or b"") + document
        ended = ends
    assert ended
    return documents


def _reader(format: str, size: int) -> Reader:
    if format == "text":
        return TextReader(STORAGE, group_bytes=size)
    if format == "fasta":
        return FastaReader(STORAGE, group_bytes=size)
    return (JsonlReader if format == "jsonl" else ParquetReader)(STORAGE, "text", group_bytes=size)


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        *itertools.product(["text", "jsonl", "fasta"], ["", ".gz", ".zst", ".bgz"]),
        ("jsonl", ".xz"),
        ("text", ".bz2"),
        ("parquet", ""),
    ],
)
@FUZZ
@given(data=st.data())
def test_a_mangled_file_gives_what_another_parser_finds_or_a_data_error(
    format: str, suffix: str, tmp_path: Path, data: st.DataObject
) -> None:
    content = BASES[format]
    if data.draw(st.booleans(), "mangle before compression"):
        content = data.draw(mangled(content))
    content = compress(suffix, content)
    if data.draw(st.booleans(), "mangle after compression"):
        content = data.draw(mangled(content))
    path = tmp_path / f"{next(NAMES)}{suffix}"
    path.write_bytes(content or b"\n")
    raws = _inflations(suffix, content or b"\n")
    expected = [None if raw is None else _parse(format, raw) for raw in raws]

    reader = _reader(format, data.draw(st.sampled_from([64, 2**20]), "group bytes"))
    target = data.draw(st.sampled_from([1, 50, 2**30]), "target")
    try:
        pieces = reader.split(STORAGE.expand([str(path)])[0], target)
        parts = [_flat(reader.groups(piece, piece.start, True)) for piece in pieces]
    except DataError as error:
        others = "a header line has more than|by its first bytes|compressed twice|a carriage return alone|this is (FASTQ|SAM)"
        if None in expected or re.search(others, error.problem):
            return
        raise
    finally:
        path.rename(tmp_path / f"read{suffix}")
    assert _join([stretch for part in parts for stretch in part]) in expected

    piece, stretches = data.draw(st.sampled_from([*zip(pieces, parts, strict=True)]), "piece")
    if stretches:
        place = data.draw(st.integers(0, len(stretches) - 1), "reopened at")
        _, offset, first, _ = stretches[place]
        again = piece._replace(path=str(tmp_path / f"read{suffix}"))
        assert _flat(reader.groups(again, offset, first)) == stretches[place:]
        record, byte = reader.locate(again.path, offset, 0)
        assert record is None or isinstance(record, (int, str))
        assert byte is None or byte >= offset
