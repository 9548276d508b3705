"""Plans are tight and whole; planes obey the row invariants, and whatever breaks one is told."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from cistron.datasets.blocks import Address, BlockBuilder, Span, block_tokens
from cistron.datasets.errors import DataConfigError
from cistron.datasets.packing import IGNORE, Block, Packer, Part, best_fit, concat, row_violations
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
    assert sorted(sum(part.length for part in row) for row in rows) == _best_fit_by_search(lengths, seq_len)


@pytest.mark.parametrize("plan", [best_fit, concat])
@given(lengths=LENGTHS, seq_len=st.integers(1, 40))
def test_a_plan_holds_every_token_once_in_order(
    plan: Callable[[list[int], int], list[list[Part]]], lengths: list[int], seq_len: int
) -> None:
    rows = plan(lengths, seq_len)
    planned = sorted(
        (part.segment, token) for row in rows for part in row for token in range(part.start, part.start + part.length)
    )
    assert planned == [(segment, token) for segment, length in enumerate(lengths) for token in range(length)]
    assert all(row == sorted(row) and sum(part.length for part in row) <= seq_len for row in rows)


@given(lengths=LENGTHS, seq_len=st.integers(1, 40))
def test_best_fit_never_splits_what_fits(lengths: list[int], seq_len: int) -> None:
    for row in best_fit(lengths, seq_len):
        for part in row:
            assert part.length == min(lengths[part.segment] - part.start, seq_len)


@given(lengths=LENGTHS.filter(bool), seq_len=st.integers(1, 40))
def test_concat_leaves_room_in_its_last_row_only(lengths: list[int], seq_len: int) -> None:
    *full, _ = concat(lengths, seq_len)
    assert all(sum(part.length for part in row) == seq_len for row in full)


def test_best_fit_of_4096_documents_uses_999_of_1000_tokens() -> None:
    random = np.random.default_rng(0)
    for _ in range(3):
        lengths = _lognormal(4096, random)
        assert sum(lengths) / (len(best_fit(lengths, 2048)) * 2048) >= 0.999


def test_best_fit_of_the_blocks_of_a_stream_of_text_uses_995_of_1000_tokens() -> None:
    lengths = _lognormal(10_000, np.random.default_rng(0))
    here = Address(0, 0, 1, 0)
    spans = (Span(np.zeros(length, dtype=np.uint8), here, True) for length in lengths)
    packer = Packer(2048, EOS, PAD, "best_fit")
    tokens = [0]
    rows = 0
    for built in BlockBuilder(spans, packer.seq_len, packer.policy):
        tokens.append(sum(built.block.lengths))
        rows += len(packer.plan(built.block))
    assert sum(tokens) == sum(lengths)
    assert max(tokens) < 195 * 2048, "a block is no larger than is used"
    assert sum(tokens) / (rows * 2048) >= 0.995


@pytest.mark.parametrize(
    ("seq_len", "rows"), [(1, 2**18), (512, 512), (1000, 263), (2048, 192), (2**16, 64), (2**19, 8), (2**20, 8)]
)
def test_a_block_holds_as_many_rows_as_documented(seq_len: int, rows: int) -> None:
    assert block_tokens(seq_len) == rows * seq_len


def _block(lengths: list[int], closed: bool = True) -> Block:
    """Number the tokens from 2 on; end documents with eos, but for an unclosed last one, which goes on."""
    ids = np.arange(2, sum(lengths) + 2 + (not closed), dtype=np.int32)
    ends = np.cumsum(lengths)[: len(lengths) - (not closed)]
    ids[ends - 1] = EOS
    return Block(ids, lengths, len(ends))


def test_planes_of_a_small_block_are_as_written_by_hand() -> None:
    packer = Packer(6, EOS, PAD, "concat")
    block = _block([3, 2, 4, 1])
    rows = list(packer.assemble(block, packer.plan(block)))
    no = IGNORE
    assert rows[0].tolist() == [[2, 3, 0, 5, 0, 7], [3, 0, no, 0, no, 8], [0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 1, 2]]
    assert rows[1].tolist() == [[8, 9, 0, 0, 1, 1], [9, 0, no, no, no, no], [0, 1, 2, 0, 0, 0], [0, 0, 0, 1, -1, -1]]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    seq_len=st.integers(2, 12),
    policy=st.sampled_from(["best_fit", "concat"]),
    pad=st.sampled_from([PAD, EOS]),
)
def test_planes_keep_the_row_invariants(lengths: list[int], seq_len: int, policy: str, pad: int) -> None:
    packer = Packer(seq_len, EOS, pad, policy)
    block = _block(lengths)
    planes = np.stack(list(packer.assemble(block, packer.plan(block))))
    assert row_violations(*planes.transpose(1, 0, 2), eos_id=EOS) == []


def test_a_document_that_goes_on_is_labelled_with_its_next_token() -> None:
    packer = Packer(4, EOS, PAD, "best_fit")
    block = _block([3, 8], closed=False)
    rows = [row for row in packer.assemble(block, packer.plan(block)) if row[0, 0] != 2]
    assert [(row[0, -1], row[1, -1]) for row in rows] == [(8, 9), (12, 13)]


VIOLATIONS: dict[str, Callable[[np.ndarray], object]] = {
    "padding comes before a token": lambda p: p[3, 0].__setitem__(0, -1),
    "a row holds no token": lambda p: p[3].__setitem__(1, -1),
    "sequence_ids differ from what the eos tokens imply": lambda p: p[0, 0].__setitem__(1, EOS),
    "positions differ from what the eos tokens imply": lambda p: p[2, 0].__setitem__(4, 3),
    "padding follows a document without eos": lambda p: p[0, 1].__setitem__(3, 9),
    "the label at an eos is not -100": lambda p: p[1, 0].__setitem__(2, 5),
    "the label on padding is not -100": lambda p: p[1, 1].__setitem__(5, 1),
    "a label is not the next token of its document": lambda p: p[1, 0].__setitem__(1, IGNORE),
    "the last token of a fragment has no target": lambda p: p[1, 0].__setitem__(5, IGNORE),
}


@pytest.mark.parametrize("problem", VIOLATIONS)
def test_each_broken_invariant_is_told(problem: str) -> None:
    packer = Packer(6, EOS, PAD, "concat")
    block = _block([3, 2, 4, 1])
    planes = np.stack(list(packer.assemble(block, packer.plan(block)))).transpose(1, 0, 2).copy()
    VIOLATIONS[problem](planes)
    assert problem in " ".join(row_violations(*planes, eos_id=EOS))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(DataConfigError, match=r"data\.packing: 'first_fit' is not one of 'best_fit', 'concat'"):
        Packer(8, EOS, PAD, "first_fit")
