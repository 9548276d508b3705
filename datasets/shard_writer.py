"""Writing a token shard: streamed, atomic, and held against its own eos contract before it counts as written.

Files grow under temporary names, ids, offsets and weights side by side, so that memory does not grow with the shard. A
document may come in parts; until it is closed it can be taken back. `finish` reads everything once more for the
checksums, syncs, renames, and writes the manifest last: what is killed before leaves no shard.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .shards import CHUNK, DTYPES, OFFSET, VERSION, WEIGHT, Manifest, SourceRecord, TokenizerRecord, checksum
from .tokenizers import Ids, Tokenizer

TEMPORARY = ".part"

Weights = npt.NDArray[np.float32]


class ShardWriter:
    """One shard in the making; nothing but temporary files until `finish`.

    Attributes:
        documents: Closed so far.
        tokens: In closed documents.
    """

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer, *, weighted: bool = False) -> None:
        """Create the temporary files of `folder`/`name`.*, over those of an attempt before."""
        folder.mkdir(parents=True, exist_ok=True)
        self.documents = 0
        self.tokens = 0
        self._stem = folder / name
        self._tokenizer = tokenizer
        self._dtype = id_dtype(tokenizer)
        self._files = {ending: self._temporary(ending).open("w+b") for ending in ("ids", "offsets")}
        if weighted:
            self._files["weights"] = self._temporary("weights").open("w+b")
        self._files["offsets"].write(np.zeros(1, OFFSET).tobytes())
        self._open_tokens = 0
        self._longest = 0

    def _temporary(self, ending: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{ending}{TEMPORARY}")

    def add(self, ids: Ids, lengths: Sequence[int], weights: Weights | None = None) -> None:
        """Append whole documents.

        Args:
            ids: Tokens of all of them, each document's eos included.
            lengths: Tokens of each.
            weights: Loss weight of each token, for a weighted shard.
        """
        assert not self._open_tokens, "the document before is still open"
        assert sum(lengths) == len(ids)
        self._write(ids, weights)
        ends = np.cumsum(lengths, dtype=np.int64) + self.tokens
        self._files["offsets"].write(ends.astype(OFFSET).tobytes())
        self._longest = max(self._longest, max(lengths, default=0))
        self.documents += len(lengths)
        self.tokens += len(ids)

    def extend(self, ids: Ids, weights: Weights | None = None) -> None:
        """Append to the open document, opening one where there is none."""
        self._write(ids, weights)
        self._open_tokens += len(ids)

    def close_document(self) -> None:
        """End the open document, whose last id must be the eos."""
        self._longest = max(self._longest, self._open_tokens)
        self.documents += 1
        self.tokens += self._open_tokens
        self._open_tokens = 0
        self._files["offsets"].write(np.array([self.tokens], OFFSET).tobytes())

    def take_back(self) -> None:
        """Forget the open document, if there is one."""
        if self._open_tokens:
            self._truncate("ids", self._dtype.itemsize)
            if "weights" in self._files:
                self._truncate("weights", WEIGHT.itemsize)
            self._open_tokens = 0

    def move(self, other: "ShardWriter") -> None:
        """Close the open document in another writer instead of here."""
        assert "weights" not in self._files, "only raw text is divided, and it has no weights"
        file = self._files["ids"]
        file.seek(self.tokens * self._dtype.itemsize)
        while data := file.read(CHUNK * self._dtype.itemsize):
            other.extend(np.frombuffer(data, self._dtype))
        other.close_document()
        self.take_back()

    def _truncate(self, ending: str, itemsize: int) -> None:
        file = self._files[ending]
        file.seek(self.tokens * itemsize)
        file.truncate()

    def _write(self, ids: Ids, weights: Weights | None) -> None:
        assert (weights is not None) == ("weights" in self._files)
        _put(self._files["ids"], ids, self._dtype)
        if weights is not None:
            assert len(weights) == len(ids)
            _put(self._files["weights"], weights, WEIGHT)

    def discard(self) -> None:
        """Close and remove the temporary files."""
        for ending, file in self._files.items():
            file.close()
            self._temporary(ending).unlink(missing_ok=True)

    def finish(self, sources: Sequence[SourceRecord]) -> Manifest | None:
        """Make the shard durable under its name and return its manifest; without documents, leave nothing behind."""
        assert not self._open_tokens, "the last document is still open"
        if not self.documents:
            self.discard()
            return None
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        manifest = self._manifest(tuple(sources))
        for ending in self._files:
            self._temporary(ending).replace(self._stem.with_name(f"{self._stem.name}.{ending}"))
        write_atomically(self._stem.with_name(f"{self._stem.name}.json"), manifest.model_dump_json(indent=1).encode() + b"\n")
        return manifest

    def _manifest(self, sources: tuple[SourceRecord, ...]) -> Manifest:
        tokenizer = self._tokenizer
        ids = np.memmap(self._temporary("ids"), dtype=self._dtype, mode="r")
        chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        ends = sum(np.count_nonzero(chunk == tokenizer.eos_id) for chunk in chunks)
        assert len(ids) == self.tokens
        assert ends == self.documents, f"{ends} eos ids in {self.documents} documents"
        return Manifest(
            version=VERSION,
            tokenizer=TokenizerRecord(kind=tokenizer.kind, fingerprint=tokenizer.fingerprint, where=tokenizer.where),
            eos_id=tokenizer.eos_id,
            bos_id=None,
            pad_id=tokenizer.pad_id,
            mask_id=None,
            vocab_size=tokenizer.vocab_size,
            dtype=self._dtype.name,
            documents=self.documents,
            tokens=self.tokens,
            longest_document=self._longest,
            largest_id=int(max(chunk.max() for chunk in chunks)),
            weights="weights" in self._files,
            checksums={ending: checksum(str(self._temporary(ending))) for ending in self._files},
            sources=sources,
        )


def id_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Return the smallest dtype of a shard that holds every id which this tokenizer writes.

    The byte tokenizer has a vocabulary of 512 and writes ids below 256 only: it states uint8.
    """
    if np.dtype(tokenizer.dtype) == np.uint8:
        return DTYPES["uint8"]
    return next(dtype for dtype in DTYPES.values() if tokenizer.vocab_size - 1 <= np.iinfo(dtype).max)


def _put(file: IO[bytes], values: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    file.write(np.ascontiguousarray(values, dtype=dtype).data)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, and its folder's names before it, even after a power cut."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
