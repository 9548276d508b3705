"""The document mask: who may attend to whom in a packed row, in the three forms that attention kernels read.

The rule is one line, `sequence_ids[q] == sequence_ids[k]`, and `q >= k` when causal. Padding carries the id -1 and is
just one more segment: padding sees padding, so no query is without a key and no softmax becomes NaN.

`DocumentMask` holds the rule and knows its own special ids; `build` writes it down for one executor:

| executor | form | cost for a row of S tokens |
|---|---|---|
| flex | `BlockMask`, blocks of 128 x 128, see `document_block_mask` | (S / 128)^2 |
| varlen | `DocumentOffsets`, where each document starts, see `document_offsets` | S |
| sdpa | bool [batch, 1, S, S] | S^2 |

Flex and sdpa masks can also be written for some of a row's queries, and for keys in another order: what one rank of a row that
is spread over several needs. Offsets cannot, since a document's tokens are then no interval.

Windows and position maps (`position_maps.Reach`) take from a causal document pairs by their distance r = q - k, and leave those
with the first tokens of the document where there are sinks. Of a map's two regions each is a mask, `Regions`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .position_config import PLAIN, AttentionConfig
from .position_maps import EVERYTHING, Reach, reaches

Executor: TypeAlias = Literal["flex", "varlen", "sdpa"]


class DocumentOffsets(NamedTuple):
    """Documents as intervals of the flattened batch, the form that varlen attention reads.

    Attributes:
        cu_seqlens: int32 [capacity + 1]; segment i is tokens `cu_seqlens[i]` to `cu_seqlens[i + 1]` of the B·S tokens.
        max_seqlen: an upper bound of every segment's length, the row length: constant, so that nothing recompiles.
        causal: whether a token sees only its past within its segment.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    causal: bool


class Regions(NamedTuple):
    """The masks of a position map's two regions, both for flex or both dense."""

    near: BlockMask | Tensor
    far: BlockMask | Tensor


AttentionMask: TypeAlias = BlockMask | DocumentOffsets | Tensor | Regions


@dataclass(frozen=True)
class DocumentMask:
    """The mask rule, with the special ids this party believes in (the eos contract compares them with the others').

    Attributes:
        eos_id: the token that ends every document.
        pad_id: the token that fills a row after its last document; may equal `eos_id`.
        causal: whether a token sees only its past within its document.
        executor: which attention kernel `build` writes for; varlen has neither windows nor maps.
        attention: which pairs of a document attend, and in which regions; any but all of them needs `causal`.
    """

    eos_id: int
    pad_id: int
    causal: bool = True
    executor: Executor = "sdpa"
    attention: AttentionConfig = PLAIN

    def __post_init__(self) -> None:
        assert self.attention.plain or (self.causal and self.executor != "varlen"), self

    def sequence_ids(self, tokens: Tensor) -> Tensor:
        """Number the documents of each row from its tokens and `eos_id` alone.

        A document ends with its eos; a last segment without one (a fragment) is a document too. Padding is the longest
        suffix of `pad_id` that starts right after an eos or fills the whole row. So when pad and eos are one id, the
        first of a trailing run ends a document and the rest is padding; and `pad_id` at the end of a fragment is text.

        Args:
            tokens: int64 [batch, seq_len].

        Returns:
            int32 [batch, seq_len]: 0, 1, 2, ... per document, -1 on padding.
        """
        seq_len = tokens.shape[1]
        index = torch.arange(seq_len, device=tokens.device)
        after_eos = torch.zeros_like(tokens, dtype=torch.bool)
        after_eos[:, 1:] = tokens[:, :-1] == self.eos_id
        only_pads_from_here = (tokens == self.pad_id).flip(1).cumprod(1).flip(1).bool()
        padding_may_start = only_pads_from_here & (after_eos | (index == 0))
        padding_start = torch.where(padding_may_start, index, seq_len).amin(1, keepdim=True)
        return torch.where(index < padding_start, after_eos.cumsum(1), -1).int()

    def build(
        self,
        sequence_ids: Tensor,
        device: torch.device | str | None = None,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> AttentionMask:
        """Write the mask of one batch for this executor.

        Args:
            sequence_ids: int32 [batch, seq_len], rising along each row, -1 on padding at its end.
            device: where the mask is used; default: where `sequence_ids` are. For varlen, give CPU ids and name the
                device here: the number of documents is read on the host, which would wait for a GPU.
            queries: int64 [batch, n]: the positions in their rows that the mask's queries have, where they are not all of
                them in order. For flex in whole blocks of 128: 128 consecutive positions, the first a multiple of 128.
                Windows and maps need them all in order.
            keys: likewise for the keys.
        """
        device = device or sequence_ids.device
        if self.executor == "varlen":
            assert queries is keys is None, "documents that are spread out are no intervals"
            offsets = document_offsets(sequence_ids, offsets_capacity(sequence_ids)).to(device, non_blocking=True)
            torch._dynamo.maybe_mark_dynamic(offsets, 0)  # or each capacity would be compiled for
            return DocumentOffsets(offsets, sequence_ids.shape[1], self.causal)
        sequence_ids = sequence_ids.to(device, non_blocking=True)
        queries, keys = (None if t is None else t.to(device, non_blocking=True) for t in (queries, keys))
        masks = [self._region(sequence_ids, queries, keys, reach) for reach in reaches(self.attention)]
        return masks[0] if len(masks) == 1 else Regions(*masks)

    def _region(self, ids: Tensor, queries: Tensor | None, keys: Tensor | None, reach: Reach) -> BlockMask | Tensor:
        if self.executor == "flex":
            return document_block_mask(ids, self.causal, queries=queries, keys=keys, reach=reach)
        assert self.executor == "sdpa", self.executor
        return document_dense_mask(ids, self.causal, queries, keys, reach)


def _rising(sequence_ids: Tensor) -> Tensor:
    """The same with padding numbered after the last document, so that ids never fall along a row."""
    return torch.where(sequence_ids < 0, sequence_ids.amax(1, keepdim=True) + 1, sequence_ids)


def _positions(ids: Tensor) -> Tensor:
    """Positions inside of documents, int64 [batch, seq_len], from ids that never fall along a row."""
    return torch.arange(ids.shape[1], device=ids.device) - torch.searchsorted(ids, ids)


def document_dense_mask(
    sequence_ids: Tensor, causal: bool, queries: Tensor | None = None, keys: Tensor | None = None, reach: Reach = EVERYTHING
) -> Tensor:
    """The rule at every pair: bool [batch, 1, queries, keys], True where query (row) may see key (column).

    Args:
        sequence_ids: int32 [batch, seq_len].
        causal: whether a token sees only its past within its document.
        queries: int64 [batch, n], positions of the queries in their rows; None: all, in order.
        keys: likewise.
        reach: pairs of a causal document that are left.
    """
    in_order = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)[None]
    q, k = in_order if queries is None else queries, in_order if keys is None else keys
    q_ids, k_ids = sequence_ids.take_along_dim(q, 1), sequence_ids.take_along_dim(k, 1)
    seen = q_ids[:, None, :, None] == k_ids[:, None, None, :]
    if not causal:
        return seen
    # between two bounds per key: distances of all pairs, q - k, would take 8 times the memory of the mask
    seen &= q[:, None, :, None] >= (k + reach.least)[:, None, None, :]
    if reach.below is not None:
        k_positions = _positions(_rising(sequence_ids)).take_along_dim(k, 1)
        ends = torch.where(k_positions < reach.sinks, sequence_ids.shape[1], k + reach.below)
        seen &= q[:, None, :, None] < ends[:, None, None, :]
    return seen


class _Blocks(NamedTuple):
    """Blocks of consecutive positions, each tensor [batch or 1, blocks]."""

    start: Tensor  # first position
    end: Tensor  # last position
    first: Tensor  # document at the first
    last: Tensor  # document at the last
    single: Tensor  # bool: lies in one document and is as long as the others; the kernel must not read past the row

    @classmethod
    def of(cls, ids: Tensor, positions: Tensor, size: int) -> "_Blocks":
        """The blocks that `positions` [batch or 1, n] consist of, in rows with rising `ids` [batch, seq_len]."""
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
    reach: Reach = EVERYTHING,
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
    if reach != EVERYTHING:
        assert causal, "distances are those to earlier tokens"
        assert queries is keys is None, "and of tokens in order"
        some, every = _within_reach(ids, q, reach, block_size)
        nonempty &= some
        full &= every

    # `BlockMask.from_kv_blocks` would recover the query side from the tables, which takes 4 times as long as all of this.
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
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=_document_rule(ids, causal, queries, keys) if reach == EVERYTHING else _reach_rule(ids, reach),
    )


def _within_reach(ids: Tensor, blocks: _Blocks, reach: Reach, size: int) -> tuple[Tensor, Tensor]:
    """Which pairs of blocks hold some pair of tokens within reach, and which hold no other, where they share a document.

    Two different blocks share one document at most, which runs on from the one with the keys into the other. So the tokens of
    it are an interval in either, and their distances are all numbers from the shortest to the longest. The key with the
    lowest position is the first of its interval, and has the longest distances. A block's own pairs are looked at from each
    of its tokens: the farthest key of its document in the block, which is also the one with the lowest position.

    Args:
        ids: [batch, seq_len], rising along each row.
        blocks: of all tokens in order.
        reach: which pairs are left.
        size: tokens in a block.

    Returns:
        bool [batch, blocks, blocks] each, by block of queries and block of keys; the first is true where a document is shared,
        the second where both blocks lie in it.
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


def _reach_rule(ids: Tensor, reach: Reach) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """As `_document_rule`, in order, causal, and within reach. Numbers are tensors, so that no code is compiled for others."""
    least = torch.full((), reach.least, device=ids.device)
    if reach.below is None:

        def beyond(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (ids[b, q] == ids[b, k]) & (q - k >= least)

        return beyond
    below, sinks = (torch.full((), n, device=ids.device) for n in (reach.below, reach.sinks))
    positions = _positions(ids)

    def within(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (ids[b, q] == ids[b, k]) & (q - k >= least) & ((q - k < below) | (positions[b, k] < sinks))

    return within


def _document_rule(
    ids: Tensor, causal: bool, queries: Tensor | None, keys: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule as FlexAttention asks for it, between places of the query and of the key in what the kernel is given."""
    if queries is None and keys is None:

        def in_order(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same = ids[b, q] == ids[b, k]
            return same & (q >= k) if causal else same

        return in_order
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    q_positions, k_positions = (positions if p is None else p for p in (queries, keys))
    q_ids, k_ids = ids.gather(1, q_positions), ids.gather(1, k_positions)

    def spread_out(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = q_ids[b, q] == k_ids[b, k]
        return same & (q_positions[b, q] >= k_positions[b, k]) if causal else same

    return spread_out


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of `dense` bool [batch, n, m]: how many of its columns are set, and all columns with those first.

    Returns:
        int32 [batch, 1, n] and int32 [batch, 1, n, m], the second dimension standing for the heads.
    """
    counts = dense.sum(-1, dtype=torch.int32)
    indices = dense.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()
    return counts[:, None], indices[:, None]


def document_offsets(sequence_ids: Tensor, capacity: int) -> Tensor:
    """Start of every segment in the flattened batch, in a tensor of fixed size.

    A segment is a document or a run of padding; rows never share one.

    Args:
        sequence_ids: int32 [batch, seq_len].
        capacity: number of segments there is room for, see `offsets_capacity`.

    Returns:
        int32 [capacity + 1], beginning with 0; what follows the last segment is batch·seq_len: empty segments.
    """
    starts = _segment_starts(sequence_ids)
    total = starts.numel()
    index = torch.arange(total, device=starts.device)
    slot = torch.where(starts, starts.cumsum(0) - 1, capacity)
    offsets = torch.full((capacity + 1,), total, device=starts.device)
    return offsets.scatter_(0, slot, torch.where(starts, index, total)).int()


def offsets_capacity(sequence_ids: Tensor) -> int:
    """Room for the segments of this batch: batch·seq_len / 128, doubled until they fit.

    Read on the host. Constant as long as segments are 128 tokens long on average, so that compiled code sees one shape
    for ordinary text; batches of shorter documents double it, at most 7 times before each token is its own document.
    """
    capacity = max(sequence_ids.numel() // 128, 1)
    segments = int(_segment_starts(sequence_ids).sum())
    while capacity < segments:
        capacity *= 2
    return capacity


def _segment_starts(sequence_ids: Tensor) -> Tensor:
    """Bool [batch·seq_len]: True where a document, a run of padding or a row begins."""
    starts = torch.ones_like(sequence_ids, dtype=torch.bool)
    starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return starts.flatten()
