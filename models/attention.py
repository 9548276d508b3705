"""Attention over a packed batch: one call, three kernels, chosen by the type of the mask.

| executor | kernel | where |
|---|---|---|
| flex | `flex_attention`, compiled: skips empty blocks, any mask | CUDA; on the CPU without gradients |
| varlen | flash attention over document offsets | CUDA, float16 or bfloat16 |
| varlen | `scaled_dot_product_attention`, document by document | CPU, not compiled |
| sdpa | `scaled_dot_product_attention` with a dense mask: the reference | everywhere |
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import cast, get_args

import torch
from torch import Tensor
from torch.nn.attention import list_flash_attention_impls
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


def choose_executor(device: torch.device, *, half: bool, compiled: bool, spread: bool) -> tuple[Executor, str]:
    """The executor that trains fastest here, and why.

    Args:
        device: to train on.
        half: whether attention computes in float16 or bfloat16.
        compiled: whether blocks are compiled.
        spread: whether a row is spread over several ranks.
    """
    if device.type == "cuda":
        if half and not spread and has_flash_attention_3(device):
            return "varlen", "FlashAttention 3 is installed"
        reason = "FlashAttention 3, for Hopper GPUs, is not installed"
        if not half or spread:
            reason = "a row is spread over ranks" if spread else "flash attention does not compute in float32"
        return "flex", reason
    if compiled or spread:
        return "sdpa", "a row is spread over ranks" if spread else "a compiled block cannot go document by document"
    return "varlen", "document by document is faster than a mask on a CPU"


def check_executor(executor: str, device: torch.device, *, half: bool, compiled: bool) -> None:
    """Refuse an executor that cannot train.

    Raises:
        ModelError: naming `model.attention.executor`, the reason, and what would work.
    """
    if executor not in get_args(Executor):
        raise ModelError(f"model.attention.executor is {executor!r}, it must be one of {', '.join(get_args(Executor))}")
    cuda = device.type == "cuda"
    if executor == "flex" and not cuda:
        raise ModelError(
            f'model.attention.executor is "flex" on device "{device}": FlexAttention has no backward there; use "auto"'
        )
    if executor == "varlen" and cuda and not half:
        raise ModelError(
            'model.attention.executor is "varlen": flash attention computes in float16 or bfloat16; set '
            'training.mixed_precision_param = "bfloat16", or use "flex"'
        )
    if executor == "varlen" and not cuda and compiled:
        raise ModelError(
            f'model.attention.executor is "varlen" on device "{device}": a compiled block cannot go document by document there;'
            ' use "sdpa", or set compile.enable = false'
        )


def has_flash_attention_3(device: torch.device) -> bool:
    """Whether varlen can be FlashAttention 3 here: a Hopper GPU, and the package `flash_attn_interface` beside torch."""
    there = device.type == "cuda" and torch.cuda.is_available()
    hopper = there and torch.cuda.get_device_capability(device)[0] == 9
    return hopper and find_spec("flash_attn_interface") is not None and "FA3" in list_flash_attention_impls()


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    # Uncompiled, flex materialises all scores: right on the CPU as a reference, out of memory on a GPU.
    if q.is_cuda and not torch.compiler.is_compiling():
        return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=gqa)
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=gqa)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)  # rows of padded batches come in many widths


def _varlen(q: Tensor, k: Tensor, v: Tensor, mask: DocumentOffsets) -> Tensor:
    return _flash(q, k, v, mask) if q.is_cuda else _one_by_one(q, k, v, mask)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, mask: DocumentOffsets) -> Tensor:
    """Each document by itself. On a CPU that takes half the time of a mask for 8 rows of 512, a third for 2 of 2,048."""
    lengths = [length for length in mask.cu_seqlens.diff().tolist() if length]
    documents = zip(*(x.transpose(0, 1).flatten(1, 2)[None].split(lengths, dim=2) for x in (q, k, v)), strict=True)
    kernel = partial(scaled_dot_product_attention, is_causal=mask.causal, enable_gqa=q.shape[1] != k.shape[1])
    flat = torch.cat([kernel(*document) for document in documents], dim=2)[0]
    out: Tensor = flat.unflatten(1, (len(q), -1)).transpose(0, 1)
    return out


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: DocumentOffsets) -> Tensor:
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
