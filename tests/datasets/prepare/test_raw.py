"""Raw documents into shards: each once, in order, on the side that its own bytes decide."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from cistron.datasets.documents import DocumentConfig
from cistron.datasets.errors import DataConfigError, DataError
from cistron.datasets.files import FileStore
from cistron.datasets.prepare import Event, PreparationResult, RawCorpus
from cistron.datasets.prepare.duplicates import mark_duplicates
from cistron.datasets.prepare.run import Task, _finished, _hold_plan, group
from cistron.datasets.readers import Reader
from cistron.datasets.readers.fasta import FastaReader
from cistron.datasets.readers.lines import JsonlReader
from cistron.datasets.readers.text import TextReader
from cistron.datasets.shards import open_shards
from cistron.datasets.tokenizers import HFTokenizer, Tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import words, write_bytes, write_fasta, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

JSONL = JsonlReader(FileStore(), "text")


def make_corpus(pattern: str, reader: Reader = JSONL, tokenizer: Tokenizer | None = None, **changes: Any) -> RawCorpus:
    arguments: dict[str, Any] = {"format": "any", "field": "text", "validation_share": 0.0, "deduplicate": False}
    arguments |= {"seed": 0, "skip_bad": False, "config": DocumentConfig()}
    files = FileStore().expand([pattern])
    return RawCorpus(files=files, reader=reader, tokenizer=tokenizer or ByteTokenizer(), **arguments | changes)


def convert(
    corpus: RawCorpus, folder: Path, target: int = 500, emit: Callable[[Event], None] = lambda _: None
) -> PreparationResult:
    """Write shards into `folder`, in tasks of `target` bytes, as `cistron prepare` does."""
    tasks = group(corpus.split(target), target)
    marks = None
    if corpus.deduplicate:
        folder.mkdir(exist_ok=True)
        hashes = [folder / f"{task.number}.hash" for task in tasks]
        for task, path in zip(tasks, hashes, strict=True):
            corpus.hash(task, path, emit)
        marks = folder / "marks"
        mark_duplicates(hashes, marks, folder / "scratch")
        before = np.cumsum([0, *(path.stat().st_size // 16 for path in hashes)]).tolist()
        tasks = [task._replace(documents_before=before[task.number]) for task in tasks]
    return sum((corpus.convert(task, folder, marks, emit) for task in tasks), PreparationResult())


def written(folder: Path) -> list[bytes]:
    """Documents of a folder of byte shards, in order, without their eos."""
    if not list(folder.glob("*.json")):
        return []
    shards = open_shards(FileStore().expand([str(folder)], "*.json"), FileStore())
    return [part.tobytes()[:-1] for shard in shards for part in np.split(shard.ids(), shard.offsets()[1:-1].astype(np.int64))]


def encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts if text]


@pytest.fixture
def documents() -> list[str]:
    """Draw documents, some of them empty and some twice."""
    texts = words(120)
    return [*texts[:60], "", texts[3], "same", *texts[60:], "same", "", texts[70], "same"]


@pytest.mark.parametrize("target", [200, 10**6])
def test_every_document_is_written_once_in_order(tmp_path: Path, documents: list[str], target: int) -> None:
    corpus = make_corpus(write_jsonl(tmp_path / "a.jsonl", documents))
    result = convert(corpus, tmp_path / "out", target)
    assert written(tmp_path / "out" / "train") == encoded(documents)
    assert (result.documents, result.dropped) == (len(encoded(documents)), 2)
    assert result.text_bytes == sum(map(len, encoded(documents)))
    assert result.tokens == result.text_bytes + result.documents
    assert len(result.shards) > 5 if target == 200 else len(result.shards) == 1


def test_validation_takes_the_documents_whose_hash_lies_below_the_share(tmp_path: Path, documents: list[str]) -> None:
    corpus = make_corpus(write_jsonl(tmp_path / "a.jsonl", documents), validation_share=0.3, seed=5)
    convert(corpus, tmp_path / "out")

    def aside(document: bytes) -> bool:
        return xxhash.xxh3_128_intdigest(document, 5) % 2**64 / 2**64 < 0.3

    assert written(tmp_path / "out" / "validation") == [document for document in encoded(documents) if aside(document)]
    assert written(tmp_path / "out" / "train") == [document for document in encoded(documents) if not aside(document)]


def test_of_equal_documents_the_first_of_the_corpus_stays(tmp_path: Path, documents: list[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", documents)
    write_jsonl(tmp_path / "b.jsonl", ["new", *documents[:30]])
    corpus = make_corpus(str(tmp_path / "*.jsonl"), deduplicate=True)
    result = convert(corpus, tmp_path / "out", 300)
    everything = [*encoded(documents), b"new", *encoded(documents[:30])]
    assert written(tmp_path / "out" / "train") == list(dict.fromkeys(everything))
    assert result.duplicates == len(everything) - len(set(everything))
    assert result.dropped == 2


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text("ACACAC ", max_size=40), min_size=1, max_size=12),
    st.integers(3, 30),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)
def test_long_documents_stream_to_the_side_that_their_end_decides(
    tmp_path_factory: pytest.TempPathFactory, records: list[str], group_bytes: int, share: float, deduplicate: bool
) -> None:
    folder = tmp_path_factory.mktemp("long")
    path = write_fasta(folder / "a.fasta", records, header="")
    options = {"validation_share": share, "deduplicate": deduplicate, "skip_bad": True}
    whole = make_corpus(path, FastaReader(FileStore()), **options)
    parts = make_corpus(path, FastaReader(FileStore(), group_bytes=group_bytes), **options)
    result = convert(parts, folder / "parts")
    assert result == convert(whole, folder / "whole")
    assert result.skipped == sum(not record or " " in record for record in records)
    for side in ("train", "validation"):
        assert written(folder / "parts" / side) == written(folder / "whole" / side)
    kept = written(folder / "whole" / "train") + written(folder / "whole" / "validation")
    expected = Counter(encoded([record for record in records if " " not in record]))
    assert Counter(kept) == (Counter(dict.fromkeys(expected, 1)) if deduplicate else expected)


@pytest.mark.parametrize("group_bytes", [8, 10**6])
def test_a_bad_document_is_refused_with_its_place_or_left_out_and_counted(tmp_path: Path, group_bytes: int) -> None:
    write_bytes(tmp_path / "a.fasta", b">one\nACGT\nACGT\n>two\nACGT\nAC\0TACGT\nACGT\n>three\nA\0\n>four\nTTTT\n")
    reader = FastaReader(FileStore(), group_bytes=group_bytes)
    with pytest.raises(DataError, match="NUL byte") as caught:
        convert(make_corpus(str(tmp_path / "a.fasta"), reader), tmp_path / "strict")
    assert (caught.value.record, caught.value.offset) == ("two", 27)

    messages: list[Event] = []
    result = convert(make_corpus(str(tmp_path / "a.fasta"), reader, skip_bad=True), tmp_path / "out", 10**6, messages.append)
    assert written(tmp_path / "out" / "train") == [b"ACGTACGT", b"TTTT"]
    assert (result.documents, result.skipped) == (2, 2)
    assert [event.message.split(", ")[1] for event in messages if event.message] == ["record two", "record three"]


def test_bad_records_of_a_reader_are_skipped_and_counted(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.jsonl", b'{"text": "a"}\nnot json\n{"text": 5}\n{"text": "b"}\n')
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="record 2"):
        convert(make_corpus(path), tmp_path / "strict")
    assert not [file for file in (tmp_path / "strict").rglob("*") if file.is_file()]
    result = convert(make_corpus(path, skip_bad=True, deduplicate=True), tmp_path / "out")
    assert written(tmp_path / "out" / "train") == [b"a", b"b"]
    assert result.skipped == 2


def make_hf(folder: Path) -> HFTokenizer:
    """Letters, and a merge that only a whole document shows."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE(vocab=alphabet | {"ab": 256}, merges=[("a", "b")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(["<eos>"])
    library.save(str(folder / "tokenizer.json"))
    return HFTokenizer(str(folder / "tokenizer.json"), eos_token="<eos>")


def test_a_tokenizer_that_must_see_all_of_a_document_does(tmp_path: Path) -> None:
    tokenizer = make_hf(tmp_path)
    (tmp_path / "a.txt").write_text("ab" * 50)
    convert(make_corpus(str(tmp_path / "a.txt"), TextReader(FileStore(), group_bytes=7), tokenizer), tmp_path / "out")
    (shard,) = open_shards(FileStore().expand([str(tmp_path / "out" / "train")], "*.json"), FileStore())
    assert shard.ids().tolist() == [256] * 50 + [257]
    assert (shard.manifest.eos_id, shard.manifest.vocab_size, shard.manifest.dtype) == (257, 258, "uint16")
    assert shard.manifest.tokenizer.fingerprint == tokenizer.fingerprint


def test_progress_adds_up_to_the_files_and_their_text(tmp_path: Path, documents: list[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    events: list[Event] = []
    convert(make_corpus(path), tmp_path / "out", 300, events.append)
    assert sum(event.stored for event in events) == pytest.approx(Path(path).stat().st_size)
    assert sum(event.text for event in events) == sum(map(len, encoded(documents)))
    assert min(event.stored for event in events) >= 0


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 50))
@settings(max_examples=15, deadline=None)
def test_duplicates_are_marked_over_all_hash_files(
    tmp_path_factory: pytest.TempPathFactory, documents: list[int], part: int
) -> None:
    folder = tmp_path_factory.mktemp("hashes")
    digests = [xxhash.xxh3_128_digest(bytes([document])) for document in documents]
    paths = []
    for at in range(0, len(digests), part):
        paths.append(folder / f"{at:06}")
        paths[-1].write_bytes(b"".join(digests[at : at + part]))
    mark_duplicates(paths, folder / "marks", folder / "scratch")
    expected = [document in documents[:place] for place, document in enumerate(documents)]
    assert np.fromfile(folder / "marks", np.bool_).tolist() == expected
    assert not list((folder / "scratch").iterdir())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"garbage", "not valid JSON"),
        (b"[]", "holds a list"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b"\xff", "is not UTF-8"),
        (b'{"version": 2, "tokenizer": [], "settings": {}, "files": []}', "tokenizer = []"),
        (b'{"version": 2, "tokenizer": {}, "settings": {}, "files": [["a", "b", "c"]]}', "files.0.1 = 'b'"),
    ],
)
def test_a_plan_that_is_none_of_ours_is_refused_with_what_to_do(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_bytes(content)
    with pytest.raises(DataConfigError) as caught:
        _hold_plan(tmp_path / "plan" / "plan.json", {"tokenizer": {}, "settings": {}, "files": []})
    assert problem in str(caught.value)
    assert "plan.json" in str(caught.value)
    assert "name another folder, or remove this one" in str(caught.value)


@pytest.mark.parametrize("shard", ["/dev/zero", "/etc", "a" * 5000, "../train/000000.json", "train/000001.json"])
def test_a_note_about_a_task_names_its_own_shards_or_the_task_is_done_again(tmp_path: Path, shard: str) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "000000.json").write_text(PreparationResult(shards=(shard,)).model_dump_json())
    assert _finished(tmp_path, Task(0, ())) is None
