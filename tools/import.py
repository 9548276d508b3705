"""`cistron import HF_FOLDER OUT`: a Hugging Face folder as a checkpoint, with the TOML tables that fit it.

Llama, Qwen3 and EuroBERT, safetensors in one file or many, one tensor in memory at a time. Names, shapes and
completeness are checked; no pickle is ever read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..datasets.files import check_writable_folder
from ..trainer.errors import ConfigError
from ..trainer.huggingface import import_folder
from . import cli


def main(argv: Sequence[str]) -> None:
    """Parse, import, say how to train from it."""
    parser = argparse.ArgumentParser(prog="cistron import", description=__doc__)
    parser.add_argument("source", type=Path, metavar="HF_FOLDER", help="with config.json, *.safetensors and tokenizer.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write: step-0, model.toml, tokenizer")
    parser.add_argument("--eos-token", metavar="TEXT", help="that ends a document (default: what tokenizer_config.json says)")
    parser.add_argument("--pad-token", metavar="TEXT", help="that fills rows (default: likewise, else the eos)")
    options = parser.parse_args(argv)
    check_writable_folder(options.out, "OUT", ConfigError)
    said = import_folder(options.source, options.out, eos_token=options.eos_token, pad_token=options.pad_token)
    print("\n".join(said))


if __name__ == "__main__":
    cli.run("import", sys.argv[1:])
