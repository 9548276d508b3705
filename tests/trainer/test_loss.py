"""The loss as a function: what it sums, and what it reports of each row."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from cistron.models.decoder import Decoder
from cistron.trainer.loss import summed_loss


def inputs(logits: torch.Tensor) -> tuple[Decoder, Any, Any, Any]:
    """A model that answers `logits`, and the arguments it ignores."""
    return cast("Decoder", lambda *_: logits), None, None, None


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [3, 50, 11] and labels int64 [3, 50], a fifth of them without a target, the last row without any."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(11, (3, 50), generator=draw)
    labels[torch.rand(3, 50, generator=draw) < 0.2] = -100
    labels[2] = -100
    return torch.randn(3, 50, 11, generator=draw, requires_grad=True), labels


def test_without_weights_loss_and_gradient_are_those_of_cross_entropy_bit_for_bit(
    example: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = example
    model, tokens, positions, mask = inputs(logits)
    total, rows = summed_loss(model, tokens, labels, positions, mask)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert torch.equal(total, expected)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (total, expected)))
    assert rows.sum().item() == pytest.approx(total.item(), rel=1e-6)
    assert rows[2] == 0


def test_a_weight_multiplies_its_target_in_loss_gradient_and_row(example: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = example
    weights = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)) * (labels >= 0)
    weights[0, ::3] = 0
    model, tokens, positions, mask = inputs(logits)
    total, rows = summed_loss(model, tokens, labels, positions, mask, weights)

    exact = logits.detach().double().requires_grad_()
    each = -exact.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0) * weights
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-6)
    assert rows.tolist() == pytest.approx(each.sum(1).tolist(), rel=1e-6)
    gradient, reference = torch.autograd.grad(total, logits)[0], torch.autograd.grad(each.sum(), exact)[0]
    torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-7)
