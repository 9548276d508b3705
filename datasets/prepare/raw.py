"""Raw files to token shards: documents are read, checked, encoded, and divided into training and validation.

Memory is bounded by a group of documents, and by a document where a tokenizer must see all of it. With other
tokenizers, a long document streams into the training shard. It is taken out again if its end decides so: a bad record,
or a document for validation.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from typing_extensions import override

from ...base import public_name
from ..documents import DocumentConfig, Weighed, Weights, content_settings, make_encoder
from ..errors import BadRecords, DataError
from ..files import whole
from ..readers import DocumentJoiner, Piece, Reader, Records, located, wrong_byte
from ..shards import ShardWriter, SourceRecord, id_dtype
from ..tokenizers import Ids, TokenizeError
from .pool import Emit
from .run import Corpus, Event, PreparationResult, Task

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RawCorpus(Corpus):
    """Raw files, whose documents are encoded.

    Attributes:
        format: Name of the format, which is a part of the plan.
        field: Of jsonl and parquet, likewise.
        validation_share: Share of the documents, by hash, that goes to validation.
        deduplicate: Leave out documents that are equal to one before, byte by byte.
        seed: Of the hashes.
        skip_bad: Leave out bad records and count them, instead of raising.
        config: What is done with documents: with their letters, ids and messages.
    """

    reader: Reader
    format: str
    field: str
    validation_share: float
    deduplicate: bool
    seed: int
    skip_bad: bool
    config: DocumentConfig

    @override
    def settings(self) -> dict[str, Any]:
        names = ("format", "field", "validation_share", "deduplicate", "seed", "skip_bad")
        of_content = content_settings(self.reader.content, self.tokenizer)
        if of_content:
            of_content |= {"trained_roles": self.config.trained_roles}
        if self.config.keeps_eos:
            of_content |= {"interior_eos": "keep"}
        return {**{name: getattr(self, name) for name in names}, "letters": self.config.letters.model_dump(), **of_content}

    def sample(self) -> list[bytes]:
        """Return documents, or beginnings of long ones, from the heads of up to four files; none that are no text."""
        if self.reader.content != "text":
            return []
        files = [file for file in self.files if file.size]
        heads = [self.reader.split(file, sys.maxsize)[0] for file in files[:: max(len(files) // 4, 1)][:4]]
        groups = (next(self.reader.groups(head, head.start, True), None) for head in heads)
        return [document for group in groups if group is not None for document in group.documents]

    @property
    @override
    def hasher(self) -> Callable[[Task, Path, Emit], None] | None:
        return self.hash if self.deduplicate else None

    def hash(self, task: Task, path: Path, emit: Emit) -> None:
        """Write the xxh3_128 of every document."""
        digester = Digester(self.seed)
        with whole(path) as unfinished, unfinished.open("wb") as file:
            for piece in task.pieces:
                for records in read_piece(self.reader, piece, emit):
                    for run in runs(records):
                        file.writelines(digester(run))
                    if records.error is not None and not self.skip_bad:
                        raise located(self.reader, records.error, records.bad_offset)
                    if records.continues_bad:  # it has a place among the documents, and is equal to no other
                        file.write(
                            xxhash.xxh3_128_digest(f"{public_name(piece.path)}:{records.bad_offset}".encode(), self.seed)
                        )

    @override
    def convert(self, task: Task, folder: Path, marks: Path | None, emit: Emit) -> PreparationResult:
        marked = None
        if marks is not None and marks.stat().st_size:  # there is nothing to map where no record was sound
            marked = np.memmap(marks, dtype=np.bool_, mode="r")[task.documents_before :]
        return _Conversion(self, task, folder, marked, emit).run()


def runs(records: Records) -> Iterator[Records]:
    """Divide a group into the part of a document that it begins with, whole documents, and the part that it ends
    with: what is not both `first` and `last` is a part.
    """
    documents, offsets, first, last = records.documents, records.offsets, records.first, records.last
    if documents and not first:
        yield Records(documents[:1], offsets[:1], first=False, last=len(documents) > 1 or last)
        documents, offsets = documents[1:], offsets[1:]
    whole = len(documents) - (not last)
    if whole > 0:
        yield Records(documents[:whole], offsets[:whole])
    if documents and not last:
        yield Records(documents[whole:], offsets[whole:], last=False)


class Digester:
    """xxh3_128 of documents that may come in parts."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._open = xxhash.xxh3_128(seed=seed)

    def __call__(self, run: Records) -> list[bytes]:
        """Return 16 bytes for each document that ends in this run."""
        if run.first and run.last:
            return [xxhash.xxh3_128_digest(data, self._seed) for data in run.documents]
        if run.first:
            self._open = xxhash.xxh3_128(seed=self._seed)
        self._open.update(run.documents[0])
        return [self._open.digest()] if run.last else []


def read_piece(reader: Reader, piece: Piece, emit: Emit) -> Iterator[Records]:
    """Yield the groups of a piece and report what is done: by offset where its end is known, else at its end."""
    reported = 0.0
    for records in reader.groups(piece, piece.start, True):
        yield records
        share = piece.share(records.offsets[-1]) if records.offsets else None
        stored = max((share or 0.0) * piece.size, reported)
        emit(Event(stored=stored - reported, text=sum(map(len, records.documents))))
        reported = stored
    emit(Event(stored=piece.size - reported))


class _Conversion:
    """The conversion of one task: which document goes into which shard, and what is counted."""

    def __init__(self, corpus: RawCorpus, task: Task, folder: Path, marked: Mask | None, emit: Emit) -> None:
        self._corpus = corpus
        self._task = task
        self._marked = marked
        self._emit = emit
        # The byte tokenizer has a vocabulary of 512 and writes ids below 256 only: it states uint8.
        bytes_only = np.dtype(corpus.tokenizer.dtype) == np.uint8 and corpus.reader.content == "text"
        dtype = id_dtype(255 if bytes_only else corpus.tokenizer.vocab_size - 1)
        self._encode = make_encoder(corpus.reader.content, corpus.config, corpus.tokenizer)
        kinds: dict[str, Any] = {
            "weighted": corpus.reader.content == "messages",
            "letters": corpus.config.letters,
            "keeps_eos": corpus.config.keeps_eos,
        }
        self._train = ShardWriter(folder / "train", task.name, corpus.tokenizer, dtype, **kinds)
        self._validation: ShardWriter | None = None
        if corpus.validation_share:
            self._validation = ShardWriter(folder / "validation", task.name, corpus.tokenizer, dtype, **kinds)
        self._sizes = {file.path: file.size for file in corpus.files}
        self._digester = Digester(corpus.seed)
        self._records = 0  # documents met
        self._piece = task.pieces[0]
        self._out = False  # the open document is a duplicate or bad
        self._open_bytes = self._open_mapped = 0
        self._tag = 0  # letters of the tag that is open in the open document
        self._counts = {"text_bytes": 0, "dropped": 0, "duplicates": 0, "mapped": 0}
        self._bad = BadRecords(skip=corpus.skip_bad, of="shard", report=lambda line: emit(Event(message=line)))

    def run(self) -> PreparationResult:
        """Read all pieces; leave no temporary file behind, whatever happens."""
        writers = [writer for writer in (self._train, self._validation) if writer is not None]
        try:
            sources = [self._read(piece) for piece in self._task.pieces]
            documents, tokens = (sum(getattr(writer, name) for writer in writers) for name in ("documents", "tokens"))
            written = [(writer, manifest) for writer in writers if (manifest := writer.finish(sources)) is not None]
            shards = tuple(f"{writer.path.parent.name}/{writer.path.name}" for writer, _ in written)
            interior = sum(manifest.interior_eos for _, manifest in written)
        finally:
            for writer in writers:
                writer.discard()
        if self._corpus.reader.content != "text":
            self._counts["text_bytes"] = 0
        counts = {**self._counts, "skipped": self._bad.skipped, "interior_eos": interior}
        return PreparationResult(documents=documents, tokens=tokens, shards=shards, **counts)

    def _read(self, piece: Piece) -> SourceRecord:
        self._piece = piece
        before = self._records
        streams, join = self._corpus.tokenizer.streams, DocumentJoiner()
        for records in read_piece(self._corpus.reader, piece, self._emit):
            for run in runs(records if streams else join(records)):
                if run.first and run.last:
                    self._take(run)
                else:
                    self._take_part(run)
            if records.error is not None and not (records.continues_bad and self._out):
                self._bad(partial(located, self._corpus.reader, records.error, records.bad_offset))
            if records.continues_bad:
                self._break_off()
        size = self._sizes[piece.path]
        return SourceRecord(
            path=public_name(piece.path), size=size, start=piece.start, end=piece.end, records=self._records - before
        )

    def _take(self, run: Records) -> None:
        """Take whole documents: leave out what is empty, a duplicate or bad, and divide the rest."""
        documents, offsets = run.documents, run.offsets
        keep = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)) > 0
        self._counts["dropped"] += int((~keep).sum())
        if self._marked is not None:
            again = keep & self._marked[self._records : self._records + len(documents)]
            self._counts["duplicates"] += int(again.sum())
            keep &= ~again
        self._records += len(documents)
        if not keep.all():
            kept = np.flatnonzero(keep).tolist()
            documents, offsets = [documents[i] for i in kept], [offsets[i] for i in kept]
        while documents:
            try:
                sound = len(documents)
                weighed = self._encode(documents)
            except TokenizeError as error:
                self._bad(partial(self._located, error, offsets[error.index]))
                sound = error.index
                weighed = self._encode(documents[:sound])
            self._write(documents[:sound], weighed)
            documents, offsets = documents[sound + 1 :], offsets[sound + 1 :]

    def _write(self, documents: list[bytes], weighed: Weighed) -> None:
        (ids, counts, mapped), weights, _ = weighed
        lengths = np.array(counts, dtype=np.int64)
        kept = lengths > 1 + (self._corpus.tokenizer.bos_id is not None)
        self._counts["mapped"] += sum(mapped or ())
        self._counts["dropped"] += len(kept) - int(kept.sum())
        self._counts["text_bytes"] += sum(compress(map(len, documents), kept.tolist()))
        if self._validation:
            aside = self._set_aside(self._digester(Records(documents, [])))
            _write_chosen(self._validation, ids, lengths, kept & aside, weights)
            kept &= ~aside
        _write_chosen(self._train, ids, lengths, kept, weights)

    def _take_part(self, part: Records) -> None:
        """Encode a part of a document that streams; its last part decides what becomes of it."""
        (data,) = part.documents
        digests = self._digester(part)
        if part.first:
            self._open_bytes = self._open_mapped = self._tag = 0
            self._out = self._marked is not None and bool(self._marked[self._records])
            self._counts["duplicates"] += self._out
        if not self._out:
            try:
                (ids, _, mapped), weights, self._tag = self._encode([data], self._tag, goes_on=not part.last)
            except TokenizeError as error:
                self._bad(partial(self._located, error, part.offsets[0]))
                self._train.take_back()
                self._out = True
            else:
                count = len(ids) if part.last else len(ids) - 1
                self._train.write(ids[:count], [], None if weights is None else weights[:count])
                self._open_bytes += len(data)
                self._open_mapped += sum(mapped or ())
        if not part.last:
            return
        self._records += 1
        if self._out:
            return
        if self._open_bytes == 0:
            self._counts["dropped"] += 1
            self._train.take_back()
            return
        self._counts["text_bytes"] += self._open_bytes
        self._counts["mapped"] += self._open_mapped
        if self._validation and self._set_aside(digests)[0]:
            self._train.move(self._validation)
        else:
            self._train.close()

    def _break_off(self) -> None:
        """Leave out the open document, of which a part could not be read."""
        self._records += 1
        if not self._out:
            self._train.take_back()
        self._out = False

    def _set_aside(self, digests: list[bytes]) -> Mask:
        """Return which documents go to validation: those whose hash, as a fraction, lies below the share."""
        halves = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
        aside: Mask = halves[:, 1] < np.uint64(self._corpus.validation_share * 2.0**64)
        return aside

    def _located(self, bad: TokenizeError, address: int) -> DataError:
        return wrong_byte(self._corpus.reader, self._piece.path, address, bad.offset or 0, bad.problem)


def _write_chosen(writer: ShardWriter, ids: Ids, lengths: npt.NDArray[np.int64], chosen: Mask, weights: Weights | None) -> None:
    if not chosen.all():
        tokens = np.repeat(chosen, lengths)
        ids, lengths = ids[tokens], lengths[chosen]
        weights = None if weights is None else weights[tokens]
    writer.write(ids, np.cumsum(lengths), weights)
