"""The fused loss is `F.cross_entropy` of the projected states, in value and gradient, without all logits in memory."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cistron.models import loss
from cistron.models.attention import DocumentMask
from cistron.models.loss import linear_cross_entropy
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, VOCAB, pack, random_decoder
from cistron.tests.helpers.ranks import run_on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

DIM = 24


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """29 tokens a chunk at most: the 150 of an example make six."""
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 29 * VOCAB)


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden [3, 50, dim], weight [vocab, dim], labels [3, 50], none in the last row, weights [3, 50], some 0."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 50, DIM, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, DIM, generator=draw).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB, (3, 50), generator=draw)
    labels[torch.rand(3, 50, generator=draw) < 0.2] = -100
    labels[2] = -100
    weights = torch.rand(3, 50, generator=draw)
    weights[0, ::3] = 0
    return hidden, weight, labels, weights


def unfused(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """What `linear_cross_entropy` must return, by way of all logits."""
    each = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return each if weights is None else each * weights


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().double().requires_grad_() for t in tensors)


@pytest.mark.parametrize("upstream", [1.0, torch.linspace(0, 1, 150).view(3, 50)], ids=["sum", "per token"])
def test_beside_a_frozen_weight_hidden_states_have_the_same_gradient(upstream: Any) -> None:
    hidden, weight, labels, weights = example()
    (linear_cross_entropy(hidden, weight, labels, weights) * upstream).sum().backward()
    both, hidden.grad = hidden.grad, None
    frozen = weight.detach()
    (linear_cross_entropy(hidden, frozen, labels, weights) * upstream).sum().backward()
    assert both is not None
    assert torch.equal(hidden.grad, both)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("upstream", ["sum", "per token"])
def test_losses_and_gradients_are_those_of_cross_entropy_on_all_logits(weighted: bool, upstream: str) -> None:
    hidden, weight, labels, weights = example()
    given = weights if weighted else None
    factors = torch.tensor(0.37) if upstream == "sum" else torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    losses = linear_cross_entropy(hidden, weight, labels, given)
    gradients = torch.autograd.grad(
        (losses.sum() * factors) if upstream == "sum" else (losses * factors).sum(), (hidden, weight)
    )

    plain = unfused(hidden, weight, labels, given)
    of_plain = torch.autograd.grad((plain * factors).sum(), (hidden, weight))
    exact_inputs = double(hidden, weight)
    exact = unfused(*exact_inputs, labels, None if given is None else given.double())
    of_exact = torch.autograd.grad((exact * factors.double()).sum(), exact_inputs)

    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-6)
    assert (losses[labels == -100] == 0).all()
    for ours, theirs, truth in zip(gradients, of_plain, of_exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * truth.abs().max().item())
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())


def test_gradients_are_the_derivatives_in_float64() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 8, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(VOCAB, (2, 8), generator=draw)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels).sum(), (hidden, weight))


def test_bfloat16_losses_are_float32_and_gradients_as_exact_as_their_dtype() -> None:
    hidden, weight, labels, weights = example(torch.bfloat16)
    losses = linear_cross_entropy(hidden, weight, labels, weights)
    assert losses.dtype == torch.float32
    gradients = torch.autograd.grad(losses.sum(), (hidden, weight))
    exact_inputs = double(hidden, weight)
    exact = unfused(*exact_inputs, labels, weights.double())
    assert (losses - exact).abs().max() < 0.1, "logits of up to 20 are rounded to steps of 1/8"
    for ours, truth in zip(gradients, torch.autograd.grad(exact.sum(), exact_inputs), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - truth).norm() < 0.01 * truth.norm()


def test_a_target_almost_learnt_still_has_a_gradient_in_bfloat16() -> None:
    hidden = torch.zeros(1, 2, DIM, dtype=torch.bfloat16)
    hidden[..., 0] = 11.5
    weight = torch.zeros(VOCAB, DIM, dtype=torch.bfloat16)
    weight[5, 0] = 1
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, torch.full((1, 2), 5)).sum().backward()
    assert weight.grad is not None
    p = torch.exp(torch.tensor(11.5)) / (torch.exp(torch.tensor(11.5)) + VOCAB - 1)
    assert weight.grad[5, 0].item() == pytest.approx(2 * 11.5 * (p.item() - 1), rel=0.01)


def test_many_small_contributions_to_the_weight_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a sum stops growing at 256 times its terms."""
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", VOCAB)
    weight = torch.zeros(VOCAB, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(
        torch.ones(1, 1024, 1, dtype=torch.bfloat16), weight, torch.zeros(1, 1024, dtype=torch.int64)
    ).sum().backward()
    assert weight.grad is not None
    assert weight.grad[0].item() == pytest.approx(1024 * (1 / VOCAB - 1), rel=0.005)


def test_without_any_target_loss_and_gradients_are_zero() -> None:
    hidden, weight, labels, _ = example()
    losses = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    losses.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not losses.any()
    assert not hidden.grad.any()
    assert not weight.grad.any()


class Products(TorchDispatchMode):
    """Counts matrix products with the vocabulary on one side."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("upstream", "products"), [("sum", 3), ("per token", 4 + 2), ("none", 1)])
def test_a_sum_never_computes_logits_twice(upstream: str, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 150 * VOCAB)
    hidden, weight, labels, weights = example()
    with Products() as seen, torch.set_grad_enabled(upstream != "none"):
        losses = linear_cross_entropy(hidden, weight, labels, weights)
        if upstream == "sum":
            (losses.sum() * 0.1).backward()
        elif upstream == "per token":
            (losses * weights).sum().backward()
    assert seen.count == products


def test_fused_by_the_compiler_it_is_the_same_for_any_number_of_tokens_with_one_compilation() -> None:
    hidden, weight, labels, weights = example()
    expected = linear_cross_entropy(hidden, weight, labels, weights)
    of_expected = torch.autograd.grad(expected.sum(), (hidden, weight))
    linear_cross_entropy(hidden[:, :44], weight, labels[:, :44], weights[:, :44], compiled=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        fused = linear_cross_entropy(hidden, weight, labels, weights, compiled=True)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(fused.sum(), (hidden, weight)), of_expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("most", "chunks"), [(0, 8), (8192, 2), (16_384, 1), (9000, 2)])
def test_a_chunk_follows_from_shapes_and_the_key(most: int, chunks: int) -> None:
    """Llama 3.2 1B, two rows of 8,192 tokens: each chunk reads and writes the float32 gradient of the weight."""
    assert loss.chunk_length(16_384, 128_256, "cuda", most) == 16_384 // chunks
    hidden, weight, labels, weights = example()
    with Products() as seen:
        losses = linear_cross_entropy(hidden, weight, labels, weights, chunk=-(-labels.numel() // chunks))
        losses.sum().backward()
    assert seen.count == 3 * chunks
    torch.testing.assert_close(losses, linear_cross_entropy(hidden, weight, labels, weights), rtol=1e-5, atol=1e-6)


def test_the_chunks_of_a_run_that_asks_for_none_are_those_that_it_had() -> None:
    """Losses and gradients of such a run stay what they were, bit for bit: sums are taken over the same tokens."""
    for device, logits in (("cuda", 2**28), ("cpu", loss.CHUNK_LOGITS["cpu"])):
        for tokens, columns in ((16_384, 128_256), (4096, 256), (1, 151_936), (2093, 128_256), (2094, 128_256)):
            chunks = -(-tokens * columns // logits)
            assert loss.chunk_length(tokens, columns, device, 0) == -(-tokens // chunks)


def test_a_chunk_has_a_length_on_every_device_that_a_model_can_be_opened_on() -> None:
    assert loss.chunk_length(4096, 128_256, "mps", 0) == 66  # 63 chunks of at most 2^23 logits


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_given_labels_returns_the_cross_entropy_of_its_logits(tied: bool) -> None:
    model, batch = random_decoder(LLAMA.replace(tie_embeddings=tied)), pack()
    inputs = batch.tokens, batch.positions, DocumentMask(EOS, PAD).build(batch.sequence_ids)
    losses = model(*inputs, batch.labels)
    expected = F.cross_entropy(model(*inputs).flatten(0, 1), batch.labels.flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected, rtol=1e-5, atol=1e-6)
    of_losses = torch.autograd.grad(losses.sum(), tuple(model.parameters()))
    for ours, theirs in zip(of_losses, torch.autograd.grad(expected.sum(), tuple(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


LABELS = {
    "mixed": lambda y: y,
    "one rank's": lambda y: torch.where(y < 0, y, y % 31),
    "none": lambda y: torch.full_like(y, -100),
}


def sharded() -> None:
    """On each of two ranks, compare the loss over its columns of 62 with the unfused loss of all."""
    rank, mesh = torch.distributed.get_rank(), init_device_mesh("cpu", (2,))
    loss.CHUNK_LOGITS["cpu"] = 29 * 31
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 50, DIM, generator=draw)
    weight = torch.randn(62, DIM, generator=draw)
    _, _, drawn, weights = example()
    for case, upstream in product(LABELS, (torch.tensor(0.37), torch.randn(3, 50, generator=draw))):
        labels = LABELS[case](drawn)
        h = distribute_tensor(hidden, mesh, [Shard(1)], src_data_rank=None).requires_grad_()
        w = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None).requires_grad_()
        losses = linear_cross_entropy(h, w, labels, weights)
        (losses.sum() * upstream if upstream.dim() == 0 else (losses * upstream).sum()).backward()
        exact_inputs = double(hidden, weight)
        exact = unfused(*exact_inputs, labels, weights.double())
        (exact * upstream).sum().backward()
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-6)
        for ours, truth, dim in ((h, exact_inputs[0], 1), (w, exact_inputs[1], 0)):
            assert isinstance(ours.grad, DTensor)
            assert truth.grad is not None
            assert ours.grad.placements == (Shard(dim),)
            local, mine = ours.grad.to_local().double(), truth.grad.chunk(2, dim)[rank]
            torch.testing.assert_close(local, mine, rtol=1e-5, atol=1e-5 * mine.abs().max().item(), msg=f"{case}, dim {dim}")


def test_with_the_vocabulary_on_two_ranks_each_has_its_part_of_the_gradients() -> None:
    run_on_ranks(sharded, 2)


PEAK = r"""
import re, sys, torch
import torch.nn.functional as F
from cistron.models.loss import linear_cross_entropy
fused, tokens, vocab = sys.argv[1] == "fused", 1024, 128_256
hidden = torch.randn(1, tokens, 16, requires_grad=True)
weight = torch.randn(vocab, 16, requires_grad=True)
labels = torch.randint(vocab, (1, tokens))
# not getrusage's: its peak includes that of the process which started this one, up to exec
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
before = peak()
if fused:
    linear_cross_entropy(hidden, weight, labels).sum().backward()
else:
    F.cross_entropy((hidden @ weight.T)[0], labels[0], reduction="sum").backward()
print((peak() - before) / (tokens * vocab * 4 / 1024))
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_at_a_vocabulary_of_128_256_the_peak_does_not_contain_the_logits() -> None:
    """Peak resident memory of a process, in units of the batch's float32 logits (0.5 GB)."""
    peaks = {
        way: float(subprocess.run([sys.executable, "-c", PEAK, way], check=True, capture_output=True, text=True).stdout)
        for way in ("fused", "unfused")
    }
    assert peaks["unfused"] > 1.9, "logits and their gradient"
    assert peaks["fused"] < 0.4
