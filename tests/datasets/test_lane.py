"""An epoch of a lane holds each token once, whatever the lengths, and resumes to the bit from any row."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise, takewhile
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cistron.datasets import blocks
from cistron.datasets.errors import DataError
from cistron.datasets.lane import Lane, LaneState
from cistron.datasets.packing import IGNORE, Packer, Planes, row_violations
from cistron.datasets.pieces import Piece
from cistron.datasets.readers import Chunk
from cistron.datasets.tokenizers import Ids
from cistron.tests.datasets.corpus import segments
from hypothesis import given, settings
from hypothesis import strategies as st

EOS, PAD = 0, 1


@dataclass
class Numbered:
    """A reader of pieces whose documents are given by length; token t of the corpus has the id t + 2.

    Attributes:
        lengths: Tokens of each document, eos not counted; piece p holds the documents from `start` to `end`.
        chunk: Tokens per chunk.
    """

    lengths: list[int]
    chunk: int
    boundary: bytes | None = None

    def chunks(self, piece: Piece, offset: int, first: bool) -> Iterator[Chunk]:
        """Yield the documents of a piece; offsets are token numbers, and a document takes one more than it has."""
        starts = [0, *accumulate(length + 1 for length in self.lengths)]
        assert piece.end is not None
        for document in range(piece.start, piece.end):
            opens = starts[document]
            closes = opens + self.lengths[document]
            begin = opens if offset == piece.start and first else max(offset - 10**6, opens)
            if begin > closes:
                continue
            while True:
                end = min(begin + self.chunk, closes)
                data = np.arange(begin + 2, end + 2, dtype=np.int32).tobytes()
                yield Chunk(data, begin + 10**6, begin == opens, end == closes)
                if end == closes:
                    break
                begin = end

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Make no sense of a place."""
        raise NotImplementedError


@dataclass
class Plain:
    """A tokenizer whose ids are the int32 numbers that the data is made of."""

    streams: bool
    eos_id = EOS
    pad_id = PAD
    vocab_size = 10**6
    where = "test"
    fingerprint = "plain"
    hf_config: dict[str, Any] | None = None

    def encode(self, data: bytes) -> Ids:
        return np.frombuffer(data, dtype=np.int32)

    def decode(self, ids: object) -> str:
        return str(ids)


@dataclass(frozen=True)
class Case:
    """A lane of a corpus, packed in blocks of a few rows."""

    lengths: tuple[int, ...]
    seq_len: int
    policy: str
    chunk: int = 7
    pieces: int = 2
    streams: bool = True
    block_rows: int = 3

    def lane(self, state: LaneState | None = None, seed: int = 0) -> Lane:
        bounds = np.linspace(0, len(self.lengths), self.pieces + 1).astype(int).tolist()
        parts = [Piece("corpus", start, end, 1) for start, end in pairwise(bounds) if end > start]
        packer = Packer(self.seq_len, EOS, PAD, self.policy)
        reader = Numbered(list(self.lengths), self.chunk)
        return Lane(parts, reader, Plain(self.streams), packer, (seed, 0, 0), state or LaneState())

    def rows(self, count: int, state: LaneState | None = None) -> list[tuple[Planes, LaneState]]:
        with patch.object(blocks, "block_tokens", lambda seq_len: self.block_rows * seq_len):
            return list(islice(self.lane(state).rows(), count))

    def epoch(self, number: int = 0, seed: int = 0) -> list[Planes]:
        with patch.object(blocks, "block_tokens", lambda seq_len: self.block_rows * seq_len):
            rows = takewhile(lambda row: row[1].epoch <= number, self.lane(seed=seed).rows())
            return [planes for planes, state in rows if state.epoch == number]

    def documents(self) -> list[list[int]]:
        """What the corpus holds: its documents without the empty ones, each with its eos."""
        starts = [0, *accumulate(length + 1 for length in self.lengths)]
        return [
            [*range(start + 2, start + length + 2), EOS]
            for start, length in zip(starts[:-1], self.lengths, strict=True)
            if length
        ]


@st.composite
def cases(draw: st.DrawFn, policies: tuple[str, ...] = ("best_fit", "concat")) -> Case:
    seq_len = draw(st.integers(2, 9))
    lengths = draw(st.lists(st.integers(0, 20 * seq_len), min_size=1, max_size=12).filter(any))
    return Case(
        lengths=tuple(lengths),
        seq_len=seq_len,
        policy=draw(st.sampled_from(policies)),
        chunk=draw(st.integers(1, 60)),
        pieces=draw(st.integers(1, 4)),
        streams=draw(st.booleans()),
        block_rows=draw(st.integers(1, 6)),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_an_epoch_holds_every_token_once_and_every_invariant(case: Case) -> None:
    planes = np.stack(case.epoch())
    assert row_violations(*planes.transpose(1, 0, 2), eos_id=EOS) == []

    tokens, labels, _, sequence_ids = planes.transpose(1, 0, 2)
    expected = case.documents()
    assert sorted(tokens[sequence_ids >= 0]) == sorted(token for document in expected for token in document)
    targets = [token for document in expected for token in document[1:]]
    assert sorted(labels[labels != IGNORE]) == sorted(targets), "every token but a document's first, once"
    # The label of token t is t + 1, or eos where the document ends: also from a fragment to the next.
    followers = {token: after for document in expected for token, after in pairwise(document)}
    assert all(followers[token] == label for token, label in zip(*(p[labels != IGNORE] for p in (tokens, labels)), strict=True))


@settings(max_examples=100, deadline=None)
@given(cases(policies=("best_fit",)))
def test_documents_that_fit_are_whole_and_others_are_cut_every_row(case: Case) -> None:
    found = sorted(segment for row in case.epoch() for segment in segments(row))
    cut = [
        document[start : start + case.seq_len]
        for document in case.documents()
        for start in range(0, len(document), case.seq_len)
    ]
    assert found == sorted(cut)


@settings(max_examples=50, deadline=None)
@given(cases(policies=("concat",)))
def test_concat_keeps_documents_in_order_and_rows_full(case: Case) -> None:
    *full, last = case.epoch()
    assert all((row[3] >= 0).all() for row in full)
    stream = [token for row in [*full, last] for segment in segments(row) for token in segment]
    parts: list[list[int]] = [[]]
    for token in stream:
        parts[-1].append(token)
        if token == EOS:
            parts.append([])
    assert sorted(parts[:-1]) == sorted(case.documents())


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_a_lane_resumed_at_any_row_goes_on_identically(case: Case, data: st.DataObject) -> None:
    rows = len(case.epoch())
    straight = case.rows(2 * rows + 5)
    stop = data.draw(st.integers(1, len(straight) - 1), label="rows taken")
    resumed = case.rows(len(straight) - stop, straight[stop - 1][1])
    assert [state for _, state in resumed] == [state for _, state in straight[stop:]]
    assert all((a == b).all() for (a, _), (b, _) in zip(resumed, straight[stop:], strict=True))


def test_rows_do_not_depend_on_how_documents_arrive() -> None:
    lengths = (40, 0, 3, 100, 5, 7, 0, 64)
    for policy in ("best_fit", "concat"):
        whole = np.stack(Case(lengths, 8, policy, streams=False).epoch())
        for chunk in (1, 8, 1000):
            assert (np.stack(Case(lengths, 8, policy, chunk=chunk).epoch()) == whole).all()


def test_order_changes_with_the_epoch_and_the_seed() -> None:
    case = Case(tuple(range(1, 30)), 16, "best_fit", pieces=4)
    orders = [np.stack(case.epoch(0)), np.stack(case.epoch(1)), np.stack(case.epoch(0, seed=1))]
    assert all(a.shape != b.shape or (a != b).any() for a, b in [orders[:2], orders[1:], orders[::2]])


def test_documents_and_dropped_ones_are_counted() -> None:
    case = Case((4, 0, 0, 30, 2, 0), 8, "best_fit")
    state = next(state for _, state in case.rows(100) if state.epoch == 2)
    assert (state.documents, state.dropped) == (6, 6)


@pytest.mark.parametrize("policy", ["best_fit", "concat"])
def test_a_giant_document_is_encoded_once_and_its_chunks_are_let_go(policy: str) -> None:
    case = Case((5000, 3), 8, policy, chunk=640, pieces=1)
    encoded = 0

    def count(self: Plain, data: bytes) -> Ids:
        nonlocal encoded
        encoded += len(data) // 4
        return np.frombuffer(data, dtype=np.int32)

    with patch.object(Plain, "encode", count):
        assert len(case.epoch()) > 600
    # The second epoch is begun to see the first one end.
    assert encoded <= 5003 + 640


def test_an_epoch_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="corpus: a lane finds no document"):
        Case((0, 0, 0), 8, "best_fit").rows(1)
