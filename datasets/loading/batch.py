"""Part of datasets/loading."""

from dataclasses import dataclass
from typing import Any

import torch

from ..rows import Planes


@dataclass
class Batch:
    """Rows of one rank.

    Attributes:
        tokens: int64 [batch, seq_len]; in the padded layout as wide as the longest row needs, see `DataConfig.pad_multiple`.
        labels: int64, as `tokens`; -100 where no loss is taken.
        positions: int32, as `tokens`.
        sequence_ids: int32, as `tokens`; -1 on padding.
        rows: Global number of each row.
        sources: Source number of each row.
        state: The rank's loader state after this batch, plain JSON.
        weights: float32, as `tokens`: loss weight of each label, 0 where there is none; None where all are 1.
        values: float32, as `tokens`: of each label, where what is asked for is no class.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    sequence_ids: torch.Tensor
    rows: list[int]
    sources: list[int]
    state: dict[str, Any]
    weights: torch.Tensor | None
    values: torch.Tensor | None

    @classmethod
    def of(cls, planes: Planes, *, rows: list[int], sources: list[int], state: dict[str, Any]) -> "Batch":
        """Return a batch that shares the memory of `planes`."""
        return cls(
            tokens=torch.from_numpy(planes.tokens),
            labels=torch.from_numpy(planes.labels),
            positions=torch.from_numpy(planes.positions),
            sequence_ids=torch.from_numpy(planes.sequence_ids),
            rows=rows,
            sources=sources,
            state=state,
            weights=None if planes.weights is None else torch.from_numpy(planes.weights),
            values=None if planes.values is None else torch.from_numpy(planes.values),
        )
