"""FlexAttention's `BlockMask` of packed documents, written from two document ids per block of tokens.

`create_block_mask` compares every query with every key. Ids that never fall along a row allow one comparison per pair
of blocks: `document_block_mask` for whole documents, `_within_reach` for windows and the regions of position maps. What
the kernel evaluates inside of partial blocks is in `rules.py`. Measured by benchmarks/block_mask.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..positions import ALL_DISTANCES, DistanceRange
from .rules import document_rule, document_starts, reach_rule


def _rising(sequence_ids: Tensor) -> Tensor:
    """Return the same with padding numbered after the last document, so that ids never fall along a row."""
    return torch.where(sequence_ids < 0, sequence_ids.amax(1, keepdim=True) + 1, sequence_ids)


def _positions(ids: Tensor) -> Tensor:
    """Return the positions inside of documents, int64 [batch, seq_len], from ids that never fall along a row."""
    return torch.arange(ids.shape[1], device=ids.device) - document_starts(ids)


class _Blocks(NamedTuple):
    """Blocks of consecutive positions, each tensor [batch or 1, blocks]."""

    start: Tensor  # first position
    end: Tensor  # last position
    first: Tensor  # document at the first
    last: Tensor  # document at the last
    single: Tensor  # bool: lies in one document and is as long as the others; the kernel must not read past the row

    @classmethod
    def of(cls, ids: Tensor, positions: Tensor, size: int) -> "_Blocks":
        """Return the blocks that `positions` [batch or 1, n] consist of, in rows with rising `ids` [batch, seq_len]."""
        seq_len = ids.shape[1]
        start = positions[:, ::size]
        end = (start + size).clamp(max=seq_len) - 1
        first, last = ids.take_along_dim(start, 1), ids.take_along_dim(end, 1)
        return cls(start, end, first, last, (first == last) & (start + size <= seq_len))


def document_block_mask(
    sequence_ids: Tensor,
    causal: bool,
    block_size: int = 128,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    reach: DistanceRange = ALL_DISTANCES,
    merged: int = 1,
) -> BlockMask:
    """FlexAttention's `BlockMask` from two ids per block instead of one comparison per (query, key) pair.

    Ids never fall along a row once padding is numbered after the last document, so a block is described by its first
    and last id, and two blocks share a document exactly when those ranges overlap. The pair is full, needing no
    comparison inside the kernel, exactly when both blocks lie in one and the same document (and, when causal, no key
    comes after a query). All other non-empty pairs are partial, and the kernel evaluates the true rule there. Equal to
    `create_block_mask` in every table, with (seq_len / block_size)^2 comparisons where that makes seq_len^2. No shape
    depends on the ids and nothing waits for the host. What a `reach` leaves is as exact, see `_within_reach`.

    Args:
        sequence_ids: int32 [batch, seq_len], rising along each row, -1 on padding at its end; any `seq_len`.
        causal: whether a token sees only its past within its document.
        block_size: tokens per block, of queries and of keys.
        queries: int64 [batch, n], positions of the queries in their rows, in whole blocks; None: all, in order.
        keys: likewise.
        reach: pairs of a causal document that are left; any but all of them needs queries and keys in order.
        merged: blocks of queries that the kernel takes as one. Together they are empty where all are, and full where
            all are full and none is missing at the end.

    Returns:
        `BlockMask` of shape [batch, 1, queries, keys], on the device of `sequence_ids`.
    """
    ids = _rising(sequence_ids)
    in_order = torch.arange(ids.shape[1], device=ids.device)[None]
    q_positions, k_positions = in_order if queries is None else queries, in_order if keys is None else keys
    q = _Blocks.of(ids, q_positions, block_size)
    k = q if k_positions is q_positions else _Blocks.of(ids, k_positions, block_size)
    nonempty = (q.first[:, :, None] <= k.last[:, None, :]) & (k.first[:, None, :] <= q.last[:, :, None])
    full = q.single[:, :, None] & k.single[:, None, :] & (q.first[:, :, None] == k.first[:, None, :])
    if causal:
        nonempty &= k.start[:, None, :] <= q.end[:, :, None]
        full &= k.end[:, None, :] <= q.start[:, :, None]
    if reach != ALL_DISTANCES:
        assert causal, "distances are those to earlier tokens"
        assert queries is keys is None, "and of tokens in order"
        some, every = _within_reach(ids, q, reach, block_size)
        nonempty &= some
        full &= every
    if merged > 1:
        nonempty, full = _groups(nonempty, merged).any(2), _groups(full, merged).all(2)

    # `BlockMask.from_kv_blocks` would recover the query side from the tables, which takes 4 times as long as all of
    # this.
    partial = nonempty & ~full
    kv_num_blocks, kv_indices = _ordered(partial)
    full_kv_num_blocks, full_kv_indices = _ordered(full)
    q_num_blocks, q_indices = _ordered(partial.mT)
    full_q_num_blocks, full_q_indices = _ordered(full.mT)
    return BlockMask(
        seq_lengths=(q_positions.shape[1], k_positions.shape[1]),
        kv_num_blocks=kv_num_blocks,
        kv_indices=kv_indices,
        full_kv_num_blocks=full_kv_num_blocks,
        full_kv_indices=full_kv_indices,
        q_num_blocks=q_num_blocks,
        q_indices=q_indices,
        full_q_num_blocks=full_q_num_blocks,
        full_q_indices=full_q_indices,
        BLOCK_SIZE=(merged * block_size, block_size),
        mask_mod=document_rule(ids, causal, queries, keys) if reach == ALL_DISTANCES else reach_rule(ids, reach),
    )


def _within_reach(ids: Tensor, blocks: _Blocks, reach: DistanceRange, size: int) -> tuple[Tensor, Tensor]:
    """Return which pairs of blocks hold some pair of tokens within reach, and which hold no other.

    Two different blocks share one document at most, which runs on from the one with the keys into the other. So the
    tokens of it are an interval in either, and their distances are all numbers from the shortest to the longest. The
    key with the lowest position is the first of its interval, and has the longest distances. A block's own pairs are
    looked at from each of its tokens: the farthest key of its document in the block, which is also the one with the
    lowest position.

    Args:
        ids: [batch, seq_len], rising along each row.
        blocks: of all tokens in order.
        reach: which pairs are left.
        size: tokens in a block.

    Returns:
        bool [batch, blocks, blocks] each, by block of queries and block of keys; the first is true where a document is
        shared, the second where both blocks lie in it.
    """
    least, below, sinks = reach
    begins = torch.searchsorted(ids, blocks.last)  # the document that a block of keys ends with
    ends = torch.searchsorted(ids, blocks.first, right=True) - 1  # the one that a block of queries begins with
    first_key = torch.maximum(blocks.start, begins)
    last_query = torch.minimum(blocks.end, ends)
    shortest = blocks.start[:, :, None] - blocks.end[:, None, :]
    longest = last_query[:, :, None] - first_key[:, None, :]

    places = torch.arange(ids.shape[1], device=ids.device)
    positions = _positions(ids)
    farthest = torch.minimum(positions, places % size)  # distance of the farthest key in a token's own block
    own = farthest >= least
    some, every = longest >= least, shortest >= least
    if below is not None:
        own &= (least < below) | (positions - farthest < sinks)
        by_distance = torch.clamp(shortest, min=least) < below  # the longest is at least that already
        some &= by_distance | (first_key - begins < sinks)[:, None, :]
        first_other = torch.maximum(blocks.start, begins + sinks)  # key that is no sink
        every = every & ((first_other > blocks.end)[:, None, :] | (blocks.end[:, :, None] - first_other[:, None, :] < below))
    own_block = F.pad(own, (0, -ids.shape[1] % size)).unflatten(1, (-1, size)).any(-1)
    diagonal = torch.eye(some.shape[1], dtype=torch.bool, device=ids.device)
    return torch.where(diagonal, own_block[:, :, None], some), every


def _groups(dense: Tensor, size: int) -> Tensor:
    """Return rows of `dense`, bool [batch, n, m], as [batch, groups, size, m]; what the last group lacks is False."""
    groups: Tensor = F.pad(dense, (0, 0, 0, -dense.shape[1] % size)).unflatten(1, (-1, size))
    return groups


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of `dense` bool [batch, n, m]: how many of its columns are set, and all columns with those first.

    Returns:
        int32 [batch, 1, n] and int32 [batch, 1, n, m], the second dimension standing for the heads.
    """
    counts = dense.sum(-1, dtype=torch.int32)
    indices = dense.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()
    return counts[:, None], indices[:, None]
