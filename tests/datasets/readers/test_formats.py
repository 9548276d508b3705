"""A reader yields every document once, from any address, in bounded memory; bad files are refused by place."""

import itertools
import os
import resource
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.files.storage import zstd
from cistron.datasets.readers import Piece, Reader, Records, build_reader, located, parquet
from cistron.datasets.readers.fasta import FastaReader
from cistron.datasets.readers.lines import JsonlReader
from cistron.datasets.readers.parquet import STRINGS, ParquetReader
from cistron.datasets.readers.text import TextReader
from cistron.tests.helpers.corpora import bgzip_block, compress, write_bytes, write_fasta, write_jsonl, write_parquet
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

STORAGE = FileStore()
TINY: dict[str, Reader] = {
    "text": TextReader(STORAGE, group_bytes=16),
    "jsonl": JsonlReader(STORAGE, "text", group_bytes=16),
    "fasta": FastaReader(STORAGE, group_bytes=16),
    "parquet": ParquetReader(STORAGE, "text", group_bytes=16),
}
SUFFIXES = ["", ".gz", ".zst", ".bgz", ".xz", ".bz2"]
FORMATS = pytest.mark.parametrize("format", ["text", "jsonl", "fasta"])
FILES = pytest.mark.parametrize(
    ("format", "suffix"), [*itertools.product(["text", "jsonl", "fasta"], SUFFIXES), ("parquet", "")]
)


def _write(format: str, path: Path, documents: list[str]) -> str:
    if format == "text":
        return write_bytes(path, "".join(documents).encode())
    if format == "parquet":
        return write_parquet(path, documents)
    return write_jsonl(path, documents) if format == "jsonl" else write_fasta(path, documents, header="r{}")


def _read(reader: Reader, path: str, target: int = 2**30) -> list[bytes]:
    """Read all documents of a file through its pieces."""
    parts = [piece for file in STORAGE.expand([path]) for piece in reader.split(file, target)]
    return [document for piece in parts for document in _join(reader.groups(piece, piece.start, True))]


def _join(groups: Iterable[Records], errors: list[DataError] | None = None) -> Iterator[bytes | None]:
    parts: list[bytes] = []
    for group in groups:
        if group.error is not None and errors is None:
            raise group.error
        for place, document in enumerate(group.documents):
            assert (place > 0 or group.first) == (not parts)
            parts.append(document)
            if place < len(group.documents) - 1 or group.last:
                yield b"".join(parts)
                parts = []
        if group.error is not None and errors is not None:
            errors.append(group.error)
            assert group.continues_bad == bool(parts)
            parts = []
            yield None
    assert not parts


def _stretches(groups: Iterable[Records]) -> list[tuple[bytes | str, int, bool, bool]]:
    """Take groups apart: documents, stretches or errors with their offset, and whether they open and end a document."""
    found: list[tuple[bytes | str, int, bool, bool]] = []
    for group in groups:
        for place, (document, offset) in enumerate(zip(group.documents, group.offsets, strict=True)):
            found.append((document, offset, place > 0 or group.first, place < len(group.documents) - 1 or group.last))
        if group.error is not None:
            found.append((str(group.error), group.bad_offset, not group.continues_bad, True))
    return found


def _parse_fasta(text: str) -> list[bytes | None]:
    """Read FASTA by lines, all in memory; None for a bad record."""
    documents: list[list[str]] = []
    for line in text.split("\n"):
        if line.startswith(">"):
            documents.append([])
        elif line:
            documents[-1].append(line.removesuffix("\r"))
    bad = ["".join(lines) == "" or any({*" >"} & {*line} or line.startswith(";") for line in lines) for lines in documents]
    return [None if wrong else "".join(lines).encode() for lines, wrong in zip(documents, bad, strict=True)]


@FILES
def test_documents_are_read_as_they_were_written(format: str, suffix: str, tmp_path: Path) -> None:
    documents = ["ACGT" * 30, "a", "Caché" * 9, "TTgg"]
    path = _write(format, tmp_path / f"file{suffix}", documents)
    expected = ["".join(documents)] if format == "text" else documents
    assert _read(build_reader(format, "text", STORAGE), path) == [document.encode() for document in expected]
    assert _read(TINY[format], path) == [document.encode() for document in expected]


@FILES
def test_a_file_reopened_at_any_address_goes_on_identically(format: str, suffix: str, tmp_path: Path) -> None:
    path = _write(format, tmp_path / f"file{suffix}", ["ACGT" * 30, "a", "", "TTgg", "C" * 47, "G" * 48, "T" * 49])
    reader = TINY[format]
    [piece] = reader.split(STORAGE.expand([path])[0], 2**30)
    stretches = _stretches(reader.groups(piece, 0, True))
    assert len(stretches) > 5
    for place, (_, offset, first, _) in enumerate(stretches):
        assert _stretches(reader.groups(piece, offset, first)) == stretches[place:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@example(records=["\r\n\r", ""], size=8, final_newline=False)
@example(records=["A>C\n", "A\n>"], size=9, final_newline=True)
@given(
    records=st.lists(st.text(alphabet="AC>;\n\r ", max_size=60), max_size=8),
    size=st.integers(8, 40),
    final_newline=st.booleans(),
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
    errors: list[DataError] = []
    assert list(_join(reader.groups(piece, 0, True), errors)) == _parse_fasta(text)
    for error in errors:
        assert error.offset is not None
        said = {"the record has no residue": ">", "a blank in a line": " ", "a line of the sequence begins with ';'": ";"}
        said["'>' within a line of the sequence"] = ">"
        assert any(error.problem.startswith(start) and text[error.offset] == letter for start, letter in said.items())
    for place, (_, offset, first, _) in enumerate(stretches):
        assert _stretches(reader.groups(piece, offset, first)) == stretches[place:]


@pytest.mark.parametrize(
    ("format", "suffix"), [("jsonl", ""), ("fasta", ""), ("jsonl", ".bgz"), ("fasta", ".bgz"), ("parquet", "")]
)
@pytest.mark.parametrize("target", [1, 50, 333, 10**6])
def test_pieces_of_a_split_file_hold_each_document_once(format: str, suffix: str, target: int, tmp_path: Path) -> None:
    documents = [letter * length for letter, length in zip(itertools.cycle("ACGT"), range(1, 90), strict=False)]
    path = _write(format, tmp_path / f"file{suffix}", documents)
    reader = build_reader(format, "text", STORAGE)
    [file] = STORAGE.expand([path])
    parts = reader.split(file, target)
    assert len(parts) > 1 or target == 10**6
    assert all(before.end == after.start for before, after in itertools.pairwise(parts))
    assert sum(part.size for part in parts) == file.size
    assert _read(reader, path, target) == [document.encode() for document in documents]
    for part in parts[:: len(parts) // 3 + 1]:
        stretches = _stretches(reader.groups(part, part.start, True))
        for place, (_, offset, first, _) in enumerate(stretches):
            assert _stretches(reader.groups(part, offset, first)) == stretches[place:]


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
    error = located(build_reader("jsonl", "text", STORAGE), bad.error, bad.bad_offset)
    assert (error.file, error.record, error.offset, bad.bad_offset) == (path, 5, 4 * len(good), 4 * len(good))
    assert [len(group.documents) for group in groups] == [2, 1]


def test_a_fasta_header_may_hold_what_begins_one(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.fasta", b">A <B> <C>\nNN\n\n>sampled at >3m depth\r\nAC\r\nGT\r\n")
    assert _read(build_reader("fasta", "text", STORAGE), path) == [b"NN", b"ACGT"]


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


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@FORMATS
def test_a_compressed_file_cut_anywhere_is_refused(format: str, suffix: str, tmp_path: Path) -> None:
    path = Path(_write(format, tmp_path / f"x{suffix}", ["ACGT" * 100, "C" * 77]))
    whole = path.read_bytes()
    # Between two members of .gz, or frames of .zst, the cut leaves a file that is as good as any; bgzip marks the end.
    whole_file = None if suffix == ".bgz" else whole.rindex(whole[:4])
    reader = build_reader(format, "text", STORAGE)
    for end in range(1, len(whole)):
        if end != whole_file:
            path.write_bytes(whole[:end])
            with pytest.raises(DataError, match="the compressed data is truncated or damaged"):
                _read(reader, str(path))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_what_is_not_compressed_as_its_name_says_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b'{"text": "this is plain"}')
    with pytest.raises(DataError, match="the compressed data is truncated or damaged"):
        _read(build_reader("jsonl", "text", STORAGE), str(path))


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


def test_a_gz_of_bgzip_is_split_by_its_gzi_or_without_it(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(200))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(compress(".bgz", lines))
    reader = build_reader("jsonl", "text", STORAGE)
    [file] = STORAGE.expand([str(path)])
    parts = reader.split(file, 100)
    assert len(parts) > 5
    sizes = [len(bgzip_block(lines[start : start + 200])) for start in range(0, len(lines), 200)]
    places = list(zip(itertools.accumulate(sizes), range(200, len(lines), 200), strict=False))
    gzi = Path(f"{path}.gzi")
    gzi.write_bytes(struct.pack(f"<Q{2 * len(places)}Q", len(places), *itertools.chain(*places)))
    os.utime(path)
    assert reader.split(file, 100) == parts
    assert _read(reader, str(path), 100) == [b"%d" % number for number in range(200)]

    shifted = [(stored, offset + (number == 9)) for number, (stored, offset) in enumerate(places)]
    for wrong in (
        [(stored, offset + 1) for stored, offset in places],
        [(stored + 1, offset) for stored, offset in places],
        shifted,
    ):
        gzi.write_bytes(struct.pack(f"<Q{2 * len(places)}Q", len(places), *itertools.chain(*wrong)))
        os.utime(path)
        with pytest.raises(DataError, match="gzi"):
            _read(reader, str(path), 100)
    gzi.write_bytes(b"short")
    os.utime(path)
    with pytest.raises(DataError, match="gzi"):
        reader.split(file, 100)


def zstd_of_window(log: int) -> bytes:
    options = {zstd.CompressionParameter.window_log: log, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(b"document") + compressor.flush()


def test_a_large_zstd_window_is_read_of_a_large_file_alone(tmp_path: Path) -> None:
    reader = build_reader("text", "text", STORAGE)
    path = tmp_path / "x.zst"
    path.write_bytes(zstd_of_window(27))
    assert _read(reader, str(path)) == [b"document"]
    path.write_bytes(zstd_of_window(31))
    with pytest.raises(DataError, match=r"zstd window is larger than 128 MiB, .* compress it again with at most --long=27"):
        _read(reader, str(path))
    skippable = struct.pack("<II", 0x184D2A50, 2**27)
    with path.open("wb") as file:  # 128 MiB that hold nothing, then the frame
        file.write(skippable)
        file.seek(2**27, os.SEEK_CUR)
        file.write(zstd_of_window(31))
    assert _read(reader, str(path)) == [b"document"]


def test_a_zstd_frame_cut_short_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.zst"
    frame = zstd_of_window(27)
    path.write_bytes(frame)
    reader = build_reader("text", "text", STORAGE)
    path.write_bytes(frame[:-1])
    with pytest.raises(DataError, match="ends within a zstd frame"):
        _read(reader, str(path))


@pytest.mark.parametrize("kind", [*STRINGS, pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_column_of_any_kind_of_string_is_read(kind: pa.DataType, tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    inner = pa.array(["a", "é", ""])
    inner = inner.dictionary_encode() if pa.types.is_dictionary(kind) else inner.cast(kind)
    pq.write_table(pa.table({"text": inner, "meta": pa.StructArray.from_arrays([inner], ["body"])}), path)
    for column in ("text", "meta.body"):
        assert _read(build_reader("parquet", column, STORAGE), path) == [b"a", "é".encode(), b""]


def test_a_null_is_a_bad_record_and_is_passed_over(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", ["a", None, "b", None, "c"])
    groups = list(build_reader("parquet", "text", STORAGE).groups(Piece(path, 0, 5, 1), 0, True))
    assert [group.documents for group in groups] == [[b"a"], [b"b"], [], [b"c"]]
    errors = [group.error for group in groups if group.error is not None]
    assert [(error.record, error.offset) for error in errors] == [(1, None), (3, None)]
    assert [group.bad_offset for group in groups] == [1, -1, 3, -1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("absent", "there is no column 'absent'; its columns are: 'text', 'ids', 'number'"),
        ("text.body", "there is no column 'text.body'"),
        ("number", "must hold strings, and holds int64"),
        ("ids", r"holds list<.*>; make token shards of lists of ids by `cistron prepare --import parquet`"),
    ],
)
def test_a_parquet_without_the_column_is_refused(column: str, message: str, tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": ["a"] * 9, "ids": [[1, 2]] * 9, "number": [1] * 9}), path)
    reader = build_reader("parquet", column, STORAGE)
    with pytest.raises(DataError, match=message):
        list(reader.groups(Piece(path, 0, None, 1), 0, True))
    with pytest.raises(DataError, match=message):
        reader.split(STORAGE.expand([path])[0], 1)


def test_a_line_beyond_memory_is_refused(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.jsonl", b'{"text": "a"}\n{"text": "' + b"b" * 1000 + b'"}\n')
    with pytest.raises(DataError, match="a line has more than 500 bytes") as caught:
        _read(JsonlReader(STORAGE, "text", group_bytes=16, max_line_bytes=500), path)
    assert caught.value.offset == 14


def test_a_header_that_does_not_end_is_refused(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "x.fasta", b">a\nACGT\n>" + b"b" * 100)
    with pytest.raises(DataError, match="a header line has more than 16 bytes") as caught:
        _read(TINY["fasta"], path)
    assert caught.value.offset == 8


def test_large_row_groups_of_values_of_their_own_are_read_without_a_dictionary(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    texts = [f"{number:06}" + "x" * 2000 for number in range(20_000)]
    pq.write_table(pa.table({"text": texts}), path, compression="none")
    reader = build_reader("parquet", "text", STORAGE)
    (piece,) = reader.split(next(iter(STORAGE.expand([path]))), 2**30)
    most, documents = 0, []
    for group in reader.groups(piece, 0, True):
        documents += group.documents
        most = max(most, pa.total_allocated_bytes())
    assert documents == [text.encode() for text in texts]
    assert most < 20e6, "of 40 MB"


def test_of_a_dictionary_that_grows_with_the_row_group_only_what_a_batch_uses_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "x.parquet")
    texts = [f"{number:06}" + "x" * 500 for number in range(20_000)]
    pq.write_table(pa.table({"text": [*texts, None, *texts[:10]]}), path)
    converted = []
    plain = parquet._documents

    def counted(values: pa.Array) -> list[bytes | None]:
        converted.append(0 if pa.types.is_dictionary(values.type) else len(values))
        return plain(values)

    monkeypatch.setattr(parquet, "_documents", counted)
    reader = build_reader("parquet", "text", STORAGE)
    (piece,) = reader.split(next(iter(STORAGE.expand([path]))), 2**30)
    documents = [document for group in reader.groups(piece, 0, True) for document in group.documents]
    assert documents == [text.encode() for text in [*texts, *texts[:10]]]
    assert 0 < sum(converted) <= len(texts) + 10


def test_a_long_value_that_many_rows_share_is_in_memory_once(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    table = pa.table({"text": ["a" * 2**20] * 3000})
    pq.write_table(table, path, compression="zstd", write_statistics=False, dictionary_pagesize_limit=2**22)
    assert Path(path).stat().st_size < 1000
    reader = build_reader("parquet", "text", STORAGE)
    (piece,) = reader.split(next(iter(STORAGE.expand([path]))), 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents = 0
    for group in reader.groups(piece, 0, True):
        assert sum(map(len, group.documents)) <= 2**20
        documents += len(group.documents)
    assert documents == 3000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; it took 2.9 GiB
