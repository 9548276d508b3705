"""Corpora on disk, loaders over them, and rows read back into documents without the code under test."""

import bz2
import gzip
import json
import lzma
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cistron.datasets.config import DataConfig
from cistron.datasets.documents import DocumentConfig
from cistron.datasets.files.storage import zstd
from cistron.datasets.loading import Batch, DataShard, DataState, Loader, RowSettings, SinglePass, merge_states, transport
from cistron.datasets.loading.transport import Message, RowStream
from cistron.datasets.readers import SourceConfig
from cistron.datasets.rows import PackedRow
from cistron.datasets.shards import ShardWriter
from cistron.datasets.tokenizers import Encoded, Tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer


def words(count: int, seed: int = 0) -> list[str]:
    """Return documents of varied lengths, each of its own letters, none empty."""
    random = np.random.default_rng(seed)
    return [f"{number}:" + "ab é"[number % 4] * int(random.integers(0, 90)) for number in range(count)]


def write_text(folder: Path, documents: Iterable[str]) -> str:
    """Write one file per document; return a pattern for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(documents):
        (folder / f"{number:04}.txt").write_bytes(document.encode())
    return str(folder / "*.txt")


def write_jsonl(path: Path, documents: Iterable[str], field: str = "text") -> str:
    """Write one line per document, gzipped if the name says so."""
    return write_bytes(path, b"".join(json.dumps({"id": 1, field: text}).encode() + b"\n" for text in documents))


def write_fasta(path: Path, sequences: Iterable[str], width: int = 7, header: str = "r{} some text") -> str:
    """Write one record per sequence in lines of `width`, gzipped if the name says so."""
    records = []
    for number, sequence in enumerate(sequences):
        lines = [sequence[start : start + width] for start in range(0, len(sequence), width)]
        records.append("\n".join([">" + header.format(number), *lines]) + "\n")
    return write_bytes(path, "".join(records).encode())


def write_parquet(path: Path, documents: Iterable[str | None], field: str = "text", rows: int = 3) -> str:
    """Write one row per document, `rows` of them in a row group."""
    texts = list(documents)
    table = pa.table({"id": list(range(len(texts))), field: pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data`, compressed as the name says; return the path as text."""
    path.write_bytes(compress(path.suffix, data))
    return str(path)


def compress(suffix: str, data: bytes, part: int = 200) -> bytes:
    """Return `data` as .gz, .zst, .xz or .bz2 of two members, or .bgz in blocks of `part` bytes; or as it is."""
    middle = len(data) // 3
    members = {".gz": gzip.compress, ".zst": zstd.compress, ".xz": partial(lzma.compress, preset=0), ".bz2": bz2.compress}
    if suffix in members:
        return members[suffix](data[:middle]) + members[suffix](data[middle:])
    if suffix == ".bgz":
        return b"".join(bgzip_block(data[start : start + part]) for start in range(0, len(data), part)) + bgzip_block(b"")
    return data


def bgzip_block(data: bytes) -> bytes:
    """Return a gzip member that states its size, after section 4.1 of the SAM specification."""
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(data) + deflate.flush()
    head = struct.pack("<BBBBIBBHBBHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def write_shard(path: Path, documents: Sequence[Sequence[int]], weighted: bool = False) -> None:
    """Write documents of ids, each with its eos 0, as the token shard `path`.*; a weight is id / 1000."""
    writer = ShardWriter(path.parent, path.name, ByteTokenizer(), np.dtype("<u2"), weighted=weighted)
    for document in documents:
        ids = np.array(document)
        writer.write(ids, [len(ids)], (ids / 1000).astype(np.float32) if weighted else None)
    manifest = writer.finish([])
    assert manifest is not None
    writer.path.write_text(manifest.model_copy(update={"vocab_size": 2**16}).model_dump_json())


def text_source(path: str, name: str = "main", weight: float = 1.0) -> SourceConfig:
    """Return a source of text files."""
    return SourceConfig(name=name, format="text", paths=[path], weight=weight)


@dataclass(frozen=True)
class Settings:
    """What a loader is made from, but for the tokenizer and the rank."""

    data: DataConfig
    rows: RowSettings

    def but(self, *, documents: DocumentConfig | None = None, **changes: Any) -> "Settings":
        """Return the same with other values of some fields of `data`, of its keys about documents, and of `rows`."""
        of_rows = {name: changes.pop(name) for name in {field.name for field in fields(RowSettings)} & changes.keys()}
        data = dict(self.data) | ({} if documents is None else dict(documents)) | changes
        return Settings(DataConfig(**data), replace(self.rows, **of_rows))

    def loader(self, tokenizer: Tokenizer | None = None, **shard: Any) -> Loader:
        """Open a loader, with the byte tokenizer unless another is given."""
        return Loader(self.data, tokenizer or ByteTokenizer(), self.rows, DataShard(**shard))

    def single_pass(self, tokenizer: Tokenizer | None = None, **shard: Any) -> SinglePass:
        """Open a single pass, with the byte tokenizer unless another is given."""
        return SinglePass(self.data.sources, self.data, tokenizer or ByteTokenizer(), self.rows, DataShard(**shard))


def config(*sources: SourceConfig, **changes: Any) -> Settings:
    """Return settings of small rows over `sources`, 4 to a batch, unless `changes` says otherwise."""
    data = DataConfig(sources=list(sources), lanes=4)
    return Settings(data, RowSettings(seq_len=32, seed=0, batch_size=4)).but(**changes)


def byte_loader(settings: Settings, batch_size: int = 4, **shard: Any) -> Loader:
    """Return a loader with the byte tokenizer; the keyword arguments are those of `DataShard`."""
    return settings.but(batch_size=batch_size).loader(**shard)


class TakingTurns:
    """Stands in for StatefulDataLoader: the workers' iterators, round robin in this process (a real one costs 3 s)."""

    def __init__(self, stream: RowStream, num_workers: int, **_: object) -> None:
        self._turns = cycle([(worker, iter(stream)) for worker in range(num_workers)])
        self._count = num_workers
        self._workers: list[Any] = []

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        worker, rows = next(self._turns)
        info = SimpleNamespace(id=worker, num_workers=self._count)
        with patch.object(transport, "get_worker_info", lambda: info):
            return next(rows)

    def _shutdown_workers(self) -> None:
        pass


class Sleepy(ByteTokenizer):
    """Stands in for anything that keeps a worker from answering; each names itself in `folder` by a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def encode_batch(self, documents: Sequence[bytes]) -> Encoded:
        """Take a minute."""
        (self.folder / str(os.getpid())).touch()
        time.sleep(60)
        return super().encode_batch(documents)


def take(loader: Loader, count: int) -> list[Batch]:
    """Return the next `count` batches."""
    batches = [loader.next() for _ in range(count)]
    assert all(batch is not None for batch in batches)
    return batches  # type: ignore[return-value]


def take_on_ranks(
    settings: Settings, ranks: int, batches: int, state: DataState | None = None
) -> tuple[list[Batch], DataState]:
    """Take batches on every rank, one after the other; return them, and the run's state as a checkpoint keeps it."""
    taken: list[Batch] = []
    states = []
    for rank in range(ranks):
        with settings.loader(dp_rank=rank, dp_degree=ranks, state=state) as loader:
            taken += take(loader, batches)
            states.append(DataState.read(json.loads(loader.state().model_dump_json())))
    return taken, merge_states(states)


def numbered_rows(batches: Iterable[Batch]) -> dict[int, tuple[bytes, ...]]:
    """Return what each global row holds, as bytes to compare."""
    return {
        number: tuple(
            plane[place].numpy().tobytes()
            for plane in (batch.tokens, batch.labels, batch.positions, batch.sequence_ids, batch.weights)
            if plane is not None
        )
        for batch in batches
        for place, number in enumerate(batch.rows)
    }


def segments(row: Sequence[Sequence[int]]) -> list[list[int]]:
    """Split the tokens of a row, given as its four planes, where `sequence_ids` change; padding is left out."""
    tokens, _, _, sequence_ids = row
    split: dict[int, list[int]] = {}
    for token, number in zip(tokens, sequence_ids, strict=True):
        if number >= 0:
            split.setdefault(int(number), []).append(int(token))
    return list(split.values())


def windows(document: list[int], seq_len: int, overlap: int, shift: int) -> list[tuple[list[int], list[int]]]:
    """What `long_documents = "window"` makes of a document: the tokens of each part of a row, and its targets.

    The targets are those of its tokens, or of the tokens behind them with `shift`, that no part before had.
    """
    parts: list[tuple[list[int], list[int]]] = []
    asked = shift  # targets of the document that some part has, from its beginning; without `shift` all of them are
    start = 0
    while True:
        end = min(start + seq_len, len(document))
        last = end == len(document)
        reach = end if last else end + shift
        parts.append((document[start:end], document[asked:reach]))
        asked = reach
        if last:
            return parts
        start = end - overlap


def parts_of(rows: list[PackedRow], shift: int) -> list[tuple[list[int], list[int]]]:
    """Return the same from packed rows."""
    found = []
    for row in rows:
        ids = [*(token for part in row.parts for token in part.tolist())]
        weights = [1.0] * len(ids) if row.weights is None else row.weights.tolist()
        following = [] if row.following is None else [row.following]
        weights += [1.0] * (len(ids) + len(following) - len(weights))
        at = 0
        for number, part in enumerate(row.parts):
            tokens = [*part.tolist(), *(following if shift and number == len(row.parts) - 1 else [])]
            own = weights[at : at + len(tokens)]
            found.append((part.tolist(), [t for t, weight in list(zip(tokens, own, strict=True))[shift:] if weight]))
            at += len(part)
    return found
