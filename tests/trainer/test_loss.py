"""The loss of a micro-batch: what it sums, and what it reports of each row."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cistron.models.attention import DocumentMask
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, pack, random_decoder
from cistron.trainer.loss import summed_loss


@pytest.fixture
def inputs() -> tuple[Any, ...]:
    """A decoder, and tokens, labels, positions and mask of four packed rows, the last of them without a target."""
    batch = pack()
    return random_decoder(LLAMA), batch.tokens, batch.labels, batch.positions, DocumentMask(EOS, PAD).build(batch.sequence_ids)


def exact(inputs: tuple[Any, ...], weights: torch.Tensor | None = None) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Weighted cross-entropies of all logits, [rows, seq_len], and the gradients of their sum for all parameters."""
    model, tokens, labels, positions, mask = inputs
    each = F.cross_entropy(model(tokens, positions, mask).flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    each = each if weights is None else each * weights
    return each.detach(), torch.autograd.grad(each.sum(), tuple(model.parameters()))


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_rows_and_gradients_are_those_of_cross_entropy(inputs: tuple[Any, ...], weighted: bool) -> None:
    weights = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) if weighted else None
    if weights is not None:
        weights[0, ::3] = 0
    total, rows = summed_loss(*inputs, weights)
    each, gradients = exact(inputs, weights)
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-6)
    assert rows.tolist() == pytest.approx(each.sum(1).tolist(), rel=1e-6)
    assert rows[3] == 0
    for ours, theirs in zip(torch.autograd.grad(total, tuple(inputs[0].parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
