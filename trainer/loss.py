"""The loss: cross-entropy summed over targets, to be divided by the targets of the whole optimizer step."""

import torch
import torch.nn.functional as F

from ..models.decoder import Decoder
from ..models.masks import AttentionMask

IGNORE = -100  # label of a position without a target


def summed_loss(
    model: Decoder,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    positions: torch.Tensor,
    mask: AttentionMask,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the next-token cross-entropies (nats) of a micro-batch, each times its weight.

    A mean over the micro-batch would weigh a target by how full its own row is; the caller divides the sum by the number of
    targets of all ranks and micro-batches instead, or by the sum of their weights.

    Args:
        model: the decoder.
        tokens: int64 [batch, seq_len].
        labels: int64 [batch, seq_len], IGNORE where no loss is taken.
        positions: int32 [batch, seq_len], restarting at 0 with every document.
        mask: what `DocumentMask.build` made of the rows' sequence ids.
        weights: float32 [batch, seq_len], of each target; None: all 1.

    Returns:
        The sum, float32 [], and what each row contributes to it, float32 [batch], without gradient.
    """
    logits: torch.Tensor = model(tokens, positions, mask)
    log_probabilities = F.log_softmax(logits.flatten(0, 1).float(), dim=-1)
    targets = labels.flatten()
    each = F.nll_loss(log_probabilities, targets, ignore_index=IGNORE, reduction="none")
    if weights is not None:
        each = each * weights.flatten()
    # The library's own sum: each.sum() adds in another order, so that unweighted losses would change in their last digit.
    total = F.nll_loss(log_probabilities, targets, ignore_index=IGNORE, reduction="sum") if weights is None else each.sum()
    return total, each.detach().view_as(labels).sum(1)


def target_losses(
    model: Decoder, tokens: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, mask: AttentionMask
) -> torch.Tensor:
    """Next-token cross-entropy (nats) of every position, 0 where there is no target: float32 [batch, seq_len].

    Arguments as those of `summed_loss`.
    """
    logits: torch.Tensor = model(tokens, positions, mask)
    each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return each.view_as(labels)
