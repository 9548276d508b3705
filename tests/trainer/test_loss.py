"""The loss of a micro-batch: of each target, of each row, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from cistron.models.attention import DocumentMask
from cistron.models.decoder import Decoder
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, pack, random_decoder
from cistron.trainer.parallel import Inputs


def inputs_of(weights: torch.Tensor | None) -> Inputs:
    """Four packed rows, the last of them without a target."""
    batch = pack()
    mask = DocumentMask(EOS, PAD).build(batch.sequence_ids)
    return Inputs(batch.tokens, batch.labels, batch.positions, mask, weights, None, torch.zeros(4, dtype=torch.int64))


def exact(model: Decoder, inputs: Inputs) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Weighted cross-entropies of all logits, [rows, seq_len], and the gradients of their sum for all parameters."""
    logits, labels = model(inputs.tokens, inputs.positions, inputs.mask), inputs.labels
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    each = each if inputs.weights is None else each * inputs.weights
    return each.detach(), torch.autograd.grad(each.sum(), tuple(model.parameters()))


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_rows_and_gradients_are_those_of_cross_entropy(weighted: bool) -> None:
    weights = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) if weighted else None
    if weights is not None:
        weights[0, ::3] = 0
    model, inputs = random_decoder(LLAMA), inputs_of(weights)
    losses = inputs.losses(model)
    total, rows = losses.sum(), losses.detach().sum(1)
    each, gradients = exact(model, inputs)
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-6)
    assert rows.tolist() == pytest.approx(each.sum(1).tolist(), rel=1e-6)
    assert rows[3] == 0
    for ours, theirs in zip(torch.autograd.grad(total, tuple(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
