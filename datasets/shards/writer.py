"""Writing a token shard: streamed, atomic, and held against its own eos contract before it counts as written.

Files grow under temporary names, ids, offsets and weights side by side, so that memory does not grow with the shard. A
document may come in parts; until its end it can be taken back. `finish` reads everything once more for the
checksums, syncs, renames, and writes the manifest last: what is killed before leaves no shard. (`files.whole` is for
one file that one block writes; these stay open over many calls and get their names together.)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from ...base import json_object, read_bytes
from ..documents import Letters, Weights
from ..errors import DataError
from ..files import FileStore, checksum, sync, temporary, write_atomically
from ..tokenizers import Ids, Tokenizer
from .format import (
    BLOCK,
    CHUNK,
    DTYPES,
    OFFSET,
    SUM,
    VERSION,
    WEIGHT,
    Manifest,
    Shard,
    SourceRecord,
    TokenizerRecord,
    parse_manifest,
)


class ShardWriter:
    """One shard in the making; nothing but temporary files until `finish`.

    Attributes:
        path: Of the manifest, once there is one.
        documents: Written to their end.
        tokens: Of these.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        tokenizer: Tokenizer,
        dtype: np.dtype[Any],
        *,
        weighted: bool = False,
        letters: Letters | None = None,
        keeps_eos: bool = False,
    ) -> None:
        """Create temporary files beside `folder`/`name`.*, of names that no other process uses.

        Args:
            folder: Of the shard.
            name: Of its files.
            tokenizer: That made the ids.
            dtype: Of the ids.
            weighted: Whether weights are written.
            letters: What was done with letters, which decides that, where they were raw.
            keeps_eos: Whether documents may hold eos ids inside, which are counted.
        """
        self._letters = letters or Letters()
        self._keeps_eos = keeps_eos
        weighted = weighted or self._letters.weighted
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.json"
        self.documents = 0
        self.tokens = 0
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._files = {ending: self._temporary(ending).open("w+b") for ending in ("ids", "offsets")}
        if weighted:
            self._files["weights"] = self._temporary("weights").open("w+b")
        _put(self._files["offsets"], np.zeros(1), OFFSET)
        self._open_tokens = 0
        self._longest = 0

    def _temporary(self, ending: str) -> Path:
        return temporary(self.path.with_suffix(f".{ending}"))

    def write(self, ids: Ids, ends: Sequence[int] | npt.NDArray[np.integer[Any]], weights: Weights | None = None) -> None:
        """Append tokens: the rest of the open document, whole ones, the beginning of the next.

        Args:
            ids: 1-d.
            ends: Where in `ids` documents end, each behind its eos, ascending.
            weights: Loss weight of each token, for a weighted shard.
        """
        assert (weights is not None) == ("weights" in self._files)
        _put(self._files["ids"], ids, self._dtype)
        if weights is not None:
            assert len(weights) == len(ids)
            _put(self._files["weights"], weights, WEIGHT)
        written = self.tokens + self._open_tokens + len(ids)
        if len(ends):
            closed = np.asarray(ends, dtype=np.int64) + (written - len(ids))
            _put(self._files["offsets"], closed, OFFSET)
            self._longest = max(self._longest, int(np.diff(closed, prepend=self.tokens).max()))
            self.documents += len(ends)
            self.tokens = int(closed[-1])
        self._open_tokens = written - self.tokens

    def close(self) -> None:
        """End the open document, which has its eos."""
        self.write(np.empty(0, self._dtype), [0], np.empty(0, WEIGHT) if "weights" in self._files else None)

    def take_back(self) -> None:
        """Forget the open document, if there is one."""
        if self._open_tokens:
            self._truncate("ids", self._dtype.itemsize)
            if "weights" in self._files:
                self._truncate("weights", WEIGHT.itemsize)
            self._open_tokens = 0

    def move(self, other: "ShardWriter") -> None:
        """Close the open document, which has its eos, in another writer instead of here."""
        sizes = {"ids": self._dtype, "weights": WEIGHT}
        for ending, file in self._files.items():
            if ending in sizes:
                file.seek(self.tokens * sizes[ending].itemsize)
        left = self._open_tokens
        while left:
            count = min(left, CHUNK)
            left -= count
            parts = [
                np.frombuffer(self._files[ending].read(count * dtype.itemsize), dtype)
                for ending, dtype in sizes.items()
                if ending in self._files
            ]
            other.write(parts[0], [] if left else [count], *parts[1:])
        self.take_back()

    def _truncate(self, ending: str, itemsize: int) -> None:
        file = self._files[ending]
        file.seek(self.tokens * itemsize)
        file.truncate()

    def discard(self) -> None:
        """Close and remove the temporary files."""
        for file in self._files.values():
            file.close()
        for ending in (*self._files, "sums"):
            self._temporary(ending).unlink(missing_ok=True)

    def finish(self, sources: Sequence[SourceRecord]) -> Manifest | None:
        """Make the shard durable under its name and return its manifest; without documents, leave nothing behind."""
        assert not self._open_tokens, "the last document is still open"
        if not self.documents:
            self.discard()
            return None
        for file in self._files.values():
            file.close()
        dtypes = {"ids": self._dtype, "weights": WEIGHT}
        parts = [(self._temporary(ending), dtype) for ending, dtype in dtypes.items() if ending in self._files]
        self._temporary("sums").write_bytes(block_sums(parts))
        endings = (*self._files, "sums")
        for ending in endings:
            sync(self._temporary(ending))
        manifest = self._manifest(tuple(sources), endings)
        for ending in endings:
            self._temporary(ending).replace(self.path.with_suffix(f".{ending}"))
        write_atomically(self.path, manifest.model_dump_json(indent=1).encode() + b"\n")
        return manifest

    def _manifest(self, sources: tuple[SourceRecord, ...], endings: Sequence[str]) -> Manifest:
        tokenizer = self._tokenizer
        ids = np.memmap(self._temporary("ids"), dtype=self._dtype, mode="r")
        chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        ends = sum(np.count_nonzero(chunk == tokenizer.eos_id) for chunk in chunks)
        assert len(ids) == self.tokens
        interior = int(ends) - self.documents
        assert interior == 0 or (self._keeps_eos and interior > 0), f"{ends} eos ids in {self.documents} documents"
        return Manifest(
            version=VERSION,
            tokenizer=TokenizerRecord(kind=tokenizer.kind, fingerprint=tokenizer.fingerprint, where=tokenizer.where),
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id,
            pad_id=tokenizer.pad_id,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            dtype=self._dtype.name,
            documents=self.documents,
            tokens=self.tokens,
            longest_document=self._longest,
            largest_id=int(max(chunk.max() for chunk in chunks)),
            weights="weights" in self._files,
            checksums={ending: checksum(str(self._temporary(ending))) for ending in endings},
            sources=sources,
            letters=self._letters,
            interior_eos=interior,
        )


def block_sums(parts: Sequence[tuple[Path, np.dtype[Any]]]) -> bytes:
    """Return what NAME.sums holds: the checksums of all blocks of a shard's ids and, if they are given, of its weights.

    Args:
        parts: File and dtype of the ids, and of the weights.
    """
    found = []
    for path, dtype in parts:
        with path.open("rb") as file:
            while data := file.read(BLOCK * dtype.itemsize):
                found.append(xxhash.xxh3_64_intdigest(data))
    return np.array(found, dtype=SUM).tobytes()


def upgrade_shard(path: Path) -> bool:
    """Give a shard of version 1 the checksums of blocks that version 2 has; return whether it was one.

    Raises:
        DataError: A file is not the one that was written, or the manifest is of neither version.
    """
    content = json_object(read_bytes(path, DataError), str(path), DataError)
    version = content.get("version")
    if version == VERSION:
        return False
    if version != 1:
        raise DataError(f"expected the manifest of a token shard, version 1 or {VERSION}, found {version}", file=str(path))
    manifest = parse_manifest(json.dumps({**content, "version": VERSION}).encode(), str(path))
    shard = Shard(path=str(path), manifest=manifest, storage=FileStore())
    dtypes = {"ids": DTYPES[manifest.dtype], "offsets": OFFSET} | ({"weights": WEIGHT} if manifest.weights else {})
    for ending in dtypes:
        shard.check_bytes(ending)
    sums = path.with_suffix(".sums")
    parts = [(path.with_suffix(f".{ending}"), dtype) for ending, dtype in dtypes.items() if ending != "offsets"]
    write_atomically(sums, block_sums(parts))
    made = manifest.model_copy(update={"checksums": {**manifest.checksums, "sums": checksum(str(sums))}})
    write_atomically(path, made.model_dump_json(indent=1).encode() + b"\n")
    return True


def id_dtype(largest: int) -> np.dtype[Any]:
    """Return the smallest dtype of a shard that holds ids up to `largest`."""
    return next(dtype for dtype in DTYPES.values() if largest <= np.iinfo(dtype).max)


def _put(file: IO[bytes], values: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    file.write(np.ascontiguousarray(values, dtype=dtype).data)
