"""The document mask: who may attend to whom in a packed row, in the three forms that attention kernels read.

The rule is one line, `sequence_ids[q] == sequence_ids[k]`, and `q >= k` when causal. Padding carries the id -1 and is
just one more segment: padding sees padding, so no query is without a key and no softmax becomes NaN.

`DocumentMask` holds the rule and knows its own special ids; `build` writes it down for one executor:

| executor | form | cost for a row of S tokens |
|---|---|---|
| flex | `BlockMask`, blocks of 128 x 128, see `document_block_mask`; for FlashAttention 4 `FlashBlocks` | (S / 128)^2 |
| varlen | `DocumentOffsets`, where each document starts, see `document_offsets` | S |
| sdpa | bool [batch, 1, S, S] | S^2 |

Flex and sdpa masks can also be written for some of a row's queries, and for keys in another order: what one rank of a
row that is spread over several needs. Offsets cannot, since a document's tokens are then no interval.

Windows and position maps (`positions.DistanceRange`) take from a causal document pairs by their distance r = q - k, and
leave those with the first tokens of the document where there are sinks. Each of a map's two regions is a mask,
`Regions`.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..config import FULL_ATTENTION, AttentionConfig, Executor
from ..positions import ALL_DISTANCES, DistanceRange, reaches
from .block_mask import _positions, _rising, document_block_mask


class DocumentOffsets(NamedTuple):
    """Documents as intervals of the flattened batch, the form that varlen attention reads.

    The kernel starts a thread block for every segment and every 128 queries of the longest, so both numbers are those
    of the batch, rounded up to powers of two. Compiled code takes them as sizes that vary, and is compiled once.

    Attributes:
        cu_seqlens: int32 [capacity + 1]; segment i is tokens `cu_seqlens[i]` to `cu_seqlens[i + 1]` of the B·S tokens.
        longest: int8 [max_seqlen], without values: its size is an upper bound of every segment's length.
        causal: whether a token sees only its past within its segment.
    """

    cu_seqlens: Tensor
    longest: Tensor
    causal: bool

    @property
    def max_seqlen(self) -> int:
        """An upper bound of every segment's length; in compiled code a size that varies."""
        return self.longest.shape[0]


class FlashBlocks(NamedTuple):
    """A block mask that FlexAttention is to compute by the kernels of FlashAttention 4, with blocks of their size."""

    blocks: BlockMask


class Regions(NamedTuple):
    """The masks of a position map's two regions, both for flex or both dense."""

    near: BlockMask | Tensor
    far: BlockMask | Tensor


AttentionMask: TypeAlias = BlockMask | FlashBlocks | DocumentOffsets | Tensor | Regions
BLOCK = 128  # keys in a block, and queries where the kernels are Triton's


@dataclass(frozen=True)
class DocumentMask:
    """The mask rule, with the special ids this party believes in (the eos contract compares them with the others').

    Attributes:
        eos_id: the token that ends every document.
        pad_id: the token that fills a row after its last document; may equal `eos_id`.
        causal: whether a token sees only its past within its document.
        executor: which attention kernel `build` writes for; varlen has neither windows nor maps.
        attention: which pairs of a document attend, and in which regions; any but all of them needs `causal`.
        flash_queries: of flex with the kernels of FlashAttention 4, queries in a block: 128, or a multiple of it; None:
            the kernels are Triton's.
    """

    eos_id: int
    pad_id: int
    causal: bool = True
    executor: Executor = "sdpa"
    attention: AttentionConfig = FULL_ATTENTION
    flash_queries: int | None = None

    def __post_init__(self) -> None:
        assert self.attention.plain or (self.causal and self.executor != "varlen"), self
        if self.flash_queries is not None:
            assert self.executor == "flex", self
            assert self.attention.position_map == "none", self
            assert self.flash_queries % BLOCK == 0, self

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
            queries: int64 [batch, n]: the positions in their rows that the mask's queries have, where they are not all
                of them in order. For flex in whole blocks of 128: 128 consecutive positions, the first a multiple of
                128, and with windows and maps all in order.
            keys: likewise for the keys.
        """
        device = device or sequence_ids.device
        if self.executor == "varlen":
            assert queries is keys is None, "documents that are spread out are no intervals"
            return document_offsets(sequence_ids, self.causal, device)
        sequence_ids = sequence_ids.to(device, non_blocking=True)
        queries, keys = (None if t is None else t.to(device, non_blocking=True) for t in (queries, keys))
        masks = [self._region(sequence_ids, queries, keys, reach) for reach in reaches(self.attention)]
        if len(masks) > 1:
            return Regions(*masks)
        (mask,) = masks
        return FlashBlocks(mask) if self.flash_queries is not None and isinstance(mask, BlockMask) else mask

    def _region(self, ids: Tensor, queries: Tensor | None, keys: Tensor | None, reach: DistanceRange) -> BlockMask | Tensor:
        if self.executor == "flex":
            merged = (self.flash_queries or BLOCK) // BLOCK
            return document_block_mask(ids, self.causal, BLOCK, queries, keys, reach, merged)
        assert self.executor == "sdpa", self.executor
        return document_dense_mask(ids, self.causal, queries, keys, reach)


def document_dense_mask(
    sequence_ids: Tensor,
    causal: bool,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    reach: DistanceRange = ALL_DISTANCES,
) -> Tensor:
    """Return the rule at every pair: bool [batch, 1, queries, keys], True where query (row) may see key (column).

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


def document_offsets(sequence_ids: Tensor, causal: bool, device: torch.device | str) -> DocumentOffsets:
    """Return the start of every segment in the flattened batch.

    A segment is a document or a run of padding; rows never share one. How many there are and the longest are read on
    the host, and rounded up to powers of two: fewer shapes for the allocator, and less than four thread blocks for one
    that has work. `cu_seqlens` begins with 0; what follows the last segment is batch·seq_len: empty segments.

    Args:
        sequence_ids: int32 [batch, seq_len], on the CPU.
        causal: whether a token sees only its past within its segment.
        device: where the offsets are used.
    """
    new = torch.ones_like(sequence_ids, dtype=torch.bool)
    new[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    total = new.numel()
    starts = new.flatten().nonzero()[:, 0]
    longest = int(starts.diff(append=starts.new_tensor([total])).max())
    cu_seqlens = torch.full((_power_of_two(len(starts)) + 1,), total, dtype=torch.int32)
    cu_seqlens[: len(starts)] = starts
    there = torch.device(device)
    cu_seqlens = (cu_seqlens.pin_memory() if there.type == "cuda" else cu_seqlens).to(there, non_blocking=True)
    sized = torch.empty(_power_of_two(longest), dtype=torch.int8, device=there)
    for tensor in (cu_seqlens, sized):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)  # or each size would be compiled for
    return DocumentOffsets(cu_seqlens, sized, causal)


def _power_of_two(least: int) -> int:
    """Return the least power of two that is no smaller, and 2 for 1: a size of 1 is compiled for itself."""
    return max(2, 1 << (least - 1).bit_length())
