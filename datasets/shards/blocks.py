"""Blocks of token shards, each compared with its checksum before the first of its tokens is used.

A file on disk may have changed since it was written: a bit, a copy that broke off, another file under the same name.
Each process checks what it reads, once, and remembers the block in a byte: 2 % of the loader's time in one rank's first
epoch, nothing that shows in later ones (`benchmarks/block_checks.py`). What happens to a file afterwards is not seen;
one that is cut short under its map ends the process by SIGBUS.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ..errors import DataError
from ..files import is_remote
from .format import BLOCK, Map, Shard, chunks

Integers = npt.NDArray[np.int64]


def check_block(shard: Shard, block: int, sums: npt.NDArray[np.uint64], offsets: Map, ids: Map, weights: Map | None) -> None:
    """Compare a block with its checksums, its ids with the manifest's largest, its weights with their range.

    Args:
        shard: Whose arrays the others are.
        block: Its number.
        sums: uint64 [1 or 2, blocks], as `Shard.sums` returns them.
        offsets: [documents + 1].
        ids: [tokens].
        weights: [tokens], or None.

    Raises:
        DataError: Something does not hold; names the file and the document.
    """
    part = slice(block * BLOCK, (block + 1) * BLOCK)
    manifest = shard.manifest
    for ending, values, own in zip(("ids", "weights"), (ids, weights), sums, strict=False):
        assert values is not None
        found = xxhash.xxh3_64_intdigest(values[part].data)
        if found != own[block]:
            problem = f"its bytes have changed within tokens {part.start:,} to {min(part.stop, manifest.tokens) - 1:,}"
            problem += f": checksum {found:016x}, and {own[block]:016x} as it was written"
            raise _error(shard, ending, problem, offsets, part.start)
    largest = int(ids[part].max())
    if largest > manifest.largest_id:
        at = part.start + int(ids[part].argmax())
        problem = f"token {at} is id {largest}, and its manifest says that the largest is {manifest.largest_id}"
        raise _error(shard, "ids", problem, offsets, at)
    if weights is not None and not (weights[part].min() >= 0 and np.isfinite(weights[part].max())):  # NaN is no minimum
        at = part.start + int((np.isfinite(weights[part]) & (weights[part] >= 0)).argmin())
        problem = f"the loss weight of token {at} is {weights[at]}; it must be finite and at least 0"
        raise _error(shard, "weights", problem, offsets, at)


def _error(shard: Shard, ending: str, problem: str, offsets: Map, token: int) -> DataError:
    document = int(np.searchsorted(offsets, token, side="right")) - 1
    return DataError(problem, file=shard.file(ending), record=document)


class BlockChecks:
    """Which blocks of some shards this process has checked.

    Args:
        shards: In order.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._firsts = np.cumsum([0, *(shard.manifest.blocks for shard in shards)])
        self._checked = np.zeros(int(self._firsts[-1]), dtype=bool)
        self._sums: dict[int, npt.NDArray[np.uint64]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker with nothing checked: it has maps of its own."""
        return BlockChecks, (self._shards,)

    def fresh(self, shards: Integers, begins: Integers, ends: Integers) -> list[tuple[int, list[int]]]:
        """Return the blocks of tokens `begins` to `ends` of `shards` that are still to be checked, by shard."""
        firsts = self._firsts[shards]
        first, last = firsts + begins // BLOCK, firsts + (ends - 1) // BLOCK
        long = last - first > 1
        between = [np.arange(a + 1, b) for a, b in zip(first[long].tolist(), last[long].tolist(), strict=True)]
        blocks = np.concatenate([first, last, *between])
        blocks = np.unique(blocks[~self._checked[blocks]])
        if not len(blocks):
            return []
        numbers = np.searchsorted(self._firsts, blocks, side="right") - 1
        local = blocks - self._firsts[numbers]
        return [(number, local[numbers == number].tolist()) for number in np.unique(numbers).tolist()]

    def check(self, number: int, blocks: Sequence[int], offsets: Map, ids: Map, weights: Map | None) -> None:
        """Check blocks of a shard, whose arrays these are, and remember them. Raises DataError."""
        shard = self._shards[number]
        if not is_remote(shard.path):  # a copy of the cache is nobody else's
            for ending in ("ids", "weights")[: 1 + (weights is not None)]:
                shard.check_size(ending, Path(shard.file(ending)).stat().st_size)
        if number not in self._sums:
            self._sums[number] = shard.sums()
        for block in blocks:
            check_block(shard, block, self._sums[number], offsets, ids, weights)
            self._checked[self._firsts[number] + block] = True


def verify_shard(shard: Shard) -> None:
    """Check every byte by its checksum, every id, every weight.

    Raises:
        DataError: A file is not the one that was written, more or fewer eos ids lie inside of documents or an id is
            larger than the manifest says, or a weight is negative or not finite.
    """
    manifest = shard.manifest
    for ending in manifest.sizes():
        shard.check_bytes(ending)
    sums, offsets, ids, weights = shard.sums(), shard.offsets(), shard.ids(), shard.weights()
    for block in range(manifest.blocks):
        check_block(shard, block, sums, offsets, ids, weights)
    ends = sum(int(np.count_nonzero(part == manifest.eos_id)) for _, part in chunks(ids))
    # Every document ends with an eos, so that one too many is inside of a document.
    if manifest.interior_eos and ends != manifest.documents + manifest.interior_eos:
        problem = f"{ends - manifest.documents:,} eos ids ({manifest.eos_id}) inside of documents"
        raise DataError(f"{problem}, and its manifest says {manifest.interior_eos:,}", file=shard.file("ids"))
    if not manifest.interior_eos and ends != manifest.documents:
        problem = f"{ends:,} eos ids ({manifest.eos_id}) in {manifest.documents:,} documents"
        for first, part in chunks(ids):
            places = first + np.flatnonzero(part == manifest.eos_id)
            documents = np.searchsorted(offsets, places, side="right") - 1
            inside = places + 1 != offsets[documents + 1]
            if inside.any():
                at = int(inside.argmax())
                problem += f", one of them inside of a document, at token {places[at]}"
                raise DataError(problem, file=shard.file("ids"), record=int(documents[at]))
