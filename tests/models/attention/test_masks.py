"""Every form of the document mask says what the rule says, and the rule is read off the tokens correctly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cistron.models.attention import DocumentMask, document_block_mask
from cistron.models.attention.masks import document_dense_mask, document_offsets
from cistron.models.config import AttentionConfig, RopeConfig
from cistron.models.positions import ALL_DISTANCES, DistanceRange
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, pack, random_decoder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from torch.utils._python_dispatch import TorchDispatchMode

# Block size 16 shows at 64 tokens what 128 shows at 512.
BLOCK = 16
CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def _slow_sequence_ids(row: list[int], eos: int, pad: int) -> list[int]:
    """The definition, token by token: find where padding starts, then count the eos before each place."""
    padding_start = len(row)
    for start in range(len(row)):
        if all(token == pad for token in row[start:]) and (start == 0 or row[start - 1] == eos):
            padding_start = start
            break
    return [row[:i].count(eos) if i < padding_start else -1 for i in range(len(row))]


def _ids(lengths: list[int], seq_len: int) -> list[int]:
    """Sequence ids of documents of these lengths, cut off at `seq_len` or followed by padding up to it."""
    ids = [number for number, length in enumerate(lengths) for _ in range(length)][:seq_len]
    return ids + [-1] * (seq_len - len(ids))


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    """Sequence ids int32 [1 to 3, 1 to 100] of random documents, many of them one token long."""
    seq_len = draw(st.integers(1, 100))
    lengths = st.one_of(st.integers(1, 3), st.integers(1, 100), st.sampled_from([BLOCK, 2 * BLOCK]))
    rows = draw(st.lists(st.lists(lengths, max_size=60), min_size=1, max_size=3))
    return torch.tensor([_ids(row, seq_len) for row in rows], dtype=torch.int32)


ADVERSARIAL = {
    "documents of one token": [1] * 64,
    "one document": [64],
    "boundaries on block edges": [16, 32, 16],
    "boundaries one off block edges": [15, 1, 17, 31],
    "a boundary before and after each edge": [15, 2, 14, 2, 14, 2, 14, 1],
    "nothing but padding": [],
    "padding from a block edge": [20, 28],
    "padding from inside a block": [20, 29],
    "one token of padding": [40, 23],
}


def _slow_positions(sequence_ids: Tensor) -> Tensor:
    """Positions inside of documents: how many earlier tokens of the row are of the same."""
    return (sequence_ids[:, :, None] == sequence_ids[:, None, :]).tril(-1).sum(-1)


def _assert_equals_create_block_mask(
    sequence_ids: Tensor, causal: bool, block_size: int, reach: DistanceRange = ALL_DISTANCES, merged: int = 1
) -> None:
    positions = _slow_positions(sequence_ids)

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = sequence_ids[b, q] == sequence_ids[b, k]
        if not causal:
            return same
        distance = positions[b, q] - positions[b, k]
        near = distance < (2**30 if reach.below is None else reach.below)
        return same & (distance >= reach.least) & (near | (positions[b, k] < reach.sinks))

    batch, seq_len = sequence_ids.shape
    blocks = (merged * block_size, block_size)
    theirs = create_block_mask(rule, batch, None, seq_len, seq_len, device="cpu", BLOCK_SIZE=blocks)
    ours = document_block_mask(sequence_ids, causal, block_size, reach=reach, merged=merged)
    assert (ours.shape, ours.BLOCK_SIZE, ours.seq_lengths) == (theirs.shape, theirs.BLOCK_SIZE, theirs.seq_lengths)
    for side in ("kv", "full_kv", "q", "full_q"):
        for table in (f"{side}_num_blocks", f"{side}_indices"):
            our_table, their_table = getattr(ours, table), getattr(theirs, table)
            assert our_table.dtype == their_table.dtype
            assert torch.equal(our_table, their_table), table
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    # Both take everything not in a full block from their mask_mod, so that has to agree as well.
    everywhere = (batch, 1, seq_len, seq_len, "cpu")
    assert torch.equal(create_mask(ours.mask_mod, *everywhere), create_mask(rule, *everywhere))


@CAUSAL
@pytest.mark.parametrize("lengths", [pytest.param(lengths, id=name) for name, lengths in ADVERSARIAL.items()])
def test_block_mask_equals_create_block_mask_on_adversarial_rows(lengths: list[int], causal: bool) -> None:
    _assert_equals_create_block_mask(torch.tensor([_ids(lengths, 64)], dtype=torch.int32), causal, BLOCK)


@CAUSAL
def test_block_mask_equals_create_block_mask_on_a_batch_of_unlike_rows(causal: bool) -> None:
    rows = [_ids(lengths, 64) for lengths in ADVERSARIAL.values()]
    _assert_equals_create_block_mask(torch.tensor(rows, dtype=torch.int32), causal, BLOCK)


@CAUSAL
def test_block_mask_equals_create_block_mask_at_the_block_size_in_use(causal: bool) -> None:
    rows = torch.tensor([_ids([300, 128, 84, 1, 127], 640), _ids([129, 127, 300], 640)], dtype=torch.int32)
    _assert_equals_create_block_mask(rows, causal, 128)


@CAUSAL
@pytest.mark.parametrize("seq_len", [512, 640, 650, 100, 256, 257])
def test_pairs_of_blocks_equal_create_block_mask_with_blocks_of_256_queries(causal: bool, seq_len: int) -> None:
    """As FlashAttention 4 has them on Blackwell; rows of an odd number of blocks end with half a pair."""
    rows = [_ids(lengths, seq_len) for lengths in ([300, 128, 84, 1, 127], [129, 127, 300], [256, 256], [700], [])]
    _assert_equals_create_block_mask(torch.tensor(rows, dtype=torch.int32), causal, 128, merged=2)


@CAUSAL
@pytest.mark.parametrize("lengths", [pytest.param(lengths, id=name) for name, lengths in ADVERSARIAL.items()])
def test_pairs_of_blocks_equal_create_block_mask_on_adversarial_rows(lengths: list[int], causal: bool) -> None:
    _assert_equals_create_block_mask(torch.tensor([_ids(lengths, 80)], dtype=torch.int32), causal, BLOCK, merged=2)


@settings(max_examples=80, deadline=None)
@given(batches(), st.booleans(), st.sampled_from([1, 3, BLOCK, 128]), st.integers(2, 4))
def test_merged_blocks_equal_create_block_mask_on_any_rows(ids: Tensor, causal: bool, block: int, merged: int) -> None:
    _assert_equals_create_block_mask(ids, causal, block, merged=merged)


@settings(max_examples=120, deadline=None)
@given(batches(), st.booleans(), st.sampled_from([1, 3, BLOCK, 128]))
def test_block_mask_equals_create_block_mask_on_any_rows(ids: Tensor, causal: bool, block_size: int) -> None:
    _assert_equals_create_block_mask(ids, causal, block_size)


WIDTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 63, 64, 65)
REACHES = [
    reach
    for width in WIDTHS
    for reach in (
        DistanceRange(below=width),
        DistanceRange(width),
        *(DistanceRange(least, width, sinks) for sinks in (1, 4, BLOCK) if sinks < width for least in (0, width)),
    )
]


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_what_a_window_or_a_map_leaves_equals_create_block_mask_on_adversarial_rows(reach: DistanceRange) -> None:
    rows = [_ids(lengths, 64) for lengths in ADVERSARIAL.values()]
    _assert_equals_create_block_mask(torch.tensor(rows, dtype=torch.int32), True, BLOCK, reach)


@pytest.mark.parametrize(
    "reach", [DistanceRange(below=129), DistanceRange(127), DistanceRange(256, 256, 4), DistanceRange(0, 128, 100)], ids=str
)
def test_what_a_window_or_a_map_leaves_equals_create_block_mask_at_the_block_size_in_use(reach: DistanceRange) -> None:
    rows = [_ids([300, 128, 84, 1, 127], 650), _ids([650], 650), _ids([129, 127, 300], 650)]
    _assert_equals_create_block_mask(torch.tensor(rows, dtype=torch.int32), True, 128, reach)


@st.composite
def any_reach(draw: st.DrawFn) -> DistanceRange:
    """Of a window, with sinks or without, or of a map's far region."""
    width = draw(st.one_of(st.integers(1, 70), st.sampled_from(WIDTHS)))
    sinks = draw(st.integers(0, width - 1))
    return draw(
        st.sampled_from(
            [
                DistanceRange(below=width),
                DistanceRange(width),
                DistanceRange(0, width, sinks),
                DistanceRange(width, width, sinks),
            ]
        )
    )


@settings(max_examples=150, deadline=None)
@given(batches(), any_reach(), st.sampled_from([1, 3, BLOCK, 128]))
def test_what_a_window_or_a_map_leaves_equals_create_block_mask_on_any_rows(
    ids: Tensor, reach: DistanceRange, block: int
) -> None:
    _assert_equals_create_block_mask(ids, True, block, reach)
    _assert_equals_create_block_mask(ids, True, block, reach, merged=2)


def test_two_regions_split_the_blocks_of_a_row_instead_of_doubling_them() -> None:
    ids = torch.zeros(1, 8192, dtype=torch.int32)

    def blocks(reach: DistanceRange) -> int:
        mask = document_block_mask(ids, causal=True, reach=reach)
        return int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())

    assert blocks(ALL_DISTANCES) == 2080
    # distances of a block of 128 span 255 numbers: 8 or 9 blocks of keys are near a block of queries, one is both
    assert (blocks(DistanceRange(below=1024)), blocks(DistanceRange(1024))) == (540, 1596)
    assert blocks(DistanceRange(1024, 1024, 4)) == 56  # of the far region of distance_cap: the document's first block


@pytest.mark.parametrize(
    "reach", [ALL_DISTANCES, DistanceRange(below=100), DistanceRange(100), DistanceRange(100, 100, 4)], ids=str
)
@CAUSAL
def test_block_mask_is_built_without_reading_a_value_on_the_host(causal: bool, reach: DistanceRange) -> None:
    ids = torch.empty(2, 300, dtype=torch.int32, device="meta")  # .item(), or a shape made from values, would raise here
    if causal or reach == ALL_DISTANCES:
        assert document_block_mask(ids, causal, reach=reach).kv_indices.shape == (2, 1, 3, 3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_other_documents_in_the_next_batch_recompile_nothing() -> None:
    torch.compiler.reset()
    model, mask = random_decoder(LLAMA), DocumentMask(EOS, PAD, executor="flex")
    for block in model.layers:
        block.compile(backend="eager", fullgraph=True)
    batch = pack()
    with torch.no_grad():
        model(batch.tokens, batch.positions, mask.build(batch.sequence_ids))
        with torch.compiler.set_stance("fail_on_recompile"):
            for lengths in ADVERSARIAL.values():
                ids = torch.tensor([_ids(lengths, 64)] * 4, dtype=torch.int32)
                model(batch.tokens, batch.positions, mask.build(ids))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("option", ["position_map", "mask"])
def test_another_window_recompiles_nothing(option: str) -> None:
    torch.compiler.reset()
    model, batch = random_decoder(LLAMA), pack()
    for block in model.layers:
        block.compile(backend="eager", fullgraph=True)

    def run(width: int) -> Tensor:
        sliding = AttentionConfig(mask="sliding", window=width)
        attention = sliding if option == "mask" else AttentionConfig(position_map="rerope", map_window=width)
        model.set_positions(RopeConfig(original_seq_len=64), attention, 0)
        mask = DocumentMask(EOS, PAD, executor="flex", attention=attention).build(batch.sequence_ids)
        return model(batch.tokens, batch.positions, mask)

    with torch.no_grad():
        first = run(8)
        with torch.compiler.set_stance("fail_on_recompile"):
            assert not torch.equal(run(9), first)
            assert torch.equal(run(8), first)


@settings(max_examples=300)
@given(
    st.integers(1, 24).flatmap(lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1)),
    st.integers(0, 3),
    st.integers(0, 3),
)
@example([[0, 0, 0]], 0, 0)  # nothing but eos that is also pad
@example([[2, 0, 0, 0]], 0, 0)  # the first eos of a trailing run ends a document, the others pad
@example([[2, 2, 0, 2]], 0, 0)  # a fragment at the end
@example([[2, 0, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1]], 0, 1)  # padding, a fragment that ends in the pad id, all padding
def test_sequence_ids_are_what_the_definition_says(rows: list[list[int]], eos: int, pad: int) -> None:
    ids = DocumentMask(eos, pad).sequence_ids(torch.tensor(rows))
    assert ids.dtype == torch.int32
    assert ids.tolist() == [_slow_sequence_ids(row, eos, pad) for row in rows]


def test_sequence_ids_of_packed_rows_are_the_packers() -> None:
    batch = pack()
    assert torch.equal(DocumentMask(EOS, PAD).sequence_ids(batch.tokens), batch.sequence_ids)


@settings(max_examples=50)
@given(batches(), st.booleans())
def test_dense_mask_is_the_rule_at_every_pair(ids: Tensor, causal: bool) -> None:
    mask = document_dense_mask(ids, causal)
    for row, values in enumerate(ids.tolist()):
        expected = [[a == b and (q >= k or not causal) for k, b in enumerate(values)] for q, a in enumerate(values)]
        assert mask[row, 0].tolist() == expected
    assert mask.any(-1).all(), "a query without any key would make softmax NaN"


class _Pairwise(TorchDispatchMode):
    """Bytes per pair of the widest tensor of all pairs that is computed, for rows of `seq_len` tokens."""

    def __init__(self, seq_len: int) -> None:
        super().__init__()
        self.seq_len, self.widest = seq_len, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() >= self.seq_len**2:
            self.widest = max(self.widest, result.element_size())
        return result


@pytest.mark.parametrize(
    "reach", [ALL_DISTANCES, DistanceRange(below=10), DistanceRange(10), DistanceRange(10, 10, 4)], ids=str
)
def test_a_dense_mask_is_made_of_nothing_wider_than_itself(reach: DistanceRange) -> None:
    with _Pairwise(64) as pairs:
        document_dense_mask(torch.zeros(2, 64, dtype=torch.int32), causal=True, reach=reach)
    assert pairs.widest == 1


@settings(max_examples=100)
@given(batches())
def test_offsets_are_the_runs_of_equal_ids(ids: Tensor) -> None:
    starts = [
        row * ids.shape[1] + place
        for row, values in enumerate(ids.tolist())
        for place, value in enumerate(values)
        if place == 0 or value != values[place - 1]
    ]
    offsets = document_offsets(ids, True, "cpu")
    bounds, total = offsets.cu_seqlens.tolist(), ids.numel()
    assert offsets.cu_seqlens.dtype == torch.int32
    assert bounds == starts + [total] * (len(bounds) - len(starts))
    longest = max(end - start for start, end in pairwise([*starts, total]))
    for room, needed in ((len(bounds) - 1, len(starts)), (offsets.max_seqlen, longest)):
        assert room.bit_count() == 1
        assert needed <= room < max(2 * needed, 3)


def test_thread_blocks_of_the_varlen_kernel_are_those_of_the_documents_and_few_more() -> None:
    """It starts one for each segment and each 128 queries of the longest; nearly all of them used to be empty."""
    lengths = np.minimum(64 * (1 - np.random.default_rng(0).random(600)) ** (-1 / 1.1), 1500).astype(int).tolist()
    ids = torch.tensor([_ids(lengths, 8192), _ids(lengths[200:], 8192)], dtype=torch.int32)
    offsets = document_offsets(ids, True, "cpu")
    started = (len(offsets.cu_seqlens) - 1) * -(-offsets.max_seqlen // 128)
    segments, longest = int((offsets.cu_seqlens.diff() > 0).sum()), int(offsets.cu_seqlens.diff().max())
    assert started < 4 * segments * -(-longest // 128)
    whole = document_offsets(torch.zeros(1, 8192, dtype=torch.int32), True, "cpu")
    assert (whole.cu_seqlens.tolist(), whole.max_seqlen) == ([0, 8192, 8192], 8192)


@pytest.mark.parametrize(("executor", "form"), [("flex", BlockMask), ("sdpa", Tensor), ("varlen", tuple)])
def test_build_writes_the_form_of_the_executor_on_the_device_asked_for(executor: str, form: type) -> None:
    mask = DocumentMask(EOS, PAD, executor=executor).build(pack().sequence_ids, device="meta")
    assert isinstance(mask, form)
    tensor = {"flex": "kv_indices", "varlen": "cu_seqlens"}.get(executor)
    assert (getattr(mask, tensor) if tensor else mask).device.type == "meta"


def test_the_rule_of_esm_makes_one_block_of_every_id_and_padding_is_one_of_them() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1]], dtype=torch.int32)
    blocks = torch.block_diag(*(torch.ones(size, size) for size in (3, 4, 2))).bool()
    mask = {name: DocumentMask(EOS, PAD, causal=False, executor=name).build(ids) for name in ("sdpa", "flex", "varlen")}
    assert torch.equal(mask["sdpa"][0, 0], blocks)
    assert torch.equal(create_mask(mask["flex"].mask_mod, 1, 1, 9, 9, device="cpu")[0, 0], blocks)
    assert mask["varlen"].cu_seqlens.unique().tolist() == [0, 3, 7, 9]
