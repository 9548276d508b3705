"""What a tokenizer.json says about documents: which tokens no text may become, and what decides the ids of a text.

The library's `encode_special_tokens` keeps it from looking for special tokens in a text, but its models look again.
Unigram, WordLevel and WordPiece take a special token for a piece or a word like any other, and merges of a BPE may
build one. So documents are encoded by the model without its special tokens (`kept_from_text`): the text of one becomes
whatever else the vocabulary has for it.

A BPE without an unknown token leaves letters out that it lacks. Here they get an id of their own instead, beyond the
vocabulary, by which they are noticed and refused.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers

from ...base import Json
from .tiktoken_backend import BYTE_OF

# Begins the name of what no text may become: U+FDD0, which Unicode reserves for a program's own use.
APART = "\ufdd0"
LOST = f"{APART}lost"
FALLBACK = {f"<0x{byte:02X}>" for byte in range(256)}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def vocabulary_of(model: Json) -> Mapping[str, int]:
    """Return the model's tokens with their ids: Unigram lists pieces, each with a score, in the order of their ids."""
    vocabulary: Any = model["vocab"]
    return {piece: index for index, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary


def unknown_of(model: Json) -> str | None:
    """Return the token that the model writes for what it lacks; None where it has none."""
    index = model.get("unk_id")  # Unigram's
    token = model.get("unk_token") if index is None else model["vocab"][index][0]
    return token if token in vocabulary_of(model) else None


def mark_special(content: Json, ids: Mapping[str, int]) -> bool:
    """Mark tokens as special that a job or its `tokenizer_config.json` names and the file does not; return if any was.

    Args:
        content: Of the tokenizer.json, changed in place.
        ids: Of these tokens.
    """
    added = {token["content"]: token for token in content["added_tokens"]}
    new = [token for token in ids if token not in added or not added[token]["special"]]
    for token in new:
        if token in added:
            added[token]["special"] = True
        else:  # of the model only; the library gives it the id that the model has
            flags = dict.fromkeys(FLAGS, False)
            content["added_tokens"].append({"id": ids[token], "content": token, **flags, "special": True})
    return bool(new)


def kept_from_text(kind: str, content: Json, special_ids: Collection[int], eos_id: int, lost_id: int) -> Json | None:
    """Return the model that encodes documents: without special tokens, and with LOST where it would leave letters out.

    A token keeps its id and gets a name that no text has. Of a BPE the merges that make such a token, or that need it,
    are left out.

    Args:
        kind: Of the model, as the library names it.
        content: Of the tokenizer.json.
        special_ids: No text becomes one of these, but for the unknown token.
        eos_id: One of them; where the model writes it for what it lacks, LOST is written.
        lost_id: Of LOST.

    Returns:
        None where the model is that already.
    """
    model = content["model"]
    vocabulary = vocabulary_of(model)
    byte_level = '"type": "ByteLevel"' in json.dumps(content["pre_tokenizer"])
    apart = {token for token, index in vocabulary.items() if index in special_ids}
    if kind == "BPE" and apart:
        apart &= _made(model, byte_level)
    unknown = unknown_of(model)
    loses = kind == "BPE" and (unknown is None or vocabulary[unknown] == eos_id)
    loses = loses and not _knows_every_letter(model, apart, byte_level)
    if not apart and not loses:
        return None
    changed = dict(model)
    if isinstance(model["vocab"], list):
        changed["vocab"] = [[APART + piece if piece in apart else piece, score] for piece, score in model["vocab"]]
    else:
        changed["vocab"] = {APART + token if token in apart else token: index for token, index in vocabulary.items()}
    if model.get("unk_token") in apart:
        changed["unk_token"] = APART + model["unk_token"]
    if kind == "BPE":
        pairs = ((left, right, left + right.removeprefix(_prefix(model))) for left, right in _pairs(model))
        changed["merges"] = [[left, right] for left, right, made in pairs if apart.isdisjoint((left, right, made))]
    if loses:
        changed["vocab"][LOST] = lost_id
        changed["unk_token"] = LOST
    return changed


def library_model(model: Json) -> tokenizers.models.Model:
    """Return the library's model of a tokenizer.json's."""
    made: tokenizers.models.Model = tokenizers.Tokenizer.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    ).model
    return made


def fingerprint_of(kind: str, content: Json, library: tokenizers.Tokenizer) -> str:
    """Return sha256 of what decides the ids of a document, whichever program and version wrote the file.

    These are normalizer, pre-tokenizer, vocabulary, merges and other settings of the model, and added tokens. Not post-
    processor, decoder, truncation and padding; not the order of keys, how merges are written, or settings that are off,
    which older files do not have; of a special token not how it is found in a text, since it is not.

    Args:
        kind: Of the model, as the library names it.
        content: Of the tokenizer.json.
        library: The tokenizer that it describes.
    """
    model = content["model"]
    without_model = tokenizers.Tokenizer(tokenizers.models.BPE())
    if library.normalizer is not None:
        without_model.normalizer = library.normalizer
    if library.pre_tokenizer is not None:
        without_model.pre_tokenizer = library.pre_tokenizer
    written = json.loads(without_model.to_str())  # with the settings that older files leave out
    added = [
        [
            library.token_to_id(token["content"]),
            token["content"],
            *(() if token["special"] else (token[flag] for flag in FLAGS)),
        ]
        for token in content["added_tokens"]
    ]
    settings = {key: value for key, value in model.items() if key not in ("type", "vocab", "merges")}
    steps = [_stated(part) for part in (settings, written["normalizer"], written["pre_tokenizer"])]
    vocabulary, merges = vocabulary_of(model), model.get("merges", [])
    by_id = sorted(zip(vocabulary.values(), vocabulary.keys(), strict=True))  # as most files have them: fast
    # Of a score, a library that reads and writes it changes the last digits.
    scores = [f"{score:.6g}" for _, score in model["vocab"]] if isinstance(model["vocab"], list) else []
    # One text of long lists: JSON of 280,000 merges takes a second.
    tokens, pairs = APART.join(token for _, token in by_id), APART.join(map(" ".join, merges) if _listed(merges) else merges)
    parts = (kind, steps, sorted(added), [index for index, _ in by_id], scores, tokens, pairs)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode() + b"\0")
    return digest.hexdigest()


def _stated(value: Any) -> Any:
    """Return settings without those that are off, and without what decides no id."""
    if isinstance(value, list):
        return [_stated(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _stated(item) for key, item in value.items() if key != "trim_offsets"}
    kept = {key: item for key, item in kept.items() if not (item is None or item is False or item in ("", []))}
    return None if kept == {"type": "Sequence"} else kept


def _pairs(model: Json) -> list[list[str]]:
    """Return the merges of a BPE, which older files write as `left right`; none of another model."""
    merges = model.get("merges", [])
    return merges if _listed(merges) else [merge.split(" ") for merge in merges]


def _listed(merges: list[Any]) -> bool:
    return bool(merges) and isinstance(merges[0], list)


def _prefix(model: Json) -> str:
    return model.get("continuing_subword_prefix") or ""


def _made(model: Json, byte_level: bool) -> set[str]:
    """Return the tokens that a BPE may write for a text: merged ones, letters, and bytes that it falls back to."""
    vocabulary, prefix, suffix = model["vocab"].keys(), _prefix(model), model.get("end_of_word_suffix") or ""
    if model.get("ignore_merges"):  # whole words too
        made = set(vocabulary)
    else:
        made = {left + right.removeprefix(prefix) for left, right in _pairs(model)}
        made |= {token for token in vocabulary if len(token.removeprefix(prefix).removesuffix(suffix)) == 1}
    if byte_level:
        made = {token for token in made if BYTE_OF.keys() >= set(token.removeprefix(prefix).removesuffix(suffix))}
    return made | FALLBACK if model.get("byte_fallback") else made


def _knows_every_letter(model: Json, apart: set[str], byte_level: bool) -> bool:
    """Tell whether a BPE without the tokens `apart` has one for whatever a text may hold."""
    plain = byte_level and not _prefix(model) and not model.get("end_of_word_suffix")
    needed = BYTE_OF.keys() if plain else FALLBACK
    return bool(plain or model.get("byte_fallback")) and model["vocab"].keys() >= needed and apart.isdisjoint(needed)
