"""The other strand of DNA: of letters, and of documents drawn at random as augmentation."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ..nucleotides import CODES, PAIRS
from ..randomness import random_bits, scramble, uniform
from ..tokenizers import Ids, TokenizeError, Tokenizer, has_bases

Addresses = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]


class Strands:
    """Which documents are read on their other strand, and what that is in ids.

    Args:
        share: Probability of the other strand.
        seed: Of the choices.
        tokenizer: Gives each letter an id of its own, see `strand_complaints`.
    """

    def __init__(self, share: float, seed: int, tokenizer: Tokenizer) -> None:
        self.share = share
        self._seed = seed
        self._tokenizer = tokenizer
        self._pairs = _pairs(tokenizer) if share else np.empty(0, dtype=np.int16)

    def chosen(self, name: str, documents: Addresses, epoch: int) -> Chosen:
        """Tell which documents of a file are read on the other strand: a function of the arguments and the seed alone.

        Args:
            name: The last part of the file's name: a corpus may move.
            documents: int64: address of each in the file, or its number.
            epoch: Times that all have been read.
        """
        key = random_bits(1, self._seed, xxhash.xxh3_64_intdigest(name.encode()), epoch)
        drawn = scramble(documents.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)
        return np.asarray(uniform(drawn) < self.share)

    def reverse_complement(self, document: Ids, start: int = 0, stop: int | None = None) -> Ids:
        """Return tokens `start` to `stop` of the reverse complement of a document, whose eos stays at its end.

        Raises:
            TokenizeError: A letter has no complement; its `offset` is the letter's.
        """
        ids = mirrored(document, start, stop)
        body = ids[: len(document) - 1 - start]
        pairs = self._pairs[body]
        if (wrong := pairs < 0).any():
            at = len(document) - 2 - start - int(np.flatnonzero(wrong)[-1])  # in the document as it stands
            letter = self._tokenizer.decode([int(document[at])])
            raise TokenizeError(f"{letter!r} is no IUPAC code of DNA, so that data.reverse_complement cannot turn it", at, 0)
        body[:] = pairs
        return ids


def strand_complaints(share: float, tokenizer: Tokenizer) -> list[str]:
    """Return what is wrong with reading a share of the documents on their other strand."""
    if not share or has_bases(tokenizer):
        return []
    return [
        f"data.reverse_complement = {share}: the {tokenizer.kind} tokenizer has no ids of single bases; "
        "kinds 'byte' and 'dna' have"
    ]


def mirrored(document: npt.NDArray[Any], start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Return a copy of places `start` to `stop` of a document read backwards, all but its last, which stays there."""
    stop = len(document) if stop is None else stop
    body = min(stop, len(document) - 1)
    last = len(document) - 1
    return np.concatenate([document[last - body : last - start][::-1], document[body:stop]])


def _pairs(tokenizer: Tokenizer) -> npt.NDArray[np.int16]:
    """Return the complement of each id, -1 of those that are no code: int16 [vocab_size]."""
    pairs = np.full(tokenizer.vocab_size, -1, dtype=np.int16)
    for code, pair in zip(CODES, PAIRS, strict=True):
        try:
            ids = tokenizer.encode(bytes([code, pair]))
        except TokenizeError:  # a code that the vocabulary lacks
            continue
        pairs[ids[0]] = ids[1]
    return pairs
