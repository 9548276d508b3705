"""Documents that keep eos ids inside: boundaries are what packer and offsets say, from the files to the rows."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.errors import DataConfigError, DataError
from cistron.datasets.files import FileStore
from cistron.datasets.prepare import DumpReader, ListReader, MegatronReader, TokenCorpus, TokenReader
from cistron.datasets.prepare.run import group
from cistron.datasets.readers import SourceConfig
from cistron.datasets.rows import Block, MaskedTokens, MaskingConfig, Packer, row_violations
from cistron.datasets.shards import Shard, ShardWriter, open_shards, verify_shard
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.datasets.tokenizers.letters import ProteinTokenizer
from cistron.tests.helpers.corpora import Settings, config, numbered_rows, segments, take_on_ranks
from cistron.tools import prepare
from cistron.trainer.errors import ConfigError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EOS, PAD = 0, 1
Documents = list[list[int]]
# Bodies that hold an eos as often as not, and end in one now and then.
BODIES = st.lists(st.lists(st.integers(0, 4).map(lambda index: index + (index > 0)), max_size=20), min_size=1, max_size=12)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def block_of(documents: Documents) -> Block:
    """Documents one after another, as a shard has them."""
    lengths = np.array([len(document) for document in documents])
    ids = np.array([token for document in documents for token in document], dtype=np.int32)
    none = np.zeros(len(lengths), dtype=bool)
    return Block([ids], None, np.zeros(len(lengths), dtype=np.int64), np.cumsum(lengths) - lengths, lengths, none)


@quick
@given(bodies=BODIES, seq_len=st.integers(2, 12), policy=st.sampled_from(["best_fit", "concat", "padded"]))
def test_rows_hold_the_documents_of_the_offsets_whatever_eos_is_in_them(bodies: Documents, seq_len: int, policy: str) -> None:
    documents = [[*body, EOS] for body in bodies]
    packer = Packer(seq_len, EOS, PAD, policy)
    block = block_of(documents)
    rows = list(packer.rows(block, packer.plan(block)))
    goes_on = [row.following is not None for row in rows]
    planes = packer.expand(rows, range(len(rows)))
    assert row_violations(*planes[:4], EOS, None, goes_on) == []
    # every document is there, each of its tokens but the first a target once
    parts, targets = [], []
    for row in range(len(rows)):
        parts += segments([plane[row] for plane in planes[:4]])
        targets += [label for label in planes.labels[row].tolist() if label >= 0]
    assert sorted(token for part in parts for token in part) == sorted(token for each in documents for token in each)
    assert sorted(targets) == sorted(token for document in documents for token in document[1:])
    whole = [document for document in documents if len(document) <= seq_len]
    if policy != "concat":
        assert all(document in parts for document in whole), "what fits is never split, at an eos or elsewhere"


def planes_of(documents: Documents, seq_len: int = 8) -> tuple[list[np.ndarray[Any, Any]], list[bool]]:
    packer = Packer(seq_len, EOS, PAD, "best_fit")
    block = block_of(documents)
    rows = list(packer.rows(block, packer.plan(block)))
    return list(packer.expand(rows, range(len(rows)))[:4]), [row.following is not None for row in rows]


@pytest.mark.parametrize(
    ("plane", "place", "value", "problem"),
    [
        (0, (0, 3), 5, "a document ends without eos"),
        (1, (0, 1), -100, "a label is not the next token of its document"),
        (1, (0, 3), 7, "the label at an eos is not -100"),
        (2, (0, 2), 0, "positions differ from what the ends of documents imply"),
        (3, (0, 5), 3, "sequence_ids differ from what the ends of documents imply"),
        (3, (0, 0), 1, "sequence_ids differ from what the ends of documents imply"),
    ],
)
def test_what_breaks_a_row_is_told_though_eos_does_not_tell_documents(
    plane: int, place: tuple[int, int], value: int, problem: str
) -> None:
    planes, goes_on = planes_of([[3, EOS, 4, EOS], [5, EOS, EOS]])
    assert row_violations(*planes, EOS, None, goes_on) == []
    assert row_violations(*planes, EOS) != [], "by the eos tokens these were other documents"
    planes[plane][place] = value
    assert problem in " ".join(row_violations(*planes, EOS, None, goes_on))


def test_a_fragment_that_is_cut_behind_an_eos_inside_goes_on() -> None:
    planes, goes_on = planes_of([[3, EOS, 4, 5, EOS]], seq_len=2)
    assert goes_on == [True, True, False]
    assert planes[1].tolist() == [[EOS, 4], [5, EOS], [-100, -100]]
    assert row_violations(*planes, EOS, None, goes_on) == []
    assert "the label at an eos is not -100" in " ".join(row_violations(*planes, EOS, None, [False, True, False]))


def test_the_masked_objective_hides_no_eos_inside() -> None:
    tokenizer = ProteinTokenizer()
    objective = MaskedTokens(MaskingConfig(mask_rate=1.0), tokenizer, seed=0)
    packer = Packer(16, tokenizer.eos_id, tokenizer.pad_id, "best_fit", objective)
    block = block_of([[0, 5, 2, 6, 2], [0, 7, 2, 2]])
    rows = list(packer.rows(block, packer.plan(block)))
    planes = packer.expand(rows, range(len(rows)))
    assert row_violations(*planes[:4], tokenizer.eos_id, objective, [False]) == []
    assert sorted(planes.labels[planes.labels >= 0].tolist()) == [5, 6, 7]


def write(folder: Path, documents: Documents, keeps_eos: bool = True) -> Shard:
    writer = ShardWriter(folder, "part", ByteTokenizer(), np.dtype("<u2"), keeps_eos=keeps_eos)
    for document in documents:
        writer.write(np.array(document), [len(document)])
    writer.finish([])
    return open_shards(FileStore().expand([str(folder / "part.json")]), FileStore())[0]


def read(shard: Shard) -> Documents:
    return [part.tolist() for part in np.split(shard.ids(), shard.offsets()[1:-1].astype(np.int64))]


@quick
@given(bodies=BODIES)
def test_a_shard_keeps_documents_and_counts_what_is_inside(bodies: Documents, tmp_path_factory: pytest.TempPathFactory) -> None:
    documents = [[*body, EOS] for body in bodies]
    shard = write(tmp_path_factory.mktemp("shard"), documents)
    verify_shard(shard)
    assert read(shard) == documents
    assert shard.manifest.interior_eos == sum(body.count(EOS) for body in bodies)


def test_a_shard_with_an_eos_more_or_less_than_it_says_is_refused(tmp_path: Path) -> None:
    shard = write(tmp_path, [[3, EOS, 4, EOS], [5, EOS]])
    forged = shard.manifest.model_copy(update={"interior_eos": 2})
    (tmp_path / "part.json").write_text(forged.model_dump_json())
    (found,) = open_shards(FileStore().expand([str(tmp_path / "part.json")]), FileStore())
    with pytest.raises(DataError, match="1 eos ids \\(0\\) inside of documents, and its manifest says 2"):
        verify_shard(found)
    with pytest.raises(AssertionError, match="2 eos ids in 1 documents"):
        write(tmp_path / "other", [[3, EOS, EOS]], keeps_eos=False)


def job(paths: Sequence[Path], form: str = "tokens", field: str = "ids", **changes: Any) -> Settings:
    source = SourceConfig(name="main", format=form, field=field, paths=[str(path) for path in paths])
    return config(source, lanes=2, **{"interior_eos": "keep", **changes})


def test_shards_that_keep_eos_are_refused_by_a_job_that_does_not(tmp_path: Path) -> None:
    write(tmp_path, [[3, EOS, 4, EOS], [5, EOS]])
    with pytest.raises(DataConfigError, match=r'data.interior_eos = "refuse": .*part.json was prepared to keep 1 eos ids'):
        job([tmp_path / "part.json"], interior_eos="refuse").loader()
    with job([tmp_path / "part.json"]).loader() as loader:
        assert loader.sources[0].remarks() == ["source 'main': 1 eos ids are inside of documents, where nothing ends"]


def drawn(count: int, seed: int = 0) -> Documents:
    """Documents of ids, numbered in their first token, a third of the others eos."""
    random = np.random.default_rng(seed)
    bodies = [random.choice([EOS, 2, 3], size=random.integers(0, 60)).tolist() for _ in range(count)]
    return [[4 + number, *body, EOS] for number, body in enumerate(bodies)]


def write_ids(path: Path, documents: Sequence[Sequence[Any]]) -> Path:
    path.write_text("".join(json.dumps({"ids": document}) + "\n" for document in documents))
    return path


@pytest.mark.parametrize("form", ["tokens", "jsonl_ids"])
def test_rows_are_the_same_on_two_ranks_and_after_a_resume_on_another_layout(tmp_path: Path, form: str) -> None:
    documents = drawn(80)
    if form == "tokens":
        write(tmp_path, documents)
        settings = job([tmp_path / "part.json"])
    else:
        settings = job([write_ids(tmp_path / "a.jsonl", documents)], form)
    (one, state), (two, state_of_two) = take_on_ranks(settings, 1, 8), take_on_ranks(settings.but(batch_size=2), 2, 8)
    assert numbered_rows(one) == numbered_rows(two)
    assert state == state_of_two
    rows = numbered_rows(take_on_ranks(settings, 1, 12)[0])
    resumed, _ = take_on_ranks(settings.but(batch_size=2), 2, 4, state)
    assert numbered_rows(resumed) == {number: row for number, row in rows.items() if number >= 32}
    with pytest.raises(
        DataConfigError, match="data.interior_eos: checkpoint 'keep', now 'none'" if form == "jsonl_ids" else "keep"
    ):
        take_on_ranks(settings.but(interior_eos="refuse"), 1, 1, state)


@pytest.mark.parametrize("form", ["tokens", "jsonl_ids"])
def test_a_single_pass_holds_every_document_once_and_counts_those_that_end(tmp_path: Path, form: str) -> None:
    documents = drawn(30)
    if form == "tokens":
        write(tmp_path, documents)
        settings = job([tmp_path / "part.json"], seq_len=16)
    else:
        settings = job([write_ids(tmp_path / "a.jsonl", documents)], form, seq_len=16)
    batches = list(settings.single_pass().batches())
    assert sum(int(batch.ended.sum()) for batch in batches) == len(documents)
    inside = sum(int(batch.interior_eos(EOS).sum()) for batch in batches)
    assert inside == sum(document.count(EOS) - 1 for document in documents)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([3, 0, 4], 'token 1 is the eos 0, inside of the document; data.interior_eos = "keep" takes it as a token'),
        ([3, 1, 4], "token 1 is the pad 1, which no document has"),
        ([3, 512], "id 512 is outside of the tokenizer's vocabulary of 512"),
        ([3, 2**31], "field 'ids' holds 2147483648, which is no token id"),
        ([-1], "field 'ids' holds -1, which is no token id"),
        ([3, 4.0], "field 'ids' must be a list of token ids, found a list with a float"),
        ([True], "found a list with a bool"),
        ("text", "field 'ids' must be a list of token ids, found a str"),
    ],
)
def test_ids_that_are_none_are_a_bad_record(tmp_path: Path, document: Any, problem: str) -> None:
    path = write_ids(tmp_path / "a.jsonl", [[3], document, [4]])
    settings = job([path], "jsonl_ids", interior_eos="refuse")
    with pytest.raises(DataError) as caught:
        list(settings.single_pass().batches())
    assert problem in str(caught.value)
    assert "a.jsonl, record 2" in str(caught.value)
    (batch,) = settings.but(on_bad_record="skip").single_pass().batches()
    assert segments([plane[0].numpy() for plane in (batch.tokens, batch.labels, batch.positions, batch.sequence_ids)]) in (
        [[3, 0], [4, 0]],
        [[4, 0], [3, 0]],
    )


def test_a_document_of_ids_opens_and_ends_as_the_tokenizer_says(tmp_path: Path) -> None:
    settings = job([write_ids(tmp_path / "a.jsonl", [[0, 5], [0, 6, 2], [0], []])], "jsonl_ids", interior_eos="refuse")
    (batch,) = settings.single_pass(ProteinTokenizer()).batches()
    found = segments([plane[0].numpy() for plane in (batch.tokens, batch.labels, batch.positions, batch.sequence_ids)])
    assert sorted(found) == [[0, 5, 2], [0, 6, 2]], "an eos is added where there is none; what holds nothing else is left out"
    settings = job([write_ids(tmp_path / "b.jsonl", [[5]])], "jsonl_ids", interior_eos="refuse")
    with pytest.raises(DataError, match="it begins with 5, and a document begins with bos 0"):
        list(settings.single_pass(ProteinTokenizer()).batches())


def convert(folder: Path, reader: TokenReader, paths: Sequence[Path], keeps_eos: bool, target: int = 40) -> Documents:
    """Import files, in pieces of `target` bytes; return what is in the shards."""
    files = FileStore().expand(map(str, paths))
    corpus = TokenCorpus(files=files, reader=reader, tokenizer=ByteTokenizer(), append_eos=True, keeps_eos=keeps_eos)
    results = [corpus.convert(task, folder, None, lambda _: None) for task in group(corpus.split(target), target)]
    shards = open_shards(FileStore().expand([str(folder / "train")], "*.json"), FileStore())
    documents = [document for shard in shards for document in read(shard)]
    assert sum(result.interior_eos for result in results) == sum(document[:-1].count(EOS) for document in documents)
    for shard in shards:
        verify_shard(shard)
    return documents


def parquet(path: Path, documents: Documents) -> tuple[TokenReader, list[Path]]:
    pq.write_table(pa.table({"input_ids": documents}), path, row_group_size=3)
    return ListReader(FileStore(), "input_ids", None), [path]


def dump(path: Path, documents: Documents) -> tuple[TokenReader, list[Path]]:
    np.save(path.with_suffix(".npy"), np.array([token for document in documents for token in document], dtype=np.uint16))
    np.save(path.with_suffix(".offsets.npy"), np.cumsum([0, *map(len, documents)]))
    return DumpReader(FileStore(), EOS, True, None, offsets=".offsets.npy"), [path.with_suffix(".npy")]


def megatron(path: Path, documents: Documents) -> tuple[TokenReader, list[Path]]:
    sizes = list(map(len, documents))
    starts, bounds = np.cumsum([0, *sizes[:-1]]) * 2, range(len(documents) + 1)
    index = struct.pack("<9sQBQQ", b"MMIDIDX", 1, 8, len(sizes), len(bounds)) + np.array(sizes, "<i4").tobytes()
    path.with_suffix(".idx").write_bytes(index + starts.astype("<i8").tobytes() + np.array(bounds, "<i8").tobytes())
    path.with_suffix(".bin").write_bytes(np.array([token for each in documents for token in each], "<u2").tobytes())
    return MegatronReader(FileStore(), EOS, True), [path.with_suffix(".bin"), path.with_suffix(".idx")]


@pytest.mark.parametrize("kind", [parquet, dump, megatron])
@quick
@given(bodies=BODIES)
def test_an_import_keeps_eos_ids_inside_of_documents(
    kind: Callable[[Path, Documents], tuple[TokenReader, list[Path]]],
    bodies: Documents,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("import")
    documents = [[3, *body] for body in bodies]
    reader, paths = kind(folder / "a", documents)
    found = convert(folder, reader, paths, keeps_eos=True)
    assert found == [document if document[-1] == EOS else [*document, EOS] for document in documents]


def test_an_import_refuses_an_eos_inside_unless_it_is_kept(tmp_path: Path) -> None:
    reader, paths = parquet(tmp_path / "a", [[3, EOS, 4, EOS]])
    with pytest.raises(DataError, match="--interior-eos keep"):
        convert(tmp_path, reader, paths, keeps_eos=False)


@pytest.mark.parametrize(
    ("offsets", "problem"), [([0, 3, 2, 4], "they must rise from 0"), ([0, 3], "from 0 to 3"), ([[0, 4]], "one dimension")]
)
def test_offsets_that_do_not_fit_a_dump_are_refused(tmp_path: Path, offsets: Any, problem: str) -> None:
    reader, paths = dump(tmp_path / "a", [[3, EOS, 4, EOS]])
    np.save(tmp_path / "a.offsets.npy", np.array(offsets))
    with pytest.raises(DataError, match=problem):
        convert(tmp_path, reader, paths, keeps_eos=True)


def test_the_command_keeps_eos_where_something_else_bounds_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (path,) = dump(tmp_path / "a", [[3, EOS, 4, EOS], [5, EOS]])
    command = ["--import", "tokens", "--tokenizer", "byte", "--eos-id", "0", "--interior-eos", "keep", "--processes", "1"]
    command += ["--output", str(tmp_path / "out"), str(path)]
    with pytest.raises(ConfigError, match="nothing but its eos ids says where the documents of a dump end; give --offsets"):
        prepare.main(command)
    prepare.main([*command, "--offsets", ".offsets.npy"])
    assert "1 eos ids inside of documents kept" in capsys.readouterr().out
    ids = write_ids(tmp_path / "b.jsonl", [[3, EOS, 4], [5]])
    raw = ["--format", "jsonl_ids", "--field", "ids", "--tokenizer", "byte", "--processes", "1", str(ids), "--output"]
    prepare.main([*raw, str(tmp_path / "raw"), "--interior-eos", "keep"])
    assert "1 eos ids inside of documents kept" in capsys.readouterr().out
    (shard,) = open_shards(FileStore().expand([str(tmp_path / "raw" / "train")], "*.json"), FileStore())
    assert read(shard) == [[3, EOS, 4, EOS], [5, EOS]]
    with pytest.raises(DataError, match="inside of the document"):
        prepare.main([*raw, str(tmp_path / "refused")])
