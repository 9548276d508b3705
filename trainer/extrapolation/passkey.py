"""Pass keys (Mohtashami and Jaggi 2023): a key that a document says once, at some depth, and is asked for at its end.

The document around it is a real one. Whether a model would say the key is read off one forward pass: greedy decoding
gives exactly the key if and only if, the key being there, each of its tokens is the most likely one behind those before
it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...datasets.tokenizers import Ids, TokenizeError, Tokenizer
from ..config import Passkey
from ..errors import ConfigError
from ..inference import opening_tokens
from .long_rows import LongRowModel


class Words(NamedTuple):
    """What is said, and with which letters."""

    alphabet: str
    needle: str
    query: str


PROSE = Words(
    "0123456789", "\nThe pass key is {key}. Remember it. {key} is the pass key.\n", "\nWhat is the pass key? The pass key is "
)
# 24 letters that no sequence has by chance, before the key and at the end: a repeat to go on with
SEQUENCES = {
    "dna": Words("ACGT", "GATTACAGCCTAGGTCATGCACTG{key}", "GATTACAGCCTAGGTCATGCACTG"),
    "protein": Words("ACDEFGHIKLMNPQRSTVWY", "MWHCYKPEWQNDMHCFRWYKPGEC{key}", "MWHCYKPEWQNDMHCFRWYKPGEC"),
}


class Prompt(NamedTuple):
    """A document that ends in a pass key.

    Attributes:
        ids: of the length that was asked for, the key last.
        key: how many tokens that is.
    """

    ids: Ids
    key: int


def prompts(table: Passkey, tokenizer: Tokenizer, hay: Sequence[Ids], length: int, depth: float) -> list[Prompt]:
    """Return as many documents as `samples` says; keys and hay are the same at every depth and length.

    Args:
        table: what to hide.
        tokenizer: encodes it.
        hay: documents of at least `length` tokens, used round robin.
        length: tokens of a document with its key.
        depth: 0 to 1, where the key is said.

    Raises:
        ConfigError: the tokenizer does not know a letter, or `length` is too short.
    """
    usual, found = SEQUENCES.get(tokenizer.alphabet or "", PROSE), []
    for sample in range(table.samples):
        draw = np.random.default_rng([0, sample])
        key = "".join(draw.choice(list(table.alphabet or usual.alphabet), size=table.digits))
        needle = encode_piece(tokenizer, (table.needle or usual.needle).replace("{key}", key))
        query, answer = encode_piece(tokenizer, table.query or usual.query), encode_piece(tokenizer, key)
        first = opening_tokens(tokenizer)
        room = length - len(needle) - len(query) - len(answer)
        if room < first:
            raise ConfigError(
                f"eval.extrapolation.passkey: {length} tokens are too few for needle, query and key, which have "
                f"{length - room}; leave such lengths out, or set passkey.samples = 0"
            )
        text = hay[sample % len(hay)][:room]
        at = first + round(depth * (room - first))
        ids = np.concatenate([text[:at], needle, text[at:], query, answer])
        found.append(Prompt(ids, len(answer)))
    return found


def encode_piece(tokenizer: Tokenizer, text: str) -> Ids:
    """Return the ids of a piece of text, without what opens and ends a document.

    Raises ConfigError for a letter that has no id.
    """
    try:
        ids = tokenizer.encode_batch([text.encode()]).ids
    except TokenizeError as error:
        raise ConfigError(
            f"eval.extrapolation.passkey: {text!r}: {error.problem}; set alphabet, needle and query for these documents, or "
            "samples = 0"
        ) from None
    return ids[opening_tokens(tokenizer) : -1]


def retrieved(long_model: LongRowModel, asked: Sequence[Prompt]) -> float:
    """Return the share of keys that greedy decoding gives."""
    longest = max(prompt.key for prompt in asked)
    said = long_model.likeliest([prompt.ids for prompt in asked], longest + 1)
    right = [
        bool((row[-1 - prompt.key : -1] == prompt.ids[-prompt.key :]).all()) for prompt, row in zip(asked, said, strict=True)
    ]
    return sum(right) / len(right)
