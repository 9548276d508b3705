"""Document by document on a CPU: exact at every edge of its parts, and of no more pairs than it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cistron.models.attention.documents import DIVIDED, DIVIDED_FORWARD, SQUARE, attend_by_document
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

EDGES = [n + off for n in (SQUARE, DIVIDED, DIVIDED_FORWARD, 3 * SQUARE, 1024, 1024 + DIVIDED) for off in (-1, 0, 1)]
HEADS = pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (4, 1)])
CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def draw(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output, as the decoder lays them out."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, tokens, n, 16) for n in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2) for size in sizes]


def dense(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
    """Attention under the whole mask, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    ids = torch.repeat_interleave(torch.tensor(lengths))
    mask = ids[:, None] == ids
    return scaled_dot_product_attention(q, k, v, attn_mask=mask.tril() if causal else mask, enable_gqa=True)


@HEADS
@CAUSAL
@pytest.mark.parametrize("lengths", [EDGES[:9], [1, *EDGES[9:15], 2], EDGES[15:]], ids=["short", "middle", "long"])
def test_every_length_around_an_edge_has_the_outputs_and_gradients_of_a_dense_mask(
    lengths: list[int], causal: bool, heads: int, kv_heads: int
) -> None:
    *inputs, upstream = draw(sum(lengths), heads, kv_heads)
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    out, expected = attend_by_document(*ours, lengths, causal), dense(*theirs, lengths, causal)
    assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    out.backward(upstream)
    expected.backward(upstream.double())
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_parts_of_a_gradient_add_up_as_exactly_as_the_kernel_adds_its_own() -> None:
    lengths = [1024, 511, 640]
    *inputs, upstream = draw(sum(lengths), 4, 2, torch.bfloat16)
    ours, whole = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    exact = [x.double().requires_grad_() for x in inputs]
    attend_by_document(*ours, lengths, True).backward(upstream)
    parts = zip(*(x.split(lengths, 2) for x in whole), strict=True)
    torch.cat([scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True) for x in parts], 2).backward(upstream)
    dense(*exact, lengths, True).backward(upstream.double())
    for one, other, true in zip(ours, whole, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert true.grad is not None
        assert one.grad.dtype == torch.bfloat16
        errors = [(x.double() - true.grad).norm().item() for x in (one.grad, other.grad)]
        assert errors[0] < 1.2 * errors[1]


def test_a_gradient_without_memory_of_its_own_and_inputs_that_lie_by_head_are_taken_too() -> None:
    *inputs, _ = draw(300, 4, 2)
    ours, theirs = ([x.contiguous().requires_grad_() for x in inputs] for _ in range(2))
    attend_by_document(*ours, [300], True).sum().backward()
    dense(*theirs, [300], True).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


class Pairs(TorchDispatchMode):
    """Counts the pairs that the kernel is handed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.forward += args[0].shape[2] * args[1].shape[2]
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.backward += args[1].shape[2] * args[2].shape[2]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("length", "forward", "backward"), [(256, 1, 1), (512, 3 / 4, 3 / 4), (2048, 1, 9 / 16)])
def test_of_a_long_causal_document_little_more_than_half_the_pairs_are_computed(
    length: int, forward: float, backward: float
) -> None:
    *inputs, upstream = draw(length, 4, 2)
    with Pairs() as pairs:
        attend_by_document(*(x.requires_grad_() for x in inputs), [length], True).backward(upstream)
    assert (pairs.forward, pairs.backward) == (forward * length**2, backward * length**2)
