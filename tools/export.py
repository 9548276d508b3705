"""`cistron export CHECKPOINT OUT`: a checkpoint of any layout as a Hugging Face folder, which transformers loads.

Weights are written as safetensors, one tensor in memory at a time, beside config.json, generation_config.json and the
files of the tokenizer. OUT appears whole or not at all.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..datasets.files import check_writable_folder
from ..trainer.checkpoints import read_newest
from ..trainer.errors import ConfigError
from ..trainer.huggingface import export
from . import cli

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
DTYPES = {"saved": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: Sequence[str]) -> None:
    """Find the checkpoint, export it, say what was written."""
    parser = argparse.ArgumentParser(prog="cistron export", description=__doc__)
    parser.add_argument("checkpoint", help="<dump_folder>/checkpoint/step-<N>, or a URL; without step-<N>: the newest good one")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist, or be empty")
    parser.add_argument("--dtype", choices=DTYPES, default="saved", help="of the weights (default: as they were saved)")
    parser.add_argument("--max-shard-size", type=size, default=size("5GB"), metavar="SIZE", help="of a file (default: 5GB)")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument("--tokenizer", metavar="PATH", help="its tokenizer.json or folder, where the job's was moved")
    tokenizer.add_argument("--no-tokenizer", action="store_true", help="write no tokenizer files")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at OUT, and nothing else")
    options = parser.parse_args(argv)
    check_writable_folder(options.out, "OUT", ConfigError)
    found, skipped = read_newest(options.checkpoint)
    table = found.state.config.tokenizer
    if options.tokenizer:
        table = table.model_copy(update={"kind": "hf", "path": options.tokenizer})
    said = export(
        found,
        options.out,
        tokenizer=None if options.no_tokenizer else table,
        dtype=DTYPES[options.dtype],
        max_shard_size=options.max_shard_size,
        replace=options.overwrite,
    )
    print("\n".join([*skipped, *said]))


def size(text: str) -> int:
    """Return the bytes of `5GB`, `500MB` or a number. Raises argparse's error for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.upper())
    number = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 5GB, 500MB or a number of bytes")
    return number


if __name__ == "__main__":
    cli.run("export", sys.argv[1:])
