"""Documents of raw files as a lane reads them: encoded in the order of the files, and treated as `[data]` says.

A record that cannot be used is raised or skipped. A document that turns out bad in a later part ends where it stands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from ..documents import DocumentConfig, Strands, Weighed, make_encoder, mirrored, too_long
from ..errors import BadRecords
from ..files import last_name
from ..randomness import permutation
from ..readers import DocumentJoiner, Piece, Reader, Records, located, wrong_byte
from ..rows import Packer
from ..tokenizers import Encoded, TokenizeError, Tokenizer, has_bases
from .blocks import Address, AddressedBlock, BlockBuilder, DocumentOutcome, TokenRun

ROWS, DOCUMENTS, PIECES = range(3)  # what a permutation is of


@dataclass
class RawDocuments:
    """Documents of files that are read in order and encoded on the way.

    Attributes:
        pieces: The lane's parts of files.
        reader: Reads them.
        tokenizer: Encodes them.
        packer: What will pack the blocks.
        key: As the lane's: pieces are read in an order drawn per epoch.
        skip_bad: Pass over bad records instead of raising.
        config: What is done with documents.
    """

    pieces: Sequence[Piece]
    reader: Reader
    tokenizer: Tokenizer
    packer: Packer
    key: tuple[int, int, int]
    skip_bad: bool
    config: DocumentConfig = field(default_factory=DocumentConfig)

    def __post_init__(self) -> None:
        """Make what encodes, mirrors and skips documents."""
        self._encode = make_encoder(self.reader.content, self.config, self.tokenizer)
        self._strands = Strands(self.config.reverse_complement, self.key[0], self.tokenizer)
        self._pass_over = BadRecords(skip=self.skip_bad)
        # Of a document that is cut or refused, the first row and two bytes tell all, where a byte is a token and
        # neither the other strand nor the end of a tag is looked for behind them.
        letters = self.config.letters
        heads = self.config.long_documents in ("truncate", "error") and has_bases(self.tokenizer)
        heads &= self.reader.content == "text"
        whole = self.config.reverse_complement > 0 or letters.exclude_tags or letters.exclude_degenerate
        self._head = self.packer.seq_len + 2 if heads and not whole else None

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        """Yield the blocks of an epoch from an address on; offset -1 is the beginning of its piece."""
        order = permutation(len(self.pieces), *self.key, epoch, PIECES)
        runs = self._runs([self.pieces[place] for place in order], start, epoch)
        return iter(BlockBuilder(runs, self.packer, truncate=self.config.long_documents == "truncate"))

    def _runs(self, pieces: Sequence[Piece], start: Address, epoch: int) -> Iterator[TokenRun]:
        """Yield the epoch's documents from `start` on."""
        _, offset, first, skip, tag, context = start
        for place in range(start.piece, len(pieces)):
            piece = pieces[place]
            groups = self.reader.groups(piece, piece.start if offset < 0 else offset, bool(first))
            if self.config.whole or not self.tokenizer.streams:
                groups = map(DocumentJoiner(self._head), groups)
            for run in self._encoded(place, piece, groups, tag, epoch):
                yield run.behind(0, skip)._replace(context=context) if skip or context else run
                skip = context = 0
            offset, first, tag = -1, 1, 0

    def _encoded(self, place: int, piece: Piece, groups: Iterator[Records], tag: int, epoch: int) -> Iterator[TokenRun]:
        """Encode groups; what has no token is EMPTY, and what is bad is raised, or BAD.

        `tag` is that of the document which the first group continues.
        """
        tokens = True  # whether the document that a group continues has had any
        abandoned = False  # whether it turned out bad
        for group in groups:
            documents, offsets, first, last, error, bad_offset, label_values, _ = group
            begin = 0
            if abandoned and not first and documents:
                begin, abandoned = 1, len(documents) == 1 and not last
            while begin < len(documents):
                opens = first or begin > 0
                arrived = Arrived(piece.path, documents[begin:], offsets[begin:], 0 if opens else tag, not last)
                weighed, bad = self._treated(arrived, epoch)
                end = begin + len(weighed.encoded.lengths)
                if end > begin:
                    whole = last or bad is not None
                    values = None if label_values is None else np.array(label_values[begin:end])
                    run = self._run(place, offsets[begin:end], weighed, opens, whole, tokens)
                    run = run._replace(label_values=values, tag=arrived.tag)
                    tokens = whole or bool(run.lengths[-1]) or (tokens and not opens and end - begin == 1)
                    yield run
                tag = weighed.tag
                if bad is not None:
                    self._pass_over(partial(wrong_byte, self.reader, piece.path, offsets[end], bad.offset or 0, bad.problem))
                    continued = end == 0 and not first
                    yield self._bad(place, offsets[end], not continued, continued and tokens, label_values is not None)
                    abandoned = end == len(documents) - 1 and not last
                    tokens = True
                    end += 1
                begin = end
            if error is not None and not (group.continues_bad and abandoned):
                self._pass_over(partial(located, self.reader, error, bad_offset))
                ended = group.continues_bad and tokens
                yield self._bad(place, bad_offset, not group.continues_bad, ended, label_values is not None)
            if error is not None:
                abandoned, tokens = False, True

    def _treated(self, arrived: "Arrived", epoch: int) -> tuple[Weighed, TokenizeError | None]:
        """Encode documents up to the first bad one, and treat them as `[data]` says."""
        try:
            weighed = self._encode(arrived.documents, arrived.tag, goes_on=arrived.goes_on)
            if self.config.whole:
                weighed = self._treated_whole(weighed, arrived, epoch)
            return weighed, None
        except TokenizeError as bad:
            if bad.index == 0:
                return Weighed(Encoded(np.empty(0, dtype=self.tokenizer.dtype), []), None, 0), bad
            sound, earlier = self._treated(arrived.until(bad.index), epoch)
            return sound, earlier or bad

    def _treated_whole(self, weighed: Weighed, arrived: "Arrived", epoch: int) -> Weighed:
        """Refuse documents that are too long, and read the other strand of those for which it was drawn."""
        (ids, lengths, mapped), weights, tag = weighed
        seq_len = self.packer.seq_len
        if self.config.long_documents == "error" and max(lengths, default=0) > seq_len:
            index = next(index for index, length in enumerate(lengths) if length > seq_len)
            cut = self._head is not None and lengths[index] > self._head
            raise TokenizeError(too_long(lengths[index], seq_len, at_least=cut), None, index)
        addresses = np.array(arrived.offsets, dtype=np.int64)
        chosen = np.flatnonzero(self._strands.chosen(last_name(arrived.file), addresses, epoch))
        if len(chosen):
            ids, weights = ids.copy(), None if weights is None else weights.copy()
            ends = np.cumsum(lengths)
            for index in chosen.tolist():
                document = slice(ends[index] - lengths[index], ends[index])
                try:
                    ids[document] = self._strands.reverse_complement(ids[document])
                except TokenizeError as bad:
                    raise TokenizeError(bad.problem, bad.offset, index) from None
                if weights is not None:
                    weights[document] = mirrored(weights[document])
        return Weighed(Encoded(ids, lengths, mapped), weights, tag)

    def _run(self, place: int, offsets: list[int], weighed: Weighed, first: bool, last: bool, tokens: bool) -> TokenRun:
        """Take the eos off a document that goes on, documents that have nothing else, and what is cut off long ones."""
        (ids, counts, mapped), weights, _ = weighed
        lengths = np.array(counts, dtype=np.int64)
        empty = lengths <= 1 + (self.tokenizer.bos_id is not None)
        if not last:
            ids, lengths[-1], empty[-1] = ids[:-1], lengths[-1] - 1, False
            weights = None if weights is None else weights[:-1]
        if not first and tokens:
            empty[0] = False
        kept = np.where(empty, 0, lengths)
        if self.config.long_documents == "truncate":
            kept = np.minimum(kept, self.packer.seq_len + 1)
        if (kept < lengths).any():
            places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            chosen = places < np.repeat(kept, lengths)
            ids, weights = ids[chosen], None if weights is None else weights[chosen]
        outcomes = np.where(empty, DocumentOutcome.EMPTY, DocumentOutcome.KEPT).astype(np.int8)
        of_documents = None if mapped is None else np.array(mapped, dtype=np.int64)
        return TokenRun(ids, kept, offsets, outcomes, place, first, last, weights=weights, mapped=of_documents)

    def _bad(self, place: int, offset: int, first: bool, ended: bool, labelled: bool) -> TokenRun:
        """Return a bad record: nothing, or the eos of the document whose beginning was good and has been yielded."""
        ids = np.full(int(ended), self.tokenizer.eos_id, dtype=self.tokenizer.dtype)
        label_values = np.array([np.nan]) if labelled else None
        return TokenRun(
            ids,
            np.array([len(ids)]),
            [offset],
            np.array([DocumentOutcome.BAD], dtype=np.int8),
            place,
            first,
            True,
            label_values=label_values,
        )


class Arrived(NamedTuple):
    """Documents as a reader gives them.

    Attributes:
        file: Path or URL.
        documents: Bytes.
        offsets: Address of each.
        tag: Length so far of a tag that is still open where the first begins.
        goes_on: Whether the last goes on behind.
    """

    file: str
    documents: list[bytes]
    offsets: list[int]
    tag: int
    goes_on: bool

    def until(self, index: int) -> "Arrived":
        """Return those before a document."""
        return self._replace(documents=self.documents[:index], offsets=self.offsets[:index], goes_on=False)
