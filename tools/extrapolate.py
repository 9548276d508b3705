"""`cistron evaluate CHECKPOINT --extrapolate`: longer documents than in training, by every method without training.

CHECKPOINT is a Cistron checkpoint of any layout, or a Hugging Face folder. Options that are left out are as the
checkpoint's own `[eval.extrapolation]` says.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..base import public_name
from ..datasets.files import check_writable_folder
from ..datasets.readers import SequenceFiles
from ..datasets.tokenizers import Ids
from ..trainer.config import Continuation, Extrapolation, Passkey, validate
from ..trainer.errors import ConfigError, refuse
from ..trainer.extrapolation import (
    METHODS,
    LengthResult,
    LongRowModel,
    evaluate,
    plan,
    read_sources,
    results_json,
    total_tokens,
    trained_as,
)
from ..trainer.inference import OpenedModel, read_documents
from ..trainer.processes import Terminal
from .support import (
    add_input_arguments,
    add_model_arguments,
    add_table_options,
    given,
    open_as_asked,
    passing_over,
    progress_bar,
)

OUTPUT = Path("outputs/extrapolation")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, load the model, evaluate it and report."""
    parser = argparse.ArgumentParser(prog="cistron evaluate", description=__doc__)
    parser.add_argument("--extrapolate", action="store_true", required=True, help="what this is about")
    add_input_arguments(parser, "--input")
    add_table_options(parser, Extrapolation, "lengths", "score_last", "documents", defaults=False)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"of {', '.join(METHODS)} (default: all that fit)")
    add_table_options(parser, Passkey, "samples", "digits", "depths", prefix="passkey_", defaults=False)
    add_table_options(parser, Continuation, "samples", "tokens", "metrics", prefix="continuation_", defaults=False)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of results (default: {OUTPUT})")
    add_model_arguments(parser)
    options = parser.parse_args(argv)
    run(options)


def run(options: argparse.Namespace) -> None:
    """Evaluate as the command line says."""
    check_writable_folder(options.output, "--output", ConfigError)
    opened = open_as_asked(options)
    opened.refuse_encoder("be asked for longer documents")
    table = table_of(options, opened)
    if opened.seq_len is None and opened.trained.rope.original_seq_len is None:
        raise ConfigError(f"{opened.where}: the length of its rows in training is unknown (max_position_embeddings)")
    key = "training.seq_len of its job" if opened.config else "max_position_embeddings"
    trained, said = trained_as(opened.trained, opened.seq_len or opened.model.max_document_length, key)
    asked = plan(table, trained, opened.tokenizer, lambda longest: long_documents(options, opened, longest))
    options.output.mkdir(parents=True, exist_ok=True)
    console = Terminal()
    for line in (said, *asked.messages):
        console.print(line)
    weights = opened.model.tok_embeddings.weight
    with progress_bar("extrapolate", console, in_bytes=False) as bar:
        bar.begin("", total_tokens(table, asked))
        long_model = LongRowModel(
            model=opened.model,
            tokenizer=opened.tokenizer,
            device=opened.device,
            dtype=weights.dtype,
            batch_tokens=options.batch_tokens,
            tick=bar.advance,
        )
        results = evaluate(long_model, table, asked)
    found = {"checkpoint": public_name(opened.where), **results_json(results, table, asked)}
    write_results(options.output, found, results, trained.length, table.score_last, console)


def table_of(options: argparse.Namespace, opened: OpenedModel) -> Extrapolation:
    """Return the checkpoint's `[eval.extrapolation]` under the options of the command line.

    Raises ConfigError for a wrong value.
    """
    table: dict[str, Any] = opened.config.eval.extrapolation.model_dump() if opened.config else Extrapolation().model_dump()
    table |= given(options, Extrapolation)
    table["passkey"] |= given(options, Passkey, "passkey_")
    table["continuation"] |= given(options, Continuation, "continuation_")
    valid = validate({"eval": {"extrapolation": {**table, "enable": False}}})  # `enable` is of training
    refuse([*valid.mistakes, *valid.complaints])
    return valid.config.eval.extrapolation


def long_documents(options: argparse.Namespace, opened: OpenedModel, longest: int) -> Iterator[Ids]:
    """Return the documents of --input, or of the job's [[validation.sources]].

    Raises ConfigError where there are neither.
    """
    if options.input:
        files = SequenceFiles(options.input, options.format, options.field, options.id_field)
        unlimited = replace(opened, seq_len=None)  # no warning that these are longer than rows of training
        documents = read_documents(unlimited, files, passing_over(options), max_length=options.max_length)
        return (document.ids[:longest] for document in documents)
    if opened.config is None or not opened.config.validation.sources:
        raise ConfigError("--extrapolate: the model's job has no [[validation.sources]]; name files with --input")
    return read_sources(opened.config, opened.tokenizer, longest)


def write_results(
    folder: Path, found: dict[str, Any], results: list[LengthResult], trained: int, score_last: int, console: Terminal
) -> None:
    """Tables, JSON, picture and TensorBoard, in place of those of an earlier evaluation."""
    from ..trainer.extrapolation import draw_curves, make_tables  # matplotlib takes 0.3 s to import

    for each in make_tables(results, trained, score_last):
        console.print(each)
    (folder / "extrapolation.json").write_text(json.dumps(found, indent=1) + "\n")
    draw_curves(results, trained, score_last, folder / "extrapolation.png")
    for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(folder / "tensorboard")) as board:
        for result in results:
            for name, value in result.curves().items():
                method, measure, length = name.split("/")
                board.add_scalar(f"extrapolation/{method}/{measure}", value, int(length))  # the length is the step
    console.print(f"{folder}/extrapolation.json, extrapolation.png, tensorboard")
