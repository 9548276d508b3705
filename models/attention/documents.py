"""Attention document by document on a CPU, by torch's flash kernel, which is asked for no more pairs than are needed.

The kernel takes keys in blocks of 512 and computes each as a whole. Of a causal document of 512 tokens that is every
pair, although half of them count. So long causal documents are divided into parts. In the forward pass, where a query
needs all of its keys at once, these are `SQUARE` queries and the keys up to the last of them, in documents up to the
length where the kernel's own blocks are fine enough. In the backward pass any pairs have gradients of their own, by the
log-sum-exps of the rows, and these add up: there the parts are squares on the diagonal and, below it, rectangles that
are as large as can be.

    512 tokens, 3/4 of all pairs           1,024 tokens, 5/8 of all pairs
    forward            backward            backward
    | 256 |            | 256 |             | 256 |
    |    512    |      | 256 | 256 |       | 256 | 256 |
                                           |    512    | 256 |
                                           |    512    | 256 | 256 |

Squares of 128 leave less to compute, but more calls: on two threads that was slower for 4 heads of 32.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SQUARE = 256
DIVIDED = SQUARE * 3 // 2  # tokens of the shortest document that is divided; below, calls cost what pairs save
DIVIDED_FORWARD = 512  # of the longest in the forward pass: of 1,024 tokens the kernel computes 5/8 by itself

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Part(NamedTuple):
    """Pairs of one document that the kernel is called for.

    Attributes:
        first_query: counted from the document's first token.
        queries: how many.
        first_key: likewise.
        keys: how many.
    """

    first_query: int
    queries: int
    first_key: int
    keys: int


def attend_by_document(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
    """Return attention within each document of a packed batch.

    Args:
        q: [batch, heads, seq_len, head_dim].
        k: [batch, kv_heads, seq_len, head_dim]; each kv head serves heads / kv_heads consecutive query heads.
        v: like `k`.
        lengths: tokens of each document, which together are the flattened batch.
        causal: whether a token sees only its past.

    Returns:
        Like `q`; in memory [batch, seq_len, heads, head_dim].
    """
    out: Tensor = _ByDocument.apply(q, k, v, lengths, causal)
    return out


def whole(length: int) -> tuple[Part, ...]:
    """Return a document as a single part."""
    return (Part(0, length, 0, length),)


@lru_cache(4096)
def rows_of_queries(length: int) -> tuple[Part, ...]:
    """Return the parts of a causal document in the forward pass; of each the last keys are its own queries."""
    if not DIVIDED <= length <= DIVIDED_FORWARD:
        return whole(length)
    ends = [*range(SQUARE, length, SQUARE), length]
    return tuple(Part(start, end - start, 0, end) for start, end in zip([0, *ends], ends, strict=False))


@lru_cache(4096)
def squares_and_rectangles(length: int) -> tuple[Part, ...]:
    """Return the parts of a causal document in the backward pass: those that begin on the diagonal are causal."""
    if length < DIVIDED:
        return whole(length)
    half = SQUARE
    while 2 * half < length:
        half *= 2
    after = (Part(half + q, queries, half + k, keys) for q, queries, k, keys in squares_and_rectangles(length - half))
    return (*squares_and_rectangles(half), *after, Part(half, length - half, 0, half))


class _ByDocument(torch.autograd.Function):
    """One node for all documents: as slices of the batch each would have its gradients copied to and fro."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
        batch, heads, seq_len, head_dim = q.shape
        queries, keys, values = _grouped(q, k, v)
        by_token = q.new_empty(batch * seq_len, heads, head_dim)
        out = _by_group(by_token, k.shape[1])
        lse = q.new_empty(queries.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for part in _parts(lengths, rows_of_queries if causal else whole):
            part_q, *places = _of_queries(part, queries, out, lse)
            # a part that has more keys than queries sees all but the last square of them
            mask = _last_square(q.dtype, part.queries, part.keys) if part.queries < part.keys else None
            attended = _kernel(part_q, *_of_keys(part, keys, values), 0.0, causal and mask is None, attn_mask=mask)
            for place, value in zip(places, attended, strict=True):
                place.copy_(value)
        ctx.save_for_backward(q, k, v, by_token, lse)
        ctx.lengths, ctx.causal = lengths, causal
        return by_token.view(batch, seq_len, heads, head_dim).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, by_token, lse = ctx.saved_tensors
        batch, _, seq_len, head_dim = q.shape
        queries, keys, values = _grouped(q, k, v)
        upstream, out = (_by_group(x, k.shape[1]) for x in (_tokens(upstream), by_token))
        # parts are summed in float32 at least
        grads = [x.new_empty(batch * seq_len, x.shape[1], head_dim, dtype=lse.dtype) for x in (q, k, v)]
        of_queries, *of_keys = (_by_group(x, k.shape[1]) for x in grads)
        for part in _parts(ctx.lengths, squares_and_rectangles if ctx.causal else whole):
            *inputs, place = _of_queries(part, upstream, queries, out, lse, of_queries)
            inputs[2:2] = _of_keys(part, keys, values)
            on_diagonal = part.first_query == part.first_key
            found, *shared = _kernel_backward(*inputs, 0.0, ctx.causal and on_diagonal)
            if q.shape[1] > k.shape[1]:
                shared = [x.sum(1, keepdim=True) for x in shared]
            write = Tensor.copy_ if on_diagonal else Tensor.add_  # the squares come first and are all tokens
            write(place, found)
            for place, found in zip(_of_keys(part, *of_keys), shared, strict=True):
                write(place, found)
        return *(x.to(q.dtype).unflatten(0, (batch, seq_len)).transpose(1, 2) for x in grads), None, None


def _parts(lengths: Sequence[int], divide: Callable[[int], tuple[Part, ...]]) -> Iterator[Part]:
    """Yield the parts of all documents, counted from the first token of the batch."""
    start = 0
    for length in lengths:
        for first_query, queries, first_key, keys in divide(length):
            yield Part(start + first_query, queries, start + first_key, keys)
        start += length


def _of_queries(part: Part, *tensors: Tensor) -> list[Tensor]:
    return [x.narrow(2, part.first_query, part.queries) for x in tensors]


def _of_keys(part: Part, *tensors: Tensor) -> list[Tensor]:
    return [x.narrow(2, part.first_key, part.keys) for x in tensors]


def _last_square(dtype: torch.dtype, queries: int, keys: int) -> Tensor:
    """Return the mask of queries that are the last of `keys` tokens: [queries, keys], 0 or -inf."""
    return _largest_mask(dtype)[:queries, DIVIDED_FORWARD - SQUARE - (keys - queries) :].narrow(1, 0, keys)


@cache
def _largest_mask(dtype: torch.dtype) -> Tensor:
    return torch.full((SQUARE, DIVIDED_FORWARD), -torch.inf, dtype=dtype).triu(DIVIDED_FORWARD - SQUARE + 1)


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views as [kv_heads, heads / kv_heads, tokens, head_dim]: keys and values are expanded, not repeated."""
    grouped, keys, values = (_by_group(_tokens(x), k.shape[1]) for x in (q, k, v))
    return grouped, keys.expand_as(grouped), values.expand_as(grouped)


def _tokens(x: Tensor) -> Tensor:
    """Return [batch, heads, seq_len, head_dim] as [tokens, heads, head_dim], contiguous: a view of what lies so."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _by_group(x: Tensor, kv_heads: int) -> Tensor:
    """Return a view of [tokens, heads, head_dim] as [kv_heads, heads / kv_heads, tokens, head_dim]."""
    groups: Tensor = x.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
    return groups
