"""A reader yields every document once, from any address, in bounded memory; bad files are refused by place."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from cistron.datasets import pieces, readers
from cistron.datasets.errors import DataError
from cistron.datasets.files import digest, expand
from cistron.datasets.pieces import Piece, split
from cistron.datasets.readers import Chunk, build_reader
from cistron.tests.datasets.corpus import write_bytes, write_fasta, write_jsonl, write_text
from fsspec.registry import known_implementations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FORMATS = pytest.mark.parametrize("format", ["text", "jsonl", "fasta"])
COMPRESSION = pytest.mark.parametrize("suffix", ["", ".gz"])


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 16)


def _write(format: str, path: Path, documents: list[str]) -> str:
    if format == "text":
        return write_bytes(path, "".join(documents).encode())
    return write_jsonl(path, documents) if format == "jsonl" else write_fasta(path, documents)


def _read(format: str, path: str, lanes: int = 1) -> list[bytes]:
    """Read all documents of a file through its pieces."""
    reader = build_reader(format, "text")
    parts = split(expand([path]), reader.boundary, lanes)
    return [document for piece in parts for document in _join(reader.chunks(piece, piece.start, True))]


def _join(chunks: Iterator[Chunk]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        assert chunk.first == (not parts)
        parts.append(chunk.data)
        if chunk.last:
            yield b"".join(parts)
            parts = []
    assert not parts


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
    assert _read(format, path) == [document.encode() for document in expected]


@COMPRESSION
@FORMATS
@pytest.mark.usefixtures("tiny_chunks")
def test_a_file_reopened_at_any_address_goes_on_identically(format: str, suffix: str, tmp_path: Path) -> None:
    path = _write(format, tmp_path / f"file{suffix}", ["ACGT" * 30, "a", "", "TTgg", "C" * 47, "G" * 48, "T" * 49])
    reader = build_reader(format, "text")
    piece = Piece(path, 0, None if suffix else Path(path).stat().st_size, 1)
    chunks = list(reader.chunks(piece, 0, True))
    assert len(chunks) > 5
    for place, chunk in enumerate(chunks):
        assert list(reader.chunks(piece, chunk.offset, chunk.first)) == chunks[place:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    records=st.lists(st.text(alphabet="AC\n\r", max_size=60), max_size=8), chunk=st.integers(2, 40), final_newline=st.booleans()
)
def test_fasta_agrees_with_a_parser_by_lines(
    records: list[str], chunk: int, final_newline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    # A lone carriage return inside a line is not a line end to the reference, so only those before a line feed stay.
    records = ["".join(line.replace("\r", "") + "\r\n" * ("\r" in line) for line in r.split("\n")) for r in records]
    text = "\n" + "\n".join(f">h{number}\n{record}" for number, record in enumerate(records)) + "\n" * final_newline
    path = tmp_path / "x.fasta"
    path.write_bytes(text.encode())
    piece = Piece(str(path), 0, path.stat().st_size, 1)
    assert list(_join(build_reader("fasta", "").chunks(piece, 0, True))) == _parse_fasta(text)


@pytest.mark.parametrize("format", ["jsonl", "fasta"])
@pytest.mark.parametrize("target", [1, 50, 333, 10**6])
def test_pieces_of_a_split_file_hold_each_document_once(
    format: str, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [letter * length for letter, length in zip(itertools.cycle("ACGT"), range(1, 90), strict=False)]
    path = _write(format, tmp_path / "file", documents)
    monkeypatch.setattr(pieces, "MAX_PIECE_BYTES", target)
    reader = build_reader(format, "text")
    parts = split(expand([path]), reader.boundary, lanes=1)
    assert len(parts) > 1 or target == 10**6
    assert all(before.end == after.start for before, after in itertools.pairwise(parts))
    assert _read(format, path) == [document.encode() for document in documents]


def test_blank_lines_of_jsonl_are_skipped(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.jsonl", b'\n  \n{"text": "a"}\n\r\n{"text": "b"}')
    assert _read("jsonl", path) == [b"a", b"b"]


def test_a_file_on_any_fsspec_store_is_read() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/corpus/b.jsonl", b'{"text": "b"}\n')
    store.pipe("/corpus/a.jsonl", b'{"text": "a"}\n')
    assert [Path(file.path).name for file in expand(["memory://corpus/*.jsonl"])] == ["a.jsonl", "b.jsonl"]
    assert _read("jsonl", "memory://corpus/*.jsonl") == [b"a", b"b"]


def test_patterns_are_sorted_without_duplicates(tmp_path: Path) -> None:
    pattern = write_text(tmp_path / "deep" / "deeper", ["x", "y", "z"])
    found = expand([pattern, str(tmp_path / "**" / "*.txt"), str(tmp_path / "deep/deeper/0001.txt")])
    assert [Path(file.path).name for file in found] == ["0000.txt", "0001.txt", "0002.txt"]


def test_a_name_with_glob_characters_is_taken_literally_where_it_exists(tmp_path: Path) -> None:
    for folder in ("data[1]", "data1", "data2"):
        write_text(tmp_path / folder, ["x"])
    found = {name: [file.path for file in expand([str(tmp_path / name / "0000.txt")])] for name in ("data[1]", "data[2]")}
    assert found == {"data[1]": [str(tmp_path / "data[1]/0000.txt")], "data[2]": [str(tmp_path / "data2/0000.txt")]}


def test_stdlib_stands_for_pythons_own_sources() -> None:
    assert json.__file__ in [file.path for file in expand(["{stdlib}/json/*.py"])]


def test_a_digest_changes_with_a_name_or_a_size(tmp_path: Path) -> None:
    pattern = write_text(tmp_path, ["x", "y"])
    before = digest(expand([pattern]))
    assert digest(expand([pattern])) == before
    (tmp_path / "0001.txt").write_text("longer")
    assert digest(expand([pattern])) != before


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("absent.txt", "no such file"), ("*.none", "matches no file"), ("empty.txt", "empty"), ("", "folder")],
)
def test_a_path_that_names_no_data_is_refused(pattern: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=message) as caught:
        expand([str(tmp_path / pattern)])
    assert str(tmp_path / pattern) in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.ZSTD", "a.bz2", "a.xz", "a.zip", "a.lz4", "a.7z"])
def test_compression_that_is_not_undone_is_refused(name: str, tmp_path: Path) -> None:
    path = write_bytes(tmp_path / name, b"(")
    for pattern in (path, str(tmp_path / "*")):
        with pytest.raises(DataError, match=r"only \.gz is read") as caught:
            expand([pattern])
        assert caught.value.file == path


def test_gz_is_known_in_any_case(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.gz", b'{"text": "a"}\n')
    assert _read("jsonl", str(Path(path).rename(tmp_path / "x.jsonl.GZ"))) == [b"a"]


def test_a_url_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^nosuch://a/b: Protocol not known: nosuch"):
        expand(["nosuch://a/b"])
    monkeypatch.setitem(known_implementations, "absent", {"class": "absent_driver.X", "err": "install absent_driver"})
    with pytest.raises(DataError, match=r"^absent://a/b: the fsspec driver .* is not installed: install absent_driver"):
        expand(["absent://a/b"])


@pytest.mark.parametrize("format", ["jsonl", "fasta"])
def test_a_byte_order_mark_is_no_part_of_the_first_record(format: str, tmp_path: Path) -> None:
    path = Path(_write(format, tmp_path / "x", ["ACGT", "C"]))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert _read(format, str(path)) == [b"ACGT", b"C"]
    if format == "fasta":
        assert build_reader("fasta", "").locate(str(path), 18, 0)[0] == "r0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("[" * 200_000, "not valid JSON", id="nested"),
        ('{"text": "a"', "not valid JSON"),
        ('{"body": "a"}', "no field 'text'; its fields are: 'body'"),
        ('{"text": 3}', "must be a string, found a int"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named_by_number_and_byte(line: str, message: str, tmp_path: Path) -> None:
    good = '{"text": "fine"}\n'
    path = write_bytes(tmp_path / "x.jsonl", (good * 4 + line + "\n" + good).encode())
    # The number is that of the file's line, also where the piece begins later.
    piece = Piece(path, 2 * len(good), Path(path).stat().st_size, 1)
    with pytest.raises(DataError, match=message) as caught:
        list(build_reader("jsonl", "text").chunks(piece, piece.start, True))
    assert (caught.value.file, caught.value.record, caught.value.offset) == (path, 5, 4 * len(good))


def test_text_before_the_first_fasta_header_is_refused(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.fasta", b"\nACGT\n>late\nAC\n")
    with pytest.raises(DataError, match="expected a header line beginning with '>', found b'ACGT") as caught:
        _read("fasta", path)
    assert caught.value.offset == 1


@pytest.mark.parametrize("format", ["text", "jsonl", "fasta"])
def test_truncated_or_foreign_gzip_is_refused(format: str, tmp_path: Path) -> None:
    whole = Path(_write(format, tmp_path / "whole.gz", ["ACGT" * 500, "C"])).read_bytes()
    for damage in (whole[:-9], b"plain text"):
        (tmp_path / "bad.gz").write_bytes(damage)
        with pytest.raises(DataError, match=r"bad\.gz: the gzip data is truncated or damaged"):
            _read(format, str(tmp_path / "bad.gz"))


@pytest.mark.usefixtures("tiny_chunks")
def test_a_byte_of_a_document_is_located_in_its_file(tmp_path: Path) -> None:
    sequence = "ACGTacgtNNN" * 5
    path = write_fasta(tmp_path / "x.fasta", ["TT", sequence], width=10)
    reader = build_reader("fasta", "")
    raw = Path(path).read_bytes()
    chunks = list(reader.chunks(Piece(path, 0, len(raw), 1), 0, True))[1:]
    for chunk in chunks:
        for index, letter in enumerate(chunk.data):
            record, offset = reader.locate(path, chunk.offset, index)
            assert (record, raw[offset]) == ("r1", letter)
    text = write_bytes(tmp_path / "x.txt", b"hello")
    assert build_reader("text", "").locate(text, 3, 1) == (None, 4)


def test_links_to_files_are_files_and_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    for name in "abc":
        (tmp_path / "real" / name).write_text("document " + name)
        (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "links" / "d").write_text("a file")
    files = expand([f"{tmp_path}/links/*"])
    assert [Path(file.path).name for file in files] == ["a", "b", "c", "d"]
    assert [file.size for file in files] == [10, 10, 10, 6]
    (tmp_path / "links" / "e").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="leads nowhere"):
        expand([f"{tmp_path}/links/*"])
