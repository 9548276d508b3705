"""Labels stay with their documents from file to eos, where they are the target; bad ones are refused by place."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.readers import Label, Piece, SourceConfig, build_reader, located
from cistron.datasets.rows import DocumentLabels, row_violations
from cistron.tests.helpers.corpora import config

STORAGE = FileStore()
CLASSES = ("dead", "alive", "2")
# name, sequence, class, value: each sequence tells its own class and value
ROWS = [(f"s{i}", "ACGT"[i % 4] * (i % 37 + 1) + f"{i}", CLASSES[i % 3], i / 4 - 20) for i in range(160)]


def write_jsonl(path: Path) -> str:
    lines = [json.dumps({"name": n, "seq": s, "kind": int(c) if c == "2" else c, "value": v}) for n, s, c, v in ROWS]
    path.write_text("\n\n".join(lines))
    return str(path)


def write_tsv(path: Path) -> str:
    path.write_bytes(b"\r\n".join("\t".join(row).encode() for row in [("name", "seq", "kind", "value"), *texts()]) + b"\r\n")
    return str(path)


def texts() -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in ROWS]


def write_parquet(path: Path) -> str:
    names, sequences, kinds, values = zip(*ROWS, strict=True)
    kind = pa.array(kinds).dictionary_encode()
    pq.write_table(pa.table({"name": names, "seq": sequences, "kind": kind, "value": values}), path, row_group_size=13)
    return str(path)


WRITERS: dict[str, Callable[[Path], str]] = {"jsonl": write_jsonl, "tsv": write_tsv, "parquet": write_parquet}
FORMATS = pytest.mark.parametrize("format", list(WRITERS))
LABELS = {"kind": Label("kind", CLASSES), "value": Label("value")}
EXPECTED = {
    "kind": [(s.encode(), float(CLASSES.index(c))) for _, s, c, _ in ROWS],
    "value": [(s.encode(), v) for _, s, _, v in ROWS],
}


@FORMATS
@pytest.mark.parametrize("field", ["kind", "value"])
def test_each_document_comes_with_its_label_from_wherever_the_file_is_opened(format: str, field: str, tmp_path: Path) -> None:
    path = WRITERS[format](tmp_path / "x")
    reader = build_reader(format, "seq", STORAGE, LABELS[field])
    [file] = STORAGE.expand([path])
    pieces = reader.split(file, 700)
    assert len(pieces) > 3
    groups = [group for piece in pieces for group in reader.groups(piece, piece.start, True)]
    read = [pair for group in groups for pair in zip(group.documents, group.label_values or [], strict=True)]
    assert read == EXPECTED[field]
    whole = Piece(path, 0, None if format == "parquet" else file.size, file.size)
    for place, offset in [(0, 0), *((at, groups[0].offsets[at]) for at in (1, 7))]:
        again = [
            pair for g in reader.groups(whole, offset, True) for pair in zip(g.documents, g.label_values or [], strict=True)
        ]
        assert again == EXPECTED[field][place:]


@pytest.mark.parametrize(
    ("format", "layout", "workers"),
    [("jsonl", "packed", 0), ("parquet", "packed", 0), ("tsv", "padded", 0), ("tsv", "packed", 2)],
)
def test_the_target_at_a_documents_eos_is_its_label(format: str, layout: str, workers: int, tmp_path: Path) -> None:
    path = WRITERS[format](tmp_path / "x")
    for field, names in (("kind", CLASSES), ("value", ())):
        source = SourceConfig(name="x", format=format, paths=[path], field="seq", label=field)
        objective = DocumentLabels(names)
        rows = {"layout": layout, "objective": objective, "seq_len": 64}
        settings = config(source, lanes=2, seed=3, num_workers=workers, **rows)
        finite = settings.but(batch_size=5).single_pass()
        with settings.loader() as loader:
            batches = [*finite.batches(), *(loader.next() for _ in range(6))]
        seen = []
        for number, batch in enumerate(batches):
            assert batch is not None
            planes = batch.tokens, batch.labels, batch.positions, batch.sequence_ids
            if -1 not in batch.rows:
                assert row_violations(*(plane.numpy() for plane in planes), 0, objective) == []
            for row, end in np.argwhere(batch.labels.numpy() >= 0).tolist():
                begin = end - int(batch.positions[row, end])
                assert int(batch.tokens[row, end]) == 0
                document = bytes(batch.tokens[row, begin:end].tolist())
                value = float(batch.labels[row, end]) if names else float(batch.values[row, end])  # type: ignore[index]
                assert (document, value) in EXPECTED[field]
                seen += [document] if number < len(batches) - 6 else []
        assert sorted(seen) == sorted(document for document, _ in EXPECTED[field]), "each document once in a finite pass"


BAD = {
    "missing": ({"seq": "ACGT"}, "there is no label 'y' for the sequence 'ACGT'"),
    "empty": ({"seq": "ACGT", "y": ""}, "there is no label 'y' for the sequence 'ACGT'"),
    "null": ({"seq": "ACGT", "y": None}, "there is no label 'y' for the sequence 'ACGT'"),
    "unknown": ({"seq": "A" * 30, "y": "zombie"}, f"'y' is 'zombie' for the sequence '{'A' * 24}...'; head.classes are 'a'"),
    "text": ({"seq": "ACGT", "y": "high"}, "label 'y' is 'high' for the sequence 'ACGT'; it must be a number"),
    "infinite": ({"seq": "ACGT", "y": "1e39"}, "label 'y' is '1e39' for the sequence 'ACGT'; it must be a number, and finite"),
    "truth": ({"seq": "ACGT", "y": True}, "label 'y' is 'True' for the sequence 'ACGT'; it must be a number"),
}


@pytest.mark.parametrize(
    ("what", "format"),
    # cells of a table are there, and text
    [(what, format) for what in BAD for format in WRITERS if format == "jsonl" or what not in ("missing", "truth")],
)
def test_a_bad_label_is_a_bad_record_named_by_place(what: str, format: str, tmp_path: Path) -> None:
    record, message = BAD[what]
    label = Label("y", ("a", "b") if what == "unknown" else ())
    good = {"seq": "CCCC", "y": "a" if label.classes else "1"}
    path = tmp_path / "x"
    if format == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in (good, record, good)))
        place, offset = 2, len(json.dumps(good)) + 1
    elif format == "tsv":
        path.write_text("".join(f"{r['seq']}\t{r['y'] or ''}\n" for r in ({"seq": "seq", "y": "y"}, good, record, good)))
        place, offset = 3, len("seq\ty\n") + len("CCCC\t1\n")
    else:
        pq.write_table(pa.table({"seq": ["CCCC", record["seq"], "CCCC"], "y": [good["y"], record["y"], good["y"]]}), path)
        place, offset = 1, None
    reader = build_reader(format, "seq", STORAGE, label)
    [piece] = reader.split(STORAGE.expand([str(path)])[0], 2**30)
    groups = list(reader.groups(piece, piece.start, True))
    assert [(group.documents, group.label_values) for group in groups] == [([b"CCCC"], [0.0 if label.classes else 1.0])] * 2
    assert groups[0].error is not None
    error = located(reader, groups[0].error, groups[0].bad_offset)
    assert (error.record, error.offset) == (place, offset)
    assert message in error.problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name\tkind\nx\tdead\n", "there must be one column 'seq'; the first line names: 'name', 'kind'"),
        (b"seq\tkind\tseq\nx\tdead\ty\n", "there must be one column 'seq'"),
        (b"seq\n", "there must be one column 'kind'"),
        (b"seq\tkind", "the first line must name the columns"),
        (b"seq\tkind\nACGT\n", "1 cells; the first line names 2 columns"),
        (b"seq\tkind\n\xff\tdead\n", "not valid UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(content)
    reader = build_reader("tsv", "seq", STORAGE, LABELS["kind"])
    piece = Piece(str(tmp_path / "x.tsv"), 0, len(content), len(content))

    def read() -> None:
        for group in reader.groups(piece, 0, True):
            if group.error is not None:
                raise group.error

    with pytest.raises(DataError, match=message):
        read()


def test_a_format_without_columns_has_no_labels() -> None:
    others = "jsonl, jsonl_ids, jsonl_messages, tsv, csv, parquet"
    for format in ("text", "lines", "fasta", "tokens"):
        source = SourceConfig(name="a", format=format, paths=["x"], label="value")
        assert source.complaints() == [f"label = 'value': format = \"{format}\" has no labels; {others} have"]
