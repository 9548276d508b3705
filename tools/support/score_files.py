"""Scores on their way into a file: a line for each batch that survives a kill, put together when all are there.

<output>.partial/scores.jsonl       of each batch, as soon as it is done: records read so far, and its lines
<output>.settings.json              beside .tsv and .jsonl: what the scores were made under; .parquet holds it
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, TypeAlias

from pydantic import JsonValue
from typing_extensions import Self, override

from ...base import json_of
from ...datasets.files import whole
from ...trainer.errors import ConfigError
from ...trainer.processes import data_output
from .partial_output import PartialOutput, writing

ROWS = 4096  # of a parquet file that are held
JOURNAL = "scores.jsonl"


class Line(NamedTuple):
    """A line of the output.

    Attributes:
        name: of the sequence.
        residues: its tokens, opening token, prefix and eos left out.
        tokens: those that were scored; of both strands those of the sequence as it stands.
        log_likelihood: in nats, summed over them; of both strands the mean.
        mean: per scored token; NaN where there is none.
        excluded: residues that training took no loss on.
    """

    name: str
    residues: int
    tokens: int
    log_likelihood: float
    mean: float
    excluded: int

    @classmethod
    def read(cls, name: str, residues: int, tokens: int, log_likelihood: float, mean: float | None, excluded: int) -> "Line":
        """Return the line that has these `values`."""
        return cls(name, residues, tokens, log_likelihood, math.nan if mean is None else mean, excluded)

    def values(self) -> list[Any]:
        """Return the columns, None for a mean of nothing: what JSON and parquet hold."""
        return [*self[:4], None if math.isnan(self.mean) else self.mean, self.excluded]


class ScoreCounts:
    """What a person should know of lines, counted."""

    def __init__(self) -> None:
        self.excluded = 0
        self.without = 0

    def count(self, lines: Sequence[Line]) -> None:
        """Add the targets that were left out of these lines, and the lines without any target."""
        self.excluded += sum(line.excluded for line in lines)
        self.without += sum(math.isnan(line.mean) for line in lines)

    def told(self) -> list[str]:
        """Return a sentence for each that there is."""
        return [
            *([f"{self.excluded:,} letters that training took no loss on are not scored"] if self.excluded else []),
            *([f"{self.without:,} sequences have no token that is scored: their mean is nan"] if self.without else []),
        ]


class ScoreTable:
    """TSV on stdout, batch by batch, by the interface of a `ScoreFile` of which nothing is finished."""

    records, left_out, complete = 0, 0, False

    def __enter__(self) -> Self:
        """Print the names of the columns."""
        self.counts = ScoreCounts()
        self._write = tsv_writer(data_output())
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def add(self, lines: Sequence[Line], _: int) -> None:
        """Print the lines of a batch."""
        for line in lines:
            self._write(line)
        self.counts.count(lines)

    def finish(self) -> None:
        """Do nothing: all is printed."""


class ScoreFile(PartialOutput):
    """A file of scores, see `PartialOutput`.

    Args:
        output: a `.tsv`, `.jsonl` or `.parquet` file that is not there yet.
        plan: JSON values that decide the numbers.
        settings: what the output says of them.
    """

    def __init__(self, output: Path, plan: Mapping[str, JsonValue], settings: Mapping[str, JsonValue]) -> None:
        super().__init__(output, plan, [*WRITERS])
        self.settings = json.dumps(settings, indent=1)
        self.counts = ScoreCounts()
        self._journal = self.partial / JOURNAL
        self._file: BinaryIO | None = None

    @override
    def __exit__(self, *of: object) -> None:
        if self._file is not None:
            self._file.close()
        super().__exit__(*of)

    @override
    def find_finished(self) -> None:
        if not self._journal.exists():
            return
        size = 0
        for lines, records, end in self._batches():
            self.counts.count(lines)
            self.done, self.records, size = self.done + len(lines), records, end
        with self._journal.open("r+b") as file:
            file.truncate(size)  # half a batch may follow

    def add(self, lines: Sequence[Line], records: int) -> None:
        """Keep the lines of a batch, for which `records` records have been read since the first one.

        Raises:
            ConfigError: they cannot be written.
        """
        with writing(self.output):
            if self._file is None:
                self._file = self._journal.open("ab")
            self._file.write(json.dumps([records, [line.values() for line in lines]]).encode() + b"\n")
            self._file.flush()
        self.counts.count(lines)
        self.done, self.records = self.done + len(lines), records

    def finish(self) -> None:
        """Write the output. Raises ConfigError where that cannot be done."""
        with writing(self.output):
            with whole(self.partial / self.output.name) as path, WRITERS[self.output.suffix](path, self.settings) as write:
                for lines, _, _ in self._batches():
                    for line in lines:
                        write(line)
            beside = []
            if self.output.suffix != ".parquet":
                beside = [f"{self.output.name}.settings.json"]
                with whole(self.partial / beside[0]) as path:
                    path.write_text(f"{self.settings}\n")
            self.publish(*beside)

    def _batches(self) -> Iterator[tuple[list[Line], int, int]]:
        """Yield lines, records read so far and bytes of the journal so far of each batch that is there as a whole."""
        size = 0
        with self._journal.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    return
                where = f"{self._journal}, line {number}"
                try:
                    records, rows = json_of(text, where, ConfigError)
                    lines = [Line.read(*row) for row in rows]
                except (TypeError, ValueError) as error:
                    if isinstance(error, ConfigError):
                        raise
                    raise ConfigError(f"{where}: no scores: {error}; remove {self.partial}") from None
                size += len(text)
                yield lines, records, size


Writer: TypeAlias = Callable[[Line], object]


def tsv_writer(file: TextIO) -> Writer:
    """Lines of tab-separated values under a line of names; floats have all of their digits."""
    rows = csv.writer(file, delimiter="\t", lineterminator="\n")
    rows.writerow(Line._fields)
    return rows.writerow


@contextmanager
def _tsv(path: Path, settings: str) -> Iterator[Writer]:
    with path.open("w", newline="") as file:
        yield tsv_writer(file)


@contextmanager
def _jsonl(path: Path, settings: str) -> Iterator[Writer]:
    with path.open("w") as file:
        yield lambda line: print(json.dumps(dict(zip(Line._fields, line.values(), strict=True))), file=file)


@contextmanager
def _parquet(path: Path, settings: str) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64(), pa.int64())
    schema = pa.schema(list(zip(Line._fields, types, strict=True)), metadata={"settings": settings})
    held: list[list[Any]] = []

    def flush() -> None:
        columns = zip(*held, strict=True) if held else ([] for _ in types)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
        writer.write_table(pa.table(arrays, schema=schema))
        held.clear()

    with pq.ParquetWriter(path, schema) as writer:

        def write(line: Line) -> None:
            held.append(line.values())
            if len(held) == ROWS:
                flush()

        yield write
        flush()


WRITERS: dict[str, Callable[[Path, str], AbstractContextManager[Writer]]] = {
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
