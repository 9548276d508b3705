"""`cistron embed CHECKPOINT --input x.fasta --layer NAME --output e.parquet`: a layer's output for sequences, streamed.

CHECKPOINT is a Cistron checkpoint of any layout, or a Hugging Face folder. Killed, the same command goes on where it was.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from ..datasets.errors import DataConfigError
from ..datasets.prepare import Event
from ..datasets.sequences import NamedSequence, SequenceFiles
from ..datasets.tokenizers import TokenizeError
from ..datasets.vocabularies import MAP
from ..trainer.config import ConfigError
from ..trainer.failures import run_command
from ..trainer.inference import (
    BATCH_TOKENS,
    Document,
    OpenedModel,
    batches,
    encode,
    make_row,
    open_model,
    opening_tokens,
    read_documents,
)
from ..trainer.layers import choose_layers, meaning, outputs, widths
from .embedding_files import EmbeddingFile, check_output
from .model_input import add_input_arguments, add_model_arguments, open_as_asked
from .progress import make_monitor

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


def main(argv: Sequence[str]) -> None:
    """Parse, load, embed, write."""
    parser = argparse.ArgumentParser(prog="cistron embed", description=__doc__)
    parser.add_argument("checkpoint", help="<dump_folder>/checkpoint/step-<N>; without step-<N>: the newest; or a HF folder")
    add_input_arguments(parser, "--input")
    parser.add_argument("--layer", nargs="+", help="names or globs; * stands for something between two dots")
    parser.add_argument("--list-layers", action="store_true", help="print all layers, with their widths and what they are")
    parser.add_argument("--pool", choices=get_args(Pool), default="mean", help="over the residues (default: mean)")
    parser.add_argument("--output", type=Path, help="a file to write: .safetensors, .parquet or .npy")
    add_model_arguments(parser)
    options = parser.parse_args(argv)
    if not options.list_layers and not (options.input and options.layer and options.output):
        parser.error("--input, --layer and --output are required, or --list-layers alone")
    run_command(lambda: list_layers(options) if options.list_layers else run(options))


def list_layers(options: argparse.Namespace) -> None:
    """Print name, width and meaning of every layer."""
    found = widths(open_as_asked(options))
    longest = max(map(len, found))
    for name, width in found.items():
        print(f"{name.ljust(longest)}  {width:6}  {meaning(name)}")


def run(options: argparse.Namespace) -> None:
    """Embed all sequences of the input."""
    check_output(options.output, 1, options.pool != "none")
    files = SequenceFiles(options.input, options.format, options.field, options.id_field)
    opened = open_as_asked(options)
    layers = choose_layers(opened.model, options.layer)
    plan = {
        "model": opened.fingerprint,
        "layers": layers,
        "pool": options.pool,
        "dtype": options.dtype,
        "on_unknown": getattr(opened.tokenizer, "on_unknown", None),
        "input": [list(file) for file in files.files],
        "fields": [options.format, options.field, options.id_field],
    }
    metadata = {"model": opened.where, "pool": options.pool, "dtype": options.dtype}
    metadata |= {layer: meaning(layer) for layer in layers}
    output = EmbeddingFile(options.output, plan, layers, options.pool != "none", metadata)
    if output.done:
        print(f"{output.partial} holds {output.done} sequences: going on behind them", file=sys.stderr)
    sequences = islice(files, output.done, None)
    documents = read_documents(opened, files, sequences, options.max_length)
    told = 0.0
    with make_monitor("embed") as bar, torch.no_grad():
        bar.begin("sequences", sum(file.size for file in files.files))
        for batch in embeddings(opened, documents, layers, options.pool, options.batch_tokens):
            output.add([document.name for document in batch.documents], batch.lengths, batch.rows)
            bar(Event(stored=batch.documents[-1].stored - told, text=sum(batch.lengths)))
            told = batch.documents[-1].stored
    output.finish()
    print(f"{options.output}: {output.done} sequences, {', '.join(f'{layer} ({meaning(layer)})' for layer in layers)}")


if __name__ == "__main__":
    main(sys.argv[1:])
