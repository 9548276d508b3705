"""Context parallelism that knows documents: a row is spread over the ranks of the cp mesh by the work of its mask.

A row of packed documents costs its kernels what its mask leaves of it: a token near the end of a long document has
thousands of keys, one at the start of a short document a handful. So a row is cut into blocks, and each rank gets as
many of them as any other (shapes stay static), so chosen that unmasked query-key pairs are spread evenly:

    row      | document 0  | document 1      | 2 |     8 blocks, causal
    pairs      1    3    5   1    3    5    7   1       26, in units of half a block squared
    rank       1    0    1   1    0    1    0   0       14 and 12; halves of the row would have 10 and 16

Everything that is per token (norms, matrices, loss) then runs on a rank's own tokens. Attention alone needs the
others': keys and values are all-gathered over cp, their gradients reduce-scattered, and a rank's queries meet all keys
of the row under the rows of the mask that are theirs. Gathered keys stay in the order of the ranks, which the mask is
told; softmax does not care, and bringing them into that of the row would copy them once more in every layer.
"""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ...models.attention import DocumentMask
from ...models.config import AttentionConfig, Executor
from ...models.decoder import Attention, Decoder
from ..config import JobConfig

FLEX_BLOCK = 128  # of FlexAttention's block masks: a block of theirs never mixes two of ours
BLOCKS_PER_RANK = 8  # at least, where blocks may be smaller: enough for every rank to have some of the expensive ones


def context_block_size(seq_len: int, degree: int, executor: Executor) -> int:
    """Return the tokens in each of the blocks that rows of `seq_len` are cut into for `degree` ranks.

    FlexAttention's 128, and for sdpa the largest power of two, at most 128, that leaves every rank at least 8 blocks.
    """
    share = seq_len // degree
    if executor == "flex":
        assert seq_len % (degree * FLEX_BLOCK) == 0, (seq_len, degree)
        return FLEX_BLOCK
    block = gcd(FLEX_BLOCK, share)
    while block > 1 and share // block < BLOCKS_PER_RANK:
        block //= 2
    return block


def context_complaints(config: JobConfig, executor: Executor, attention: AttentionConfig) -> list[str]:
    """Return why rows cannot be spread over the ranks of `parallelism.context_parallel_degree`, a line for each reason.

    Args:
        config: of the job.
        executor: that computes attention.
        attention: its mask by distance and position map, neither of which can be spread.
    """
    degree = config.parallelism.context_parallel_degree
    if degree == 1:
        return []
    key, complaints = f"parallelism.context_parallel_degree = {degree}", []
    if not attention.plain:
        complaints.append(
            f"{key} with {attention.named}: masks by distance are made for whole rows; set "
            "parallelism.context_parallel_degree = 1, and spread by data_parallel_shard_degree or tensor_parallel_degree"
        )
    if executor == "varlen":
        complaints.append(
            f'{key} with model.attention.executor = "varlen": its kernel takes a document as an interval of the queries and of '
            'the keys, and a rank has blocks from all over a row; set model.attention.executor = "flex" (or "sdpa")'
        )
    step, seq_len = degree * FLEX_BLOCK, config.training.seq_len
    width = config.data.pad_multiple
    if executor == "flex" and config.data.layout == "padded" and width % step:
        complaints.append(
            f"data.pad_multiple = {width}: must be a multiple of {degree} x {FLEX_BLOCK} = {step}, so that every rank of "
            "parallelism.context_parallel_degree has whole blocks of the flex mask"
        )
    if executor == "flex" and seq_len % step:
        complaints.append(
            f"training.seq_len = {seq_len}: must be a multiple of {degree} x {FLEX_BLOCK} = {step}, so that every rank of "
            f"parallelism.context_parallel_degree has whole blocks of the flex mask; the next is {-(-seq_len // step) * step}"
        )
    return complaints


def mask_work(sequence_ids: Tensor, causal: bool, block: int) -> Tensor:
    """Count the unmasked query-key pairs of each block of queries. Padding counts as a document: kernels compute it.

    Args:
        sequence_ids: int32 [batch, seq_len], 0, 1, 2, ... along each row, -1 on padding at its end.
        causal: whether a token sees only its past within its document.
        block: queries in a block; divides `seq_len`.

    Returns:
        int64 [batch, seq_len / block].
    """
    ids = torch.where(sequence_ids < 0, sequence_ids.amax(1, keepdim=True) + 1, sequence_ids).long()
    batch, seq_len = ids.shape
    lengths = torch.zeros(batch, seq_len + 1, dtype=torch.int64).scatter_add_(1, ids, torch.ones_like(ids))
    if causal:
        starts = lengths.cumsum(1) - lengths
        pairs = torch.arange(1, seq_len + 1) - starts.gather(1, ids)
    else:
        pairs = lengths.gather(1, ids)
    return pairs.view(batch, -1, block).sum(-1)


def balance(work: Sequence[int], degree: int) -> list[list[int]]:
    """Assign blocks to ranks, the same number to each: the most expensive first, to the rank with the least work.

    Longest processing time first (Graham 1969) under the constraint of equal counts. No two ranks then differ by more
    than the most expensive block: a rank's (i + 1)-th block costs at most another's i-th, or else that one was ahead.
    256 blocks take 0.1 ms.

    Returns:
        The blocks of each rank, ascending.
    """
    room = len(work) // degree
    assert room * degree == len(work), (len(work), degree)
    shares: list[list[int]] = [[] for _ in range(degree)]
    least = [(0, rank) for rank in range(degree)]  # a heap of (work so far, rank) of the ranks with room
    for block in sorted(range(len(work)), key=lambda block: -work[block]):
        so_far, rank = heapq.heappop(least)
        shares[rank].append(block)
        if len(shares[rank]) < room:
            heapq.heappush(least, (so_far + work[block], rank))
    return [sorted(share) for share in shares]


def order_by_rank(sequence_ids: Tensor, causal: bool, degree: int, block: int) -> Tensor:
    """Return the positions of each row in the order of the ranks that have them, the same on all ranks.

    Args:
        sequence_ids: int32 [batch, seq_len], on the CPU.
        causal: as the mask.
        degree: ranks; `degree * block` divides `seq_len`.
        block: tokens in a block.

    Returns:
        int64 [batch, seq_len]: first the positions of rank 0, ascending, then those of rank 1, and so on.
    """
    work = mask_work(sequence_ids, causal, block).tolist()
    blocks = torch.tensor([balance(of_row, degree) for of_row in work])
    return (blocks.flatten(1)[:, :, None] * block + torch.arange(block)).flatten(1)


def spread_rows(
    planes: Sequence[Tensor], sequence_ids: Tensor, mask: DocumentMask, mesh: DeviceMesh
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Take this rank's part of some rows, and find what its mask is built for.

    Args:
        planes: each [batch, seq_len], on the CPU.
        sequence_ids: int32 [batch, seq_len], on the CPU.
        mask: whose work is balanced.
        mesh: one-dimensional: the ranks that the rows are spread over.

    Returns:
        The planes at this rank's positions, [batch, seq_len / ranks]; and `queries` and `keys` for
        `DocumentMask.build`, None where there is but one rank.
    """
    degree = mesh.size()
    if degree == 1:
        return list(planes), None, None
    block = context_block_size(sequence_ids.shape[1], degree, mask.executor)
    keys = order_by_rank(sequence_ids, mask.causal, degree, block)
    queries = keys.chunk(degree, 1)[mesh.get_local_rank()]
    return [plane.gather(1, queries) for plane in planes], queries, keys


class GatherSequence(torch.autograd.Function):
    """All-gather along the first dimension, and in the backward pass the sum over ranks, scattered along it.

    The two operators are called by name: a DTensor's way there and back does not compile with torch 2.11 (placements
    become variables of the graph), and the functions around the operators have other names in torch 2.13.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, ranks: int, group: str) -> Tensor:
        """Gather `x`, [n, ...] on each of `ranks` ranks of the process group named `group`, to [ranks x n, ...]."""
        context.ranks, context.group = ranks, group
        gathered = torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), ranks, group)
        whole: Tensor = torch.ops._c10d_functional.wait_tensor(gathered)
        return whole

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return this rank's part of the sum of all ranks' `gradient`."""
        ranks, group = context.ranks, context.group
        scattered = torch.ops._c10d_functional.reduce_scatter_tensor(gradient.contiguous(), "sum", ranks, group)
        return torch.ops._c10d_functional.wait_tensor(scattered), None, None


class GatherContext(nn.Module):
    """Keys or values of whole rows from every rank's own; the gradient is summed and goes back to where each came from.

    Args:
        mesh: one-dimensional: the ranks that the rows are spread over.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.ranks, self.group = mesh.size(), mesh.get_group().group_name
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Gather `x`, [batch, kv_heads, seq_len / ranks, head_dim], to [batch, kv_heads, seq_len, head_dim]."""
        if not self.enabled:
            return x
        # sequence first: gathered that way, the ranks' parts already lie as they should and are not copied again
        whole: Tensor = GatherSequence.apply(x.permute(2, 0, 1, 3), self.ranks, self.group)
        return whole.permute(1, 2, 0, 3)


def apply_context_parallel(model: Decoder, mesh: DeviceMesh) -> None:
    """Have every attention of a decoder gather its keys and values over `mesh`."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.gather = GatherContext(mesh)


@contextmanager
def without_context_parallel(model: nn.Module) -> Iterator[None]:
    """Let every rank compute whole rows by itself, within the block: for short ones, such as a sample's."""
    gathers = [module for module in model.modules() if isinstance(module, GatherContext)]
    for gather in gathers:
        gather.enabled = False
    try:
        yield
    finally:
        for gather in gathers:
            gather.enabled = True
