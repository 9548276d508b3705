"""A corpus to token shards on all cores: restartable after any death, and the same bytes for any number of processes.

The work list is the corpus cut into tasks, whatever the number of processes; a task becomes at most one shard for
training and one for validation. The output folder holds

    train/NNNNNN.*       shards
    validation/NNNNNN.*  shards, where a share of the documents is put aside
    plan/plan.json       everything that decides the bytes: settings, tokenizer, files
    plan/NNNNNN.json     what became of a task, written when its shards are durable

A rerun goes on under the same plan and refuses another. Where duplicates are removed, a first pass hashes all
documents.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import JsonValue

from ...base import LISTING_BYTES, json_record, read_bytes
from ..errors import DataConfigError, DataError
from ..files import TEMPORARY, DataFile, Lock, changes, sync, write_atomically
from ..readers import Piece
from ..shards import Manifest, Record
from ..tokenizers import LetterTokenizer, Tokenizer
from .duplicates import DIGEST_BYTES, mark_duplicates
from .pool import Emit, run_tasks

VERSION = 2
# A corpus of small files: a manifest names each of them.
MAX_PIECES = 4096


class Task(NamedTuple):
    """What becomes one shard: consecutive parts of files.

    Attributes:
        number: Place in the work list, and the shard's name.
        pieces: In order of the corpus.
        documents_before: In all tasks before, where duplicates are marked.
    """

    number: int
    pieces: tuple[Piece, ...]
    documents_before: int = 0

    @property
    def name(self) -> str:
        """Name without suffix of all files that are written about this task."""
        return f"{self.number:06}"

    def __str__(self) -> str:
        """Describe the task by its first piece."""
        first = self.pieces[0]
        return f"{first.path} from {first.start} on" + (f" and {len(self.pieces) - 1} more pieces" * (len(self.pieces) > 1))


class Plan(Record):
    """What `plan.json` holds: everything that decides the bytes of the shards.

    Attributes:
        version: Of this format.
        tokenizer: Kind, fingerprint and special ids.
        settings: Of the corpus.
        files: Path, size and stamp of each.
    """

    version: Literal[2]
    tokenizer: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    files: list[tuple[str, int, str]]


class Event(NamedTuple):
    """Progress of a task.

    Attributes:
        stored: Bytes of files that are done.
        text: Bytes of text that were read in them.
        message: A line about a record that was skipped.
    """

    stored: float = 0.0
    text: int = 0
    message: str | None = None


class PreparationResult(Record):
    """What became of the documents of a task, or of all tasks.

    Attributes:
        documents: Written to shards.
        tokens: Of these, eos included.
        text_bytes: Of these, as text; 0 where tokens were imported.
        dropped: Without tokens, so left out.
        duplicates: Equal to one before, so left out.
        skipped: Bad records left out.
        mapped: Letters of the documents written that `on_unknown = "map"` replaced.
        eos_appended: Imported documents that came without an eos.
        interior_eos: Eos ids inside of the documents written.
        padding: Tokens of imported documents taken off as padding.
        shards: Manifests written, by their path in the output folder.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    dropped: int = 0
    duplicates: int = 0
    skipped: int = 0
    mapped: int = 0
    eos_appended: int = 0
    interior_eos: int = 0
    padding: int = 0
    shards: tuple[str, ...] = ()

    def __add__(self, other: "PreparationResult") -> "PreparationResult":
        """Sum the counts, and list the shards one after another."""
        return PreparationResult(**{name: value + getattr(other, name) for name, value in self})


class FileSplitter(Protocol):
    """What a corpus' reader is at the least."""

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut a file into pieces of about `target` bytes of whole documents."""
        ...


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC):
    """Files that can be made into shards; picklable, since worker processes get it.

    Attributes:
        files: In order.
        reader: Of their format.
        tokenizer: Whose ids are written.
    """

    files: Sequence[DataFile]
    reader: FileSplitter
    tokenizer: Tokenizer

    @property
    def hasher(self) -> Callable[[Task, Path, Emit], None] | None:
        """Writes 16 bytes for each document of a task, equal ones for equal documents; None where duplicates stay."""
        return None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what beside files and tokenizer decides the bytes of the shards, as JSON."""

    @abstractmethod
    def convert(self, task: Task, folder: Path, marks: Path | None, emit: Emit) -> PreparationResult:
        """Write the shards of a task into `folder`/train and `folder`/validation, without those that are marked.

        Raises:
            DataError: A file cannot be read, or a document is bad.
        """

    def split(self, target: int) -> list[Piece]:
        """Cut the files into pieces of about `target` bytes."""
        return [piece for file in self.files for piece in self.reader.split(file, target)]


class Monitor(Protocol):
    """Shows the progress of a preparation."""

    def begin(self, stage: str, stored: int) -> None:
        """Begin a stage that reads `stored` bytes of files."""
        ...

    def __call__(self, event: Event) -> None:
        """Count an event, and show its message if it has one."""
        ...


def prepare(corpus: Corpus, folder: Path, *, shard_bytes: int, processes: int, monitor: Monitor) -> PreparationResult:
    """Write the shards of a corpus into a folder, or those that are missing there.

    Raises:
        DataConfigError: The folder belongs to another plan, or to somebody else.
        InUseError: Another preparation writes to it.
        DataError: A file cannot be read, a record is bad, or the folder cannot be written.
        WorkerError: A worker process died.
    """
    plan = folder / "plan"
    with _writing(folder), Lock(plan, advice="; wait for its end, or name another --output"):
        _hold_plan(plan / "plan.json", _plan(corpus, shard_bytes))
        for leftover in folder.glob(f"*/*{TEMPORARY}"):
            leftover.unlink()
        tasks = group(corpus.split(shard_bytes), shard_bytes)
        results = {task.number: found for task in tasks if (found := _finished(folder, task)) is not None}
        missing = [task for task in tasks if task.number not in results]
        marks = None
        if corpus.hasher is not None and missing:
            marks = plan / "duplicates"
            before = _mark(partial(_hash, corpus.hasher, plan / "hashes"), plan, tasks, marks, processes, monitor)
            missing = [task._replace(documents_before=before[task.number]) for task in missing]
        monitor.begin("shards", _stored(missing))
        convert = partial(_convert, corpus, folder, marks)
        for task, result in run_tasks(convert, missing, processes, monitor):
            results[task.number] = result
        for scratch in (plan / "hashes", plan / "partitions"):
            shutil.rmtree(scratch, ignore_errors=True)
        (plan / "duplicates").unlink(missing_ok=True)
        sync(plan)
    return sum((results[task.number] for task in tasks), PreparationResult())


def group(pieces: Sequence[Piece], target: int) -> list[Task]:
    """Join consecutive small pieces to tasks of about `target` bytes."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not groups or piece.size > room or len(groups[-1]) == MAX_PIECES:
            groups.append([])
            room = target
        groups[-1].append(piece)
        room -= piece.size
    return [Task(number, tuple(members)) for number, members in enumerate(groups)]


def _plan(corpus: Corpus, shard_bytes: int) -> dict[str, Any]:
    tokenizer = corpus.tokenizer
    ids = {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id, "vocab_size": tokenizer.vocab_size}
    policy: dict[str, Any] = {"on_unknown": tokenizer.on_unknown} if isinstance(tokenizer, LetterTokenizer) else {}
    return {
        "version": VERSION,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, **ids, **policy},
        "settings": {"shard_bytes": shard_bytes, **corpus.settings()},
        "files": [list(file.public) for file in corpus.files],
    }


def _hold_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one that is there."""
    if not path.exists():
        foreign = next((found for name in ("train", "validation") for found in (path.parent.parent / name).glob("*")), None)
        if foreign is not None:
            raise DataConfigError(f"--output: {foreign} is there already and no plan says by whom; name another folder")
        write_atomically(path, json.dumps(plan, indent=1).encode() + b"\n")
        return
    try:
        saved = json_record(Plan, read_bytes(path, DataConfigError, LISTING_BYTES), str(path), DataConfigError)
    except DataConfigError as error:
        remedy = f"so nobody can tell what {path.parent.parent} was made of: name another folder, or remove this one"
        raise DataConfigError(f"--output: {error}; {remedy}") from None
    differences = [
        f"{key} was {before!r} and is {now!r}"
        for table in ("tokenizer", "settings")
        for key in sorted({*getattr(saved, table), *plan[table]})
        if (before := getattr(saved, table).get(key)) != (now := plan[table].get(key))
    ]
    differences += changes(saved.files, [DataFile(*file) for file in plan["files"]])
    if differences:
        listing = "".join(f"\n  {line}" for line in differences)
        raise DataConfigError(
            f"--output: {path.parent.parent} was begun with other settings or files; go on with the same ones, "
            f"or name another folder:{listing}"
        )


def _finished(folder: Path, task: Task) -> PreparationResult | None:
    """Return the result of a task whose shards are all there, as far as their sizes tell; None: it is to be done."""
    note, own = folder / "plan" / f"{task.name}.json", {f"{part}/{task.name}.json" for part in ("train", "validation")}
    try:
        result = json_record(PreparationResult, read_bytes(note, DataError), str(note), DataError)
        if not own.issuperset(result.shards):
            return None
        for shard in result.shards:
            path = folder / shard
            sizes = json_record(Manifest, read_bytes(path, DataError), str(path), DataError).sizes()
            if any(path.with_suffix(f".{ending}").stat().st_size != size for ending, size in sizes.items()):
                return None
    except (FileNotFoundError, DataError):
        return None
    return result


def _convert(corpus: Corpus, folder: Path, marks: Path | None, task: Task, emit: Emit) -> PreparationResult:
    with _writing(folder):
        result = corpus.convert(task, folder, marks, emit)
        write_atomically(folder / "plan" / f"{task.name}.json", result.model_dump_json(indent=1).encode() + b"\n")
    return result


def _mark(
    hash: Callable[[Task, Emit], None], plan: Path, tasks: list[Task], marks: Path, processes: int, monitor: Monitor
) -> list[int]:
    """Mark the duplicates of the whole corpus; return how many documents come before each task."""
    hashes = plan / "hashes"
    hashes.mkdir(exist_ok=True)
    for leftover in hashes.glob(f"*{TEMPORARY}"):
        leftover.unlink()
    paths = [hashes / task.name for task in tasks]
    missing = [task for task, path in zip(tasks, paths, strict=True) if not path.exists()]
    monitor.begin("duplicates", _stored(missing))
    for _ in run_tasks(hash, missing, processes, monitor):
        pass
    if not marks.exists():
        mark_duplicates(paths, marks, plan / "partitions")
    return list(accumulate((path.stat().st_size // DIGEST_BYTES for path in paths), initial=0))


def _hash(hasher: Callable[[Task, Path, Emit], None], hashes: Path, task: Task, emit: Emit) -> None:
    with _writing(hashes):
        hasher(task, hashes / task.name, emit)


def _stored(tasks: Sequence[Task]) -> int:
    return sum(piece.size for task in tasks for piece in task.pieces)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the folder that cannot be written; where reading fails, the reader has named the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be written: {error}", file=str(folder)) from error
