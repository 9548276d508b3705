"""A `tiktoken` encoding with the ids of a byte-level BPE `tokenizer.json`, at several times the speed.

The two libraries read the same vocabulary by different rules. `tokenizers` merges the pairs that the file lists;
`tiktoken` merges any two neighbours whose bytes together are a token, and takes a word whole where that is a token.
They agree where every token is what its own bytes merge to: up to the merge that makes it, nothing outside of a token's
bytes can have changed what happens inside of them. `TiktokenBackend` checks that, token by token, and refuses
everything it does not know. Whether both split a text into the same words, `HFTokenizer.choose_backend` compares on
real documents.
"""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers

from .protocol import LibraryError, library_errors

# What ByteLevel splits by, written in the `tokenizers` library.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Stands between documents while they are encoded: U+FDD0, which Unicode reserves for a program's own use.
END = "\ufdd0"
# A thread's share: small enough for the threads to end together, large enough for the 20 us that handing over takes.
PART_BYTES = 2**16


class NotEqualError(Exception):
    """A tokenizer.json is of a kind that tiktoken is not known to read alike; the text says why."""


class TiktokenBackend:
    """Encodes as a tokenizer does whose ids it was built from.

    Args:
        tokenizer: With `encode_special_tokens`, so that no added token is ever found in a document.
        eos_id: Ends every document.

    Raises:
        NotEqualError: tiktoken may give other ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_id: int) -> None:
        content = json.loads(tokenizer.to_str())
        model: dict[str, Any] = content["model"]
        if model["type"] != "BPE" or any(model[key] for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
            raise NotEqualError("its model is not a plain BPE")
        if not all(token["special"] for token in content["added_tokens"]):
            raise NotEqualError("it has added tokens that are not special")
        # Composition is the one normalizer in use with these; it leaves ASCII as it is.
        if content["normalizer"] not in (None, {"type": "NFC"}):
            raise NotEqualError("it has a normalizer other than NFC")
        self._normalizer = tokenizer.normalizer
        words = _words(content["pre_tokenizer"])
        made, ids = _ranks(model)
        _check_merges(tokenizer, model, made)
        ranks = {token: rank for rank, token in enumerate(made.values())}
        # tiktoken drops what the expression leaves out; `tokenizers` keeps each such gap as a word.
        pattern = rf"{words}|(?:(?!{words})[\s\S])+"
        self._end = len(ids)
        self._ids: npt.NDArray[np.int32] = np.array([*ids, eos_id], dtype=np.int32)
        self._encoding = tiktoken.Encoding("cistron", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: self._end})
        # tiktoken is out of the interpreter lock while it encodes.
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "cistron-tokenize")

    def encode(self, texts: list[str]) -> Iterator[tuple[list[str], npt.NDArray[np.int32] | None]]:
        """Yield texts in parts, each with its ids, 1-d, an eos after every text; None where the library must encode."""
        parts = list(_parts(texts))
        return zip(parts, self._pool.map(self._encode, parts), strict=True)

    def _encode(self, texts: list[str]) -> npt.NDArray[np.int32] | None:
        try:
            with library_errors():
                if self._normalizer is not None:
                    texts = [text if text.isascii() else self._normalizer.normalize_str(text) for text in texts]
                ranks = self._encoding.encode_to_numpy(END.join((*texts, "")), allowed_special={END}, disallowed_special=())
        except LibraryError:  # its regular expressions have a stack, which some 10^6 spaces in a row exhaust
            return None
        if np.count_nonzero(ranks == self._end) != len(texts):  # a document holds an END of its own
            return None
        return self._ids[ranks]


def _words(pre_tokenizer: dict[str, Any] | None) -> str:
    """Return the regular expression that a word matches."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2_WORDS
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    raise NotEqualError("it does not split into words by one regular expression and then into bytes")


def _ranks(model: dict[str, Any]) -> tuple[dict[str, bytes], list[int]]:
    """Return token -> its bytes in order of rank (the 256 bytes, then the merges), and the id of each rank."""
    vocabulary: dict[str, int] = model["vocab"]
    if not vocabulary.keys() >= BYTE_OF.keys():
        raise NotEqualError("its vocabulary lacks some of the 256 bytes")
    made = {character: bytes([byte]) for character, byte in BYTE_OF.items()}
    last = ""
    for left, right in model["merges"]:
        token = left + right
        if token == last:  # vocabularies that were written for tiktoken list every pair that makes a token, one after another
            continue
        if token in made:
            raise NotEqualError(f"merges that make {token!r} do not follow each other")
        if left not in made or right not in made:
            raise NotEqualError(f"it merges {left!r} and {right!r}, of which one is never made")
        made[token] = made[left] + made[right]
        last = token
    return made, [vocabulary[token] for token in made]


def _check_merges(tokenizer: tokenizers.Tokenizer, model: dict[str, Any], made: dict[str, bytes]) -> None:
    """Raise unless every token that is made, and no other, comes out of its own bytes."""
    merger, whole_words = tokenizer.model, model["ignore_merges"]
    merger.ignore_merges = False
    astray = [token for token in made if len(merger.tokenize(token)) != 1]
    merger.ignore_merges = whole_words
    if astray and not whole_words:
        raise NotEqualError(f"its merges do not lead to its token {astray[0]!r}")
    merges = {tuple(pair) for pair in model["merges"]} if astray else set()
    for token in astray:
        # It only ever is a word of its own, provided that no two tokens make it unlisted.
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        if any(left in made and right in made and (left, right) not in merges for left, right in splits):
            raise NotEqualError(f"its merges do not lead to its token {token!r}")
    if not whole_words:
        return  # and what no merge makes never occurs
    for token in model["vocab"].keys() - made.keys():
        if BYTE_OF.keys() >= set(token):
            text = bytes(BYTE_OF[character] for character in token).decode("utf-8", errors="ignore")
            if [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == [token]:
                raise NotEqualError(f"its token {token!r} is a word that no merge makes")


def _parts(texts: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _byte_of() -> dict[str, int]:
    """Return GPT-2's alphabet, a character for each byte: printable Latin-1 is itself, others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others: Iterable[int] = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _byte_of()
