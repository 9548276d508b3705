"""Whole records with their names, out of every format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataConfigError, DataError
from cistron.datasets.files.storage import zstd
from cistron.datasets.readers import SequenceFiles

RECORDS = [("a|1", "ACGT"), ("b", "A" * 3_000_000), ("c", "gg"), ("b", "T")]


def read(*paths: Path, **options: str) -> list[tuple[str, str]]:
    return [(one.name, one.data.decode()) for one in SequenceFiles(map(str, paths), **options)]


def fasta(records: list[tuple[str, str]]) -> bytes:
    """With descriptions, lines of 70 and both kinds of line ends."""
    texts = (f">{name} some words\r\n" + "\n".join(s[i : i + 70] for i in range(0, len(s), 70)) for name, s in records)
    return "\n".join(texts).encode() + b"\n"


def test_every_format_gives_whole_records_by_name_and_in_order(tmp_path: Path) -> None:
    rows = [{"text": text, "id": name} for name, text in RECORDS]
    (tmp_path / "x.fa").write_bytes(fasta(RECORDS))
    (tmp_path / "x.fna.gz").write_bytes(gzip.compress(fasta(RECORDS)))
    (tmp_path / "x.jsonl.zst").write_bytes(zstd.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2)
    (tmp_path / "x.tsv").write_text("id\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in RECORDS))
    for name in ("x.fa", "x.fna.gz"):
        assert read(tmp_path / name) == RECORDS
    for name in ("x.jsonl.zst", "x.tsv", "x.parquet"):
        assert read(tmp_path / name, id_field="id") == RECORDS
        assert read(tmp_path / name) == [(str(n), text) for n, (_, text) in enumerate(RECORDS)]
    (tmp_path / "y.txt").write_text("whole")
    (tmp_path / "z.txt").write_text("file")
    assert read(tmp_path / "z.txt", tmp_path / "y.txt") == [
        (str(tmp_path / "y.txt"), "whole"),
        (str(tmp_path / "z.txt"), "file"),
    ]
    assert read(tmp_path / "y.txt", format="text")


def test_whole_numbers_are_names(tmp_path: Path) -> None:
    rows = [{"text": "AC", "id": 7}, {"text": "G", "id": -(2**60)}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        assert read(tmp_path / name, id_field="id") == [("7", "AC"), (str(-(2**60)), "G")]
        with pytest.raises(DataError, match=r"must (be a|hold) string"):
            read(tmp_path / name, field="id")


def test_what_lies_before_a_record_grows_to_all_of_the_files(tmp_path: Path) -> None:
    for name in ("x.fa", "y.fa"):
        (tmp_path / name).write_bytes(fasta(RECORDS[:1] * 1000))
    stored = [one.stored for one in SequenceFiles([str(tmp_path / "*.fa")])]
    size = (tmp_path / "x.fa").stat().st_size
    assert stored == sorted(stored)
    assert stored[0] == 0
    assert stored[1000] == size
    assert 1.9 * size < stored[-1] < 2 * size


def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "A", "id": "a"}\n{"text": "C", "id": true}\n')
    with pytest.raises(
        DataError, match=r"x.jsonl, record 2, byte 25: field 'id' must be a string or a whole number, found a bool"
    ):
        read(tmp_path / "x.jsonl", id_field="id")
    with pytest.raises(DataError, match=r"x.jsonl, record 1, byte 0: there is no field 'letters'"):
        read(tmp_path / "x.jsonl", field="letters")
    (tmp_path / "x.dat").write_text(">a\nA\n")
    with pytest.raises(DataConfigError, match=r"x.dat: its ending tells no format; name it with --format fasta|jsonl"):
        read(tmp_path / "x.dat")
    (tmp_path / "x.fa").write_text(">a\nA\n")
    with pytest.raises(DataConfigError, match="files of several formats"):
        read(tmp_path / "x.fa", tmp_path / "x.jsonl")
    with pytest.raises(DataConfigError, match="--id-field id: a fasta file has no fields"):
        read(tmp_path / "x.fa", id_field="id")
