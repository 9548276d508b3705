"""An epoch of a lane holds each token once, whatever the lengths, and resumes to the bit from any row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise, takewhile
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from cistron.datasets.documents import DocumentConfig
from cistron.datasets.errors import DataEnd, DataError
from cistron.datasets.files import DataFile
from cistron.datasets.lanes import Lane, LaneState, RawDocuments, blocks
from cistron.datasets.readers import Piece, Records
from cistron.datasets.rows import NextToken, Objective, PackedRow, Packer, row_violations
from cistron.datasets.rows.objectives import IGNORE
from cistron.datasets.tokenizers import Encoded, TokenizeError
from cistron.tests.helpers.corpora import parts_of, segments, windows
from hypothesis import given, settings
from hypothesis import strategies as st

EOS, PAD = 0, 1


@dataclass
class Numbered:
    """A reader of pieces whose documents are given by length; token t of the corpus has the id t + 2.

    Attributes:
        lengths: Tokens of each document, eos not counted; piece p holds the documents from `start` to `end`.
        chunk: Tokens per stretch of a document.
        group: Documents per group, at most.
        bad: Documents that cannot be read.
        broken: Documents of which only the first stretch can be read.
    """

    lengths: list[int]
    chunk: int
    group: int
    bad: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    content = "text"

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Make no pieces: the case has them."""
        raise NotImplementedError

    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        """Yield the documents of a piece; offsets are token numbers, and a document takes one more than it has."""
        stretches = list(self._stretches(piece, offset, first))
        while stretches:
            _, begin, opens, _, error = stretches[0]
            if error is not None:
                yield Records([], [], opens, True, error, begin)
                stretches = stretches[1:]
                continue
            end = 1
            while end < min(len(stretches), self.group) and stretches[end - 1][3] and stretches[end][4] is None:
                end += 1
            documents, offsets = [data for data, *_ in stretches[:end]], [begin for _, begin, *_ in stretches[:end]]
            yield Records(documents, offsets, opens, stretches[end - 1][3])
            stretches = stretches[end:]

    def _stretches(self, piece: Piece, offset: int, first: bool) -> Iterator[tuple[bytes, int, bool, bool, DataError | None]]:
        starts = [0, *accumulate(length + 1 for length in self.lengths)]
        assert piece.end is not None
        for document in range(piece.start, piece.end):
            opens = starts[document]
            closes = opens + self.lengths[document]
            begin = opens if offset == piece.start and first else max(offset - 10**6, opens)
            if begin > closes:
                continue
            if document in self.bad:
                yield b"", begin + 10**6, True, True, DataError("unreadable", file="corpus", record=document)
                continue
            while True:
                if document in self.broken and begin > opens:
                    yield b"", begin + 10**6, False, True, DataError("breaks off", file="corpus", record=document)
                    break
                end = min(begin + self.chunk, closes)
                data = np.arange(begin + 2, end + 2, dtype=np.int32).tobytes()
                yield data, begin + 10**6, begin == opens, end == closes, None
                if end == closes:
                    break
                begin = end

    def locate(self, path: str, offset: int, index: int) -> tuple[int | str | None, int]:
        """Name a place by its token."""
        return None, offset - 10**6 + index


@dataclass
class Plain:
    """A tokenizer whose ids are the int32 numbers that the data is made of; some of them it cannot encode."""

    streams: bool
    poison: frozenset[int] = frozenset()
    kind = "plain"
    alphabet = None
    dtype: npt.DTypeLike = np.int32
    eos_id = EOS
    pad_id = PAD
    bos_id = None
    vocab_size = 10**6
    where = "test"
    fingerprint = "plain"
    hf_config: dict[str, Any] | None = None

    def encode_batch(self, documents: list[bytes]) -> Encoded:
        parts = []
        for index, data in enumerate(documents):
            ids = np.frombuffer(data, dtype=np.int32)
            if self.poison.intersection(ids.tolist()):
                raise TokenizeError("poisoned", 0, index)
            parts += [ids, np.array([EOS], dtype=np.int32)]
        return Encoded(np.concatenate(parts), [len(data) // 4 + 1 for data in documents])

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
    group: int = 3
    bad: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    poison: frozenset[int] = frozenset()
    skip_bad: bool = True
    max_epochs: int | None = None
    long: str = "split"
    overlap: int = 0
    objective: Objective | None = None

    @property
    def packer(self) -> Packer:
        return Packer(self.seq_len, EOS, PAD, self.policy, self.objective, overlap=self.overlap)

    def lane(self, state: LaneState | None = None, seed: int = 0) -> Lane:
        bounds = np.linspace(0, len(self.lengths), self.pieces + 1).astype(int).tolist()
        parts = [Piece("corpus", start, end, 1) for start, end in pairwise(bounds) if end > start]
        reader = Numbered(list(self.lengths), self.chunk, self.group, self.bad, self.broken)
        key = (seed, 0, 0)
        config = DocumentConfig(long_documents=self.long, window_overlap=self.overlap)
        raw = RawDocuments(parts, reader, Plain(self.streams, self.poison), self.packer, key, self.skip_bad, config)
        return Lane(raw, self.packer, key, state or LaneState(), "main", self.max_epochs)

    def rows(self, count: int, state: LaneState | None = None) -> list[tuple[PackedRow, LaneState]]:
        with patch.object(blocks, "block_tokens", lambda seq_len: self.block_rows * seq_len):
            return list(islice(self.lane(state).rows(), count))

    def epoch(self, number: int = 0, seed: int = 0) -> np.ndarray:
        """Return the rows of an epoch: int64 [4, rows, seq_len]."""
        with patch.object(blocks, "block_tokens", lambda seq_len: self.block_rows * seq_len):
            rows = takewhile(lambda row: row[1].epoch <= number, self.lane(seed=seed).rows())
            return self.planes([row for row, state in rows if state.epoch == number])

    def packed(self) -> list[PackedRow]:
        """Return the rows of the first epoch as they are packed."""
        with patch.object(blocks, "block_tokens", lambda seq_len: self.block_rows * seq_len):
            return [row for row, _ in takewhile(lambda row: row[1].epoch == 0, self.lane().rows())]

    def planes(self, rows: list[PackedRow]) -> np.ndarray:
        return np.stack([plane.astype(np.int64) for plane in self.packer.expand(rows, range(len(rows)))[:4]])

    def documents(self) -> list[list[int]]:
        """What the corpus holds: its documents without the empty and the bad ones, each with its eos."""
        starts = [0, *accumulate(length + 1 for length in self.lengths)]
        return [
            [*range(start + 2, start + length + 2), EOS]
            for number, (start, length) in enumerate(zip(starts[:-1], self.lengths, strict=True))
            if length and number not in self.bad
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
        group=draw(st.integers(1, 5)),
        bad=draw(st.frozensets(st.integers(0, len(lengths) - 1), max_size=len(lengths) // 2)),
    )


@st.composite
def window_cases(draw: st.DrawFn) -> Case:
    """Documents in windows, packed or padded, for next tokens or for masked ones."""
    case = draw(cases(policies=("best_fit", "padded")))
    overlap = draw(st.integers(1, case.seq_len - 1))
    return replace(case, long="window", overlap=overlap, objective=draw(st.sampled_from([NextToken(), InPlace()])))


class InPlace(NextToken):
    """Stands for objectives that ask for a token where it stands."""

    shift = 0


def _has_documents(case: Case) -> bool:
    return bool(case.documents())


@settings(max_examples=150, deadline=None)
@given(cases().filter(_has_documents))
def test_an_epoch_holds_every_token_once_and_every_invariant(case: Case) -> None:
    planes = case.epoch()
    assert row_violations(*planes, eos_id=EOS) == []

    tokens, labels, _, sequence_ids = planes
    expected = case.documents()
    assert sorted(tokens[sequence_ids >= 0]) == sorted(token for document in expected for token in document)
    targets = [token for document in expected for token in document[1:]]
    assert sorted(labels[labels != IGNORE]) == sorted(targets), "every token but a document's first, once"
    # The label of token t is t + 1, or eos where the document ends: also from a fragment to the next.
    followers = {token: after for document in expected for token, after in pairwise(document)}
    assert all(followers[token] == label for token, label in zip(*(p[labels != IGNORE] for p in (tokens, labels)), strict=True))


@settings(max_examples=100, deadline=None)
@given(cases(policies=("best_fit",)).filter(_has_documents))
def test_documents_that_fit_are_whole_and_others_are_cut_every_row(case: Case) -> None:
    found = sorted(segment for row in case.epoch().transpose(1, 0, 2) for segment in segments(row))
    cut = [
        document[start : start + case.seq_len]
        for document in case.documents()
        for start in range(0, len(document), case.seq_len)
    ]
    assert found == sorted(cut)


@settings(max_examples=50, deadline=None)
@given(cases(policies=("concat",)).filter(_has_documents))
def test_concat_fills_all_rows_but_one(case: Case) -> None:
    assert ((case.epoch()[3] < 0).any(1)).sum() <= 1


@settings(max_examples=60, deadline=None)
@given(cases().filter(_has_documents), st.data())
def test_a_lane_resumed_at_any_row_goes_on_identically(case: Case, data: st.DataObject) -> None:
    rows = case.epoch().shape[1]
    straight = case.rows(2 * rows + 5)
    stop = data.draw(st.integers(1, len(straight) - 1), label="rows taken")
    resumed = case.rows(len(straight) - stop, straight[stop - 1][1])
    assert [state for _, state in resumed] == [state for _, state in straight[stop:]]
    assert (case.planes([row for row, _ in resumed]) == case.planes([row for row, _ in straight[stop:]])).all()


@settings(max_examples=100, deadline=None)
@given(window_cases().filter(_has_documents))
def test_windows_share_their_overlap_and_ask_for_every_token_once(case: Case) -> None:
    rows = case.packed()
    shift = case.packer.objective.shift
    expected = [part for document in case.documents() for part in windows(document, case.seq_len, case.overlap, shift)]
    assert sorted(parts_of(rows, shift)) == sorted(expected)
    targets = [token for document in case.documents() for token in document[shift:]]
    assert sorted(token for _, labels in expected for token in labels) == sorted(targets), "each exactly once"
    assert row_violations(*case.planes(rows), eos_id=EOS) == []


@settings(max_examples=60, deadline=None)
@given(window_cases().filter(_has_documents), st.data())
def test_a_lane_of_windows_resumed_at_any_row_goes_on_identically(case: Case, data: st.DataObject) -> None:
    straight = case.rows(60)
    stop = data.draw(st.integers(1, len(straight) - 1), label="rows taken")
    resumed = case.rows(len(straight) - stop, straight[stop - 1][1])
    for (row, state), (again, again_state) in zip(straight[stop:], resumed, strict=True):
        assert state == again_state
        assert row.following == again.following
        assert [part.tolist() for part in row.parts] == [part.tolist() for part in again.parts]
        assert (row.weights is None) == (again.weights is None)
        assert row.weights is None or again.weights is None or row.weights.tolist() == again.weights.tolist()


@settings(max_examples=40, deadline=None)
@given(cases(policies=("best_fit", "padded")).filter(_has_documents), st.data())
def test_of_a_truncated_document_the_first_row_is_used(case: Case, data: st.DataObject) -> None:
    case = replace(case, long="truncate")
    rows = case.packed()
    found = [(row.following, part.tolist()) for row in rows for part in row.parts]
    expected = [
        (document[case.seq_len] if len(document) > case.seq_len else None, document[: case.seq_len])
        for document in case.documents()
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)
    straight = case.rows(len(rows) + 9)
    state = next(state for _, state in straight if state.epoch == 1)
    assert state.truncated == sum(following is not None for following, _ in expected)
    assert state.documents == len(expected)
    stop = data.draw(st.integers(1, len(straight) - 1), label="rows taken")
    resumed = case.rows(len(straight) - stop, straight[stop - 1][1])
    assert [(state, row.following) for row, state in resumed] == [(state, row.following) for row, state in straight[stop:]]


@pytest.mark.parametrize("streams", [True, False])
def test_a_document_that_does_not_fit_can_be_a_bad_record(streams: bool) -> None:
    case = Case((4, 8, 7, 30), 8, "best_fit", long="error", streams=streams)
    state = next(state for _, state in case.rows(30) if state.epoch == 1)
    assert (state.documents, state.skipped) == (2, 2), "7 tokens and an eos fit"
    with pytest.raises(DataError, match=r"byte 5: the document has 9 tokens, its eos included, and training\.seq_len = 8"):
        replace(case, skip_bad=False, pieces=1).rows(30)
    with pytest.raises(DataError, match="finds no document"):
        replace(case, lengths=(9, 30)).rows(30)


def test_rows_do_not_depend_on_how_documents_arrive() -> None:
    lengths = (40, 0, 3, 100, 5, 7, 0, 64)
    for policy in ("best_fit", "concat"):
        whole = Case(lengths, 8, policy, streams=False).epoch()
        for chunk, group in ((1, 1), (8, 2), (1000, 9)):
            assert (Case(lengths, 8, policy, chunk=chunk, group=group).epoch() == whole).all()


def test_order_changes_with_the_epoch_and_the_seed() -> None:
    case = Case(tuple(range(1, 30)), 16, "best_fit", pieces=4)
    orders = [case.epoch(0), case.epoch(1), case.epoch(0, seed=1)]
    assert all(a.shape != b.shape or (a != b).any() for a, b in [orders[:2], orders[1:], orders[::2]])


def test_documents_dropped_and_skipped_ones_are_counted() -> None:
    case = Case((4, 0, 0, 30, 2, 0, 5), 8, "best_fit", bad=frozenset({6}))
    state = next(state for _, state in case.rows(100) if state.epoch == 2)
    assert (state.documents, state.dropped, state.skipped) == (6, 6, 2)


@pytest.mark.parametrize("streams", [True, False])
def test_a_document_that_turns_out_bad_ends_there_or_is_left_out(streams: bool, caplog: pytest.LogCaptureFixture) -> None:
    # Token 40 is document 1's 35th: behind 4 stretches of 7 where documents stream, and part of it where they do not.
    case = Case((4, 60, 20), 8, "best_fit", pieces=1, streams=streams, poison=frozenset({2 + 5 + 34}))
    tokens, _, _, sequence_ids = case.epoch()
    kept = [*range(7, 7 + 28), EOS] if streams else []
    expected = [*range(2, 6), EOS, *kept, *range(68, 88), EOS]
    assert sorted(tokens[sequence_ids >= 0]) == sorted(expected)
    assert "poisoned" in caplog.text
    state = next(state for _, state in case.rows(100) if state.epoch == 1)
    assert state.skipped == 1


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("poison", [frozenset(), frozenset({2 + 5 + 3})], ids=["sound before", "bad before"])
def test_a_document_whose_reading_breaks_off_ends_there_or_is_left_out(streams: bool, poison: frozenset[int]) -> None:
    case = Case((4, 60, 20), 8, "best_fit", pieces=1, streams=streams, broken=frozenset({1}), poison=poison)
    tokens, _, _, sequence_ids = case.epoch()
    kept = [*range(7, 7 + 7), EOS] if streams and not poison else []
    assert sorted(tokens[sequence_ids >= 0]) == sorted([*range(2, 6), EOS, *kept, *range(68, 88), EOS])
    assert next(state for _, state in case.rows(100) if state.epoch == 1).skipped == 1


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_a_lane_with_bad_documents_resumes_to_the_bit(case: Case, data: st.DataObject) -> None:
    poison = data.draw(st.frozensets(st.integers(2, sum(case.lengths) + 2), max_size=3))
    broken = data.draw(st.frozensets(st.integers(0, len(case.lengths) - 1), max_size=2))
    case = replace(case, poison=poison, broken=broken)
    try:
        straight = case.rows(30)
    except DataError:
        return  # nothing is left of it
    stop = data.draw(st.integers(1, len(straight) - 1), label="rows taken")
    resumed = case.rows(len(straight) - stop, straight[stop - 1][1])
    assert [state for _, state in resumed] == [state for _, state in straight[stop:]]
    planes = case.planes([row for row, _ in straight])
    assert (case.planes([row for row, _ in resumed]) == planes[:, stop:]).all()
    assert row_violations(*planes, eos_id=EOS) == []


def test_a_bad_document_is_raised_where_none_is_skipped() -> None:
    for case in (Case((4, 5), 8, "best_fit", bad=frozenset({1})), Case((4, 5), 8, "best_fit", poison=frozenset({8}))):
        with pytest.raises(DataError, match=r"corpus.*(unreadable|poisoned)"):
            replace(case, skip_bad=False).rows(9)


def test_a_lane_ends_after_its_last_epoch() -> None:
    case = Case((4, 5, 60), 8, "best_fit", max_epochs=2)
    rows: list[PackedRow] = []
    with pytest.raises(DataEnd, match=r"source 'main' was read data\.sources\.max_epochs = 2 times"):
        rows.extend(row for row, _ in case.lane().rows())
    endless = replace(case, max_epochs=None)
    assert len(rows) == endless.epoch(0).shape[1] + endless.epoch(1).shape[1]


@pytest.mark.parametrize("policy", ["best_fit", "concat"])
def test_a_giant_document_is_encoded_once_and_its_stretches_are_let_go(policy: str) -> None:
    case = Case((5000, 3), 8, policy, chunk=640, pieces=1)
    encoded = 0
    encode = Plain.encode_batch

    def count(self: Plain, documents: list[bytes]) -> Encoded:
        nonlocal encoded
        encoded += sum(map(len, documents)) // 4
        return encode(self, documents)

    with patch.object(Plain, "encode_batch", count):
        assert case.epoch().shape[1] > 600
    # The second epoch is begun to see the first one end.
    assert encoded <= 5003 + 640


def test_an_epoch_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="main: a lane of this source finds no document"):
        Case((0, 0, 0), 8, "best_fit").rows(1)
