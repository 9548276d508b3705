"""What the commands that use a trained model have in common on their command lines."""

import argparse
import math
import re
import sys
from collections.abc import Callable

from ...base import COUNT, shown
from ...datasets.readers import raw_formats
from ...datasets.tokenizers import POLICIES
from ...trainer.inference import BATCH_TOKENS, DTYPES, OpenedModel, open_model


def add_input_arguments(parser: argparse.ArgumentParser, name: str, *, required: bool = False) -> None:
    """Add the options that say what to read, the files as option `name`."""
    parser.add_argument(
        name, nargs="+", metavar="FILE", required=required, help="files, globs or URLs; .gz, .zst, .xz and .bz2 are inflated"
    )
    parser.add_argument("--format", choices=raw_formats(), help="of the files (default: by their endings)")
    parser.add_argument("--field", default="text", help="of jsonl, csv, tsv and parquet: holds the sequence (default: text)")
    parser.add_argument(
        "--id-field", help="of jsonl, csv, tsv and parquet: holds the name (default: records are numbered from 0)"
    )
    parser.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="refuse longer sequences (default: run them whole)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what names the model, and the options that say how to run it."""
    parser.add_argument("checkpoint", help="<dump_folder>/checkpoint/step-<N>; without step-<N>: the newest; or a HF folder")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and computation (default: float32)")
    parser.add_argument(
        "--on-unknown",
        choices=POLICIES,
        help="what to do with a letter that protein or dna lacks: refuse it, or map it to another (default: as the job says)",
    )
    parser.add_argument(
        "--batch-tokens", type=positive, default=BATCH_TOKENS, metavar="TOKENS", help=f"at once (default: {BATCH_TOKENS})"
    )


def open_as_asked(options: argparse.Namespace) -> OpenedModel:
    """Open the model of a command line; messages go to stderr. Raises ConfigError for a device that is not there."""
    opened = open_model(options.checkpoint, options.device, options.dtype, options.on_unknown)
    for message in opened.messages:
        print(message, file=sys.stderr)
    return opened


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that takes whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from {least} to {most}")
        return number

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Return the type of an option that takes numbers from `least` to `most`."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number from {least:g} to {most:g}")
        return number

    return read


positive = whole_number(1, COUNT)
