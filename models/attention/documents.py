"""Attention document by document on a CPU, by torch's flash kernel, which is asked for no more pairs than are needed.

The kernel takes keys in blocks of 512 and computes each as a whole. Of a causal document of 512 tokens that is every
pair, although half of them count. So causal documents are divided. In the forward pass, where rows of queries must be
whole, into `SQUARE` queries and the keys up to the last of them, up to the length where the kernel's own blocks are
fine enough. In the backward pass any set of pairs has a gradient of its own, by the log-sum-exps of the rows, and these
gradients add up: a document is divided into squares on the diagonal and, below it, rectangles as large as can be.

    512 tokens, 5/8 of all pairs     forward            backward
                                     |128|              |128|
                                     |  256  |          |128|128|
                                     |    384    |      |  256  |128|
                                     |      512      |  |  256  |128|128|
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SQUARE = 128
# Longer documents gain nothing in the forward pass: of 1,024 tokens 0.93 to 1.02 of the time, of 2,048 1.1 to 1.25.
DIVIDED_FORWARD = 512

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


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


class _ByDocument(torch.autograd.Function):
    """One node for all documents: as slices of the batch each would have its gradients copied to and fro."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
        batch, heads, seq_len, head_dim = q.shape
        grouped = _grouped(q, k, v)
        by_token = q.new_empty(batch * seq_len, heads, head_dim)
        lse = q.new_empty(*grouped[0].shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        out = _by_group(by_token, k.shape[1])
        for document in zip(*(x.split(lengths, 2) for x in (*grouped, out, lse)), strict=True):
            _forward(*document, causal)
        ctx.save_for_backward(q, k, v, by_token, lse)
        ctx.lengths, ctx.causal = lengths, causal
        return by_token.view(batch, seq_len, heads, head_dim).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, by_token, lse = ctx.saved_tensors
        batch, _, seq_len, head_dim = q.shape
        kv_heads = k.shape[1]
        given = (_by_group(_tokens(upstream), kv_heads), *_grouped(q, k, v), _by_group(by_token, kv_heads), lse)
        # parts of a document are added up, in float32 at least
        grads = [x.new_empty(batch * seq_len, x.shape[1], head_dim, dtype=lse.dtype) for x in (q, k, v)]
        wanted = [_by_group(x, kv_heads) for x in grads]
        for document in zip(*(x.split(ctx.lengths, 2) for x in (*given, *wanted)), strict=True):
            _backward(document[:6], document[6:], ctx.causal)
        return *(x.to(q.dtype).unflatten(0, (batch, seq_len)).transpose(1, 2) for x in grads), None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool) -> None:
    """Attend in one document, into `out` and `lse`.

    Args:
        q: [kv_heads, heads / kv_heads, length, head_dim].
        k: likewise, expanded.
        v: likewise, expanded.
        out: likewise, written to.
        lse: [kv_heads, heads / kv_heads, length], written to: logarithms of sums of exponentials of scores.
        causal: whether a token sees only its past.
    """
    length = q.shape[2]
    if not causal or not SQUARE < length <= DIVIDED_FORWARD:
        out[:], lse[:] = _kernel(q, k, v, is_causal=causal)
        return
    for start in range(0, length, SQUARE):
        end = min(start + SQUARE, length)
        at, seen = slice(start, end), slice(end)
        mask = _last_square(q.dtype)[: end - start, DIVIDED_FORWARD - SQUARE - start :][:, :end]
        out[:, :, at], lse[:, :, at] = _kernel(q[:, :, at], k[:, :, seen], v[:, :, seen], attn_mask=mask)


@cache
def _last_square(dtype: torch.dtype) -> Tensor:
    """Return the mask of the last queries of a longest divided document: [SQUARE, DIVIDED_FORWARD], 0 or -inf."""
    return torch.full((SQUARE, DIVIDED_FORWARD), -torch.inf, dtype=dtype).triu(DIVIDED_FORWARD - SQUARE + 1)


def _backward(given: Sequence[Tensor], wanted: Sequence[Tensor], causal: bool) -> None:
    """Write the gradients of one document.

    Args:
        given: gradient of its output, q, k, v, output, log-sum-exp, as `_forward` has them.
        wanted: gradients of q, like `q`, and of k and v, [kv_heads, 1, length, head_dim]; written to.
        causal: whether a token sees only its past.
    """
    length = given[0].shape[2]
    if not causal or length < 2 * SQUARE:
        for place, part in zip(wanted, _gradients(given, slice(None), slice(None), causal), strict=True):
            place.copy_(part)
        return
    middle = SQUARE
    while 2 * middle < length:
        middle *= 2
    before, after = slice(middle), slice(middle, None)
    for part in (before, after):
        _backward([x[:, :, part] for x in given], [x[:, :, part] for x in wanted], causal)
    for place, at, part in zip(wanted, (after, before, before), _gradients(given, after, before, False), strict=True):
        place[:, :, at] += part


def _gradients(given: Sequence[Tensor], queries: slice, keys: slice, causal: bool) -> list[Tensor]:
    """Return what some pairs add to the gradients of `queries`, of `keys` and of their values."""
    upstream, q, k, v, out, lse = given
    of_queries, of_keys = [x[:, :, queries] for x in (upstream, q, out, lse)], [x[:, :, keys] for x in (k, v)]
    of_q, *shared = _kernel_backward(of_queries[0], of_queries[1], *of_keys, *of_queries[2:], 0.0, causal)
    return [of_q, *(x if x.shape[1] == 1 else x.sum(1, keepdim=True) for x in shared)]


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views as [kv_heads, heads / kv_heads, tokens, head_dim]: keys and values are expanded, not repeated."""
    grouped, keys, values = (_by_group(_tokens(x), k.shape[1]) for x in (q, k, v))
    return grouped, keys.expand_as(grouped), values.expand_as(grouped)


def _tokens(x: Tensor) -> Tensor:
    """Return [batch, heads, seq_len, head_dim] as [tokens, heads, head_dim], contiguous: a view of what lies so."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _by_group(x: Tensor, kv_heads: int) -> Tensor:
    """Return a view of [tokens, heads, head_dim] as [kv_heads, heads / kv_heads, tokens, head_dim]."""
    return x.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
