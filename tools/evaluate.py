"""`cistron evaluate CHECKPOINT --score x.fasta`: how likely a model finds each sequence, one line per sequence.

A causal model gives log-likelihoods, one trained by mlm pseudo-log-likelihoods, in nats. CHECKPOINT is a Cistron
checkpoint of any layout, or a Hugging Face folder. The lines are data: in a file or a pipe, names stand as they are; a
terminal is shown their control characters as text. With --extrapolate in place of --score: documents longer than those
of training (`cistron evaluate --extrapolate --help`).
"""

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from pydantic import JsonValue

from ..base import load_plugins, public_name
from ..datasets.documents import Letters
from ..datasets.files import check_writable
from ..datasets.readers import SequenceFiles
from ..datasets.tokenizers import has_bases
from ..trainer.errors import ConfigError
from ..trainer.inference import Document, OpenedModel, Score, batches_of_records, check_scorable, log_likelihoods
from . import cli
from .extrapolate import main as extrapolate_main
from .support import (
    SCORE_WRITERS,
    Line,
    ScoreFile,
    ScoreTable,
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
    """Parse the command line, load the model, score sequences and write lines."""
    if "--extrapolate" in argv:
        extrapolate_main(argv)
        return
    load_plugins()  # formats and tokenizers of installed plug-ins are among the choices
    parser = argparse.ArgumentParser(prog="cistron evaluate", description=__doc__)
    add_input_arguments(parser, "--score", required=True)
    parser.add_argument("--reverse-complement", action="store_true", help="the mean of both strands of a nucleotide sequence")
    parser.add_argument("--with-eos", action="store_true", help="of a causal model: the eos counts as a token too")
    parser.add_argument("--output", type=Path, help="a file to write: .tsv, .jsonl or .parquet (default: TSV on stdout)")
    add_model_arguments(parser)
    add_letter_arguments(parser, *Letters.model_fields)
    options = parser.parse_args(argv)
    run(options)


def run(options: argparse.Namespace) -> None:
    """Score all sequences of the input."""
    if options.output is not None:
        if options.output.suffix in SCORE_WRITERS:
            check_writable(options.output, "--output", ConfigError)
        check_output(options.output, [*SCORE_WRITERS])
    files = SequenceFiles(options.score, options.format, options.field, options.id_field)
    opened = open_as_asked(options)
    if options.reverse_complement and not has_bases(opened.tokenizer):
        raise ConfigError(
            f"--reverse-complement: sequences of the {opened.tokenizer.kind} tokenizer have no other strand, "
            "those of byte and dna may have"
        )
    check_scorable(opened, with_eos=options.with_eos)
    with open_output(options, opened, files) as output:
        if output.complete:
            return
        pass_over, left_out = passing_over(options), output.left_out
        strands = 2 if options.reverse_complement else 1
        documents = read_as_asked(options, opened, files, pass_over, output.records, both_strands=strands == 2)
        with progress_bar("score") if options.output else nullcontext() as bar:
            if bar:
                bar.begin("sequences", sum(file.size for file in files.files))
            for batch in batches_of_records(documents, options.batch_tokens):
                scored = log_likelihoods(opened, batch, with_eos=options.with_eos, batch_tokens=options.batch_tokens)
                lines = [line_of(one) for one in zip(*[scored] * strands, strict=True)]
                output.add(lines, batch[-1].record + 1)
                if bar:
                    bar.reach(batch[-1].stored, sum(line.residues for line in lines))
        output.finish()
    left_out += pass_over.skipped
    for told in [*output.counts.told(), *([f"{left_out:,} bad records were left out"] if left_out else [])]:
        print(told, file=sys.stderr)


def open_output(options: argparse.Namespace, opened: OpenedModel, files: SequenceFiles) -> ScoreFile | ScoreTable:
    """Return what takes the lines: the file that --output names, or stdout."""
    if options.output is None:
        return ScoreTable()
    plan: dict[str, JsonValue] = {
        **input_plan(options, opened, files),
        "letters": opened.letters.model_dump(),
        "with_eos": options.with_eos,
        "reverse_complement": options.reverse_complement,
    }
    return ScoreFile(options.output, plan, {"checkpoint": public_name(opened.where), **plan})


def line_of(scored: Sequence[tuple[Document, Score]]) -> Line:
    """Return the line of a sequence from its score, or from those of its two strands."""
    document, one = scored[0]
    tokens, nats = sum(score.tokens for _, score in scored), sum(score.log_likelihood for _, score in scored)
    mean = nats / tokens if tokens else math.nan
    return Line(document.name, one.residues, one.tokens, nats / len(scored), mean, one.excluded)


if __name__ == "__main__":
    cli.run("evaluate", sys.argv[1:])
