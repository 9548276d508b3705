"""`cistron embed CHECKPOINT --input x.fasta --layer NAME --output e.parquet`: a layer's output for sequences, streamed.

CHECKPOINT is a Cistron checkpoint of any layout, or a Hugging Face folder. Killed, the same command goes on where it
was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from ..base import load_plugins, public_name
from ..datasets.readers import SequenceFiles
from ..trainer.inference import Pool, choose_layers, embeddings, meaning, widths
from . import cli
from .support import (
    EMBEDDING_WRITERS,
    EmbeddingFile,
    add_input_arguments,
    add_letter_arguments,
    add_model_arguments,
    check_output,
    input_plan,
    open_as_asked,
    passing_over,
    progress_bar,
    read_as_asked,
)


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
    add_letter_arguments(parser, "uppercase")
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
    check_output(options.output, [*EMBEDDING_WRITERS])
    files = SequenceFiles(options.input, options.format, options.field, options.id_field)
    opened = open_as_asked(options)
    layers = choose_layers(opened.model, options.layer)
    plan = {
        **input_plan(options, opened, files),
        "uppercase": opened.letters.uppercase,
        "layers": [*layers],
        "pool": options.pool,
    }
    metadata = {"model": public_name(opened.where), "pool": options.pool, "dtype": options.dtype}
    metadata |= {"uppercase": str(opened.letters.uppercase).lower(), "prefix": ascii(options.prefix)[1:-1]}
    metadata |= {layer: meaning(layer) for layer in layers}
    with EmbeddingFile(options.output, plan, layers, options.pool != "none", metadata) as output:
        if output.complete:
            return
        pass_over, left_out = passing_over(options), output.left_out
        documents = read_as_asked(options, opened, files, pass_over, output.records)
        with progress_bar("embed") as bar, torch.no_grad():
            bar.begin("sequences", sum(file.size for file in files.files))
            for batch in embeddings(opened, documents, layers, options.pool, options.batch_tokens):
                last = batch.documents[-1]
                output.add([document.name for document in batch.documents], batch.lengths, batch.rows, last.record + 1)
                bar.reach(last.stored, sum(batch.lengths))
        output.finish()
    left_out += pass_over.skipped
    bad = f", {left_out:,} bad records left out" if left_out else ""
    layers_told = ", ".join(f"{layer} ({meaning(layer)})" for layer in layers)
    print(f"{options.output}: {output.done} sequences{bad}, {layers_told}")


if __name__ == "__main__":
    cli.run("embed", sys.argv[1:])
