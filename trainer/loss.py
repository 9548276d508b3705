"""The loss: cross-entropy summed over targets, to be divided by the targets of the whole optimizer step."""

import torch
import torch.nn.functional as F

from ..models.decoder import Decoder
from ..models.masks import AttentionMask

IGNORE = -100  # label of a position without a target


def summed_loss(
    model: Decoder, tokens: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, mask: AttentionMask
) -> torch.Tensor:
    """Sum of the next-token cross-entropies (nats) of a micro-batch, a float32 scalar.

    A mean over the micro-batch would weigh a target by how full its own row is; the caller divides the sum by the number of
    targets of all ranks and micro-batches instead.

    Args:
        model: the decoder.
        tokens: int64 [batch, seq_len].
        labels: int64 [batch, seq_len], IGNORE where no loss is taken.
        positions: int32 [batch, seq_len], restarting at 0 with every document.
        mask: what `DocumentMask.build` made of the rows' sequence ids.
    """
    logits: torch.Tensor = model(tokens, positions, mask)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
