"""Part of trainer."""

import torch

from ..models.attention import AttentionMask
from ..models.decoder import Decoder


def summed_loss(
    model: Decoder,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    positions: torch.Tensor,
    mask: AttentionMask,
    weights: torch.Tensor | None = None,
    values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses of a micro-batch, each times its weight: cross-entropies (nats), or squared errors of values.

    A mean over the micro-batch would weigh a target by how full its own row is; the caller divides the sum by the number of
    targets of all ranks and micro-batches instead, or by the sum of their weights.

    Args:
        model: the decoder.
        tokens: int64 [batch, seq_len].
        labels: int64 [batch, seq_len], -100 where no loss is taken.
        positions: int32 [batch, seq_len], restarting at 0 with every document.
        mask: what `DocumentMask.build` made of the rows' sequence ids.
        weights: float32 [batch, seq_len], of each target; None: all 1.
        values: float32 [batch, seq_len], of each label where a head predicts values; None otherwise.

    Returns:
        The sum, float32 [], and what each row contributes to it, float32 [batch], without gradient.
    """
    losses: torch.Tensor = model(tokens, positions, mask, labels, weights, values)
    return losses.sum(), losses.detach().sum(1)
