"""All lanes of a source end an epoch together, at the same row on any ranks and workers, and after a resume."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cistron.datasets.errors import DataEnd, DataError
from cistron.datasets.lanes import Lane, LaneRow, LaneState, Mixer
from cistron.datasets.lanes.blocks import Address, AddressedBlock, Counts
from cistron.datasets.loading import DataState, Loader, merge_states, transport
from cistron.datasets.loading import loader as loading
from cistron.datasets.randomness import permutation
from cistron.datasets.readers import SourceConfig
from cistron.datasets.rows import Block, Packer
from cistron.tests.helpers.corpora import (
    Settings,
    TakingTurns,
    config,
    loaders,
    words,
    write_fasta,
    write_jsonl,
    write_parquet,
    write_shard,
    write_text,
)
from hypothesis import given, settings
from hypothesis import strategies as st

EOS = 0
Content = tuple[int, ...]  # tokens of a row, without padding


@dataclass(frozen=True)
class Pieces:
    """Documents of a lane: those of the source that an epoch's permutation assigns to it, some to a block.

    Document n is n + 2 as often as it is long, and an eos.
    """

    lengths: tuple[int, ...]
    lanes: int
    lane: int
    chunk: int

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        order = permutation(len(self.lengths), epoch)[self.lane :: self.lanes]
        own = [number for number in order if self.lengths[number]]
        for at in range(max(start.offset, 0), len(own), self.chunk):
            documents = [np.array([n + 2] * self.lengths[n] + [EOS], dtype=np.int32) for n in own[at : at + self.chunk]]
            count, lengths = len(documents), np.array([len(ids) for ids in documents])
            places = np.arange(count)
            block = Block(documents, None, places, np.zeros_like(places), lengths, np.zeros(count, dtype=bool))
            following = Address(0, at + self.chunk, 1, 0) if at + self.chunk < len(own) else None
            yield AddressedBlock(block, Counts(count), following)


@dataclass(frozen=True)
class Given:
    """Stands in for a `Source`."""

    config: SourceConfig
    lengths: tuple[int, ...]
    count: int
    chunk: int
    files: list[Any] = field(default_factory=list)
    lanes: list[Any] = field(default_factory=list)
    pieces: None = None
    corpus: None = None
    weighted: bool = False

    def lane_name(self, lane: int) -> str:
        return f"{self.config.name}/{lane}"

    def rows(self, lane: int, tokenizer: object, packer: Packer, key: tuple[int, int], state: LaneState) -> Iterator[LaneRow]:
        return Lane(Pieces(self.lengths, self.count, lane, self.chunk), packer, (*key, lane), state).rows()


@dataclass(frozen=True)
class Corpus:
    """Sources, their lanes and how they are packed."""

    sources: tuple[tuple[int, ...], ...]  # lengths of documents
    lanes: int
    seq_len: int
    chunk: int
    weights: tuple[float, ...]
    most: int | None = None

    @property
    def settings(self) -> Settings:
        sources = [
            SourceConfig(name=f"{number}", format="text", paths=["x"], weight=weight, max_epochs=self.most)
            for number, weight in enumerate(self.weights)
        ]
        return config(*sources, lanes=self.lanes, seq_len=self.seq_len, batch_size=1, rows_per_step=self.lanes)

    def opened(self, config: SourceConfig, *_: object, **__: object) -> Given:
        return Given(config, self.sources[int(config.name)], self.lanes, self.chunk)

    def expected(self) -> Iterator[tuple[int, Content]]:
        """Yield source and content of the rows by the rule: a lane waits until none has a row of the epoch left."""
        packer = Packer(self.seq_len, EOS, 1, "best_fit")
        mixer = Mixer([(0, self.weights)], self.lanes, 0)
        streams = {
            (number, lane): Given(SourceConfig(name="x", format="text", paths=["x"]), lengths, self.lanes, self.chunk).rows(
                lane, None, packer, (0, number), LaneState()
            )
            for number, lengths in enumerate(self.sources)
            for lane in range(self.lanes)
        }
        reading = {number: set(range(self.lanes)) for number in range(len(self.sources))}
        while True:
            source, lane = mixer.next()
            reading[source] = reading[source] or set(range(self.lanes))
            if lane not in reading[source]:
                yield source, ()
                continue
            row = next(streams[source, lane])
            if not row.left:
                reading[source].remove(lane)
            yield source, tuple(np.concatenate([*row.packed.parts, np.empty(0, dtype=int)]).astype(int).tolist())

    def read(self, ranks: int, workers: int, rows: int, state: DataState | None = None) -> tuple[list[Any], DataState]:
        """Return source and content of the next rows, and the state behind them; fewer where the data end."""
        found: dict[int, tuple[int, Content]] = {}

        def take(loader: Loader) -> None:
            for _ in range(rows // ranks):
                try:
                    batch = loader.next()
                except DataEnd:
                    return
                assert batch is not None
                used = batch.tokens[0][batch.sequence_ids[0] >= 0].tolist()
                found[batch.rows[0]] = batch.sources[0], tuple(used)

        changed = self.settings.but(num_workers=workers)
        with (
            patch.object(loading, "open_source", self.opened),
            patch.object(transport, "StatefulDataLoader", TakingTurns),
            patch.object(transport, "MESSAGE_TOKENS", 3 * self.seq_len),
            loaders(changed, ranks, state=state) as of_ranks,
            ThreadPoolExecutor(ranks) as threads,
        ):
            list(threads.map(take, of_ranks))
            states = [DataState.read(json.loads(loader.state().model_dump_json())) for loader in of_ranks]
        return [found[row] for row in sorted(found)], merge_states(states)

    def check(self, rows: list[tuple[int, Content]]) -> None:
        """Hold that at every row any two documents of a source have come as often, but for one time."""
        for source, lengths in enumerate(self.sources):
            tokens = Counter({number: 0 for number, length in enumerate(lengths) if length})
            for of, content in rows:
                if of != source or not content:
                    continue
                tokens.update(token - 2 for token in content if token != EOS)
                begun = max(-(-count // lengths[number]) for number, count in tokens.items())
                ended = min(count // lengths[number] for number, count in tokens.items())
                assert begun - ended <= 1


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    """Up to three sources of up to 15 documents, some of them longer than a row and some empty, on up to 6 lanes."""
    seq_len = draw(st.integers(2, 6))
    lengths = st.lists(st.integers(0, 3 * seq_len), min_size=1, max_size=15).filter(any).map(tuple)
    sources = draw(st.lists(lengths, min_size=1, max_size=3).map(tuple))
    weights = draw(st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=len(sources), max_size=len(sources)).map(tuple))
    return Corpus(sources, draw(st.sampled_from([1, 2, 3, 4, 6])), seq_len, draw(st.integers(1, 4)), weights)


@settings(max_examples=1000, deadline=None)
@given(corpora(), st.data())
def test_counts_of_documents_differ_by_one_at_most_whoever_reads_them_and_across_a_resume(
    corpus: Corpus, data: st.DataObject
) -> None:
    rows = 12 * corpus.lanes
    expected = list(islice(corpus.expected(), rows))
    corpus.check(expected)
    layouts = [(r, w) for r in (1, 2, 3) for w in (0, 1, 2) if corpus.lanes % (r * max(w, 1)) == 0]
    layout = st.sampled_from(layouts)
    (ranks, workers), others = data.draw(layout), data.draw(layout)
    stop = data.draw(st.integers(0, 12)) * corpus.lanes
    found, state = corpus.read(ranks, workers, stop)
    more, _ = corpus.read(*others, rows - stop, state)
    assert found + more == expected


@settings(max_examples=100, deadline=None)
@given(corpora(), st.integers(1, 3), st.sampled_from([1, 2]))
def test_the_data_end_when_each_document_was_read_so_often_and_not_before(corpus: Corpus, most: int, ranks: int) -> None:
    corpus = replace(corpus, sources=corpus.sources[:1], weights=(1.0,), most=most)
    found, state = corpus.read(ranks if corpus.lanes % ranks == 0 else 1, 0, 10**4)
    tokens = Counter(token - 2 for _, content in found for token in content if token != EOS)
    assert tokens == {number: most * length for number, length in enumerate(corpus.sources[0]) if length}
    assert len(found) % corpus.lanes == 0, "the last step is filled"
    assert any(content for _, content in found[-corpus.lanes :]), "and is the last that has a document"
    assert {lane.epoch for lane in state.lanes.values()} == {most}
    assert corpus.read(1, 0, 9 * corpus.lanes, state)[0] == [], "nothing follows on a resume"


def test_documents_do_not_drift_apart_in_a_thousand_epochs() -> None:
    corpus = Corpus(((3, 1, 11, 2, 1),), 2, 4, 2, (1.0,), 1000)
    found, _ = corpus.read(1, 0, 10**6)
    corpus.check(found)
    tokens = Counter(token - 2 for _, content in found for token in content if token != EOS)
    assert tokens == {number: 1000 * length for number, length in enumerate(corpus.sources[0])}
    assert corpus.read(2, 1, 10**6)[0] == found


def test_the_source_that_ends_first_ends_the_run_and_the_others_fill_its_step() -> None:
    corpus = Corpus(((3, 3, 3), (3,) * 15), 2, 4, 2, (1.0, 1.0), 2)
    found, _ = corpus.read(1, 0, 10**4)
    first = Counter(token for source, content in found for token in content if source == 0 and token != EOS)
    assert first == {2: 6, 3: 6, 4: 6}
    assert len(found) < 4 * 15


def test_lanes_of_a_source_do_not_wait_since_others_are_mixed_in() -> None:
    corpus = Corpus(((3,) * 64, (3,) * 64, (3,) * 64), 4, 4, 64, (5.0, 3.0, 1.0))
    rows = list(islice(corpus.expected(), 4000))
    assert sum(not content for _, content in rows) / len(rows) < 0.1, "16 rows to a lane and an epoch; at random 0.3"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_source_without_a_token_is_refused_by_name(ranks: int) -> None:
    corpus = Corpus(((0, 0, 0),), 2, 4, 1, (1.0,))
    with pytest.raises(DataError, match="0: no document with a token is in its files"):
        corpus.read(ranks, 0, 100)


def _unequal(folder: Path, format: str, documents: list[str]) -> str:
    """Write documents in parts of very different sizes; return what to read."""
    cuts = [0, 1, 3, 4, 40, 41, len(documents)]
    parts = [documents[start:end] for start, end in pairwise(cuts)]
    if format == "text":
        return write_text(folder, documents[:30])
    for number, part in enumerate(parts):
        if format == "jsonl.gz":
            write_jsonl(folder / f"{number}.jsonl.gz", part)
        elif format == "parquet":
            write_parquet(folder / f"{number}.parquet", part, rows=7)
        elif format == "fasta":
            write_fasta(folder / f"{number}.fasta", [text.replace(" ", "_") for text in part])
        else:
            write_shard(folder / f"{number}", [[*text.encode(), EOS] for text in part])
    return str(folder) if format == "tokens" else f"{folder}/*.{format}"


@pytest.mark.parametrize("format", ["text", "jsonl.gz", "parquet", "fasta", "tokens"])
@pytest.mark.parametrize(("packing", "layout"), [("best_fit", "packed"), ("concat", "packed"), ("best_fit", "padded")])
def test_documents_of_files_of_unequal_sizes_are_read_as_often(format: str, packing: str, layout: str, tmp_path: Path) -> None:
    documents = words(60)
    pattern = _unequal(tmp_path, format, documents)
    source = SourceConfig(name="x", format=format.split(".")[0], paths=[pattern], max_epochs=3)
    data = config(source, lanes=4, packing=packing, layout=layout, seq_len=64, rows_per_step=8)
    tokens: Counter[bytes] = Counter()
    rows: dict[int, bytes] = {}

    def take(loader: Loader) -> None:
        while True:
            try:
                batch = loader.next()
            except DataEnd:
                return
            assert batch is not None
            for number, ids, used in zip(batch.rows, batch.tokens, batch.sequence_ids >= 0, strict=True):
                rows[number] = bytes(ids[used].tolist())

    with loaders(data, 2) as of_ranks, ThreadPoolExecutor(2) as threads:
        list(threads.map(take, of_ranks))
    texts = (
        documents[:30] if format == "text" else [text.replace(" ", "_") if format == "fasta" else text for text in documents]
    )
    expected = Counter("".join(texts).encode())
    tokens = Counter(letter for number in sorted(rows) for letter in rows[number] if letter != EOS)
    assert tokens == Counter({letter: 3 * count for letter, count in expected.items()})
    assert sum(row.count(EOS) for row in rows.values()) == 3 * len(texts)
