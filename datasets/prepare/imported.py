"""Token files of other programs to token shards, with the eos contract checked on the way.

Every document must end with its only eos; where a corpus keeps eos ids inside of documents, these are counted. Where a
source says that its documents carry none, one is appended to those without; nothing else is ever changed. Documents of
nothing but an eos are left out and counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ...base import public_name
from ..errors import DataError
from ..files import DataFile, FileStore
from ..readers import Piece
from ..shards import ShardWriter, SourceRecord, id_dtype
from ..tokenizers import Ids
from .pool import Emit
from .run import Corpus, Event, PreparationResult, Task

TokenIndices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


class Tokens(NamedTuple):
    """Consecutive tokens of a file.

    Attributes:
        ids: Integers, 1-d, at most some millions.
        ends: Places behind the last token of each document that ends in it, ascending; equal ones are empty documents.
            A document that ends with the last token ends here, not in the next part.
        weights: Loss weight of each token, None where the source states none.
        stored: Bytes that it took.
    """

    ids: Ids
    ends: TokenIndices
    weights: Weights | None
    stored: float


@dataclass(frozen=True)
class TokenReader(ABC):
    """A format of token files; a piece's start and end are the format's own.

    Attributes:
        storage: Finds the files.
    """

    storage: FileStore

    @property
    def weighted(self) -> bool:
        """Whether there are loss weights."""
        return False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what decides how files are read, as JSON."""

    @abstractmethod
    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut a file into pieces of about `target` bytes of whole documents."""

    @abstractmethod
    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        """Yield the tokens of a piece; its last document ends with it."""

    def first_document(self, piece: Piece) -> int | None:
        """Return the number of a piece's first document in its file, None where only reading would tell."""
        return piece.start


@dataclass(frozen=True, kw_only=True)
class TokenCorpus(Corpus):
    """Token files, taken as they are, with the eos contract checked on the way.

    Attributes:
        append_eos: Documents may lack their eos.
        keeps_eos: Documents may hold eos ids inside.
    """

    reader: TokenReader
    append_eos: bool
    keeps_eos: bool = False

    @override
    def settings(self) -> dict[str, Any]:
        return {"append_eos": self.append_eos, "keeps_eos": self.keeps_eos, **self.reader.settings()}

    @override
    def convert(self, task: Task, folder: Path, marks: Path | None, emit: Emit) -> PreparationResult:
        dtype = id_dtype(self.tokenizer.vocab_size - 1)
        kinds: dict[str, Any] = {"weighted": self.reader.weighted, "keeps_eos": self.keeps_eos}
        writer = ShardWriter(folder / "train", task.name, self.tokenizer, dtype, **kinds)
        sizes = {file.path: file.size for file in self.files}
        sources = []
        dropped = appended = 0
        try:
            for piece in task.pieces:
                contract = _Contract(self, piece.path, self.reader.first_document(piece))
                for tokens in self.reader.tokens(piece):
                    writer.write(*contract.hold(tokens))
                    emit(Event(stored=tokens.stored))
                dropped, appended = dropped + contract.dropped, appended + contract.appended
                size, records = sizes[piece.path], contract.documents
                sources.append(
                    SourceRecord(path=public_name(piece.path), size=size, start=piece.start, end=piece.end, records=records)
                )
            written = writer.finish(sources)
        finally:
            writer.discard()
        return PreparationResult(
            documents=writer.documents,
            tokens=writer.tokens,
            dropped=dropped,
            eos_appended=appended,
            interior_eos=0 if written is None else written.interior_eos,
            shards=() if written is None else (f"train/{writer.path.name}",),
        )


class _Contract:
    """The eos contract over all tokens of a piece, which arrive in parts.

    Attributes:
        documents: Ended so far, dropped ones included.
        dropped: Documents without a token but an eos.
        appended: Documents that were given an eos.
    """

    def __init__(self, corpus: TokenCorpus, path: str, first_document: int | None) -> None:
        self.documents = 0
        self.dropped = 0
        self.appended = 0
        self._eos = corpus.tokenizer.eos_id
        self._vocab_size = corpus.tokenizer.vocab_size
        self._append_eos = corpus.append_eos
        self._keeps_eos = corpus.keeps_eos
        self._path = path
        self._first_document = first_document
        self._open = 0  # tokens of the document that the part before left open

    def hold(self, tokens: Tokens) -> tuple[Ids, TokenIndices, Weights | None]:
        """Return ids, ends and weights as a shard has them.

        Raises:
            DataError: An id is outside the vocabulary, an eos is missing or inside of a document, or a weight is not
                one.
        """
        ids, ends, weights, _ = tokens
        outside = (ids < 0) | (ids >= self._vocab_size)
        if outside.any():
            at = int(outside.argmax())
            raise self._error(f"id {ids[at]} is outside of the tokenizer's vocabulary of {self._vocab_size}", ends, at)
        if weights is not None and not (sound := np.isfinite(weights) & (weights >= 0)).all():
            at = int(sound.argmin())
            raise self._error(f"the loss weight {weights[at]} must be finite and at least 0", ends, at)

        lengths = np.diff(ends, prepend=-self._open)
        empty = lengths == 0
        ends, lengths = ends[~empty], lengths[~empty]
        closed = ids[ends - 1] == self._eos
        if not self._append_eos and not closed.all():
            at = int(ends[closed.argmin()]) - 1
            count = f"{np.count_nonzero(~closed):,} of the {len(ends):,} documents looked at do not end with eos {self._eos}"
            raise self._error(f"{count}, this one with {ids[at]}; give --append-eos if they carry none", tokens.ends, at)
        eos = ids == self._eos
        if not self._keeps_eos and np.count_nonzero(eos) != np.count_nonzero(closed):
            eos[ends[closed] - 1] = False
            problem = f"the eos {self._eos} is inside of a document"
            raise self._error(f"{problem}; --interior-eos keep takes it as a token", tokens.ends, int(eos.argmax()))

        self.documents += len(tokens.ends)
        lone = closed & (lengths == 1)
        self.dropped += int(empty.sum() + lone.sum())
        self.appended += int((~closed).sum())
        last = int(tokens.ends[-1]) if len(tokens.ends) else -self._open
        self._open = len(ids) - last
        if lone.any():
            kept = np.ones(len(ids), dtype=np.bool_)
            kept[ends[lone] - 1] = False
            ids, weights = ids[kept], None if weights is None else weights[kept]
            ends = (ends - np.cumsum(lone))[~lone]
            closed = closed[~lone]
        if not closed.all():
            places = ends[~closed]
            # An eos is a target as the token before it is: where an answer is learned, so is its end.
            weights = None if weights is None else np.insert(weights, places, weights[places - 1])
            ids = np.insert(ids, places, self._eos)
            ends = ends + np.cumsum(~closed)
        return ids, ends, weights

    def _error(self, problem: str, ends: TokenIndices, at: int) -> DataError:
        number: int | None = None
        if self._first_document is not None:
            number = self._first_document + self.documents + int(np.searchsorted(ends, at, side="right"))
        return DataError(problem, file=self._path, record=number)


CHUNK = 2**20  # tokens looked at together
