"""Attention over a packed batch: one call, five kernels, chosen by the type of the mask.

| executor | kernel | where |
|---|---|---|
| flex | `flex_attention`, compiled: skips empty blocks, any mask | CUDA; on the CPU without gradients |
| flex | the same by FlashAttention 4, see `flex_backend.py` | Hopper and Blackwell, float16 or bfloat16, no maps |
| varlen | flash attention over document offsets | CUDA, float16 or bfloat16 |
| varlen | flash attention, document by document, see `documents.py` | CPU, not compiled |
| sdpa | `scaled_dot_product_attention` with a dense mask: the reference | everywhere |

A position map has two regions of pairs, each with queries and keys rotated in its own way. Flex takes a pass over each
and joins them by their log-sum-exps; sdpa has one softmax over scores that are chosen pair by pair, in float32 or
better. Varlen returns no log-sum-exp that is differentiable, and has neither maps nor windows.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import list_flash_attention_impls
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from ..config import FULL_ATTENTION, AttentionConfig, Executor
from .documents import attend_by_document
from .flex_backend import FLASH_OPTIONS
from .masks import AttentionMask, DocumentOffsets, FlashBlocks, Regions

# of scores written out, which then stay in a cache: at 2,048 keys and 4 heads 2.7 times as fast as 512 queries at once
QUERIES_AT_ONCE = 128
# torch 2.11 lacks the argument; there the kv heads are repeated.
_VARLEN_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Return softmax attention, scores scaled by 1/sqrt(head_dim), restricted to what `mask` allows.

    Inputs lie in memory as [batch, seq_len, heads, head_dim] best, and the output does then: nothing is copied.

    Args:
        q: [batch, heads, queries, head_dim].
        k: [batch, kv_heads, keys, head_dim]; each kv head serves heads / kv_heads consecutive query heads. There are as
            many keys as queries, unless the mask was built for others.
        v: like `k`.
        mask: what `DocumentMask.build` made of the batch's `sequence_ids`.

    Returns:
        [batch, heads, queries, head_dim], the dtype of `q`.
    """
    assert not isinstance(mask, Regions), "each region has queries and keys of its own: see `attend_in_regions`"
    if isinstance(mask, BlockMask):
        return _flex(q, k, v, mask)
    if isinstance(mask, FlashBlocks):
        return _flex(q, k, v, mask.blocks, FLASH_OPTIONS)
    if isinstance(mask, DocumentOffsets):
        return _varlen(q, k, v, mask)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def attend_in_regions(rotated: Sequence[tuple[Tensor, Tensor]], v: Tensor, mask: AttentionMask) -> Tensor:
    """As `attend`, with queries and keys for each region of a position map.

    Args:
        rotated: queries and keys, rotated for each region.
        v: the values of all.
        mask: what `DocumentMask.build` made for the same map.
    """
    if not isinstance(mask, Regions):
        ((q, k),) = rotated
        return attend(q, k, v, mask)
    near, far = rotated
    if isinstance(mask.near, BlockMask):
        assert isinstance(mask.far, BlockMask)
        return join_regions(*_flex_with_lse(*near, v, mask.near), *_flex_with_lse(*far, v, mask.far))
    assert isinstance(mask.far, Tensor)
    return _pair_by_pair(near, far, v, mask.near, mask.far)


def join_regions(near: Tensor, near_lse: Tensor, far: Tensor, far_lse: Tensor) -> Tensor:
    """Return one softmax over two sets of keys, from a softmax over each.

    It is `near + (far - near) · sigmoid(far_lse - near_lse)`.

    The log-sum-exps take part in the gradient: detached, those of queries and keys would be wrong. A query without far
    keys has a far log-sum-exp of -inf, hence weight 0 and gradient 0; without near keys it cannot be, as every token
    sees itself.

    Args:
        near: attention over the near keys, [batch, heads, queries, head_dim].
        near_lse: logarithm of the sum of the exponentials of its scores, [batch, heads, queries], float32 or better.
        far: likewise over the far keys; 0 where there is none.
        far_lse: likewise.

    Returns:
        Of the shape and dtype of `near`.
    """
    weight = torch.sigmoid(far_lse - near_lse)[..., None]
    return torch.lerp(near.to(weight.dtype), far.to(weight.dtype), weight).to(near.dtype)


def choose_executor(
    device: torch.device, *, half: bool, compiled: bool, spread: bool, plain: bool = True
) -> tuple[Executor, str]:
    """Return the executor that trains fastest here, and why.

    Args:
        device: to train on.
        half: whether attention computes in float16 or bfloat16.
        compiled: whether blocks are compiled.
        spread: whether a row is spread over several ranks.
        plain: whether there are neither windows nor position maps.
    """
    if not plain:
        return ("flex" if device.type == "cuda" else "sdpa"), "a window or a position map is more than varlen can do"
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


def executor_complaints(
    executor: Executor, device: torch.device, *, half: bool, compiled: bool, attention: AttentionConfig = FULL_ATTENTION
) -> list[str]:
    """Return why an executor cannot train on a device, or not with this window or position map, a line each.

    Args:
        executor: as `model.attention.executor` names it.
        device: of which the type alone matters.
        half: whether attention computes in float16 or bfloat16.
        compiled: whether blocks are compiled.
        attention: the window or position map.
    """
    cuda, wrong = device.type == "cuda", []
    if executor == "flex" and not cuda:
        wrong.append(
            f'model.attention.executor is "flex" on device "{device}": FlexAttention has no backward there; use "auto"'
        )
    if executor == "varlen" and not attention.plain:
        wrong.append(
            f'model.attention.executor is "varlen" with {attention.named}: its kernel takes whole documents, and returns no '
            'log-sum-exp to join two passes by with gradients; use "auto"'
        )
    if executor == "varlen" and cuda and not half:
        wrong.append(
            'model.attention.executor is "varlen": flash attention computes in float16 or bfloat16; set '
            'training.mixed_precision_param = "bfloat16", or use "flex"'
        )
    if executor == "varlen" and not cuda and compiled:
        wrong.append(
            f'model.attention.executor is "varlen" on device "{device}": a compiled block cannot go document by document there;'
            ' use "sdpa", or set compile.enable = false'
        )
    return wrong


def has_flash_attention_3(device: torch.device) -> bool:
    """Return whether varlen can be FlashAttention 3 here: on a Hopper GPU, with the package `flash_attn_interface`."""
    there = device.type == "cuda" and torch.cuda.is_available()
    hopper = there and torch.cuda.get_device_capability(device)[0] == 9
    return hopper and find_spec("flash_attn_interface") is not None and "FA3" in list_flash_attention_impls()


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, options: dict[str, str] | None = None) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    out: Tensor = _flex_kernel(q)(q, k, v, block_mask=mask, enable_gqa=gqa, kernel_options=options)
    return out


def _flex_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    gqa = q.shape[1] != k.shape[1]
    out, aux = _flex_kernel(q)(q, k, v, block_mask=mask, enable_gqa=gqa, return_aux=AuxRequest(lse=True))
    return out, aux.lse


def _flex_kernel(q: Tensor) -> Callable[..., Any]:
    # Uncompiled, flex materialises all scores: right on the CPU as a reference, out of memory on a GPU.
    return _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else cast(Callable[..., Any], flex_attention)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)  # rows of padded batches come in many widths


def _pair_by_pair(
    near: tuple[Tensor, Tensor], far: tuple[Tensor, Tensor], v: Tensor, is_near: Tensor, is_far: Tensor
) -> Tensor:
    """Return one softmax over the scores of both regions.

    It is taken for some queries at a time: without gradients no more is in memory.
    """
    some = v.shape[2] if torch.compiler.is_compiling() else QUERIES_AT_ONCE  # a compiler would write every part out
    parts = zip(*(x.split(some, dim=2) for x in (near[0], far[0], is_near, is_far)), strict=True)
    outs = []
    for near_q, far_q, to_near, to_far in parts:
        scores = torch.where(to_near, _scores(near_q, near[1]), _scores(far_q, far[1]))
        weights = scores.masked_fill(~(to_near | to_far), -math.inf).softmax(-1).to(v.dtype)
        grouped = weights.unflatten(1, (v.shape[1], -1)).flatten(2, 3)
        outs.append((grouped @ v).unflatten(2, (-1, near_q.shape[2])).flatten(1, 2).transpose(1, 2))
    out: Tensor = torch.cat(outs, dim=1).transpose(1, 2)
    return out


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Return scaled products [batch, heads, queries, keys], float32 or better; heads of a group share a product."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(dtype).unflatten(1, (k.shape[1], -1)).flatten(2, 3)
    products = grouped @ k.to(dtype).mT / math.sqrt(q.shape[-1])
    scores: Tensor = products.unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    return scores


def _varlen(q: Tensor, k: Tensor, v: Tensor, mask: DocumentOffsets) -> Tensor:
    if q.is_cuda:
        return _flash(q, k, v, mask)
    lengths = [length for length in mask.cu_seqlens.diff().tolist() if length]
    return attend_by_document(q, k, v, lengths, mask.causal)


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
