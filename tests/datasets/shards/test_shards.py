"""Token shards: what the format says is what is read, nothing else is believed, and nothing half-written counts."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xxhash
from cistron.datasets.errors import DataConfigError, DataError
from cistron.datasets.files import FileStore, FileStoreConfig
from cistron.datasets.shards import Shard, ShardWriter, id_dtype, open_shards, upgrade_shard, verify_shard
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

DOCUMENTS = [[5, 6, 0], [7, 0], [9, 8, 7, 300, 0], [11, 0]]
WEIGHTS = [0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.25]
Field = dict[str, Any]


def write_by_hand(folder: Path, dtype: str = "uint16", **changes: Any) -> Path:
    """Write DOCUMENTS as docs/data.md describes the format, without the code under test; `changes` replace parts."""
    ids = [token for document in DOCUMENTS for token in document]
    bounds = np.cumsum([0, *map(len, DOCUMENTS)])
    files = {
        "ids": np.array(changes.pop("ids", ids)).astype(np.dtype(dtype).newbyteorder("<")).tobytes(),
        "offsets": np.array(changes.pop("offsets", bounds)).astype("<u8").tobytes(),
        "weights": np.array(changes.pop("weight_values", WEIGHTS)).astype("<f4").tobytes(),
    }
    sums = [xxhash.xxh3_64_intdigest(files[ending]) for ending in ("ids", "weights")]  # of one block each
    files["sums"] = np.array(changes.pop("sums", sums), dtype="<u8").tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    for ending, data in files.items():
        (folder / f"a.{ending}").write_bytes(data)
    manifest = {
        "version": 2,
        "tokenizer": {"kind": "hf", "fingerprint": "f", "where": "w"},
        "eos_id": 0,
        "bos_id": None,
        "pad_id": 1,
        "mask_id": None,
        "vocab_size": 301,
        "dtype": dtype,
        "documents": 4,
        "tokens": 12,
        "longest_document": 5,
        "largest_id": 300,
        "weights": True,
        "checksums": {ending: f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}" for ending, data in files.items()},
        "sources": [{"path": "x", "size": 1, "start": 0, "end": None, "records": 4}],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(manifest | changes))
    return path


def open_one(path: Path) -> Shard:
    (shard,) = open_shards(FileStore().expand([str(path)]), FileStore())
    return shard


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_shard_is_what_the_format_says(tmp_path: Path, dtype: str) -> None:
    shard = open_one(write_by_hand(tmp_path, dtype))
    ids, offsets, weights = shard.ids(), shard.offsets(), shard.weights()
    assert (shard.documents, shard.tokens) == (4, 12)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == DOCUMENTS
    assert weights is not None
    assert weights.tolist() == WEIGHTS
    assert (ids.dtype, offsets.dtype, weights.dtype) == (np.dtype(dtype), np.uint64, np.float32)
    assert not ids.flags.writeable
    verify_shard(shard)


@pytest.mark.parametrize(
    ("change", "problem", "file", "record"),
    [
        ({"version": 3}, "version 2, found version 3; write the shard anew", "json", None),
        ({"version": 1}, "version 2, found version 1; `cistron prepare --upgrade FOLDER` adds the checksums", "json", None),
        ({"sums": [1]}, "8 bytes where its manifest promises 16", "sums", None),
        ({"documents": "4"}, "documents: Input should be a valid integer", "json", None),
        ({"more": 1}, "more: Extra inputs are not permitted", "json", None),
        ({"documents": 0}, "documents: Input should be greater than or equal to 1", "json", None),
        ({"dtype": "int32"}, "dtype: String should match pattern", "json", None),
        ({"tokens": 13}, "24 bytes where its manifest promises 26", "ids", None),
        ({"documents": 3}, "40 bytes where its manifest promises 32", "offsets", None),
        ({"weight_values": [1.0]}, "4 bytes where its manifest promises 48", "weights", None),
        ({"vocab_size": 300}, "its largest id is 300, outside its vocabulary of 300", "json", None),
        ({"offsets": [1, 3, 5, 10, 12]}, "the first document begins at token 1, not 0", "offsets", None),
        ({"offsets": [0, 3, 5, 10, 11]}, "the last document ends at token 11, not at the 12", "offsets", None),
        ({"offsets": [0, 5, 5, 10, 12]}, "it begins at token 5 and ends at 5: offsets must rise", "offsets", 1),
        ({"offsets": [0, 3, 12, 5, 12]}, "it begins at token 12 and ends at 5: offsets must rise", "offsets", 2),
        ({"offsets": [0, 3, 5, 9, 12]}, "its last id is 300, not the eos 0", "ids", 2),
        ({"eos_id": 5}, "its last id is 0, not the eos 5", "ids", 0),
        ({"longest_document": 4}, "its longest document has 5 tokens, and its manifest says 4", "offsets", None),
    ],
)
def test_a_shard_that_does_not_hold_together_is_refused_at_the_door(
    tmp_path: Path, change: Field, problem: str, file: str, record: int | None
) -> None:
    path = write_by_hand(tmp_path, **change)
    with pytest.raises(DataError) as caught:
        open_one(path)
    assert problem in caught.value.problem
    assert (caught.value.file, caught.value.record) == (str(path.with_suffix(f".{file}")), record)


@pytest.mark.parametrize(
    ("change", "problem", "file", "record"),
    [
        ({"ids": [5, 6, 0, 7, 0, 9, 0, 7, 300, 0, 11, 0]}, "5 eos ids (0) in 4 documents, one of them inside", "ids", 2),
        ({"ids": [5, 6, 0, 7, 0, 9, 8, 7, 301, 0, 11, 0]}, "token 8 is id 301, and its manifest says that the larg", "ids", 2),
        ({"sums": [1, 2]}, "its bytes have changed within tokens 0 to 11: checksum", "ids", 0),
        ({"weight_values": [*WEIGHTS[:11], -1.0]}, "the loss weight of token 11 is -1.0", "weights", 3),
        ({"weight_values": [1.0, np.nan, *WEIGHTS[2:]]}, "the loss weight of token 1 is nan", "weights", 0),
    ],
)
def test_what_only_a_pass_over_all_tokens_shows_is_found_by_verify(
    tmp_path: Path, change: Field, problem: str, file: str, record: int
) -> None:
    path = write_by_hand(tmp_path, **change)
    with pytest.raises(DataError) as caught:
        verify_shard(open_one(path))
    assert problem in caught.value.problem
    assert (caught.value.file, caught.value.record) == (str(path.with_suffix(f".{file}")), record)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_verify_finds_any_flipped_bit(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write_by_hand(tmp_path_factory.mktemp("shard"))
    file = path.with_suffix("." + data.draw(st.sampled_from(["ids", "offsets", "weights", "sums"])))
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        verify_shard(open_one(path))
    assert caught.value.file == str(file) or "document" in caught.value.problem or "last id" in caught.value.problem


@pytest.mark.parametrize("ending", ["offsets", "sums"])
def test_a_small_file_that_changed_is_refused_at_the_door(tmp_path: Path, ending: str) -> None:
    path = write_by_hand(tmp_path, offsets=[0, 3, 5, 10, 12])
    file = path.with_suffix(f".{ending}")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(DataError, match=rf"a\.{ending}: its bytes have changed: checksum"):
        open_one(path)


def test_a_shard_of_version_1_is_given_checksums_of_its_blocks(tmp_path: Path) -> None:
    path = write_by_hand(tmp_path)
    expected = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    manifest = json.loads(path.read_text())
    del manifest["checksums"]["sums"]
    old = json.dumps({**manifest, "version": 1})
    path.write_text(old)
    (tmp_path / "a.sums").unlink()

    ids = tmp_path / "a.ids"
    ids.write_bytes(expected["a.ids"].replace(b"\x05", b"\x06"))
    with pytest.raises(DataError, match=r"a\.ids: its bytes have changed"):
        upgrade_shard(path)
    assert path.read_text() == old
    ids.write_bytes(expected["a.ids"])

    assert upgrade_shard(path)
    verify_shard(open_one(path))
    assert {name: (tmp_path / name).read_bytes() for name in expected if name != "a.json"} == {
        name: data for name, data in expected.items() if name != "a.json"
    }
    assert not upgrade_shard(path), "it has them"
    path.write_text(json.dumps({**manifest, "version": 3}))
    with pytest.raises(DataError, match="version 1 or 2, found 3"):
        upgrade_shard(path)


@pytest.mark.parametrize("ending", ["ids", "offsets", "weights", "sums"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    path = write_by_hand(tmp_path)
    path.with_suffix(f".{ending}").unlink()
    with pytest.raises(DataError, match=rf"a\.{ending}: this file of the shard .*a\.json is missing"):
        open_one(path)


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.json", "[]"), ("a.json", "{}"), ("a.ids", "x")])
def test_what_is_no_manifest_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"manifest"):
        open_one(tmp_path / name)


documents_strategy = st.lists(st.lists(st.integers(1, 511), max_size=9).map(lambda ids: [*ids, 0]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(documents_strategy, st.lists(st.integers(0, 300), max_size=6), st.sampled_from([511, 65535, 65536]))
def test_documents_written_in_any_parts_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], cuts: list[int], largest: int
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    ids = np.concatenate(documents)
    ends = np.cumsum([len(document) for document in documents])
    weights = (ids / 7).astype(np.float32)
    writer = ShardWriter(folder, "a", ByteTokenizer(), id_dtype(largest), weighted=True)
    bounds = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    for start, stop in pairwise(bounds):
        writer.write(ids[start:stop], ends[(ends > start) & (ends <= stop)] - start, weights[start:stop])
    writer.finish([])

    manifest = json.loads((folder / "a.json").read_text())
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    assert dtype.itemsize == (2 if largest < 2**16 else 4), "the smallest that holds the vocabulary"
    assert np.fromfile(folder / "a.ids", dtype).tolist() == ids.tolist()
    assert np.fromfile(folder / "a.offsets", "<u8").tolist() == [0, *ends.tolist()]
    assert np.fromfile(folder / "a.weights", "<f4").tolist() == weights.tolist()
    assert (manifest["documents"], manifest["tokens"]) == (len(documents), len(ids))
    assert (manifest["largest_id"], manifest["longest_document"]) == (ids.max(), max(map(len, documents)))
    verify_shard(open_one(folder / "a.json"))
    assert {path.name for path in folder.iterdir()} == {"a.json", "a.ids", "a.offsets", "a.weights", "a.sums"}


def test_an_open_document_can_be_taken_back_closed_or_moved(tmp_path: Path) -> None:
    here = ShardWriter(tmp_path, "here", ByteTokenizer(), id_dtype(255))
    there = ShardWriter(tmp_path, "there", ByteTokenizer(), id_dtype(255))
    here.write(np.array([3, 0, 4, 5]), [2])
    here.take_back()
    for part in ([6, 7], [8, 0]):
        here.write(np.array(part), [])
    here.move(there)
    for part in ([9], [0]):
        here.write(np.array(part), [])
    here.close()
    for writer, tokens, ends in ((here, [3, 0, 9, 0], [0, 2, 4]), (there, [6, 7, 8, 0], [0, 4])):
        writer.finish([])
        shard = open_one(writer.path)
        assert (shard.ids().tolist(), shard.offsets().tolist()) == (tokens, ends)


@pytest.mark.parametrize("step", ["write", "sync", "manifest"])
def test_a_shard_that_was_not_finished_is_none(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, "a", ByteTokenizer(), id_dtype(255))
    writer.write(np.array([3, 0]), [2])
    if step != "write":
        failing = {"sync": "sync", "manifest": "write_atomically"}[step]
        monkeypatch.setattr(f"cistron.datasets.shards.writer.{failing}", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.finish([])
    assert not list(tmp_path.glob("*.json"))


def test_an_eos_inside_of_a_document_cannot_be_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "a", ByteTokenizer(), id_dtype(255))
    writer.write(np.array([3, 0, 4, 0]), [4])
    with pytest.raises(AssertionError, match="2 eos ids in 1 documents"):
        writer.finish([])


def test_a_shard_without_documents_leaves_nothing(tmp_path: Path) -> None:
    assert ShardWriter(tmp_path, "a", ByteTokenizer(), id_dtype(255)).finish([]) is None
    assert not list(tmp_path.iterdir())


def put_remote(folder: Path) -> str:
    """Copy a folder to an in-memory store and return the URL of its shard."""
    for file in folder.iterdir():
        fsspec.filesystem("memory").pipe(f"/{folder.name}/{file.name}", file.read_bytes())
    return f"memory://{folder.name}/a.json"


def test_a_remote_shard_is_fetched_and_again_when_it_has_left_the_cache(tmp_path: Path) -> None:
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path / "cache")))
    url = put_remote(write_by_hand(tmp_path / "fetched").parent)
    (shard,) = open_shards(storage.expand([url]), storage)
    assert shard.offsets().tolist() == [0, 3, 5, 10, 12]
    shutil.rmtree(tmp_path / "cache")
    assert shard.ids()[:3].tolist() == [5, 6, 0]


def test_remote_shards_that_the_cache_cannot_hold_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "large", "a", ByteTokenizer(), id_dtype(255))
    writer.write(np.tile([3, 0], 5_000), np.arange(2, 10_001, 2))
    writer.finish([])
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path / "cache"), cache_gb=5e-6))
    with pytest.raises(DataConfigError, match=r"data\.cache_gb: 5e-06 GB do not hold the 1 remote shards .* 50,016 bytes"):
        open_shards(storage.expand([put_remote(tmp_path / "large")]), storage)
