"""What goes wrong in a corpus is told once, by file and record, at the same row on any number of ranks and workers."""

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cistron.datasets.config import Stage
from cistron.datasets.documents import DocumentConfig
from cistron.datasets.errors import DataConfigError, DataEnd, DataError, DataOrderError
from cistron.datasets.files import checksum
from cistron.datasets.loading import DataState, Loader, transport
from cistron.datasets.readers import SourceConfig
from cistron.datasets.shards.writer import block_sums
from cistron.datasets.tokenizers import HFTokenizer
from cistron.tests.datasets.tokenizers.test_build import PANIC, write_panicking
from cistron.tests.helpers.corpora import (
    Settings,
    TakingTurns,
    byte_loader,
    config,
    loaders,
    numbered_rows,
    take,
    take_on_ranks,
    text_source,
    words,
    write_bytes,
    write_fasta,
    write_jsonl,
    write_shard,
    write_text,
)
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def _in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "StatefulDataLoader", TakingTurns)


def _until(ending: type[Exception], data: Settings, ranks: int, workers: int) -> tuple[list[tuple[bytes, ...]], str]:
    """Take rows on every rank until `ending`; return those before the first that is missing, and the message there."""
    rows: dict[int, tuple[bytes, ...]] = {}
    messages: dict[int, str] = {}  # by the rank's next row

    def read(loader: Loader) -> None:
        for row in range(of_ranks.index(loader), 1200, ranks):
            try:
                if (batch := loader.next()) is None:  # another rank has ended
                    return
                rows.update(numbered_rows([batch]))
            except ending as error:
                messages[row] = str(error)
                return

    settings = data.but(num_workers=workers, batch_size=1, rows_per_step=4)
    with loaders(settings, ranks) as of_ranks, ThreadPoolExecutor(ranks) as threads:
        list(threads.map(read, of_ranks))
    first = min(messages)
    return [rows[row] for row in range(first)], messages[first]


TOPOLOGIES = [(1, 0), (1, 2), (2, 1), (2, 2), (4, 1)]


@pytest.fixture
def with_bad_records(tmp_path: Path) -> Settings:
    """600 lines, of which 5 cannot be used, each in a way of its own."""
    lines = [json.dumps({"text": text}).encode() for text in words(600)]
    lines[100] = b'{"text": broken'
    lines[200] = b'{"body": "x"}'
    lines[300] = b'{"text": "\xff\xfe"}'
    lines[400] = b'{"text": "a\\u0000b"}'
    lines[500] = b"[]"
    path = write_bytes(tmp_path / "x.jsonl", b"\n".join(lines) + b"\n")
    return config(SourceConfig(name="lines", format="jsonl", paths=[path]), on_bad_record="skip")


def test_skipped_records_are_counted_logged_and_the_same_everywhere(
    with_bad_records: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for ranks, workers in TOPOLOGIES:
        caplog.clear()
        settings = with_bad_records.but(num_workers=workers, batch_size=8 // ranks)
        taken, state = take_on_ranks(settings, ranks, 180)
        assert min(lane.epoch for lane in state.lanes.values()) >= 1, "every record was met"
        runs.append((numbered_rows(taken), state.total("skipped")))
        told = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
        assert {number for number in (101, 201, 301, 401, 501) if any(f"record {number}," in line for line in told)} == {
            101,
            201,
            301,
            401,
            501,
        }
    assert all(run == runs[0] for run in runs[1:])
    assert runs[0][1] % 5 == 0


def test_a_bad_record_is_raised_at_the_same_row_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cistron.datasets.lanes.blocks.block_tokens", lambda seq_len: 4 * seq_len)
    lines = [json.dumps({"text": text}).encode() for text in words(600)]
    lines[560] = b"{"  # in the middle of the last lane's
    path = write_bytes(tmp_path / "x.jsonl", b"\n".join(lines))
    data = config(SourceConfig(name="lines", format="jsonl", paths=[path]))
    straight = _until(DataError, data, 1, 0)
    assert "x.jsonl, record" in straight[1]
    assert len(straight[0]) > 64, "more than a message of rows comes first"
    assert all(_until(DataError, data, *topology) == straight for topology in TOPOLOGIES[1:])


def test_a_document_that_a_tokenizer_s_library_fails_at_is_a_bad_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = HFTokenizer(str(write_panicking(tmp_path)), "<|endoftext|>")
    lines = [*words(5), PANIC, *words(30)]  # early enough to be of the sample, after which tiktoken would encode
    source = SourceConfig(name="lines", format="jsonl", paths=[write_jsonl(tmp_path / "x.jsonl", lines)])
    settings = config(source, lanes=1)
    refused = pytest.raises(DataError, match=r"x\.jsonl, record 6, .*fails at this document")
    with settings.loader(tokenizer) as loader, refused:
        take(loader, 1)
    with settings.but(on_bad_record="skip").loader(tokenizer) as loader:
        take(loader, 1)
    assert "skipped: " in caplog.text
    assert "record 6, " in caplog.text


def test_the_data_ends_at_the_same_row_everywhere(tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, words(60)))
    data = config(source.model_copy(update={"max_epochs": 2}))
    straight = _until(DataEnd, data, 1, 0)
    assert straight[1] == "source 'main' was read data.sources.max_epochs = 2 times"
    assert len(straight[0]) > 60
    assert all(_until(DataEnd, data, *topology) == straight for topology in TOPOLOGIES[1:])


def test_max_epochs_may_be_raised_on_resume(tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, words(60)))
    with byte_loader(config(source.model_copy(update={"max_epochs": 1}))) as loader:
        take(loader, 3)
        state = loader.state()
    with byte_loader(config(source), state=state) as loader:
        take(loader, 60)


def _resumed(data: Settings, before: Loader) -> Loader:
    kept = json.loads(json.dumps([before.state().model_dump(mode="json"), before.inventory()]))
    return byte_loader(data, state=DataState.read(kept[0]), inventory=kept[1])


@pytest.mark.parametrize("change", ["size", "bytes", "gone", "new"])
def test_a_changed_file_is_refused_by_name(change: str, tmp_path: Path) -> None:
    data = config(text_source(write_text(tmp_path, words(20))))
    loader = byte_loader(data)
    file = tmp_path / "0007.txt"
    found = file.stat()
    if change == "size":
        file.write_text("longer than before")
    elif change == "bytes":
        file.write_bytes(file.read_bytes().replace(b":", b";"))
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    elif change == "gone":
        file.unlink()
    else:
        file = tmp_path / "0007a.txt"
        file.write_text("new")
    with pytest.raises(DataOrderError, match=rf"data\.sources\.main: {file} (changed|was changed|is gone|is new)") as caught:
        _resumed(data, loader)
    assert str(caught.value).count(".txt") == 1, "the others are not named"


@pytest.mark.parametrize("kind", ["text", "fasta", "tokens"])
def test_a_corpus_that_was_copied_to_another_place_goes_on_with_the_same_rows(kind: str, tmp_path: Path) -> None:
    """Two folders, whose order by path is another one afterwards, and documents that are read on their other strand."""
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        rng = np.random.default_rng(seed)
        genes = ["".join(rng.choice(list("ACGT"), 50)) for _ in range(40)]
        if kind == "fasta":
            write_fasta(tmp_path / folder / "x.fasta", genes)
        elif kind == "text":
            write_text(tmp_path / folder, genes)
        else:
            write_shard(tmp_path / folder / "x", [[*gene.encode(), 0] for gene in genes])
    ending = {"text": "txt", "fasta": "fasta", "tokens": "json"}[kind]
    strands = DocumentConfig(reverse_complement=0.5)

    def over(*folders: str) -> Settings:
        paths = [str(tmp_path / folder / f"*.{ending}") for folder in folders]
        return config(SourceConfig(name="main", format=kind, paths=paths)).but(documents=strands)

    with byte_loader(over("a", "b")) as loader:
        take(loader, 3)
        for old, new in (("a", "z"), ("b", "c")):
            shutil.copytree(tmp_path / old, tmp_path / new, copy_function=shutil.copyfile)
        with _resumed(over("z", "c"), loader) as moved:
            expected = numbered_rows(take(loader, 90))
            assert numbered_rows(take(moved, 90)) == expected
            with _resumed(over("a", "b"), moved) as back:
                assert numbered_rows(take(back, 9)) == numbered_rows(take(loader, 9))


def test_stages_that_have_not_begun_may_change_and_others_may_not(tmp_path: Path) -> None:
    sources = [text_source(write_text(tmp_path / name, words(20)), name) for name in "ab"]
    staged = config(*sources, stages=[Stage(step=9, weights={"a": 3.0, "b": 1.0}), Stage(step=41, weights={"b": 1.0})])
    with byte_loader(staged) as loader:
        take(loader, 4)
        later = staged.but(stages=[staged.data.stages[0], Stage(step=21, weights={"a": 1.0})])
        with _resumed(later, loader) as resumed:
            assert [source for batch in take(resumed, 3) for source in batch.sources][4:] == [0] * 8
        earlier = staged.but(stages=[Stage(step=13, weights={"b": 1.0})])
        with pytest.raises(DataOrderError, match=r"data\.stages\.12\.a: checkpoint 'none', now 0\.0"):
            _resumed(earlier, loader)


def test_data_begun_anew_counts_on_from_its_row(tmp_path: Path) -> None:
    sources = [text_source(write_text(tmp_path / name, words(20)), name) for name in "ab"]
    data = config(*sources, stages=[Stage(step=105, weights={"b": 1.0})])
    with byte_loader(data, row=96) as loader:
        batches = take(loader, 4)
        with _resumed(data, loader) as resumed:
            assert resumed.state() == loader.state()
    assert [row for batch in batches for row in batch.rows] == list(range(96, 112))
    drawn = [source for batch in batches for source in batch.sources]
    assert sorted(drawn[:8]) == [0] * 4 + [1] * 4
    assert drawn[8:] == [1] * 8


LETTERS = 3 * 2**16  # three blocks


@pytest.fixture
def shards(tmp_path: Path) -> Settings:
    """Two shards of letters in three blocks each; `y` has weights."""
    rng = np.random.default_rng(0)
    for name in "xy":
        documents = np.split(rng.integers(5, 60, LETTERS), range(1000, LETTERS, 1000))
        write_shard(tmp_path / name, [[*document[1:], 0] for document in documents], weighted=name == "y")
    return config(SourceConfig(name="shards", format="tokens", paths=[str(tmp_path)]), seq_len=1000)


def _change(file: Path, place: int, value: int | float, dtype: str, resealed: bool) -> None:
    """Replace an element of a shard's file; `resealed`: under checksums that fit."""
    values = np.fromfile(file, dtype)
    values[place] = value
    file.write_bytes(values.tobytes())
    if resealed:
        manifest = file.with_suffix(".json")
        content = json.loads(manifest.read_text())
        endings = [ending for ending in ("ids", "weights") if file.with_suffix(f".{ending}").exists()]
        dtypes = {"ids": np.dtype("<u2"), "weights": np.dtype("<f4")}
        sums = block_sums([(file.with_suffix(f".{ending}"), dtypes[ending]) for ending in endings])
        file.with_suffix(".sums").write_bytes(sums)
        content["checksums"] = {ending: checksum(str(file.with_suffix(f".{ending}"))) for ending in content["checksums"]}
        manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "value", "resealed", "message"),
    [
        ("x.ids", 61, False, r"x\.ids, record 65: its bytes have changed within tokens 65,536 to 131,071: checksum"),
        ("x.ids", 999, True, r"x\.ids, record 70: token 70001 is id 999, and its manifest says that the largest is 59"),
        ("y.weights", 0.5, False, r"y\.weights, record 65: its bytes have changed within tokens 65,536 to 131,071"),
        ("y.weights", np.nan, True, r"y\.weights, record 70: the loss weight of token 70001 is nan"),
        ("y.weights", -1.0, True, r"y\.weights, record 70: the loss weight of token 70001 is -1\.0"),
        ("y.weights", np.inf, True, r"y\.weights, record 70: the loss weight of token 70001 is inf"),
    ],
)
def test_a_changed_block_of_a_shard_is_told_before_any_of_it_is_used(
    file: str, value: float, resealed: bool, message: str, tmp_path: Path, shards: Settings
) -> None:
    _change(tmp_path / file, 70_001, value, "<u2" if file.endswith("ids") else "<f4", resealed)
    with byte_loader(shards) as loader, pytest.raises(DataError, match=message):
        take(loader, 100)
    with pytest.raises(DataError):
        byte_loader(shards.but(verify=True))


def test_a_shard_that_is_cut_short_under_its_map_is_told_and_not_a_signal(tmp_path: Path, shards: Settings) -> None:
    loader = byte_loader(shards)
    corpus = loader.sources[0].corpus
    assert corpus is not None
    corpus.maps(0)
    os.truncate(tmp_path / "x.ids", 2**17)
    with loader, pytest.raises(DataError, match=r"x\.ids: 131,072 bytes where its manifest promises 393,216"):
        take(loader, 100)
    with pytest.raises(DataError, match=r"x\.ids: 131,072 bytes where"):
        byte_loader(shards)


def test_ranks_share_the_work_of_verifying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_shard(tmp_path / f"{number}", [[5, 0], [6, 0]])
    checked: list[str] = []
    monkeypatch.setattr("cistron.datasets.loading.loader.verify_shard", lambda shard: checked.append(Path(shard.path).stem))
    data = config(SourceConfig(name="shards", format="tokens", paths=[str(tmp_path)]), verify=True)
    for rank in range(2):
        byte_loader(data, dp_rank=rank, dp_degree=2)
    assert sorted(checked) == list("01234")


def test_a_folder_without_files_is_refused_by_name(tmp_path: Path) -> None:
    for format in ("tokens", "jsonl"):
        with pytest.raises((DataError, DataConfigError), match=str(tmp_path)):
            byte_loader(config(SourceConfig(name="x", format=format, paths=[str(tmp_path)])))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(step=9, weights={"main": 1.0})] * 2, r"data\.stages\.1\.step = 9: must come after step 9"),
        ([Stage(step=9, weights={"other": 1.0})], r"data\.stages\.0\.weights\.other: no source of this name; .*: main"),
        ([Stage(step=9, weights={})], r"data\.stages\.0\.weights: name at least one source with a weight above 0"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(stages: list[Stage], message: str, tmp_path: Path) -> None:
    source = SourceConfig(name="main", format="jsonl", paths=[write_jsonl(tmp_path / "x.jsonl", words(50))])
    with pytest.raises(DataConfigError, match=message):
        byte_loader(config(source, stages=stages))
    with pytest.raises(ValidationError, match=r"step\n.*greater than or equal to 2"):
        Stage(step=1, weights={"main": 1.0})


def test_rows_that_are_no_multiple_of_the_ranks_are_refused_for_a_mixture(tmp_path: Path) -> None:
    sources = [text_source(write_text(tmp_path / name, words(20)), name) for name in "ab"]
    with byte_loader(config(*sources), batch_size=3) as loader:
        take(loader, 1)
        with pytest.raises(DataConfigError, match="row 3, which is no multiple of data-parallel degree 2"):
            byte_loader(config(*sources), dp_degree=2, state=loader.state())
