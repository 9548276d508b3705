"""A micro-batch on the device: from the loader's rows to what a forward pass takes, on this rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...datasets.loading import Batch
from ...models.attention import AttentionMask, DocumentMask
from ...models.decoder import Decoder
from ..processes import World
from .context_parallel import spread_rows


@dataclass(frozen=True)
class Inputs:
    """This rank's part of a micro-batch, on the device. With context parallelism `seq_len` is the rank's part of a row.

    Attributes:
        tokens: int64 [batch, seq_len].
        labels: int64 [batch, seq_len], -100 where no loss is taken.
        positions: int32 [batch, seq_len], restarting at 0 with every document.
        mask: which tokens see which.
        weights: float32 [batch, seq_len], of each target; None: all 1.
        values: float32 [batch, seq_len], the label of each target where a head predicts values; None otherwise.
        drawn_from: int64 [batch], the number of the source of each row.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    mask: AttentionMask
    weights: Tensor | None
    values: Tensor | None
    drawn_from: Tensor

    def losses(self, model: Decoder) -> Tensor:
        """Return the loss of each target times its weight, 0 elsewhere: float32 [batch, seq_len].

        Losses are cross-entropies in nats, or squared errors of values.
        """
        losses: Tensor = model(self.tokens, self.positions, self.mask, self.labels, self.weights, self.values)
        return losses


def stage(batch: Batch, mask: DocumentMask, world: World) -> Inputs:
    """Take this rank's part of a batch to the device, by copies that the host does not wait for.

    Args:
        batch: on the CPU.
        mask: that is built for its rows.
        world: whose context-parallel ranks share each row.
    """

    def pinned(plane: Tensor) -> Tensor:
        return plane.pin_memory() if world.device.type == "cuda" else plane  # a GPU's copy engine reads no other memory

    def moved(plane: Tensor) -> Tensor:
        return pinned(plane).to(world.device, non_blocking=True)

    planes = {name: getattr(batch, name) for name in ("tokens", "labels", "positions", "weights", "values")}
    planes = {name: plane for name, plane in planes.items() if plane is not None}
    own, queries, keys = spread_rows(list(planes.values()), batch.sequence_ids, mask, world.mesh["cp"])
    here = dict(zip(planes, map(moved, own), strict=True))
    ids, spread = pinned(batch.sequence_ids), [None if t is None else pinned(t) for t in (queries, keys)]
    return Inputs(
        tokens=here["tokens"],
        labels=here["labels"],
        positions=here["positions"],
        mask=mask.build(ids, world.device, *spread),
        weights=here.get("weights"),
        values=here.get("values"),
        drawn_from=moved(torch.tensor(batch.sources, dtype=torch.int64)),
    )
