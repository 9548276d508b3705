"""Token files of other programs to token shards, with the eos contract checked on the way.

Every document must end with its only eos, and hold neither padding nor a mask; where a corpus keeps eos ids inside of
documents, these are counted. Where a source says that its documents carry no eos, one is appended to those without;
padding at the ends of documents is taken off and counted (`padding`). Nothing else is ever changed. Documents that are
an eos and nothing else are left out and counted.
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
from .padding import Mask, PadId, filled_mask, own_pad, stated_pad, unstated_padding
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
        padding: Which tokens are padding; None where the source does not state it.
    """

    ids: Ids
    ends: TokenIndices
    weights: Weights | None
    stored: float
    padding: Mask | None = None


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
        pad_id: Of the padding at the ends of documents.
        keeps_eos: Documents may hold eos ids inside.
    """

    reader: TokenReader
    append_eos: bool
    pad_id: PadId = None
    keeps_eos: bool = False

    @override
    def settings(self) -> dict[str, Any]:
        said = {"append_eos": self.append_eos, "pad_id": self.pad_id, "keeps_eos": self.keeps_eos}
        return {**said, **self.reader.settings()}

    @override
    def convert(self, task: Task, folder: Path, marks: Path | None, emit: Emit) -> PreparationResult:
        dtype = id_dtype(self.tokenizer.vocab_size - 1)
        kinds: dict[str, Any] = {"weighted": self.reader.weighted, "keeps_eos": self.keeps_eos}
        writer = ShardWriter(folder / "train", task.name, self.tokenizer, dtype, **kinds)
        sizes = {file.path: file.size for file in self.files}
        sources = []
        dropped = appended = padding = 0
        try:
            for piece in task.pieces:
                contract = _Contract(self, piece.path, self.reader.first_document(piece))
                for tokens in self.reader.tokens(piece):
                    writer.write(*contract.hold(tokens))
                    emit(Event(stored=tokens.stored))
                dropped, appended = dropped + contract.dropped, appended + contract.appended
                padding += contract.padding
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
            padding=padding,
            interior_eos=0 if written is None else written.interior_eos,
            shards=() if written is None else (f"train/{writer.path.name}",),
        )


class _Contract:
    """The eos contract over all tokens of a piece, which arrive in parts.

    Attributes:
        documents: Ended so far, dropped ones included.
        dropped: Documents without a token but an eos.
        appended: Documents that were given an eos.
        padding: Tokens that were taken off.
    """

    def __init__(self, corpus: TokenCorpus, path: str, first_document: int | None) -> None:
        self.documents = 0
        self.dropped = 0
        self.appended = 0
        self.padding = 0
        tokenizer, own = corpus.tokenizer, own_pad(corpus.tokenizer)
        self._eos = tokenizer.eos_id
        self._vocab_size = tokenizer.vocab_size
        self._append_eos = corpus.append_eos
        self._keeps_eos = corpus.keeps_eos
        self._path = path
        self._first_document = first_document
        self._pad = stated_pad(tokenizer, corpus.pad_id)
        self._guess = corpus.pad_id != "none"
        # No document has these: a model could not tell them from those of its own rows.
        self._barred = {"pad": own, "mask": tokenizer.mask_id}
        # Of the document that the part before left open: tokens that were returned, the same with their padding
        # (`_before`: before the part at hand), and the last token and what may be padding behind it, kept back.
        self._open = self._open_stored = self._before = 0
        self._held: Tokens | None = None
        # Of the part at hand: ends as they came, and where each token was that is left without padding.
        self._ends = self._places = np.empty(0, dtype=np.int64)

    def hold(self, tokens: Tokens) -> tuple[Ids, TokenIndices, Weights | None]:
        """Return ids, ends and weights as a shard has them.

        Raises:
            DataError: An id is outside the vocabulary, an eos is missing or inside of a document, as is padding or a
                mask, or a weight is not one; or documents look padded with an id that nobody states.
        """
        ids, ends, weights = self._without_padding(tokens)
        outside = (ids < 0) | (ids >= self._vocab_size)
        if outside.any():
            at = int(outside.argmax())
            raise self._error(f"id {ids[at]} is outside of the tokenizer's vocabulary of {self._vocab_size}", at)
        if weights is not None and not (sound := np.isfinite(weights) & (weights >= 0)).all():
            at = int(sound.argmin())
            raise self._error(f"the loss weight {weights[at]} must be finite and at least 0", at)
        for role, barred in self._barred.items():
            if barred is not None and (found := ids == barred).any():
                taken = role != "pad" or (self._pad == barred and tokens.padding is None)
                advice = "" if taken else f"; --pad-id {barred} takes it off at the ends of documents"
                raise self._inside(f"the {role} {barred} is", int(found.argmax()), advice)

        lengths = np.diff(ends, prepend=-self._open)
        last, ended = int(ends[-1]) if len(ends) else -self._open, len(ends)
        empty = lengths == 0
        ends, lengths = ends[~empty], lengths[~empty]
        closed = ids[ends - 1] == self._eos
        if not self._append_eos and not closed.all():
            at = int(ends[closed.argmin()]) - 1
            count = f"{np.count_nonzero(~closed):,} of the {len(ends):,} documents looked at do not end with eos {self._eos}"
            raise self._error(f"{count}, this one with {ids[at]}; give --append-eos if they carry none", at)
        eos = ids == self._eos
        if not self._keeps_eos and np.count_nonzero(eos) != np.count_nonzero(closed):
            eos[ends[closed] - 1] = False
            at = int(eos.argmax())
            fills = self._pad != self._eos and ids[at + 1 : at + 2] == self._eos
            advice = f"; if it fills rows up, --pad-id {self._eos} takes it off" if np.any(fills) else ""
            raise self._inside(f"the eos {self._eos} is", at, f"{advice}; --interior-eos keep takes it as a token")

        self.documents += ended
        lone = closed & (lengths == 1)
        self.dropped += int(empty.sum() + lone.sum())
        self.appended += int((~closed).sum())
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

    def _without_padding(self, tokens: Tokens) -> tuple[Ids, TokenIndices, Weights | None]:
        """Return ids, ends and weights without padding, what was kept back in front. Raises DataError."""
        self._before, opened = self._open_stored, self._open > 0 or self._held is not None
        if self._held is not None:
            tokens = _joined(self._held, tokens)
        ids, ends, weights, _, masked = tokens
        last, stop = int(ends[-1]) if len(ends) else 0, len(ids)
        self._ends, self._places, self._held = ends, np.arange(stop), None
        if masked is not None or self._pad is not None:
            pads = masked if masked is not None else np.asarray(ids == self._pad)
            eos = self._eos if masked is None and self._pad == self._eos else None
            filled = filled_mask(ids, np.append(ends, stop) if last < stop else ends, pads, eos)
            if masked is not None and (torn := masked & filled).any():
                raise self._inside("attention_mask is 0", int(torn.argmax()))
            if tail := np.flatnonzero(~pads[last:]).tolist()[-1:]:
                stop = last + tail[0]
                held = None if weights is None else weights[stop:]
                self._held = Tokens(ids[stop:], ends[:0], held, 0.0, None if masked is None else masked[stop:])
            filled = filled[:stop]
            self._places = np.flatnonzero(filled)
            self.padding += stop - len(self._places)
            if len(self._places) < stop:
                ends = np.concatenate([[0], np.cumsum(filled)])[ends]
            ids, weights = ids[self._places], None if weights is None else weights[self._places]
        self._open_stored = stop - last if len(ends) else self._before + stop
        begin = int(ends[0]) if opened and len(ends) else 0  # of the first whole document
        whole = ends[opened:] - begin
        text = None if self._keeps_eos and self._pad != self._eos else self._eos  # a run of what is refused else
        if self._guess and (looks := unstated_padding(ids[begin:], whole, text)):
            pad, count = looks
            problem = (
                f"{count:,} of the {len(whole):,} documents looked at have a run of id {pad} at the same end, like padding"
            )
            raise DataError(f"{problem}; --pad-id {pad} takes it off, --pad-id none keeps it as text", file=self._path)
        return ids, ends, weights

    def _inside(self, what: str, at: int, advice: str = "") -> DataError:
        place = int(self._places[at])
        number = int(np.searchsorted(self._ends, place, side="right"))
        token = place + (-int(self._ends[number - 1]) if number else self._before)
        return self._error(f"{what} inside of a document, at its token {token} from 0{advice}", at)

    def _error(self, problem: str, at: int) -> DataError:
        number: int | None = None
        if self._first_document is not None:
            document = int(np.searchsorted(self._ends, int(self._places[at]), side="right"))
            number = self._first_document + self.documents + document
        return DataError(problem, file=self._path, record=number)


def _joined(held: Tokens, tokens: Tokens) -> Tokens:
    """Return tokens with others in front that belong to the first document."""
    ids, ends, weights, stored, padding = tokens
    weights = None if weights is None or held.weights is None else np.append(held.weights, weights)
    padding = None if padding is None or held.padding is None else np.append(held.padding, padding)
    return Tokens(np.append(held.ids, ids), ends + len(held.ids), weights, stored, padding)


CHUNK = 2**20  # tokens looked at together
