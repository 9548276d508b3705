"""Letters of a genome as Evo 2 was trained on them: how much each counts in the loss, and in which case it is shown.

| letters | weight |
|---|---|
| `a` to `z`, soft-masked repeats | `lowercase_weight` (Evo 2: 0.1) |
| a tag `|...|`, its pipes included, and the control characters `@` and `#` | 0 with `exclude_tags` |
| outside of tags all but ACGTU in either case, as N and the other IUPAC codes | 0 with `exclude_degenerate` |
| all others, and the eos of a document | 1 |

Weights are taken of the letters as they stand; with `uppercase` the model is shown all of them in upper case, those of
tags too, as Savanna's `to_upper` does it. A tag has at most `TAG_LETTERS` letters and ends in its document: what is
longer is a pipe too many, and would turn the rest of a chromosome into a tag.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...base import Table, Weight, changed
from ..tokenizers import Encoded, TokenizeError, Tokenizer, has_bases

TAG_LETTERS = 2048
PIPE, CONTROLS, BASES, END = ord("|"), b"@#", b"ACGTUacgtu", b"\0"
Weights = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Letters(Table):
    """The keys of `[data]` about letters: how much each counts in the loss, and in which case it is shown."""

    lowercase_weight: Weight = 1.0
    """Loss weight of lowercase letters, soft-masked repeats (Evo 2: 0.1); byte and dna. Token shards: as prepared."""
    exclude_tags: bool = False
    """Take no loss on tags between two `|`, nor on `@` and `#`."""
    exclude_degenerate: bool = False
    """Take no loss on letters, outside of tags, other than ACGTU: N and the other IUPAC codes."""
    uppercase: bool = False
    """Show the model uppercase letters only; weights are taken before."""

    @property
    def weighted(self) -> bool:
        """Whether any letter weighs other than 1."""
        return self.lowercase_weight != 1.0 or self.exclude_tags or self.exclude_degenerate

    @property
    def letters(self) -> "Letters":
        """These keys alone, of a table that has more."""
        return Letters(**{key: getattr(self, key) for key in Letters.model_fields})

    @property
    def changed_letters(self) -> dict[str, float | bool]:
        """The keys that are not the default."""
        return {key: getattr(self, key) for key in Letters.model_fields if changed(self, key)}


def letter_complaints(letters: Letters, tokenizer: Tokenizer) -> list[str]:
    """Name the keys that a tokenizer's ids cannot serve, a line for each."""
    if tokenizer.alphabet == "protein":
        reason = "is for genomes, and [tokenizer] is of proteins"
    else:
        reason = f"a token of the {tokenizer.kind} tokenizer has many letters; kinds 'byte' and 'dna' have one token for each"
    wrong = []
    for key, value in letters.changed_letters.items():
        if not has_bases(tokenizer):
            wrong.append(f"data.{key} = {str(value).lower()}: {reason}; leave it out")
        if key == "uppercase" and tokenizer.alphabet == "dna":
            wrong.append(f"data.uppercase = true: the {tokenizer.kind} tokenizer has one id for both cases; leave it out")
    return wrong


class Weighed(NamedTuple):
    """Documents with the weights of their tokens.

    Attributes:
        encoded: The documents.
        weights: float32, one for each id; None: all 1.
        tag: Letters that the tag has which is open behind the last document; 0 where none is.
    """

    encoded: Encoded
    weights: Weights | None
    tag: int


class LetterEncoder:
    """A tokenizer together with what is done before it.

    Attributes:
        letters: What that is.
        tokenizer: Gives one id to each letter where letters have weights.
    """

    def __init__(self, letters: Letters, tokenizer: Tokenizer) -> None:
        self.letters = letters
        self.tokenizer = tokenizer

    def __call__(self, documents: Sequence[bytes], tag: int = 0, *, goes_on: bool = False) -> Weighed:
        """Encode documents.

        Args:
            documents: As read; the first may continue a document.
            tag: Letters, up to here, of the tag that is open where it does.
            goes_on: Whether the last document goes on behind, so that a tag may stay open.

        Raises:
            TokenizeError: The first document that cannot be encoded, or has a tag without an end.
        """
        letters = self.letters
        shown = [data.upper() for data in documents] if letters.uppercase else documents
        try:
            encoded = self.tokenizer.encode_batch(shown)
        except TokenizeError as bad:
            if letters.weighted:
                self._weigh(documents[: bad.index], tag, goes_on=False)  # what is wrong further ahead comes first
            raise
        if not letters.weighted:
            return Weighed(encoded, None, 0)
        weights, tag = self._weigh(documents, tag, goes_on=goes_on)
        assert len(weights) == len(encoded.ids), "a letter is an id, and no bos stands before them"
        return Weighed(encoded, weights, tag)

    def _weigh(self, documents: Sequence[bytes], tag: int, *, goes_on: bool) -> tuple[Weights, int]:
        """Return the weight of each letter and of each document's end, and the letters of a tag that stays open."""
        data = np.frombuffer(END.join((*documents, b"")), dtype=np.uint8)
        in_sequence, in_tag = self._tables
        weights = in_sequence[data]
        if not (self.letters.exclude_tags or self.letters.exclude_degenerate):
            return weights, 0
        pipes = np.flatnonzero(data == PIPE)
        if not len(pipes) and not tag:
            return weights, 0
        ends = np.cumsum([len(document) + 1 for document in documents]) - 1
        opens, closes, tag = _tags(pipes, ends, tag, goes_on=goes_on)
        depth = np.zeros(len(data) + 1, dtype=np.int8)
        depth[np.maximum(opens, 0)] = 1
        depth[closes] -= 1
        inside = np.cumsum(depth[:-1], dtype=np.int8).view(bool)
        weights[inside] = in_tag[data[inside]]
        return weights, tag

    @cached_property
    def _tables(self) -> tuple[Weights, Weights]:
        """The weight of each byte in the sequence, and in a tag."""
        cased = np.ones(256, dtype=np.float32)
        cased[ord("a") : ord("z") + 1] = self.letters.lowercase_weight
        in_sequence, in_tag = cased.copy(), cased
        if self.letters.exclude_degenerate:
            others = np.ones(256, dtype=bool)
            others[[*BASES, *END, PIPE, *CONTROLS]] = False
            in_sequence[others] = 0.0
        if self.letters.exclude_tags:
            in_sequence[list(CONTROLS)] = 0.0
            in_tag = np.zeros(256, dtype=np.float32)
        return in_sequence, in_tag


LetterIndices = npt.NDArray[np.int64]


def _tags(pipes: LetterIndices, ends: LetterIndices, tag: int, *, goes_on: bool) -> tuple[LetterIndices, LetterIndices, int]:
    """Pair the pipes of documents that end at `ends`.

    Returns:
        Where each tag opens, below 0 for one that was open before; the place behind each; and the letters of the last
        one, where it may stay open.

    Raises:
        TokenizeError: A tag is not closed in its document, or within `TAG_LETTERS`.
    """
    documents = np.searchsorted(ends, pipes)
    if tag:
        pipes, documents = np.concatenate([[-tag], pipes]), np.concatenate([[0], documents])
    firsts = np.searchsorted(documents, documents)  # the first pipe of each one's document
    opening = (np.arange(len(pipes)) - firsts) % 2 == 0
    opens, of = pipes[opening], documents[opening]
    following = np.append(pipes, -1)[1:][opening]
    closed = np.append(documents, -1)[1:][opening] == of
    closes = np.where(closed, following + 1, ends[of])
    stays_open = ~closed & (of == len(ends) - 1) & goes_on
    wrong = (closes - opens > TAG_LETTERS) | ~(closed | stays_open)
    if wrong.any():
        at = int(wrong.argmax())
        index = int(of[at])
        start = int(ends[index - 1]) + 1 if index else 0
        problem = f"a tag that begins with '|' is not closed by another within {TAG_LETTERS:,} letters and its document"
        raise TokenizeError(problem, max(int(opens[at]) - start, 0), index)
    return opens, closes, int(closes[-1] - opens[-1]) if stays_open.any() else 0
