"""Outputs of layers for sequences, pooled or for each residue: in memory, or batch by batch for a file."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from ...datasets.errors import DataConfigError
from ..errors import ConfigError
from .documents import BATCH_TOKENS, Document, Texts, batches, encoded, make_row, starts_of
from .layers import choose_layers, outputs
from .open import ModelOrPath, OpenedModel, opened_model

Pooled: TypeAlias = Literal["mean", "last"]
Pool: TypeAlias = Literal[Pooled, "none"]


class Embedded(NamedTuple):
    """A batch of documents.

    Attributes:
        documents: the batch.
        lengths: residues of each.
        rows: of each layer float32: pooled [documents, width], else [residues of all, width].
    """

    documents: list[Document]
    lengths: list[int]
    rows: dict[str, Tensor]


@overload
def embed(
    model: ModelOrPath,
    sequences: Texts,
    *,
    layer: str,
    pool: Pooled = ...,
    prefix: str | bytes = ...,
    gradients: bool = ...,
    batch_tokens: int = ...,
) -> Tensor: ...


@overload
def embed(
    model: ModelOrPath,
    sequences: Texts,
    *,
    layer: str,
    pool: Literal["none"],
    prefix: str | bytes = ...,
    gradients: bool = ...,
    batch_tokens: int = ...,
) -> list[Tensor]: ...


@overload
def embed(
    model: ModelOrPath,
    sequences: Texts,
    *,
    layer: list[str],
    pool: Pool = ...,
    prefix: str | bytes = ...,
    gradients: bool = ...,
    batch_tokens: int = ...,
) -> dict[str, Any]: ...


def embed(
    model: ModelOrPath,
    sequences: Texts,
    *,
    layer: str | list[str],
    pool: Pool = "mean",
    prefix: str | bytes = "",
    gradients: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> Any:
    """Return what a layer computes for each sequence, on the model's device; all of it is held in memory.

        >>> model = open_model("outputs/dna/checkpoint")
        >>> embed(model, ["ACGTTGCA", "TTAGC"], layer="norm").shape
        torch.Size([2, 32])
        >>> [len(rows) for rows in embed(model, ["ACGTTGCA", "TTAGC"], layer="norm", pool="none")]
        [8, 5]

    Args:
        model: what `open_model` returns, or the path of a checkpoint or a Hugging Face folder, which is then opened in
            float32.
        sequences: each without eos or any other special token.
        layer: the name of one, or a list of names and globs: `layers.*` is every block.
        pool: `mean` over residues, the `last` residue, or `none`. Eos, padding, opening tokens and prefix never count.
        prefix: a text that the model reads before each sequence.
        gradients: keep the graph, through which the result reaches the model's parameters.
        batch_tokens: that run at once, or those of one longer sequence.

    Returns:
        For one name float32 [sequences, width] in order, without pooling a list of [residues, width]. For a list of
        names a dictionary of these.

    Raises:
        ConfigError: there is no such layer, or `layer` is a glob of several.
        DataConfigError: a sequence or the prefix cannot be encoded, or one is empty; or there is none.
    """
    opened = opened_model(model)
    names = choose_layers(opened.model, [layer] if isinstance(layer, str) else layer)
    if isinstance(layer, str) and len(names) > 1:
        raise ConfigError(f"layer = {layer!r} names {len(names)} layers; give a list to get a dictionary")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.set_grad_enabled(gradients):
        for batch in embeddings(opened, encoded(opened, sequences, prefix), names, pool, batch_tokens):
            for name, rows in batch.rows.items():
                found[name] += rows.split(batch.lengths) if pool == "none" else [rows]
    if not found[names[0]]:
        raise DataConfigError("sequences: there are none")
    values = {name: rows if pool == "none" else torch.cat(rows) for name, rows in found.items()}
    return values[names[0]] if isinstance(layer, str) else values


def embeddings(
    opened: OpenedModel, documents: Iterable[Document], layers: Sequence[str], pool: Pool, batch_tokens: int
) -> Iterator[Embedded]:
    """Yield batches of documents in order with their layers' outputs; the caller may disable gradients."""
    for batch in batches(documents, lambda document: len(document.ids), batch_tokens):
        ids = [document.ids for document in batch]
        spans = [slice(start + one.begin, end - 1) for one, (start, end) in zip(batch, pairwise(starts_of(ids)), strict=True)]
        found = outputs(opened.model, layers, make_row(opened, ids))
        rows = {name: _pooled(output, spans, pool).float() for name, output in found.items()}
        yield Embedded(batch, [span.stop - span.start for span in spans], rows)


def _pooled(output: Tensor, spans: list[slice], pool: Pool) -> Tensor:
    """`output` [tokens, width] of the residues in `spans`, or pooled over each."""
    if pool == "last":
        return output[[span.stop - 1 for span in spans]]
    if pool == "mean":
        return torch.stack([output[span].mean(0, dtype=torch.float32) for span in spans])
    return torch.cat([output[span] for span in spans])
