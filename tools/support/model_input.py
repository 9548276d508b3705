"""What the commands that use a trained model have in common on their command lines."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator

from pydantic import JsonValue

from ...base import COUNT, shown
from ...datasets.documents import Letters
from ...datasets.errors import BadRecords
from ...datasets.readers import SequenceFiles, raw_formats
from ...datasets.tokenizers import POLICIES
from ...trainer.inference import BATCH_TOKENS, DTYPES, Document, OpenedModel, open_model, read_documents
from .table_options import add_table_options, given, read_table


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
    parser.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
        default="error",
        help="error: a bad, empty or too long record ends the command. skip: it is left out and counted (default: error)",
    )


def add_letter_arguments(parser: argparse.ArgumentParser, *keys: str) -> None:
    """Add the keys of `[data]` about letters, and what stands before each sequence."""
    letters = parser.add_argument_group("letters", "as in training, unless options say otherwise")
    add_table_options(letters, Letters, *keys, defaults=False)
    letters.add_argument("--prefix", default="", metavar="TEXT", help="is read before each sequence, as its tag")


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
    letters = read_table(Letters, "data", given(options, Letters))
    opened = open_model(options.checkpoint, options.device, options.dtype, options.on_unknown, letters)
    for message in opened.messages:
        print(message, file=sys.stderr)
    return opened


def passing_over(options: argparse.Namespace) -> BadRecords:
    """Return what becomes of bad records: stderr tells of those that are left out."""
    return BadRecords(skip=options.on_bad_record == "skip", of="input", report=lambda line: print(line, file=sys.stderr))


def read_as_asked(
    options: argparse.Namespace,
    opened: OpenedModel,
    files: SequenceFiles,
    pass_over: BadRecords,
    begin: int,
    *,
    both_strands: bool = False,
) -> Iterator[Document]:
    """Read the sequences of a command line from record `begin` on, see `read_documents`."""
    return read_documents(
        opened, files, pass_over, begin=begin, max_length=options.max_length, prefix=options.prefix, both_strands=both_strands
    )


def input_plan(options: argparse.Namespace, opened: OpenedModel, files: SequenceFiles) -> dict[str, JsonValue]:
    """Return what decides the documents of a command line, and with what precision they run."""
    return {
        "model": opened.fingerprint,
        "dtype": options.dtype,
        "on_unknown": getattr(opened.tokenizer, "on_unknown", None),
        "prefix": options.prefix,
        "max_length": options.max_length,
        "on_bad_record": options.on_bad_record,
        "input": [list(file.public) for file in files.files],
        "fields": [options.format, options.field, options.id_field],
    }


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
