"""Tables and lines: quotes, headers, line ends and columns are what their writers mean, or a message says what not."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.readers import Label, Piece, Reader, build_reader, located
from cistron.datasets.readers.tables import CsvReader
from cistron.datasets.readers.text import TextLineReader
from cistron.tests.helpers.corpora import compress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STORAGE = FileStore()
CELLS = st.text(alphabet='ab,;\t"\n\r é', max_size=9)
NAMES = itertools.count()


def stretches(reader: Reader, path: Path, offset: int = 0) -> list[tuple[bytes | str, int, float]]:
    """Documents, or what is wrong with a record, each with its address and its label."""
    found: list[tuple[bytes | str, int, float]] = []
    for group in reader.groups(Piece(str(path), 0, None if path.suffix != ".csv" else path.stat().st_size, 1), offset, True):
        labels = group.label_values or [0.0] * len(group.documents)
        found += zip(group.documents, group.offsets, labels, strict=True)
        if group.error is not None:
            found.append((group.error.problem, group.bad_offset, 0.0))
    return found


def read(format: str, path: Path, data: bytes | str, field: str = "text") -> list[bytes | str]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [document for document, _, _ in stretches(build_reader(format, field, STORAGE), path)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=7),
    delimiter=st.sampled_from(",\t;"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    size=st.sampled_from([8, 30, 2**20]),
    suffix=st.sampled_from(["", ".gz", ".bgz"]),
    final=st.booleans(),
    mark=st.booleans(),
)
def test_what_a_writer_of_csv_has_written_is_read_from_any_record_on(
    rows: list[tuple[str, str, str]], delimiter: str, end: str, quoting: Any, size: int, suffix: str, final: bool, mark: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    if end == "\n" and quoting == csv.QUOTE_MINIMAL:  # Python's writer leaves carriage returns unquoted then
        rows = [(first, text.replace("\r", ""), last.replace("\r", "")) for first, text, last in rows]
        rows = [(first.replace("\r", ""), text, last) for first, text, last in rows]
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("id", "text", "a,b"), *rows])
    text = target.getvalue() if final else target.getvalue().removesuffix(end)
    path = tmp_path / f"{next(NAMES)}.csv{suffix}"
    path.write_bytes(compress(suffix, b"\xef\xbb\xbf" * mark + text.encode()))
    reader = CsvReader(STORAGE, "text", group_bytes=size)
    found = stretches(reader, path)
    assert [document for document, _, _ in found] == [text.encode() for _, text, _ in rows]
    for place, (_, offset, _) in enumerate(found):
        assert stretches(reader, path, offset) == found[place:]


def test_csv_is_what_arrow_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    data = 'n,text\r\n1,"a ""b"", c"\r\n\r\n2,"two\r\nlines\n\nof 3"\r\n3,5" wide\r\n4,""\r\n5,\r\n6,ünd'
    found = read("csv", path, data)
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert found == [text.encode() for text in pyarrow.csv.read_csv(path, parse_options=options)["text"].to_pylist()]
    assert found == [b'a "b", c', b"two\r\nlines\n\nof 3", b'5" wide', b"", b"", "ünd".encode()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,a,b", "3 cells; the first line names 2 columns"),
        ("alone", "1 cells; the first line names 2 columns"),
        (b"7,\xff", "not valid UTF-8"),
        ("7,a\rb", "a carriage return within a line, outside of quotes; remove it"),
        ("n,text", "the names of the columns again, as where tables are joined; remove the line"),
    ],
)
def test_a_bad_record_of_csv_is_named_by_line_and_byte_and_passed_over(line: bytes | str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    head = b'n,text\n1,"a\nb"\n'
    path.write_bytes(head + (line if isinstance(line, bytes) else line.encode()) + b"\n2,c\n")
    reader = build_reader("csv", "text", STORAGE)
    first, last = reader.groups(Piece(str(path), 0, None, 1), 0, True)
    assert (first.documents, last.documents, first.bad_offset) == ([b"a\nb"], [b"c"], len(head))
    assert first.error is not None
    error = located(reader, first.error, first.bad_offset)
    assert (error.record, error.offset) == (4, len(head))
    assert error.problem.startswith(message)


@pytest.mark.parametrize("text", ['n,text\n1,"a"b\n2,c\n', 'n,text\n1,a\n2,"b\n3,c\n', 'n,text\n1,"open\n2,"c"\n'])
def test_quotes_that_hide_where_records_begin_end_the_reading(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.csv, record \d, byte \d+: a quote is not closed, or followed by something else"):
        read("csv", tmp_path / "x.csv", text)
    reader = CsvReader(STORAGE, "text", group_bytes=16, max_line_bytes=99)
    (tmp_path / "x.csv").write_text("text\n" + '"' + "a\n" * 99)
    with pytest.raises(DataError, match="a record has more than 99 bytes; is a quote not closed"):
        stretches(reader, tmp_path / "x.csv")


def test_columns_are_found_or_refused_by_the_first_line(tmp_path: Path) -> None:
    assert read("csv", tmp_path / "x.csv", '\n"text"\n"a,b"\n') == [b"a,b"]
    assert read("csv", tmp_path / "x.tsv", 'id\ttext\n1\t"a\tb"\n') == [b"a\tb"]
    for format, data, said in (
        ("csv", "a,b\n1,2\n", "there must be one column 'text'; the first line names: 'a', 'b'"),
        ("csv", "text,text\n1,2\n", "one column 'text'; the first line names: 'text', 'text'"),
        ("csv", "\n\n", "the first line must name the columns"),
        ("tsv", '"id"\t"text"\n1\t2\n', '\'"text"\'; read a quoted table by format = "csv", by tabs too'),
    ):
        with pytest.raises(DataError, match=said):
            read(format, tmp_path / "y", data)
    reader = build_reader("csv", "text", STORAGE, Label("y", ("no", "yes")))
    (tmp_path / "x.csv").write_text('y,text\nyes,"a,b"\n"no",c\nmaybe,d\n')
    assert [(text, label) for text, _, label in stretches(reader, tmp_path / "x.csv")][:2] == [(b"a,b", 1.0), (b"c", 0.0)]
    assert "label 'y' is 'maybe'" in str(stretches(reader, tmp_path / "x.csv")[2][0])


def test_a_cell_of_tsv_that_a_program_has_quoted_is_a_bad_record_and_other_quotes_are_letters(tmp_path: Path) -> None:
    cells = ['"a ""b"" c"', '"Yes," he said, "I do."', '"Yes."', '5" and 6"', '"', '""', '"""']
    found = read("tsv", tmp_path / "x.tsv", "text\tn\r\n" + "".join(f"{cell}\t1\r\n" for cell in cells))
    assert str(found[0]).startswith('a cell in quotes, with others doubled in it; read a quoted table by format = "csv"')
    assert found[1:] == [cell.encode() for cell in cells[1:]]


def test_a_line_of_text_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    data = 'one\r\n\n  \n two words \n\ufeffthree\n"quoted"\tfour'.encode()
    expected = [b"one", b" two words ", b"three", b'"quoted"\tfour']
    for size in (4, 2**20):
        path.write_bytes(data)
        reader = TextLineReader(STORAGE, group_bytes=size)
        found = stretches(reader, path)
        assert [document for document, _, _ in found] == expected
        for place, (_, offset, _) in enumerate(found):
            assert stretches(reader, path, offset) == found[place:]
    (file,) = STORAGE.expand([str(path)])
    assert len(build_reader("lines", "text", STORAGE).split(file, 9)) > 2
    assert read("lines", path, b"\xff\xfd is taken as it is\n") == [b"\xff\xfd is taken as it is"]


def test_a_dotted_field_of_jsonl_is_that_of_parquet(tmp_path: Path) -> None:
    rows = [{"meta": {"body": "a", "n": {"y": 1}}, "x": 1}, {"meta": {"body": "", "n": {"y": 0.5}}, "x": 2}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        reader = build_reader(name[2:], "meta.body", STORAGE, Label("meta.n.y"))
        (group,) = reader.groups(Piece(str(tmp_path / name), 0, None, 1), 0, True)
        assert (group.documents, group.label_values) == ([b"a", b""], [1.0, 0.5])


def test_a_key_that_has_the_dot_itself_comes_first(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"a.b": "own", "a": {"b": "inner"}},
        {"a": {"b": "inner"}},
        {"a": "text"},
        {"a": {"b": 3}},
        {"a.b": None, "a": {"b": "inner"}},
        {"a": [{"b": "x"}]},
    ]
    found = read("jsonl", tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows), "a.b")
    assert found[:2] == [b"own", b"inner"]
    assert [str(problem).partition(";")[0] for problem in found[2:]] == [
        "there is no field 'a.b'",
        "field 'a.b' must be a string, found a int",
        "field 'a.b' must be a string, found a NoneType",
        "there is no field 'a.b'",
    ]
    pq.write_table(pa.Table.from_pylist([{"a.b": "own", "a": {"b": "inner"}}]), tmp_path / "x.parquet")
    (group,) = build_reader("parquet", "a.b", STORAGE).groups(Piece(str(tmp_path / "x.parquet"), 0, None, 1), 0, True)
    assert group.documents == [b"own"]
