"""`cistron embed CHECKPOINT --input x.fasta --layer NAME --output e.parquet`: a layer's output for sequences, streamed.

CHECKPOINT is a Cistron checkpoint of any layout, or a Hugging Face folder. Killed, the same command goes on where it
was.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import get_args

import torch
from pydantic import JsonValue

from ..base import load_plugins, public_name
from ..datasets.readers import SequenceFiles
from ..trainer.inference import Pool, choose_layers, embeddings, meaning, read_documents, widths
from . import cli
from .support import EmbeddingFile, add_input_arguments, add_model_arguments, check_output, open_as_asked, progress_bar


def main(argv: Sequence[str]) -> None:
    """Parse the command line, load the model, embed sequences and write a file."""
    load_plugins()  # formats and tokenizers of installed plug-ins are among the choices
    parser = argparse.ArgumentParser(prog="cistron embed", description=__doc__)
    add_input_arguments(parser, "--input")
    parser.add_argument("--layer", nargs="+", help="names or globs; * stands for something between two dots")
    parser.add_argument("--list-layers", action="store_true", help="print all layers, with their widths and what they are")
    parser.add_argument("--pool", choices=get_args(Pool), default="mean", help="over the residues (default: mean)")
    parser.add_argument("--output", type=Path, help="a file to write: .safetensors or .parquet")
    add_model_arguments(parser)
    options = parser.parse_args(argv)
    if not options.list_layers and not (options.input and options.layer and options.output):
        parser.error("--input, --layer and --output are required, or --list-layers alone")
    if options.list_layers:
        list_layers(options)
    else:
        run(options)


def list_layers(options: argparse.Namespace) -> None:
    """Print name, width and meaning of every layer."""
    found = widths(open_as_asked(options))
    longest = max(map(len, found))
    for name, width in found.items():
        print(f"{name.ljust(longest)}  {width:6}  {meaning(name)}")


def run(options: argparse.Namespace) -> None:
    """Embed all sequences of the input."""
    check_output(options.output)
    files = SequenceFiles(options.input, options.format, options.field, options.id_field)
    opened = open_as_asked(options)
    layers = choose_layers(opened.model, options.layer)
    plan: dict[str, JsonValue] = {
        "model": opened.fingerprint,
        "layers": [*layers],
        "pool": options.pool,
        "dtype": options.dtype,
        "on_unknown": getattr(opened.tokenizer, "on_unknown", None),
        "input": [list(file.public) for file in files.files],
        "fields": [options.format, options.field, options.id_field],
    }
    metadata = {"model": public_name(opened.where), "pool": options.pool, "dtype": options.dtype}
    metadata |= {layer: meaning(layer) for layer in layers}
    with EmbeddingFile(options.output, plan, layers, options.pool != "none", metadata) as output:
        if output.done:
            print(f"{output.partial} holds {output.done} sequences: going on behind them", file=sys.stderr)
        sequences = islice(files, output.done, None)
        documents = read_documents(opened, files, sequences, options.max_length)
        with progress_bar("embed") as bar, torch.no_grad():
            bar.begin("sequences", sum(file.size for file in files.files))
            for batch in embeddings(opened, documents, layers, options.pool, options.batch_tokens):
                output.add([document.name for document in batch.documents], batch.lengths, batch.rows)
                bar.reach(batch.documents[-1].stored, sum(batch.lengths))
        output.finish()
    print(f"{options.output}: {output.done} sequences, {', '.join(f'{layer} ({meaning(layer)})' for layer in layers)}")


if __name__ == "__main__":
    cli.run("embed", sys.argv[1:])
