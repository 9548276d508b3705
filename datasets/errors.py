"""What goes wrong here: the data (`DataError`: what is wrong, and exactly where), the settings, or a worker process."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from typing_extensions import Self, override

from ..base import UserError, one_line, redacted

# "cistron.data": a line for each record passed over, up to so many of a lane in a process or of a shard.
LOG = logging.getLogger("cistron.data")
REPORTED_RECORDS = 10


class DataConfigError(UserError):
    """A setting of `[data]` or `[tokenizer]` cannot be met; the message names the key."""


class InUseError(UserError):
    """Another process writes to a folder; the message names it."""


class WorkerError(RuntimeError):
    """A worker process died: it was killed, most often for want of memory."""


class DataEnd(Exception):
    """A source was read as often as it may be; no more rows follow."""


class DataOrderError(DataConfigError):
    """A data state belongs to other settings: other rows would follow than in the run that wrote it."""


class DataError(UserError):
    """A file or a record cannot be used.

    Attributes:
        problem: What was found and what would be right.
        file: Path or URL of the file.
        record: Line number (jsonl, from 1), record name (FASTA), or None where the file is the record.
        offset: Byte offset in the uncompressed file, or None where it has no meaning.
    """

    def __init__(self, problem: str, *, file: str, record: int | str | None = None, offset: int | None = None) -> None:
        self.problem = problem
        self.file = file
        self.record = record
        self.offset = offset
        place = one_line(redacted(file))
        if record is not None:
            place += f", record {one_line(str(record))}"
        if offset is not None:
            place += f", byte {offset}"
        super().__init__(f"{place}: {problem}")

    @classmethod
    @override
    def about(cls, file: str, problem: str) -> Self:
        return cls(problem, file=file)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields across processes: exceptions pickle their message only, and ours is made of four parts."""
        return partial(DataError, self.problem, file=self.file, record=self.record, offset=self.offset), ()


def refuse(complaints: Sequence[str]) -> None:
    """Raise all complaints about settings as one DataConfigError, a line for each; return where there are none."""
    if complaints:
        raise DataConfigError("\n".join(complaints))


class BadRecords:
    """What becomes of bad records: each is raised; or with `skip` reported, and after some only counted.

    Args:
        skip: Whether they are left out.
        of: What they are the records of, for the last report.
        report: Gets a line of text.

    Attributes:
        skipped: How many were left out.
    """

    def __init__(self, *, skip: bool, of: str = "lane", report: Callable[[str], object] = LOG.warning) -> None:
        self.skipped = 0
        self._skip, self._of, self._report = skip, of, report

    def __call__(self, problem: Callable[[], DataError]) -> None:
        """Raise a problem, or report it, or do nothing, which must not cost the search for its record."""
        if not self._skip:
            raise problem()
        self.skipped += 1
        if self.skipped <= REPORTED_RECORDS:
            more = f"; further ones of this {self._of} are counted only" if self.skipped == REPORTED_RECORDS else ""
            self._report(f"skipped: {problem()}{more}")
