"""Attention over a packed batch: one call, three kernels, chosen by the type of the mask.

| executor | kernel | where |
|---|---|---|
| flex | `flex_attention`, compiled: skips empty blocks, any mask | CUDA; on the CPU without gradients |
| varlen | flash attention over document offsets | CUDA, float16 or bfloat16 |
| sdpa | `scaled_dot_product_attention` with a dense mask: the reference | everywhere |
"""

import functools
import inspect
from collections.abc import Callable
from typing import cast, get_args

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from .config import ModelError
from .masks import AttentionMask, DocumentOffsets, Executor

# torch 2.11 lacks the argument; there the kv heads are repeated.
_VARLEN_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Softmax attention, scores scaled by 1/sqrt(head_dim), restricted to what `mask` allows.

    Args:
        q: [batch, heads, queries, head_dim].
        k: [batch, kv_heads, keys, head_dim]; each kv head serves heads / kv_heads consecutive query heads. There are as many
            keys as queries, unless the mask was built for others.
        v: like `k`.
        mask: what `DocumentMask.build` made of the batch's `sequence_ids`.

    Returns:
        [batch, heads, queries, head_dim], the dtype of `q`.
    """
    if isinstance(mask, BlockMask):
        return _flex(q, k, v, mask)
    if isinstance(mask, DocumentOffsets):
        return _varlen(q, k, v, mask)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def default_executor(device: str) -> Executor:
    """The executor that trains on this device type without further conditions: flex on CUDA, else sdpa."""
    return "flex" if torch.device(device).type == "cuda" else "sdpa"


def check_executor(executor: str, device: str) -> None:
    """Refuse an executor that cannot train on `device`.

    Raises:
        ModelError: naming `model.attention`, the reason, and what would work.
    """
    if executor not in get_args(Executor):
        raise ModelError(f"model.attention is {executor!r}, it must be one of {', '.join(get_args(Executor))}")
    if torch.device(device).type == "cuda" or executor == "sdpa":
        return
    reason = {
        "flex": "FlexAttention has no backward on this device",
        "varlen": "variable-length flash attention exists for CUDA only",
    }[executor]
    raise ModelError(f'model.attention is "{executor}" on device "{device}": {reason}; use "sdpa"')


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    # Uncompiled, flex materialises all scores: right on the CPU as a reference, out of memory on a GPU.
    if q.is_cuda and not torch.compiler.is_compiling():
        return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=gqa)
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=gqa)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def _varlen(q: Tensor, k: Tensor, v: Tensor, mask: DocumentOffsets) -> Tensor:
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        raise ModelError(
            f'model.attention "varlen" got {q.dtype} on {q.device.type}: flash attention takes float16 or bfloat16 '
            'on CUDA; set training.mixed_precision_param = "bfloat16", or use "flex" or "sdpa"'
        )
    batch, heads, seq_len, head_dim = q.shape
    grouped = {}
    if heads != k.shape[1]:
        if _VARLEN_HAS_GQA:
            grouped["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    q, k, v = (x.transpose(1, 2).reshape(batch * seq_len, -1, head_dim) for x in (q, k, v))
    offsets, longest = mask.cu_seqlens, mask.max_seqlen
    window = (-1, 0) if mask.causal else (-1, -1)
    out = cast(Callable[..., Tensor], varlen_attn)(q, k, v, offsets, offsets, longest, longest, window_size=window, **grouped)
    return out.view(batch, seq_len, heads, head_dim).transpose(1, 2)
