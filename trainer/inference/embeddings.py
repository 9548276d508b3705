"""Part of trainer/inference."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...datasets.errors import DataConfigError
from ...datasets.readers import NamedSequence
from ...datasets.tokenizers import MAP, TokenizeError
from ..errors import ConfigError
from .documents import BATCH_TOKENS, Document, batches, encode, make_row, opening_tokens
from .layers import choose_layers, outputs
from .open import OpenedModel, open_model

Pool: TypeAlias = Literal["mean", "last", "none"]


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


def embed(
    model: OpenedModel | str | Path,
    sequences: Iterable[str | bytes],
    *,
    layer: str | list[str],
    pool: Pool = "mean",
    gradients: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> Any:
    """What a layer computes for each sequence; all of it is held in memory, on the model's device.

    Args:
        model: what `open_model` returns, or the path of a checkpoint or a Hugging Face folder, which is then opened in float32.
        sequences: each without eos or any other special token.
        layer: the name of one, or a list of names and globs, see `trainer.layers`.
        pool: `mean` over residues, the `last` residue, or `none`. Eos, padding and opening tokens never count.
        gradients: keep the graph, through which the result reaches the model's parameters.
        batch_tokens: that run at once, or those of one longer sequence.

    Returns:
        For one name float32 [sequences, width] in order, without pooling a list of [residues, width]. For a list of names a
        dictionary of these.

    Raises:
        ConfigError: there is no such layer, or `layer` is a glob of several.
        DataConfigError: a sequence cannot be encoded, or is empty; or there is none.
    """
    opened = model if isinstance(model, OpenedModel) else open_model(model)
    names = choose_layers(opened.model, [layer] if isinstance(layer, str) else layer)
    if isinstance(layer, str) and len(names) > 1:
        raise ConfigError(f"layer = {layer!r} names {len(names)} layers; give a list to get a dictionary")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.set_grad_enabled(gradients):
        for batch in embeddings(opened, _encoded(opened, sequences), names, pool, batch_tokens):
            for name, rows in batch.rows.items():
                found[name] += rows.split(batch.lengths) if pool == "none" else [rows]
    if not found[names[0]]:
        raise DataConfigError("sequences: there are none")
    values = {name: rows if pool == "none" else torch.cat(rows) for name, rows in found.items()}
    return values[names[0]] if isinstance(layer, str) else values


def _encoded(opened: OpenedModel, sequences: Iterable[str | bytes]) -> Iterator[Document]:
    for number, sequence in enumerate(sequences):
        data = sequence.encode(errors="surrogateescape") if isinstance(sequence, str) else sequence
        try:
            yield encode(opened.tokenizer, NamedSequence(str(number), data))
        except TokenizeError as error:
            place = "" if error.offset is None else f", byte {error.offset}"
            problem = error.problem.replace(MAP, 'open_model(..., on_unknown="map")')
            raise DataConfigError(f"sequences[{number}]{place}: {problem}") from None


def embeddings(
    opened: OpenedModel, documents: Iterable[Document], layers: Sequence[str], pool: Pool, batch_tokens: int
) -> Iterator[Embedded]:
    """Batches of documents in order with their layers' outputs; gradients flow unless the caller has turned them off."""
    first = opening_tokens(opened.tokenizer)
    for batch in batches(documents, lambda document: len(document.ids), batch_tokens):
        row = make_row(opened, [document.ids for document in batch])
        spans = [slice(start + first, end - 1) for start, end in zip(row.starts, row.starts[1:], strict=False)]
        found = outputs(opened.model, layers, row)
        rows = {name: _pooled(output, spans, pool).float() for name, output in found.items()}
        yield Embedded(batch, [span.stop - span.start for span in spans], rows)


def _pooled(output: Tensor, spans: list[slice], pool: Pool) -> Tensor:
    """`output` [tokens, width] of the residues in `spans`, or pooled over each."""
    if pool == "last":
        return output[[span.stop - 1 for span in spans]]
    if pool == "mean":
        return torch.stack([output[span].mean(0, dtype=torch.float32) for span in spans])
    return torch.cat([output[span] for span in spans])
