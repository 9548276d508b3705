"""Plans are tight and whole; planes obey the row invariants, and whatever breaks one is told."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from cistron.datasets.errors import DataConfigError
from cistron.datasets.lanes.blocks import BlockBuilder, TokenRun, block_tokens
from cistron.datasets.rows import (
    PAD_MULTIPLE,
    Block,
    PackedRow,
    Packer,
    Part,
    Planes,
    best_fit,
    lay_out,
    row_violations,
    rows_of_best_fit,
)
from cistron.datasets.rows.objectives import IGNORE
from cistron.datasets.rows.packing import concat, padded
from hypothesis import given, settings
from hypothesis import strategies as st

EOS, PAD = 0, 1
LENGTHS = st.lists(st.integers(1, 100), max_size=60)


def _lognormal(count: int, random: np.random.Generator) -> list[int]:
    """Draw lengths of mean 870 and median 450, eos included."""
    sigma = math.sqrt(2 * math.log(870 / 450))
    lengths: list[int] = (np.maximum(random.lognormal(math.log(450), sigma, count), 1).astype(int) + 1).tolist()
    return lengths


def _best_fit_by_search(lengths: list[int], seq_len: int) -> list[int]:
    """Best-fit decreasing with a list of rows and a minimum; return the tokens of each row, sorted."""
    used = [seq_len for length in lengths for _ in range(length // seq_len)]
    opened: list[int] = []
    for length in sorted((length % seq_len for length in lengths), reverse=True):
        fitting = [row for row, tokens in enumerate(opened) if tokens + length <= seq_len]
        if length == 0:
            continue
        if fitting:
            opened[max(fitting, key=lambda row: opened[row])] += length
        else:
            opened.append(length)
    return sorted(used + opened)


@given(LENGTHS, st.integers(1, 40))
def test_best_fit_fills_rows_as_an_exhaustive_search_does(lengths: list[int], seq_len: int) -> None:
    rows = best_fit(lengths, seq_len)
    assert sorted(sum(length for _, _, length in row) for row in rows) == _best_fit_by_search(lengths, seq_len)
    assert len(rows) == rows_of_best_fit(np.array(lengths, dtype=np.int64), seq_len)


@pytest.mark.parametrize("plan", [best_fit, concat, padded])
@given(lengths=LENGTHS, seq_len=st.integers(1, 40))
def test_a_plan_holds_every_token_once_in_order(
    plan: Callable[[list[int], int], list[list[Part]]], lengths: list[int], seq_len: int
) -> None:
    rows = plan(lengths, seq_len)
    planned = sorted(
        (segment, token) for row in rows for segment, start, length in row for token in range(start, start + length)
    )
    assert planned == [(segment, token) for segment, length in enumerate(lengths) for token in range(length)]
    assert all(row == sorted(row) and sum(length for _, _, length in row) <= seq_len for row in rows)


@given(lengths=LENGTHS, seq_len=st.integers(1, 40))
def test_best_fit_never_splits_what_fits(lengths: list[int], seq_len: int) -> None:
    for row in best_fit(lengths, seq_len):
        for segment, start, length in row:
            assert length == min(lengths[segment] - start, seq_len)


@given(lengths=LENGTHS.filter(bool), seq_len=st.integers(1, 40))
def test_concat_leaves_room_in_its_last_row_only(lengths: list[int], seq_len: int) -> None:
    *full, _ = concat(lengths, seq_len)
    assert all(sum(length for _, _, length in row) == seq_len for row in full)


def test_best_fit_of_4096_documents_uses_999_of_1000_tokens() -> None:
    random = np.random.default_rng(0)
    for _ in range(3):
        lengths = _lognormal(4096, random)
        assert sum(lengths) / (len(best_fit(lengths, 2048)) * 2048) >= 0.999


@pytest.mark.parametrize(("seq_len", "use"), [(2048, 0.998), (8192, 0.9985)])
def test_blocks_of_a_stream_of_text_end_where_their_rows_are_full(seq_len: int, use: float) -> None:
    lengths = _lognormal(10_000, np.random.default_rng(0))
    one, kept = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int8)
    spans = (TokenRun(np.zeros(length, dtype=np.uint8), one * length, [0], kept, 0, True, True) for length in lengths)
    packer = Packer(seq_len, EOS, PAD, "best_fit")
    tokens = [0]
    rows = 0
    for built in BlockBuilder(spans, packer):
        tokens.append(sum(built.block.lengths))
        rows += len(packer.plan(built.block))
    assert sum(tokens) == sum(lengths)
    assert max(tokens) < block_tokens(seq_len) + seq_len
    assert sum(tokens) / (rows * seq_len) >= use


@pytest.mark.parametrize(
    ("seq_len", "rows"), [(1, 2**18), (512, 512), (1000, 263), (2048, 192), (2**16, 64), (2**19, 8), (2**20, 8)]
)
def test_a_block_holds_as_many_rows_as_documented(seq_len: int, rows: int) -> None:
    assert block_tokens(seq_len) == rows * seq_len


def _block(lengths: list[int], closed: bool = True, weights: bool = False) -> Block:
    """Number the tokens from 2 on; end documents with eos, but for an unclosed last one. A weight is id / 10."""
    ids = np.arange(2, sum(lengths) + 2 + (not closed), dtype=np.int32)
    ends = np.cumsum(lengths)
    ids[ends[: len(lengths) - (not closed)] - 1] = EOS
    goes_on = np.zeros(len(lengths), dtype=bool)
    goes_on[-1] = not closed
    of_tokens = [(ids / 10).astype(np.float32)] if weights else None
    return Block([ids], of_tokens, np.zeros(len(lengths), dtype=np.int64), ends - lengths, np.array(lengths), goes_on)


def _expand(packer: Packer, block: Block) -> Planes:
    rows = list(packer.rows(block, packer.plan(block)))
    return packer.expand(rows, range(len(rows)))


def test_planes_of_a_small_block_are_as_written_by_hand() -> None:
    tokens, labels, positions, sequence_ids, weights, _ = _expand(Packer(6, EOS, PAD, "concat"), _block([3, 2, 4, 1]))
    no = IGNORE
    assert tokens.tolist() == [[2, 3, 0, 5, 0, 7], [8, 9, 0, 0, 1, 1]]
    assert labels.tolist() == [[3, 0, no, 0, no, 8], [9, 0, no, no, no, no]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 0, 0]]
    assert sequence_ids.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 1, -1, -1]]
    assert weights is None


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    seq_len=st.integers(2, 12),
    policy=st.sampled_from(["best_fit", "concat", "padded"]),
    pad=st.sampled_from([PAD, EOS]),
    wide=st.integers(0, 1000),
)
def test_planes_keep_the_row_invariants(lengths: list[int], seq_len: int, policy: str, pad: int, wide: int) -> None:
    planes = _expand(Packer(seq_len + wide, EOS, pad, policy), _block(lengths))
    assert row_violations(*planes[:4], eos_id=EOS) == []
    if policy == "padded":
        longest = int((planes.sequence_ids >= 0).sum(1).max())
        assert planes.tokens.shape[1] == min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, seq_len + wide)
        assert planes.sequence_ids.max() == 0, "a row holds one document, or a part of one"


def test_a_document_that_goes_on_is_labelled_with_its_next_token() -> None:
    tokens, labels, *_ = _expand(Packer(4, EOS, PAD, "best_fit"), _block([3, 8], closed=False))
    assert [(row[-1], label[-1]) for row, label in zip(tokens.tolist(), labels.tolist(), strict=True) if row[0] != 2] == [
        (8, 9),
        (12, 13),
    ]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    seq_len=st.integers(2, 12),
    policy=st.sampled_from(["best_fit", "concat", "padded"]),
)
def test_a_weight_stays_with_the_label_that_it_belongs_to(lengths: list[int], seq_len: int, policy: str) -> None:
    planes = _expand(Packer(seq_len, EOS, PAD, policy), _block(lengths, weights=True))
    plain = _expand(Packer(seq_len, EOS, PAD, policy), _block(lengths))
    assert (planes.labels == plain.labels).all()
    assert planes.weights is not None
    inside = planes.labels >= 2
    assert np.allclose(planes.weights[inside], planes.labels[inside] / 10)
    assert (planes.weights[planes.labels == IGNORE] == 0).all()


@given(rows=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=4), padding=st.integers(0, 9))
def test_rows_laid_out_by_hand_keep_all_invariants_and_are_those_of_a_packer(rows: list[list[int]], padding: int) -> None:
    random = np.random.default_rng(len(rows))
    documents = [[np.append(random.integers(2, 9, size), EOS).astype(np.uint8) for size in row] for row in rows]
    width = max(sum(map(len, row)) for row in documents) + padding
    planes = lay_out(documents, width, PAD)
    assert row_violations(*planes[:4], eos_id=EOS) == []
    packer = Packer(width, EOS, PAD, "padded", pad_multiple=width)
    packed = packer.expand([PackedRow(row) for row in documents], range(len(rows)))
    assert all(np.array_equal(a, b) for a, b in zip(planes[:4], packed[:4], strict=True))
    for tokens, ids, row in zip(planes.tokens, planes.sequence_ids, documents, strict=True):
        assert [tokens[ids == number].tolist() for number in range(len(row))] == [ids_.tolist() for ids_ in row]
        assert (tokens[ids < 0] == PAD).all()


VIOLATIONS: dict[str, Callable[[Planes], object]] = {
    "padding comes before a token": lambda p: p[3][0].__setitem__(0, -1),
    "a row holds no token": lambda p: p[3].__setitem__(1, -1),
    "sequence_ids differ from what the eos tokens imply": lambda p: p[0][0].__setitem__(1, EOS),
    "positions differ from what the eos tokens imply": lambda p: p[2][0].__setitem__(4, 3),
    "padding follows a document without eos": lambda p: p[0][1].__setitem__(3, 9),
    "the label at an eos is not -100": lambda p: p[1][0].__setitem__(2, 5),
    "the label on padding is not -100": lambda p: p[1][1].__setitem__(5, 1),
    "a label is not the next token of its document": lambda p: p[1][0].__setitem__(1, IGNORE),
    "the last token of a fragment has no target": lambda p: p[1][0].__setitem__(5, IGNORE),
}


@pytest.mark.parametrize("problem", VIOLATIONS)
def test_each_broken_invariant_is_told(problem: str) -> None:
    planes = _expand(Packer(6, EOS, PAD, "concat"), _block([3, 2, 4, 1]))
    VIOLATIONS[problem](planes)
    assert problem in " ".join(row_violations(*planes[:4], eos_id=EOS))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(DataConfigError, match=r"data\.packing: 'first_fit' is not one of 'best_fit', 'concat'"):
        Packer(8, EOS, PAD, "first_fit")
