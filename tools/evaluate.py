"""`cistron evaluate CHECKPOINT --score x.fasta`: how likely a model finds each sequence, one line per sequence.

A causal model gives log-likelihoods, one trained by mlm pseudo-log-likelihoods, in nats. CHECKPOINT is a Cistron
checkpoint of any layout, or a Hugging Face folder. The lines are data: in a file or a pipe, names stand as they are; a
terminal is shown their control characters as text. With --extrapolate in place of --score: documents longer than those
of training (`cistron evaluate --extrapolate --help`).
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias

from ..base import load_plugins
from ..datasets.files import check_writable, whole
from ..datasets.nucleotides import CODES, reverse_complement
from ..datasets.readers import NamedSequence, SequenceFiles
from ..datasets.tokenizers import has_bases
from ..trainer.errors import ConfigError
from ..trainer.inference import Document, Score, log_likelihoods, read_documents
from ..trainer.processes import data_output
from . import cli
from .extrapolate import main as extrapolate_main
from .support import add_input_arguments, add_model_arguments, open_as_asked, progress_bar, writing

ROWS = 4096  # of a parquet file that are held


class Line(NamedTuple):
    """A line of the output.

    Attributes:
        name: of the sequence.
        residues: its tokens, opening token and eos left out.
        tokens: those that were scored.
        log_likelihood: in nats, summed over them; of both strands the mean.
        mean: per scored token; NaN where there is none.
    """

    name: str
    residues: int
    tokens: int
    log_likelihood: float
    mean: float


Writer: TypeAlias = Callable[[Line], Any]


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
    options = parser.parse_args(argv)
    run(options)


def run(options: argparse.Namespace) -> None:
    """Score all sequences of the input."""
    if options.output is not None and options.output.suffix not in WRITERS:
        raise ConfigError(f"--output {options.output}: its name must end in one of {', '.join(WRITERS)}")
    if options.output is not None:
        check_writable(options.output, "--output", ConfigError)
    files = SequenceFiles(options.score, options.format, options.field, options.id_field)
    opened = open_as_asked(options)
    sequences: Iterable[NamedSequence] = files
    if options.reverse_complement:
        if not has_bases(opened.tokenizer):
            raise ConfigError(
                f"--reverse-complement: sequences of the {opened.tokenizer.kind} tokenizer have no other strand, "
                "those of byte and dna may have"
            )
        sequences = both_strands(files)
    documents = read_documents(opened, files, sequences, options.max_length)
    scores = log_likelihoods(opened, documents, with_eos=options.with_eos, batch_tokens=options.batch_tokens)
    with progress_bar("score") if options.output else nullcontext() as bar, open_writer(options.output) as write:
        if bar:
            bar.begin("sequences", sum(file.size for file in files.files))
        for document, one in means(scores) if options.reverse_complement else scores:
            write(Line(document.name, *one, one.mean))
            if bar:
                bar.reach(document.stored, one.residues)


def both_strands(files: SequenceFiles) -> Iterator[NamedSequence]:
    """Each sequence and behind it its reverse complement. Raises DataError where there is none."""
    for sequence in files:
        try:
            other = reverse_complement(sequence.data)
        except ValueError as error:
            wrong = len(sequence.data) - len(sequence.data.lstrip(CODES + CODES.lower()))
            raise files.located(sequence, str(error), wrong) from None
        yield sequence
        yield sequence._replace(data=other)


def means(scores: Iterator[tuple[Document, Score]]) -> Iterator[tuple[Document, Score]]:
    """Yield the mean of every two scores, which are those of a sequence and of its reverse complement."""
    for (document, one), (_, other) in zip(scores, scores, strict=True):
        yield document, one._replace(log_likelihood=(one.log_likelihood + other.log_likelihood) / 2)


@contextmanager
def open_writer(output: Path | None) -> Iterator[Writer]:
    """Yield what writes lines; a file appears when it is whole. Raises ConfigError where it cannot be written."""
    if output is None:
        yield tsv_writer(data_output())
        return
    with ExitStack() as opened:
        with writing(output):
            partial = opened.enter_context(whole(output))
            write = opened.enter_context(WRITERS[output.suffix](partial))

        def written(result: Line) -> None:
            with writing(output):
                write(result)

        yield written
        with writing(output):
            opened.close()


def tsv_writer(file: TextIO) -> Writer:
    """Lines of tab-separated values under a line of names; floats have all of their digits."""
    rows = csv.writer(file, delimiter="\t", lineterminator="\n")
    rows.writerow(Line._fields)
    return rows.writerow


@contextmanager
def _tsv(path: Path) -> Iterator[Writer]:
    with path.open("w", newline="") as file:
        yield tsv_writer(file)


@contextmanager
def _jsonl(path: Path) -> Iterator[Writer]:
    with path.open("w") as file:
        yield lambda result: print(json.dumps(_without_nan(result)), file=file)


@contextmanager
def _parquet(path: Path) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64())
    schema = pa.schema(list(zip(Line._fields, types, strict=True)))
    held: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def write(result: Line) -> None:
            held.append(_without_nan(result))
            if len(held) == ROWS:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(held, schema))
            held.clear()

        yield write
        flush()


WRITERS = {".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}


def _without_nan(result: Line) -> dict[str, Any]:
    return {**result._asdict(), "mean": result.mean if result.tokens else None}


if __name__ == "__main__":
    cli.run("evaluate", sys.argv[1:])
