"""Token files of others: their documents come out as they went in, each with one eos, or the file is refused."""

import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.prepare import (
    DumpReader,
    ListReader,
    MegatronReader,
    PadId,
    PreparationResult,
    TokenCorpus,
    TokenReader,
    columns,
)
from cistron.datasets.prepare import arrays as array_files
from cistron.datasets.prepare import megatron as token_files
from cistron.datasets.prepare.run import group
from cistron.datasets.shards import open_shards
from cistron.datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

EOS = 0
Documents = list[list[int]]


def convert(
    folder: Path,
    reader: TokenReader,
    paths: Sequence[Path],
    append_eos: bool = False,
    target: int = 40,
    pad_id: PadId = None,
    tokenizer: Tokenizer | None = None,
    keeps_eos: bool = False,
) -> PreparationResult:
    """Import files into `folder`/train, in pieces of `target` bytes, as `cistron prepare` does."""
    files = FileStore().expand(map(str, paths))
    tokenizer = tokenizer or ByteTokenizer()
    corpus = TokenCorpus(
        files=files, reader=reader, tokenizer=tokenizer, append_eos=append_eos, pad_id=pad_id, keeps_eos=keeps_eos
    )
    tasks = group(corpus.split(target), target)
    return sum((corpus.convert(task, folder, None, lambda _: None) for task in tasks), PreparationResult())


def imported(folder: Path) -> tuple[Documents, list[list[float]]]:
    """Documents and their weights in all shards of `folder`/train."""
    documents, weights = [], []
    if not (folder / "train").is_dir() or not list((folder / "train").glob("*.json")):
        return [], []
    for shard in open_shards(FileStore().expand([str(folder / "train")], "*.json"), FileStore()):
        bounds = shard.offsets()[1:-1].astype(np.int64)
        documents += [part.tolist() for part in np.split(shard.ids(), bounds)]
        of_shard = shard.weights()
        weights += [part.tolist() for part in np.split(of_shard, bounds)] if of_shard is not None else []
    return documents, weights


def write_megatron(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "<u2") -> list[Path]:
    """Write the published layout by hand: documents of sequences of ids."""
    sequences = [sequence for document in documents for sequence in document]
    sizes = [len(sequence) for sequence in sequences]
    width = np.dtype(dtype).itemsize
    code = {"<u1": 1, "<i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}[dtype]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(documents) + 1)
    index += struct.pack(f"<{len(sizes)}i", *sizes)
    index += struct.pack(f"<{len(sizes)}q", *(width * sum(sizes[:number]) for number in range(len(sizes))))
    bounds = [sum(map(len, map(list, documents[:number]))) for number in range(len(documents) + 1)]
    index += struct.pack(f"<{len(bounds)}q", *bounds)
    data, table = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
    data.write_bytes(np.array([token for sequence in sequences for token in sequence], dtype).tobytes())
    table.write_bytes(index)
    return [data, table]


def megatron(append_eos: bool = False) -> MegatronReader:
    return MegatronReader(FileStore(), EOS, append_eos)


def dump(dtype: str | None = "uint16", append_eos: bool = False) -> DumpReader:
    return DumpReader(FileStore(), EOS, append_eos, dtype)


def write_lists(path: Path, documents: Sequence[object], weights: Sequence[object] | None = None, rows: int = 3) -> list[Path]:
    columns = {"id": list(range(len(documents))), "input_ids": documents}
    pq.write_table(pa.table(columns | ({"loss": weights} if weights is not None else {})), path, row_group_size=rows)
    return [path]


bodies = st.lists(st.lists(st.integers(1, 511), max_size=12), min_size=1, max_size=25).filter(any)
small = st.integers(1, 30)


def without_empty(documents: Documents) -> Documents:
    return [[*document, EOS] for document in documents if document]


@settings(max_examples=30, deadline=None)
@given(bodies, st.sampled_from(["<u2", "<i4", "<i8"]), st.booleans(), st.randoms(), small, small)
def test_megatron_documents_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory,
    bodies: Documents,
    dtype: str,
    append: bool,
    random: Random,
    target: int,
    chunk: int,
) -> None:
    folder = tmp_path_factory.mktemp("megatron")
    documents = []
    for body in bodies:
        ended = body if append else [*body, EOS]
        cut = random.randint(0, len(ended))
        documents.append([part for part in (ended[:cut], ended[cut:]) if part])
    with patch.object(token_files, "CHUNK", chunk):
        result = convert(folder, megatron(append), write_megatron(folder / "a", documents, dtype), append, target)
    assert imported(folder)[0] == without_empty(bodies)
    filled = len(without_empty(bodies))
    assert (result.documents, result.dropped) == (filled, len(bodies) - filled)
    assert result.eos_appended == (filled if append else 0)


@settings(max_examples=30, deadline=None)
@given(bodies, st.sampled_from(["uint16", "int32", "npy"]), st.booleans(), small, small)
def test_a_dump_is_cut_behind_its_eos_ids(
    tmp_path_factory: pytest.TempPathFactory, bodies: Documents, dtype: str, unended: bool, target: int, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    bodies = [*bodies, [1, 2, 3] * 20]  # so that the mean is plausible
    ids = np.array([token for body in bodies for token in [*body, EOS]])[: -1 if unended else None]
    path = folder / ("a.npy" if dtype == "npy" else "a.bin")
    if dtype == "npy":
        np.save(path, ids)
    else:
        path.write_bytes(ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    reader = dump(None if dtype == "npy" else dtype, append_eos=unended)
    with patch.object(token_files, "CHUNK", chunk):
        result = convert(folder, reader, [path], unended, target)
    assert imported(folder)[0] == without_empty(bodies)
    assert result.eos_appended == unended


@settings(max_examples=30, deadline=None)
@given(bodies, st.sampled_from([pa.int32(), pa.int64(), pa.uint16()]), st.booleans(), st.booleans(), small)
def test_parquet_rows_are_documents_and_their_weights_stay_beside_them(
    tmp_path_factory: pytest.TempPathFactory, bodies: Documents, dtype: pa.DataType, append: bool, mask: bool, rows: int
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    documents = [body if append else [*body, EOS] for body in bodies]
    weights = [[token % 2 if mask else token / 4 for token in document] for document in documents]
    path = folder / "a.parquet"
    table = pa.table({"ids": pa.array(documents, pa.large_list(dtype)), "w": pa.array(weights, pa.list_(pa.float32()))})
    pq.write_table(table, path, row_group_size=rows)
    with patch.object(columns, "BATCH_BYTES", 100):
        convert(folder, ListReader(FileStore(), "ids", "w"), [path], append)
    found, found_weights = imported(folder)
    assert found == without_empty(bodies)
    # An appended eos counts as the token before it does.
    kept = [[*row, row[-1]] if append else row for row, body in zip(weights, bodies, strict=True) if body]
    assert found_weights == kept


def test_an_eos_is_appended_only_where_there_is_none(tmp_path: Path) -> None:
    result = convert(tmp_path, megatron(True), write_megatron(tmp_path / "a", [[[3, 4]], [[5, EOS]], [[EOS]], []]), True)
    assert imported(tmp_path)[0] == [[3, 4, EOS], [5, EOS]]
    assert (result.eos_appended, result.dropped) == (1, 2)


@pytest.mark.parametrize("append", [False, True])
def test_an_eos_inside_of_a_document_is_refused_with_its_number(tmp_path: Path, append: bool) -> None:
    documents = [[[7, EOS]], [[8, EOS]], [[3, EOS, 4, EOS]]]
    for target in (4, 1000):
        with pytest.raises(DataError, match="eos 0 is inside of a document") as caught:
            convert(tmp_path, megatron(append), write_megatron(tmp_path / "a", documents), append, target)
        assert (caught.value.file, caught.value.record) == (str(tmp_path / "a.bin"), 2)


def test_ids_outside_of_the_vocabulary_are_refused(tmp_path: Path) -> None:
    for wrong in (512, -1):
        with pytest.raises(DataError, match=f"id {wrong} is outside of the tokenizer's vocabulary of 512") as caught:
            convert(tmp_path, megatron(), write_megatron(tmp_path / "a", [[[5, EOS]], [[wrong, EOS]]], "<i4"))
        assert caught.value.record == 1
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.part"))


def test_megatron_documents_without_eos_are_counted_and_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.idx: 2 of 4 documents do not end with eos 0; .*--append-eos"):
        convert(tmp_path, megatron(), write_megatron(tmp_path / "a", [[[5]], [[6], [EOS]], [], [[7, 8]]]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda index: b"TNTIDX\x00\x00\x00" + index[9:], "not a Megatron index"),
        (lambda index: index[:9] + struct.pack("<Q", 2) + index[17:], "expected version 1 .* found version 2"),
        (lambda index: index[:17] + b"\x06" + index[18:], "found version 1 and dtype 6"),
        (lambda index: index[:17] + b"\x05" + index[18:], "not int64 ids, as its index says"),
        (lambda index: index[:-1], "take 82 bytes, it has 81"),
        (lambda index: index[:34] + struct.pack("<i", 9) + index[38:], "its sequences do not lie one after another"),
        (lambda index: index[:-8] + struct.pack("<q", 1), "its documents are sequences 0 to 1 of 2"),
    ],
)
def test_a_damaged_megatron_index_is_refused(tmp_path: Path, change: object, problem: str) -> None:
    paths = write_megatron(tmp_path / "a", [[[5, EOS]], [[7, 8, EOS]]])
    paths[1].write_bytes(change(paths[1].read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=problem):
        convert(tmp_path, megatron(), paths)


@pytest.mark.parametrize(
    ("ids", "dtype", "problem"),
    [
        ([5, 6, 7], "<u2", r"0 of 3 tokens are the eos 0, so that there would be no end of a document"),
        ([0, 0, 5, 0, 0], "<u2", r"4 of 5 tokens are the eos 0, 1\.25 tokens a document.* give --pad-id 0"),
        ([5, 6, 0, 7, 8, 9, 9], "<u2", "its last document ends with 9, not the eos 0; give --append-eos"),
        ([5, 6, 0], "<u4", r"4 of 6 tokens are the eos 0, 1\.50 tokens a document"),  # read as uint16, every other id is 0
    ],
)
def test_a_dump_whose_eos_cannot_be_one_is_refused(tmp_path: Path, ids: list[int], dtype: str, problem: str) -> None:
    (tmp_path / "a.bin").write_bytes(np.array(ids, dtype).tobytes())
    with pytest.raises(DataError, match=problem):
        convert(tmp_path, dump(), [tmp_path / "a.bin"])


def test_a_dump_that_is_no_list_of_ids_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "square.npy", np.zeros((2, 2), np.int32))
    np.save(tmp_path / "float.npy", np.zeros(4))
    np.save(tmp_path / "wide.npy", np.zeros(4, np.int64))
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "none.npy").write_bytes(b"abc")
    for name, problem in (
        ("square", "expected integers in one dimension"),
        ("float", "found float64 of shape"),
        ("wide", "--dtype is uint16, and this array is of int64"),
        ("odd", "not an array of ids"),
        ("none", "not an array of ids"),
    ):
        with pytest.raises(DataError, match=problem):
            convert(tmp_path, dump(), list(tmp_path.glob(f"{name}.*")))
    with pytest.raises(DataError, match="give --dtype"):
        convert(tmp_path, dump(None), [tmp_path / "odd.bin"])


@pytest.mark.parametrize(
    ("documents", "weights", "column", "problem", "record"),
    [
        ([[1, 0]], None, "tokens", "there is no column 'tokens'; its columns are: 'id', 'input_ids'", None),
        (["text"], None, "input_ids", "must hold lists of integers, and is of type string", None),
        ([[1.5]], None, "input_ids", "must hold lists of integers, and is of type list<.*double>", None),
        ([[1, 0], [2, 0], None], None, "input_ids", "column 'input_ids' is null", 2),
        ([[1, 0], [2, None]], None, "input_ids", "holds a null; rows from this one on", 0),
        ([[1, 0], [2, 3]], None, "input_ids", "1 of the 2 documents looked at do not end with eos 0, this one with 3", 1),
        ([[1, 0], [2, 0]], [[1.0, 1.0], [1.0]], "input_ids", "2 ids and 1 loss weights", 1),
        ([[1, 0], [2, 0]], [[1.0, 1.0], [1.0, -0.5]], "input_ids", "the loss weight -0.5 must be finite", 1),
        ([[1, 0]], [["a"]], "input_ids", "column 'loss' must hold lists of numbers", None),
    ],
)
def test_parquet_that_holds_no_documents_is_refused(
    tmp_path: Path, documents: list[object], weights: list[object] | None, column: str, problem: str, record: int | None
) -> None:
    paths = write_lists(tmp_path / "a.parquet", documents, weights)
    with pytest.raises(DataError, match=problem) as caught:
        convert(tmp_path, ListReader(FileStore(), column, "loss" if weights else None), paths, target=1)
    assert caught.value.record == record


def test_a_loss_mask_of_booleans_is_a_weight_too(tmp_path: Path) -> None:
    paths = write_lists(tmp_path / "a.parquet", [[5, 6, 0], [7, 0]], [[False, True, True], [False, True]])
    convert(tmp_path, ListReader(FileStore(), "input_ids", "loss"), paths)
    assert imported(tmp_path)[1] == [[0.0, 1.0, 1.0], [0.0, 1.0]]


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet"):
        convert(tmp_path, ListReader(FileStore(), "input_ids", None), [tmp_path / "a.parquet"])


PROTEIN = build_tokenizer(TokenizerConfig(kind="protein"))  # <cls> 0, <pad> 1, <eos> 2, <mask> 32, vocabulary 33
residues = st.lists(st.lists(st.integers(4, 23), max_size=9), min_size=1, max_size=20).filter(any)


def padded(random: Random, document: list[int], pad: int, width: int) -> list[int]:
    """Fill up to `width` at the end, at the start, or at both."""
    missing = width - len(document)
    left = random.choice([0, missing, random.randint(0, missing)])
    return [pad] * left + document + [pad] * (missing - left)


@settings(max_examples=25, deadline=None)
@given(
    residues,
    st.sampled_from(["rows", "rows with a mask", "megatron", "dump"]),
    st.sampled_from([None, 24, PROTEIN.eos_id]),
    st.booleans(),
    st.randoms(),
    small,
)
def test_padding_at_either_end_is_taken_off_and_counted(
    tmp_path_factory: pytest.TempPathFactory,
    bodies: Documents,
    kind: str,
    pad_id: int | None,
    append: bool,
    random: Random,
    chunk: int,
) -> None:
    folder, eos, target = tmp_path_factory.mktemp("padded"), PROTEIN.eos_id, 9999
    append = append and kind != "dump"
    documents = bodies if append else [[*body, eos] for body in bodies]
    pad = PROTEIN.pad_id if pad_id is None else pad_id
    width = max(map(len, documents)) + 4
    rows = [padded(random, document, pad, width) for document in documents]
    taken = sum(map(len, rows)) - sum(map(len, documents))
    expected = [[*body, eos] for body in bodies if body]
    if kind == "megatron":
        files = write_megatron(folder / "m", [[row[:2], row[2:]] for row in rows], "<i4")
        with patch.object(token_files, "CHUNK", chunk):
            reader: TokenReader = MegatronReader(FileStore(), eos, append, pad)
            result = convert(folder, reader, files, append, target, pad_id, PROTEIN)
    elif kind == "dump":
        long = [5, 6, 7] * 30 + [eos]  # so that the mean is plausible
        expected.append(long)
        taken += 2
        np.save(folder / "d.npy", np.array([token for row in rows for token in row] + [*long, pad, pad]))
        with patch.object(array_files, "CHUNK", chunk):
            dump = DumpReader(FileStore(), eos, False, None, pad)
            result = convert(folder, dump, [folder / "d.npy"], False, target, pad_id, PROTEIN)
    else:
        table = {"input_ids": rows, "w": [[float(at) for at in range(width)] for _ in rows]}
        if kind == "rows with a mask":
            starts = [next((at for at, token in enumerate(row) if token != pad), 0) for row in rows]
            spans = [range(start, start + len(document)) for start, document in zip(starts, documents, strict=True)]
            table["attention_mask"] = [[int(at in span) for at in range(width)] for span in spans]
            pad_id = None
        pq.write_table(pa.table(table), folder / "a.parquet", row_group_size=chunk)
        reader = ListReader(FileStore(), "input_ids", "w", masked=pad_id is None)
        result = convert(folder, reader, [folder / "a.parquet"], append, target, pad_id, PROTEIN)
        filled = [row for row, body in zip(rows, bodies, strict=True) if body]
        for row, weight in zip(filled, imported(folder)[1], strict=True):  # each beside its own token
            first = next(at for at, token in enumerate(row) if token not in (pad, eos))
            assert weight[:-1] == [float(first + at) for at in range(len(weight) - 1)]
    assert imported(folder)[0] == expected
    assert result.documents == len(expected)
    if pad_id != eos:  # one behind a document is its own, and a document of eos alone is dropped as one or as padding
        assert result.padding == taken


@pytest.mark.parametrize(
    ("row", "pad_id", "problem"),
    [
        ([5, 1, 1, 6, 2], None, "the pad 1 is inside of a document, at its token 1 from 0"),
        ([1, 5, 6, 1, 2], None, "the pad 1 is inside of a document, at its token 3"),
        ([5, 6, 1, 2, 24], 24, "the pad 1 is inside of a document, at its token 2 from 0; --pad-id 1 takes it off"),
        ([5, 6, 7, 2, 1], "none", "the pad 1 is inside of a document, at its token 4 from 0; --pad-id 1 takes it off"),
        ([1, 5, 32, 6, 2], None, "the mask 32 is inside of a document, at its token 2 from 0"),
        ([5, 2, 2, 6, 2], 2, "the eos 2 is inside of a document, at its token 1"),
        ([5, 6, 2, 2, 2], None, "the eos 2 is inside of a document, at its token 2 from 0; if it fills rows up, --pad-id 2"),
        ([2, 2, 5, 6, 2], None, "the eos 2 is inside of a document, at its token 0 from 0; if it fills rows up, --pad-id 2"),
    ],
)
def test_padding_and_masks_inside_of_a_document_are_refused_with_row_and_place(
    tmp_path: Path, row: list[int], pad_id: PadId, problem: str
) -> None:
    paths = write_lists(tmp_path / "a.parquet", [[5, 2], [7, 8, 2], row])
    with pytest.raises(DataError, match=problem) as caught:
        convert(tmp_path, ListReader(FileStore(), "input_ids", None), paths, False, 9999, pad_id, PROTEIN)
    assert caught.value.record == 2
    if pad_id is None:
        for chunk in (1, 2, 3, 99):
            files = write_megatron(tmp_path / "m", [[[5, 2]], [[7, 8, 2]], [row[:1], row[1:]]], "<i4")
            with patch.object(token_files, "CHUNK", chunk), pytest.raises(DataError, match=problem.split(",")[0]) as caught:
                convert(tmp_path, MegatronReader(FileStore(), 2, False, 1), files, False, 9999, pad_id, PROTEIN)
            assert caught.value.record == 2


def test_a_mask_that_covers_the_inside_of_a_document_is_refused(tmp_path: Path) -> None:
    table = {"input_ids": [[5, 2, 1], [7, 8, 2]], "attention_mask": [[True, True, False], [True, False, True]]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    problem = "attention_mask is 0 inside of a document, at its token 1"
    with pytest.raises(DataError, match=problem) as caught:
        convert(tmp_path, ListReader(FileStore(), "input_ids", None), [tmp_path / "a.parquet"], tokenizer=PROTEIN)
    assert caught.value.record == 1
    table["attention_mask"][1].pop()
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="3 ids and 2 values of attention_mask"):
        convert(tmp_path, ListReader(FileStore(), "input_ids", None), [tmp_path / "a.parquet"], tokenizer=PROTEIN)


@pytest.mark.parametrize("side", ["end", "start"])
def test_rows_that_look_padded_are_refused_with_advice_that_leads_on(tmp_path: Path, side: str) -> None:
    draw = Random(3)
    bodies = [[5, *(draw.randint(30, 90) for _ in range(draw.randint(1, 12))), 6] for _ in range(9)]  # some with a 77
    rows = [body + [77] * (16 - len(body)) if side == "end" else [77] * (16 - len(body)) + body for body in bodies]
    paths = write_lists(tmp_path / "a.parquet", rows, rows=9)
    reader = ListReader(FileStore(), "input_ids", None)
    with pytest.raises(DataError, match=r"9 of the 9 documents looked at have a run of id 77 .* --pad-id 77 takes it off"):
        convert(tmp_path, reader, paths, True)
    result = convert(tmp_path / "off", reader, paths, True, pad_id=77)
    assert imported(tmp_path / "off")[0] == [[*body, EOS] for body in bodies]
    assert result.padding == sum(16 - len(body) for body in bodies)
    convert(tmp_path / "kept", reader, paths, True, pad_id="none")
    assert imported(tmp_path / "kept")[0] == [[*row, EOS] for row in rows]


def test_rows_padded_with_the_eos_are_no_documents_that_keep_it(tmp_path: Path) -> None:
    bodies = [[*range(5, 5 + length), EOS, *range(9, 9 + length), EOS] for length in range(1, 12)]
    paths = write_lists(tmp_path / "a.parquet", [body + [EOS] * (30 - len(body)) for body in bodies], rows=11)
    reader = ListReader(FileStore(), "input_ids", None)
    with pytest.raises(DataError, match=r"11 of the 11 .* a run of id 0 .* --pad-id 0 takes it off"):
        convert(tmp_path, reader, paths, target=9999, keeps_eos=True)
    convert(tmp_path, reader, paths, target=9999, keeps_eos=True, pad_id=EOS)
    assert imported(tmp_path)[0] == bodies
    paths = write_lists(tmp_path / "b.parquet", bodies, rows=11)
    convert(tmp_path / "plain", reader, paths, target=9999, keeps_eos=True)
    assert imported(tmp_path / "plain")[0] == bodies


def test_windows_of_bases_are_not_taken_for_padded_rows(tmp_path: Path) -> None:
    draw = Random(4)
    rows = [[draw.choice([65, 67, 71, 84]) for _ in range(60)] for _ in range(200)]
    paths = write_lists(tmp_path / "a.parquet", rows, rows=25)
    convert(tmp_path, ListReader(FileStore(), "input_ids", None), paths, True, 10**4)
    assert imported(tmp_path)[0] == [[*row, EOS] for row in rows]
