"""Report the letters of a source, where a letter is a token: what they look like, and which of them do not belong.

A protein file among genomes, a line end inside of a sequence or the 0x1a that ends files of DOS are letters like any
other to the `byte` tokenizer, and to `on_unknown = "map"`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ...datasets.nucleotides import CODES
from ...datasets.shards import Shard
from ...datasets.tokenizers import LetterTokenizer, Tokenizer

Counts = npt.NDArray[np.int64]  # [256], of bytes
SHOWN = 12  # letters, and of those that do not belong as many
SHARD_SAMPLE = 2**17  # ids of each of some shards
NAMES = {" ": "a blank", "\n": "a line feed", "\r": "a carriage return", "\t": "a tab"}
AMINO_ACIDS = b"ACDEFGHIKLMNPQRSTVWYBXZJUO*-."
SPACES = b"\t\n\v\f\r "
# Least shares of letters: proteins have 0.3 of A, C, G, T, N, and English text too.
BASES, RESIDUES = 0.8, 0.95


def count_letters(documents: Iterable[bytes]) -> Counts:
    """Return how often each byte is in documents."""
    return np.bincount(np.frombuffer(b"".join(documents), dtype=np.uint8), minlength=256)


def count_ids(shards: Sequence[Shard], tokenizer: Tokenizer) -> Counts:
    """Return how often each letter is at the heads of some shards; special tokens are no letters."""
    counts = np.zeros(256, dtype=np.int64)
    letters = tokenizer.tokens if isinstance(tokenizer, LetterTokenizer) else [chr(byte) for byte in range(256)]
    for shard in shards[:: max(len(shards) // 16, 1)]:
        found = np.bincount(np.minimum(shard.ids()[:SHARD_SAMPLE], 256), minlength=len(letters))[: len(letters)]
        for index in np.flatnonzero(found).tolist():
            if index not in tokenizer.special_ids:
                counts[ord(letters[index])] += found[index]
    return counts


def looks_like(counts: Counts, alphabet: str | None) -> str:
    """Return what letters are: of nucleotides, proteins or text; `alphabet` is the tokenizer's."""
    if alphabet in ("dna", "protein"):
        return "nucleotides" if alphabet == "dna" else "proteins"
    either = _either_case(counts)
    total = max(int(counts.sum()), 1)
    if either[[*b"ACGTUN"]].sum() >= BASES * total:
        return "nucleotides"
    return "proteins" if either[[*AMINO_ACIDS]].sum() >= RESIDUES * total and not counts[32] else "text"


def foreign_letters(counts: Counts, kind: str) -> list[tuple[str, int]]:
    """Return letters that do not belong to what a source looks like, each with its number, the most frequent first."""
    either = _either_case(counts)
    if kind == "nucleotides":
        known = {*CODES} if either[ord("T")] or not either[ord("U")] else {*CODES.upper(), *CODES.lower(), *b"Uu"}
    elif kind == "proteins":
        known = {*AMINO_ACIDS, *AMINO_ACIDS.lower()}
    else:
        known = {*range(0x20, 0x7F), *range(0x80, 0x100), *SPACES}
    others = [(name_of(byte), int(counts[byte])) for byte in np.flatnonzero(counts).tolist() if byte not in known]
    return sorted(others, key=lambda other: -other[1])


def alphabet_report(counts: Counts, alphabet: str | None) -> list[str | Table]:
    """Return what is printed of the letters of a source, of which `counts` are a sample."""
    total, kind = int(counts.sum()), looks_like(counts, alphabet)
    lower = int(counts[ord("a") : ord("z") + 1].sum())
    found: list[str | Table] = [f"  {total:,} letters of the sample look like {kind}; {lower / total:.2%} are lowercase"]
    if others := foreign_letters(counts, kind):
        told = ", ".join(f"{name} ({count:,})" for name, count in others[:SHOWN])
        more = f" and {len(others) - SHOWN} others" if len(others) > SHOWN else ""
        found.append(f"  warning: these are no letters of {kind}: {told}{more}")
    if kind != "text":
        either = _either_case(counts)
        grid = Table("letter", "in the sample", "share", "of these lowercase", box=None)
        for byte in np.argsort(-either, kind="stable")[:SHOWN].tolist():
            if either[byte]:
                small = int(counts[byte + 32]) if chr(byte).isalpha() and byte < 0x80 else 0
                share = f"{small / either[byte]:.2%}" if small else "-"
                grid.add_row(name_of(byte), f"{int(either[byte]):,}", f"{either[byte] / total:.3%}", share)
        found.append(grid)
    return found


def name_of(byte: int) -> str:
    """Return a letter as it is printed."""
    letter = chr(byte)
    return NAMES.get(letter) or (repr(letter) if 0x20 < byte < 0x7F else f"0x{byte:02x}")


def _either_case(counts: Counts) -> Counts:
    """Return the counts with those of lowercase letters added to their uppercase."""
    either = counts.copy()
    either[ord("A") : ord("Z") + 1] += either[ord("a") : ord("z") + 1]
    either[ord("a") : ord("z") + 1] = 0
    return either
