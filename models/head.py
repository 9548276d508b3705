"""A head for whole documents: one vector of outputs for each, which are logits of classes or, alone, a predicted value.

Every token's hidden state is projected first and pooled then, which commutes, as the projection has no bias, and leaves
a few numbers per token to sum instead of `dim`. Documents are told apart by where positions begin anew, so that packed
and padded rows have the same outputs. Sums are taken in float64: their order, which differs on a GPU from run to run,
is not seen.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard

from .loss import IGNORE
from .parameters import Kind


class Head(nn.Module):
    """Hidden states to the outputs of their documents.

    Args:
        dim: width of the hidden states.
        outputs: per document.
        pool: `mean` over all tokens of a document, its special ones included (so that this needs to know no ids), or
            `last`: its last token, the eos, alone.
    """

    kinds: ClassVar[dict[str, Kind]] = {"weight": Kind.EMBEDDING}

    def __init__(self, dim: int, outputs: int, pool: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, dim))
        self.pool = pool

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Outputs of the document that a token belongs to.

        Args:
            hidden: [batch, seq_len, dim]; a DTensor of any layout where the weight is one.
            positions: int32 [batch, seq_len], restarting at 0 with every document.

        Returns:
            float32 [batch, seq_len, outputs], at every position of a document the same; float64 for float64 inputs.
        """
        scores = project(hidden, self.weight)
        return pool(scores.double(), positions, self.pool).to(scores.dtype)


def project(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the products of [batch, seq_len, dim] and [outputs, dim], in float32 at least, whole on every rank.

    Ranks of tensor parallelism project their own part of the sequence and gather the results, `dim / outputs` times
    smaller than what they are made of.
    """
    mesh = None
    if isinstance(hidden, DTensor):
        assert isinstance(weight, DTensor)
        mesh = hidden.device_mesh
        hidden = hidden.redistribute(mesh, [Shard(1)]).to_local()
        weight = weight.to_local(grad_placements=[Partial()])
    accumulator = torch.promote_types(hidden.dtype, torch.float32)
    scores = F.linear(hidden.to(accumulator), weight.to(accumulator))
    return scores if mesh is None else DTensor.from_local(scores, mesh, [Shard(1)], run_check=False).full_tensor()


def pool(scores: Tensor, positions: Tensor, how: str) -> Tensor:
    """Return one vector per document at all of its positions, from one per token: both [batch, seq_len, outputs].

    Padding, whose positions are all 0, is as many documents of one token.
    """
    document = (positions == 0).cumsum(1) - 1
    tokens = torch.zeros_like(document).scatter_add_(1, document, torch.ones_like(document))
    if how == "last":
        lasts = (tokens.cumsum(1) - 1).gather(1, document)
        return scores.gather(1, lasts[..., None].expand_as(scores))
    places = document[..., None].expand_as(scores)
    sums = torch.zeros_like(scores).scatter_add(1, places, scores)
    return (sums / tokens.clamp(min=1)[..., None]).gather(1, places)


def document_losses(outputs: Tensor, labels: Tensor, weights: Tensor | None, values: Tensor | None) -> Tensor:
    """Return cross-entropy (nats) of each labelled document's class or, of a single output, its squared error.

    Args:
        outputs: [batch, seq_len, outputs] of `Head`.
        labels: int64 [batch, seq_len]: at one position of each document its class, or 0 for values; IGNORE elsewhere.
        weights: float32 [batch, seq_len], which losses are multiplied with; None: all 1.
        values: float32 [batch, seq_len], where labels are; not read for classes.

    Returns:
        [batch, seq_len] of the type of `outputs`, 0 where there is no label.
    """
    if outputs.shape[-1] == 1:
        assert values is not None, "a single output is compared with values"
        each = (outputs[..., 0] - values).square()
    else:
        each = -outputs.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    losses = torch.where(labels == IGNORE, 0.0, each)
    return losses if weights is None else losses * weights
