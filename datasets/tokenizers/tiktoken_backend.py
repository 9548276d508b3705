"""A `tiktoken` encoding with the ids of a byte-level BPE `tokenizer.json`, at several times the speed.

The two libraries read the same vocabulary by different rules. `tokenizers` merges the pairs that the file lists;
`tiktoken` merges any two neighbours whose bytes together are a token, and takes a word whole where that is a token.
They agree where every token is what its own bytes merge to: up to the merge that makes it, nothing outside of a token's
bytes can have changed what happens inside of them, so that its last merge is the same in every text. A file may list
other pairs that make the token too, even of parts that are made later (those converted from tiktoken's ranks list all):
they never come about. `TiktokenBackend` checks that, token by token, and refuses everything it does not know. Whether
both split a text into the same words, `HFTokenizer.choose_backend` compares on real documents.
"""

import json
import os
import re
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
# Begins what stands in the place of an added token that documents may hold; U+FDD1 is reserved as well.
ADDED = "\ufdd1"
# What DeepSeek splits by, each expression in the words of the one before.
_JAPANESE = "\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff"  # and Chinese
_PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
DEEPSEEK = [
    r"\p{N}{1,3}",
    f"[{_JAPANESE}]+",
    _PUNCTUATED + "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
# The same in one expression: the third within what the second matches, what it leaves out there, and then the third
# without the characters of the other two, before which the text of the third ends.
_WITHIN = rf"[[^\p{{L}}\p{{P}}\p{{S}}]&&[{_JAPANESE}]]?[[\p{{L}}\p{{M}}]&&[{_JAPANESE}]]+|[[\p{{P}}\p{{S}}]&&[{_JAPANESE}]]+"
DEEPSEEK_WORDS = (
    rf"\p{{N}}{{1,3}}|{_WITHIN}|(?:(?!{_WITHIN})[{_JAPANESE}])+|{_PUNCTUATED}"
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}{_JAPANESE}]?[[\p{{L}}\p{{M}}]--[{_JAPANESE}]]+"
    rf"| ?[[\p{{P}}\p{{S}}]--[{_JAPANESE}]]+[\r\n]*|\s*[\r\n]+|\s+(?![^\s\p{{N}}{_JAPANESE}])|\s+"
)
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
        # Composition is the one normalizer in use with these; it leaves ASCII as it is.
        if content["normalizer"] not in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
            raise NotEqualError("it has a normalizer other than NFC")
        self._normalizer = tokenizer.normalizer if content["normalizer"] == {"type": "NFC"} else None
        self._added, added_ids = _added(content["added_tokens"], self._normalizer is not None)
        pattern = _pattern(content["pre_tokenizer"])
        made, ids = _ranks(model)
        _check_merges(tokenizer, model, made)
        ranks = {token: rank for rank, token in enumerate(made.values())}
        self._end = len(ids)
        self._ids: npt.NDArray[np.int32] = np.array([*ids, eos_id, *added_ids], dtype=np.int32)
        special = {mark: self._end + place for place, mark in enumerate((END, *filter(None, self._added.values())))}
        self._marks = set(special)
        self._found = re.compile("|".join(map(re.escape, sorted(self._added, key=len, reverse=True))))
        self._encoding = tiktoken.Encoding("cistron", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        # tiktoken is out of the interpreter lock while it encodes.
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "cistron-tokenize")

    def encode(self, texts: list[str]) -> Iterator[tuple[list[str], npt.NDArray[np.int32] | None]]:
        """Yield texts in parts, each with its ids, 1-d, an eos after every text; None where the library must encode."""
        parts = list(_parts(texts))
        return zip(parts, self._pool.map(self._encode, parts), strict=True)

    def _encode(self, texts: list[str]) -> npt.NDArray[np.int32] | None:
        if any(self._added.values()):
            if any(ADDED in text for text in texts):
                return None
            texts = [self._marked(text) for text in texts]
        try:
            with library_errors():
                if self._normalizer is not None:
                    texts = [text if text.isascii() else self._normalizer.normalize_str(text) for text in texts]
                ranks = self._encoding.encode_to_numpy(
                    END.join((*texts, "")), allowed_special=self._marks, disallowed_special=()
                )
        except LibraryError:  # its regular expressions have a stack, which some 10^6 spaces in a row exhaust
            return None
        if np.count_nonzero(ranks == self._end) != len(texts):  # a document holds an END of its own
            return None
        return self._ids[ranks]

    def _marked(self, text: str) -> str:
        """Put marks in the place of added tokens, found as `tokenizers` does: special ones too, which stay text."""
        if not any(mark is not None and token in text for token, mark in self._added.items()):
            return text
        return self._found.sub(lambda found: self._added[found[0]] or found[0], text)


def _added(tokens: list[dict[str, Any]], normalized: bool) -> tuple[dict[str, str | None], list[int]]:
    """Return the mark of each added token, None for special ones, and the ids of those that have a mark.

    Args:
        tokens: Of the tokenizer.json.
        normalized: Whether texts are.
    """
    plain = [token for token in tokens if not token["special"]]
    if any(token[flag] for token in plain for flag in ("single_word", "lstrip", "rstrip")):
        raise NotEqualError("it has added tokens that are found in some places only, or that take spaces along")
    # A file has two sets of tokens, of which one is looked for behind the other, in normalized text.
    if len({token["normalized"] for token in plain}) > 1 or (normalized and any(token["normalized"] for token in plain)):
        raise NotEqualError("it has added tokens that are looked for in normalized text")
    of_a_set = [token for token in tokens if not plain or token["normalized"] == plain[0]["normalized"]]
    marks = {token["content"]: f"{ADDED}{place:08}" for place, token in enumerate(plain)}
    return {token["content"]: marks.get(token["content"]) for token in of_a_set}, [token["id"] for token in plain]


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """Return the regular expression whose matches are the words of a text, all of it."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _whole(GPT2_WORDS)
        case {
            "type": "Sequence",
            "pretokenizers": [*splits, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}],
        }:
            expressions = []
            for split in splits:
                match split:
                    case {"type": "Split", "pattern": {"Regex": str(words)}, "behavior": "Isolated", "invert": False}:
                        expressions.append(words)
                    case {"type": "Split", "pattern": {"Regex": str(words)}, "behavior": "Removed", "invert": True}:
                        if len(splits) == 1:  # what is between words is left out, as tiktoken does
                            return words
            if len(expressions) == len(splits) == 1:
                return _whole(expressions[0])
            if expressions == DEEPSEEK:
                return _whole(DEEPSEEK_WORDS)
    raise NotEqualError("it does not split into words by one regular expression and then into bytes")


def _whole(words: str) -> str:
    """Return an expression for words and what lies between, which `tokenizers` keeps as words and tiktoken drops."""
    return rf"{words}|(?:(?!{words})[\s\S])+"


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
        if not BYTE_OF.keys() >= set(token):
            raise NotEqualError(f"it merges {left!r} and {right!r}, of which one is no bytes")
        made[token] = bytes(BYTE_OF[character] for character in token)
        last = token
    if without := made.keys() - vocabulary.keys():  # as where a file gives two tokens one id
        raise NotEqualError(f"its token {min(without)!r} has no id of its own")
    return made, [vocabulary[token] for token in made]


def _check_merges(tokenizer: tokenizers.Tokenizer, model: dict[str, Any], made: dict[str, bytes]) -> None:
    """Raise unless every token that is made, and no other, comes out of its own bytes."""
    merger, whole_words = tokenizer.model, model["ignore_merges"]
    merger.ignore_merges = False
    astray = {token: parts for token in made if (parts := len(merger.tokenize(token))) != 1}
    merger.ignore_merges = whole_words
    for token, parts in astray.items():
        # Of more than two parts it only ever is a word of its own; two are what tiktoken merges.
        if parts == 2 or not whole_words:
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
