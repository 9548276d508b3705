"""A batch, as the loader hands it to the trainer, and what beside `[data]` decides how rows become batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..rows import NextToken, Objective, PackedRow, Planes, document_ends
from .state import DataState


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What a job decides about rows and batches outside of `[data]`.

    Attributes:
        seq_len: Tokens per row.
        seed: Of all random choices of the data path.
        batch_size: Rows per batch of one rank.
        objective: Which tokens of a row are targets.
        buckets: Number of batches that are made together. Their rows are sorted by length and then cut, so that padded
            rows of about one length share a batch. 1: rows stay in order.
        rows_per_step: Rows that all ranks together take in an optimizer step; a stage begins with the first row of its
            step.
    """

    seq_len: int
    seed: int
    batch_size: int
    objective: Objective = field(default_factory=NextToken)
    buckets: int = 1
    rows_per_step: int = 1


@dataclass
class Batch:
    """Rows of one rank.

    Attributes:
        tokens: int64 [batch, seq_len]; in the padded layout as wide as the longest row needs, see
            `DataConfig.pad_multiple`.
        labels: int64, as `tokens`; -100 where no loss is taken.
        positions: int32, as `tokens`.
        sequence_ids: int32, as `tokens`; -1 on padding.
        rows: Global number of each row.
        sources: Source number of each row.
        state: State of the rank's data after this batch; None in a single pass, which is not resumed.
        weights: float32, as `tokens`: loss weight of each label, 0 where there is none; None where all are 1.
        values: float32, as `tokens`: of each label, where the target is a value and not a class.
        goes_on: Whether the last document of each row goes on behind it.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    sequence_ids: torch.Tensor
    rows: list[int]
    sources: list[int]
    state: DataState | None
    weights: torch.Tensor | None
    values: torch.Tensor | None
    goes_on: list[bool] = field(default_factory=list)

    @property
    def ended(self) -> torch.Tensor:
        """Documents that end in each row: int64 [batch]."""
        return self.sequence_ids.amax(1).long() + 1 - torch.tensor(self.goes_on, dtype=torch.int64)

    def interior_eos(self, eos_id: int) -> torch.Tensor:
        """Return which tokens are an eos inside of a document: bool, as `tokens`."""
        ends = torch.from_numpy(document_ends(self.sequence_ids.numpy(), self.goes_on))
        return (self.sequence_ids >= 0) & (self.tokens == eos_id) & ~ends

    @classmethod
    def of(
        cls, planes: Planes, packed: Sequence[PackedRow] = (), *, rows: list[int], sources: list[int], state: DataState | None
    ) -> "Batch":
        """Return a batch that shares the memory of `planes`, which were laid out from the rows `packed`."""
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
            goes_on=[row.following is not None for row in packed],
        )
