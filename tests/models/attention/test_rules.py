"""The rule inside of partial blocks: its truth table is the definition's, and it reads nothing for a key."""

from __future__ import annotations

import pytest
import torch
from cistron.models.attention import document_block_mask
from cistron.models.positions import ALL_DISTANCES, DistanceRange
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.flex_attention import create_mask

SEQ_LEN = 96
# what is left of a causal document, and how many bounds a query has then
REACHES = {
    "all": (ALL_DISTANCES, 1),
    "sliding": (DistanceRange(below=7), 1),
    "sliding, one token": (DistanceRange(below=1), 1),
    "lambda": (DistanceRange(below=9, sinks=3), 3),
    "far": (DistanceRange(5), 2),
    "capped": (DistanceRange(6, 6, 4), 2),
}


def _random_rows(count: int) -> Tensor:
    """Sequence ids of documents of all lengths, about a third of the rows with padding: int32 [count, SEQ_LEN]."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        ends = torch.rand(SEQ_LEN, generator=generator) < torch.rand((), generator=generator) ** 2
        ids = (ends.cumsum(0) - ends.long()).int()
        padding = int(torch.randint(-2 * SEQ_LEN, SEQ_LEN + 1, (), generator=generator))
        if padding > 0:
            ids[SEQ_LEN - padding :] = -1
        rows.append(ids)
    return torch.stack(rows)


def _definition(ids: Tensor, causal: bool, reach: DistanceRange) -> Tensor:
    """Bool [batch, 1, queries, keys]: one document, no later key, and a distance within reach or a sink."""
    same = ids[:, :, None] == ids[:, None, :]
    if not causal:
        return same[:, None]
    places = torch.arange(SEQ_LEN)
    distance = places[:, None] - places
    positions = same.tril(-1).sum(-1)
    near = distance < (SEQ_LEN if reach.below is None else reach.below)
    return (same & (distance >= reach.least) & (near | (positions[:, None, :] < reach.sinks)))[:, None]


def _table(mask_mod: object, count: int, keys: int = SEQ_LEN) -> Tensor:
    return create_mask(mask_mod, count, 1, SEQ_LEN, keys, device="cpu")


@pytest.mark.parametrize("reach", [reach for reach, _ in REACHES.values()], ids=list(REACHES))
def test_of_causal_documents_200_random_rows_have_the_truth_table_of_the_definition(reach: DistanceRange) -> None:
    ids = _random_rows(200)
    assert (ids < 0).any(1).sum() > 40
    mask = document_block_mask(ids, True, 16, reach=reach)
    assert torch.equal(_table(mask.mask_mod, 200), _definition(ids, True, reach))


def test_of_bidirectional_documents_200_random_rows_have_the_truth_table_of_the_definition() -> None:
    ids = _random_rows(200)
    mask = document_block_mask(ids, False, 16)
    assert torch.equal(_table(mask.mask_mod, 200), _definition(ids, False, ALL_DISTANCES))


@pytest.mark.parametrize("causal", [True, False])
def test_keys_in_another_order_have_the_truth_table_of_their_positions(causal: bool) -> None:
    ids, generator = _random_rows(200), torch.Generator().manual_seed(1)
    blocks = torch.rand(200, SEQ_LEN // 16, generator=generator).argsort(1)
    order = (blocks[:, :, None] * 16 + torch.arange(16)).flatten(1)
    mask = document_block_mask(ids, causal, 16, order, order)
    expected = _definition(ids, causal, ALL_DISTANCES)
    expected = expected.take_along_dim(order[:, None, :, None], 2).take_along_dim(order[:, None, None, :], 3)
    assert torch.equal(_table(mask.mask_mod, 200), expected)


def _loads(mask_mod: object) -> tuple[int, int]:
    """How many values the rule reads for a query alone, and how many for a key."""
    index = torch.zeros(1, dtype=torch.int32)
    graph: fx.Graph = make_fx(mask_mod)(index, index.clone(), index.clone(), index.clone()).graph
    key = [node for node in graph.nodes if node.op == "placeholder"][3]
    loads = [node for node in graph.nodes if node.target == torch.ops.aten.index.Tensor]
    of_keys = sum(key in node.args[1] for node in loads)
    return len(loads) - of_keys, of_keys


@pytest.mark.parametrize(("reach", "bounds"), REACHES.values(), ids=list(REACHES))
def test_a_causal_rule_reads_bounds_of_the_query_and_nothing_of_the_key(reach: DistanceRange, bounds: int) -> None:
    assert _loads(document_block_mask(_random_rows(2), True, reach=reach).mask_mod) == (bounds, 0)


def test_a_bidirectional_rule_reads_two_bounds_of_the_query_and_nothing_of_the_key() -> None:
    assert _loads(document_block_mask(_random_rows(2), False).mask_mod) == (2, 0)


@pytest.mark.parametrize("causal", [True, False])
def test_only_gathered_keys_have_their_positions_read(causal: bool) -> None:
    ids, order = _random_rows(2), torch.arange(SEQ_LEN).expand(2, -1)
    assert _loads(document_block_mask(ids, causal, 16, order, None).mask_mod) == (2, 0)
    assert _loads(document_block_mask(ids, causal, 16, order, order).mask_mod) == (2, 1)


def test_bounds_are_of_32_bits() -> None:
    for causal, reach in ((True, ALL_DISTANCES), (False, ALL_DISTANCES), *((True, reach) for reach, _ in REACHES.values())):
        rule = document_block_mask(_random_rows(2), causal, reach=reach).mask_mod
        assert {cell.cell_contents.dtype for cell in rule.__closure__} == {torch.int32}
