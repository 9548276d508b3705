"""Report which tokens carry loss: counted over the first rows of a job, and shown by position in one of them."""

import torch
from rich.table import Table

from ...datasets.loading import Batch
from ...datasets.rows import DocumentLabels, MaskedTokens, Objective
from ...datasets.tokenizers import Tokenizer
from ...trainer.processes import Terminal

SHOWN = 10  # positions at the head of the example row, and about the end of its first document
SPECIAL = ("eos", "bos", "pad", "mask", "unk")
KINDS = ("eos", "bos", "unknown", "other special tokens", "lowercase letters", "all others")


def report_targets(console: Terminal, batch: Batch, objective: Objective, tokenizer: Tokenizer) -> None:
    """Print how many tokens of each kind there are, how many are targets at which weight, and an example row.

    Args:
        console: To print to.
        batch: The first rows, as training will see them.
        objective: Of the job; labels of documents are counted by class, since no token is a target.
        tokenizer: Of the job.
    """
    used, wanted = batch.sequence_ids >= 0, batch.labels >= 0
    labels = batch.labels[wanted]
    if isinstance(objective, DocumentLabels):
        of_class = torch.bincount(labels).tolist() if objective.classes else ["values from", *values_range(batch, wanted)]
        console.print(f"{len(labels):,} documents with labels: {' '.join(map(str, of_class))}")
        return
    # what stands in the documents, where the model is shown something else
    tokens = torch.where(wanted, batch.labels, batch.tokens) if isinstance(objective, MaskedTokens) else batch.tokens
    weights = torch.ones(len(labels)) if batch.weights is None else batch.weights[wanted]
    grid = Table("tokens", "in the rows", "that carry loss", "mean weight", box=None)
    for kind, there, of_targets in zip(KINDS, of_kinds(tokens[used], tokenizer), of_kinds(labels, tokenizer), strict=True):
        counted = of_targets & (weights > 0)
        mean = f"{weights[counted].mean():.4g}" if counted.any() else "-"
        if there.any() or of_targets.any():
            grid.add_row(kind, f"{int(there.sum()):,}", f"{int(counted.sum()):,}", mean)
    grid.add_row("padding", f"{int((~used).sum()):,}", "0", "-")
    console.print(grid)
    row = int((batch.sequence_ids.amax(1) > 0).int().argmax())
    console.print(f"an example, row {batch.rows[row]}:")
    console.print(example(batch, row, tokenizer))


def values_range(batch: Batch, wanted: torch.Tensor) -> list[str]:
    """Return the least and the greatest value that documents are labelled with, as text."""
    assert batch.values is not None
    values = batch.values[wanted]
    return [f"{values.min():.4g}", "to", f"{values.max():.4g}"]


def of_kinds(ids: torch.Tensor, tokenizer: Tokenizer) -> list[torch.Tensor]:
    """Return for each of KINDS which tokens are of it: bool, of the shape of `ids`."""
    eos = ids == tokenizer.eos_id
    bos = torch.zeros_like(eos) if tokenizer.bos_id is None else ids == tokenizer.bos_id
    unknown = torch.zeros_like(eos) if tokenizer.unk_id is None else ids == tokenizer.unk_id
    special = torch.isin(ids, torch.tensor(sorted(tokenizer.special_ids))) & ~eos & ~bos & ~unknown
    lowercase = (ids >= ord("a")) & (ids <= ord("z")) & (tokenizer.alphabet == "bytes")
    return [eos, bos, unknown, special, lowercase, ~(eos | bos | unknown | special | lowercase)]


def example(batch: Batch, row: int, tokenizer: Tokenizer) -> Table:
    """Return a table of inputs and targets: the head of a row, and the end of its first document."""
    grid = Table("position", "document", "is shown", "target", "weight", box=None)
    ids = batch.sequence_ids[row]
    end = int((ids == 0).sum())
    width = len(ids)
    places = sorted({*range(min(SHOWN, width)), *range(max(end - SHOWN // 2, 0), min(end + SHOWN // 2, width))})
    before = -1
    for place in places:
        if place != before + 1:
            grid.add_row("...", "", "", "", "")
        before = place
        label = int(batch.labels[row, place])
        weight = "" if label < 0 else "1" if batch.weights is None else f"{batch.weights[row, place]:.4g}"
        document = str(int(ids[place])) if ids[place] >= 0 else "-"
        shown = name(int(batch.tokens[row, place]), tokenizer)
        grid.add_row(str(place), document, shown, name(label, tokenizer) if label >= 0 else "", weight)
    return grid


def name(index: int, tokenizer: Tokenizer) -> str:
    """Return a token as text for people: its letters, or its role."""
    for role in SPECIAL:
        if index == getattr(tokenizer, f"{role}_id"):
            return f"{role} ({index})"
    return repr(tokenizer.decode([index]))
