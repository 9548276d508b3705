"""What a run counts: the rows, tokens and targets of a step, and how far the job has come."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...datasets.loading import Batch
from ...models.config import FULL_ATTENTION, AttentionConfig
from ...models.positions import keys_seen


class StepCounts(NamedTuple):
    """What the rows of one optimizer step hold: those of some micro-batches, of all ranks, or of all steps of a window.

    Attributes:
        documents: or fragments.
        rows: how many.
        positions: of tokens and of padding.
        causal_pairs: (query, key) pairs of tokens that a causal document mask and its window leave: work of attention.
        rows_hash: sum of `row_hash`.
        tokens: of each source, without padding.
        unknown: of each source, tokens that stand for what the vocabulary lacks.
        targets: of each source, those of weight 0 left out; or the sum of their weights. A loss is a sum divided by it.
    """

    documents: int
    rows: int
    positions: int
    causal_pairs: int
    rows_hash: int
    tokens: list[int]
    unknown: list[int]
    targets: list[float]

    @classmethod
    def of(
        cls,
        batches: Sequence[Batch],
        sources: int,
        *,
        normalize: bool = True,
        attention: AttentionConfig = FULL_ATTENTION,
        unk_id: int | None = None,
    ) -> "StepCounts":
        """Count some micro-batches of a job with so many sources; `normalize`: targets by their weights."""
        tokens, unknown, targets = torch.zeros(3, sources, dtype=torch.float64)
        for batch in batches:
            of = torch.tensor(batch.sources)
            used = batch.sequence_ids >= 0
            tokens += torch.bincount(of, used.sum(1), sources)
            if unk_id is not None:
                unknown += torch.bincount(of, (used & (batch.tokens == unk_id)).sum(1), sources)
            targets += torch.bincount(of, target_weights(batch.labels, batch.weights, normalize=normalize).sum(1), sources)
        return cls(
            documents=sum(int((b.sequence_ids.amax(1) + 1).sum()) for b in batches),
            rows=sum(len(b.rows) for b in batches),
            positions=sum(b.tokens.numel() for b in batches),
            causal_pairs=sum(int(keys_seen(attention, b.positions[b.sequence_ids >= 0]).sum()) for b in batches),
            rows_hash=sum(row_hash(b, i) for b in batches for i in range(len(b.rows))),
            tokens=[int(count) for count in tokens],  # float64 is exact up to 2^53
            unknown=[int(count) for count in unknown],
            targets=targets.tolist(),
        )

    @property
    def counts(self) -> list[int]:
        """All integer counts in a fixed order, which `from_counts` reads."""
        return [self.documents, self.rows, self.positions, self.causal_pairs, self.rows_hash, *self.tokens, *self.unknown]

    @classmethod
    def from_counts(cls, counts: list[int], targets: list[float]) -> "StepCounts":
        """Return the counts that sums of `counts` and of `targets` stand for."""
        documents, rows, positions, causal_pairs, rows_hash, *of_sources = counts
        tokens, unknown = of_sources[: len(targets)], of_sources[len(targets) :]
        return cls(documents, rows, positions, causal_pairs, rows_hash, tokens, unknown, targets)

    def plus(self, other: "StepCounts") -> "StepCounts":
        """Return the sum of both."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return self.from_counts(counts, [a + b for a, b in zip(self.targets, other.targets, strict=True)])


def target_weights(labels: torch.Tensor, weights: torch.Tensor | None, *, normalize: bool) -> torch.Tensor:
    """Return what each position adds to the divisor of a sum of weighted losses.

    Normalised, the loss is sum(w x nll) / sum(w): the weights of a step add up to the number of its targets, as
    Savanna's do, where a target weighs w x targets / sum(w). Plain, it is sum(w x nll) / targets.

    Args:
        labels: int64 [batch, seq_len], below 0 where there is no target.
        weights: float32 [batch, seq_len], of each label; a target of weight 0 is none. None: all 1.
        normalize: count targets by their weights.

    Returns:
        float64 [batch, seq_len].
    """
    targets = (labels >= 0).double()
    if weights is None:
        return targets
    return targets * (weights.double() if normalize else (weights > 0).double())


def row_hash(batch: Batch, index: int) -> int:
    """Hash one row's number, tokens, labels, weights and values to 48 bits, whose sum over rows is that of any layout.

    Padding is left out: a padded row has as much of it as its neighbours need. 48 bits leave room for a step of 32,768
    rows in an int64 sum. Hashing 2,048 tokens takes about 40 microseconds.
    """
    used = int((batch.sequence_ids[index] >= 0).sum())
    digest = hashlib.blake2b(str(batch.rows[index]).encode(), digest_size=6)
    for plane in (batch.tokens, batch.labels, batch.weights, batch.values):
        if plane is not None:
            digest.update(plane[index, :used].numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")
