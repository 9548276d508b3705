"""A reader yields every document once, from any address, in bounded memory; bad files are refused by place."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.fasta import FastaReader
from cistron.datasets.files import Storage
from cistron.datasets.jsonl import JsonlReader
from cistron.datasets.pieces import Piece
from cistron.datasets.readers import Reader, Records, build_reader
from cistron.datasets.text import TextReader
from cistron.tests.datasets.corpus import write_bytes, write_fasta, write_jsonl
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

STORAGE = Storage()
TINY: dict[str, Reader] = {
    "text": TextReader(STORAGE, group_bytes=16),
    "jsonl": JsonlReader(STORAGE, "text", group_bytes=16),
    "fasta": FastaReader(STORAGE, group_bytes=16),
}
FORMATS = pytest.mark.parametrize("format", ["text", "jsonl", "fasta"])
COMPRESSION = pytest.mark.parametrize("suffix", ["", ".gz"])


def _write(format: str, path: Path, documents: list[str]) -> str:
    if format == "text":
        return write_bytes(path, "".join(documents).encode())
    return write_jsonl(path, documents) if format == "jsonl" else write_fasta(path, documents, header="r{}")


def _read(reader: Reader, path: str, target: int = 2**30) -> list[bytes]:
    """Read all documents of a file through its pieces."""
    parts = [piece for file in STORAGE.expand([path]) for piece in reader.split(file, target)]
    return [document for piece in parts for document in _join(reader.groups(piece, piece.start, True))]


def _join(groups: Iterable[Records]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for group in groups:
        if group.error is not None:
            raise group.error
        for place, document in enumerate(group.documents):
            assert (place > 0 or group.first) == (not parts)
            parts.append(document)
            if place < len(group.documents) - 1 or group.last:
                yield b"".join(parts)
                parts = []
    assert not parts


def _stretches(groups: Iterable[Records]) -> list[tuple[bytes, int, bool, bool]]:
    """Take groups apart: documents or stretches with their offset, and whether they open and end their document."""
    return [
        (document, offset, place > 0 or group.first, place < len(group.documents) - 1 or group.last)
        for group in groups
        for place, (document, offset) in enumerate(zip(group.documents, group.offsets, strict=True))
    ]


def _parse_fasta(text: str) -> list[bytes]:
    """Read FASTA by lines, all in memory."""
    documents: list[list[str]] = []
    for line in text.split("\n"):
        if line.startswith(">"):
            documents.append([])
        elif line.strip():
            documents[-1].append(line.strip())
    return ["".join(lines).encode() for lines in documents]


@COMPRESSION
@FORMATS
def test_documents_are_read_as_they_were_written(format: str, suffix: str, tmp_path: Path) -> None:
    documents = ["ACGT" * 30, "a", "Caché" * 9, "TTgg"]
    path = _write(format, tmp_path / f"file{suffix}", documents)
    expected = ["".join(documents)] if format == "text" else documents
    assert _read(build_reader(format, "text", STORAGE), path) == [document.encode() for document in expected]
    assert _read(TINY[format], path) == [document.encode() for document in expected]


@COMPRESSION
@FORMATS
def test_a_file_reopened_at_any_address_goes_on_identically(format: str, suffix: str, tmp_path: Path) -> None:
    path = _write(format, tmp_path / f"file{suffix}", ["ACGT" * 30, "a", "", "TTgg", "C" * 47, "G" * 48, "T" * 49])
    reader = TINY[format]
    piece = Piece(path, 0, None if suffix else Path(path).stat().st_size, 1)
    stretches = _stretches(reader.groups(piece, 0, True))
    assert len(stretches) > 5
    for place, (_, offset, first, _) in enumerate(stretches):
        assert _stretches(reader.groups(piece, offset, first)) == stretches[place:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    records=st.lists(st.text(alphabet="AC>\n\r", max_size=60), max_size=8), size=st.integers(8, 40), final_newline=st.booleans()
)
def test_fasta_agrees_with_a_parser_by_lines(records: list[str], size: int, final_newline: bool, tmp_path: Path) -> None:
    # A lone carriage return inside a line is not a line end to the reference, so only those before a line feed stay.
    records = ["".join(line.replace("\r", "") + "\r\n" * ("\r" in line) for line in r.split("\n")) for r in records]
    text = "\n" + "\n".join(f">h{number}\n{record}" for number, record in enumerate(records)) + "\n" * final_newline
    assume(all(len(line) < size - 1 for line in text.split("\n") if line.startswith(">")))
    path = tmp_path / "x.fasta"
    path.write_bytes(text.encode())
    piece = Piece(str(path), 0, path.stat().st_size, 1)
    reader = FastaReader(STORAGE, group_bytes=size)
    stretches = _stretches(reader.groups(piece, 0, True))
    assert list(_join(reader.groups(piece, 0, True))) == _parse_fasta(text)
    for place, (_, offset, first, _) in enumerate(stretches):
        assert _stretches(reader.groups(piece, offset, first)) == stretches[place:]


@pytest.mark.parametrize("format", ["jsonl", "fasta"])
@pytest.mark.parametrize("target", [1, 50, 333, 10**6])
def test_pieces_of_a_split_file_hold_each_document_once(format: str, target: int, tmp_path: Path) -> None:
    documents = [letter * length for letter, length in zip(itertools.cycle("ACGT"), range(1, 90), strict=False)]
    path = _write(format, tmp_path / "file", documents)
    reader = build_reader(format, "text", STORAGE)
    [file] = STORAGE.expand([path])
    parts = reader.split(file, target)
    assert len(parts) > 1 or target == 10**6
    assert all(before.end == after.start for before, after in itertools.pairwise(parts))
    assert sum(part.size for part in parts) == file.size
    assert _read(reader, path, target) == [document.encode() for document in documents]


def test_a_group_holds_at_most_1024_documents_and_a_mebibyte(tmp_path: Path) -> None:
    for format in ("jsonl", "fasta"):
        path = _write(format, tmp_path / format, ["A"] * 3000 + ["C" * 400_000] * 5 + ["G" * 2**20])
        reader = build_reader(format, "text", STORAGE)
        groups = list(reader.groups(Piece(path, 0, Path(path).stat().st_size, 1), 0, True))
        assert len(list(_join(groups))) == 3006
        assert max(len(group.documents) for group in groups) == 1024
        assert max(sum(map(len, group.documents)) for group in groups) <= 2**20


def test_blank_lines_of_jsonl_are_skipped(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.jsonl", b'\n  \n{"text": "a"}\n\r\n{"text": "b"}')
    assert _read(build_reader("jsonl", "text", STORAGE), path) == [b"a", b"b"]


@pytest.mark.parametrize("format", ["jsonl", "fasta"])
def test_a_byte_order_mark_is_no_part_of_the_first_record(format: str, tmp_path: Path) -> None:
    path = Path(_write(format, tmp_path / "x", ["ACGT", "C"]))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert _read(build_reader(format, "text", STORAGE), str(path)) == [b"ACGT", b"C"]
    if format == "fasta":
        assert build_reader("fasta", "", STORAGE).locate(str(path), 3, 0) == ("r0", 7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("[" * 200_000, "not valid JSON", id="nested"),
        ('{"text": "a"', "not valid JSON"),
        ('{"text": "a"} 1', "not valid JSON"),
        ('{"body": "a"}', "no field 'text'; its fields are: 'body'"),
        ('{"text": 3}', "must be a string, found a int"),
        ("[1]", "expected a JSON object, found a list"),
        ('"text"', "expected a JSON object, found a str"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named_by_number_and_byte_and_passed_over(line: str, message: str, tmp_path: Path) -> None:
    good = '{"text": "fine"}\n'
    path = write_bytes(tmp_path / "x.jsonl", (good * 4 + line + "\n" + good).encode())
    # The number is that of the file's line, also where the piece begins later.
    piece = Piece(path, 2 * len(good), Path(path).stat().st_size, 1)
    groups = list(build_reader("jsonl", "text", STORAGE).groups(piece, piece.start, True))
    [bad] = [group for group in groups if group.error is not None]
    assert isinstance(bad.error, DataError)
    assert message in bad.error.problem
    assert (bad.error.file, bad.error.record, bad.error.offset, bad.bad_offset) == (path, 5, 4 * len(good), 4 * len(good))
    assert [len(group.documents) for group in groups] == [2, 1]


def test_text_before_the_first_fasta_header_is_one_bad_record(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.fasta", b"\nACGT\nACGTTTTACGTACGTACGT\n>late\nAC\n")
    piece = Piece(path, 0, Path(path).stat().st_size, 1)
    for reader in (build_reader("fasta", "", STORAGE), TINY["fasta"]):
        bad, good = reader.groups(piece, 0, True)
        assert isinstance(bad.error, DataError)
        assert "expected a header line beginning with '>', found b'ACGT" in bad.error.problem
        assert (bad.documents, bad.error.offset, bad.bad_offset) == ([], 1, 1)
        assert good.documents == [b"AC"]
        assert [group.bad_offset for group in reader.groups(piece, 1, True)] == [1, -1]


@FORMATS
def test_truncated_or_foreign_gzip_is_refused(format: str, tmp_path: Path) -> None:
    whole = Path(_write(format, tmp_path / "whole.gz", ["ACGT" * 500, "C"])).read_bytes()
    for damage in (whole[:-9], b"plain text"):
        (tmp_path / "bad.gz").write_bytes(damage)
        with pytest.raises(DataError, match=r"bad\.gz: the gzip data is truncated or damaged"):
            _read(build_reader(format, "text", STORAGE), str(tmp_path / "bad.gz"))


@FORMATS
def test_a_file_that_has_become_shorter_is_refused(format: str, tmp_path: Path) -> None:
    path = _write(format, tmp_path / "x", ["ACGT"] * 9)
    size = Path(path).stat().st_size
    with pytest.raises(DataError, match=f"ends at byte {size}, and had {size + 7} bytes when it was found"):
        list(build_reader(format, "text", STORAGE).groups(Piece(path, 0, size + 7, 1), 0, True))


def test_a_byte_of_a_document_is_located_in_its_file(tmp_path: Path) -> None:
    sequence = "ACGTacgtNNN" * 5
    path = write_fasta(tmp_path / "x.fasta", ["TT", sequence], width=10, header="r{}")
    raw = Path(path).read_bytes()
    stretches = _stretches(TINY["fasta"].groups(Piece(path, 0, len(raw), 1), 0, True))[1:]
    assert len(stretches) > 3
    for data, place, _, _ in stretches:
        for index, letter in enumerate(data):
            record, offset = TINY["fasta"].locate(path, place, index)
            assert offset is not None
            assert (record, raw[offset]) == ("r1", letter)
    text = write_bytes(tmp_path / "x.txt", b"hello")
    assert TINY["text"].locate(text, 3, 1) == (None, 4)
