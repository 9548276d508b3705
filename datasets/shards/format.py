"""Token shards: documents as ids on disk, mapped into memory and checked before they are trusted.

A shard is five files that share a name, all of them little-endian and without a header:

    NAME.json     the manifest, written last: a shard without one does not exist
    NAME.ids      uint8, uint16 or uint32 [tokens]: the documents one after another, each ended by its eos
    NAME.offsets  uint64 [documents + 1]: where each document begins, and at last the number of tokens
    NAME.weights  float32 [tokens]: loss weight of each token as a target; only where the source has weights
    NAME.sums     uint64 [1 or 2, blocks]: xxh3_64 of each 2^16 ids and, with weights, of each 2^16 weights

`open_shards` makes the checks whose cost goes with the documents: 10^6 of them take 20 ms once the ids are in the page
cache. Tokens are compared with their checksums where they are first read (`blocks`), or all of them by `verify_shard`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...base import json_object, read_bytes
from ..documents import Letters
from ..errors import DataConfigError, DataError
from ..files import DataFile, FileStore, checksum, is_remote

VERSION = 2
CHUNK = 2**22  # elements looked at together
# Elements with a checksum of their own: of fewer, the calls would cost more than the bytes; and a document that is read
# by itself has its whole block read, 128 KiB of uint16.
BLOCK = 2**16
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("<u1"), "uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OFFSET, WEIGHT, SUM = np.dtype("<u8"), np.dtype("<f4"), np.dtype("<u8")
Map = npt.NDArray[Any]


class Record(BaseModel):
    """A part of a manifest: unknown and missing keys are refused, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TokenizerRecord(Record):
    """Which tokenizer made the ids: its kind, its fingerprint, and where it stood."""

    kind: str
    fingerprint: str
    where: str


class SourceRecord(Record):
    """The part of a raw file that a shard was made of.

    Attributes:
        path: Path or URL of the file.
        size: Of the whole file in bytes, as stored.
        start: Where the part begins, in the reader's offsets: uncompressed bytes, or rows of a parquet file.
        end: Where it ends, None for the file's end.
        records: Documents read in it, dropped ones included.
    """

    path: str
    size: int
    start: int
    end: int | None
    records: int


class Manifest(Record):
    """What a shard says about itself.

    Attributes:
        version: Of this format.
        tokenizer: What made the ids.
        eos_id: Id that ends every document, and occurs nowhere else but `interior_eos` times.
        bos_id: Id that opens every document, None where there is none.
        pad_id: The tokenizer's padding; not in the shard.
        mask_id: The tokenizer's mask; not in the shard. None where there is none.
        vocab_size: One more than the tokenizer's largest id, added tokens included.
        dtype: Of the ids: uint8, uint16 or uint32.
        documents: How many.
        tokens: How many, each document's eos included.
        longest_document: Tokens of the longest document.
        largest_id: The largest id in the shard.
        weights: Whether there are loss weights.
        letters: What was done with letters: how they were weighed, and their case.
        interior_eos: How many eos ids lie inside of documents; 0 unless they were prepared to keep them.
        checksums: `xxh3_128:` and hexadecimal digits by the ending of each file but the manifest.
        sources: What the shard was made of, in its order.
    """

    version: int
    tokenizer: TokenizerRecord
    eos_id: int = Field(ge=0)
    bos_id: int | None
    pad_id: int
    mask_id: int | None
    vocab_size: int
    dtype: str = Field(pattern="^uint(8|16|32)$")
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    longest_document: int = Field(ge=1)
    largest_id: int = Field(ge=0)
    weights: bool
    checksums: dict[str, str]
    sources: tuple[SourceRecord, ...]
    letters: Letters = Letters()
    interior_eos: int = Field(default=0, ge=0)

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each file must have, by its ending."""
        sizes = {"ids": self.tokens * DTYPES[self.dtype].itemsize, "offsets": (self.documents + 1) * OFFSET.itemsize}
        sizes["sums"] = (1 + self.weights) * self.blocks * SUM.itemsize
        return sizes | {"weights": self.tokens * WEIGHT.itemsize} if self.weights else sizes

    @property
    def blocks(self) -> int:
        """How many blocks of ids there are; the last may be shorter."""
        return -(-self.tokens // BLOCK)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard, without an open file: the maps are opened when they are needed, and closed with the last view of them.

    Attributes:
        path: Path or URL of the manifest.
        manifest: As read from there.
        storage: Finds the files, fetching remote ones into its cache, again where they have left it.
    """

    path: str
    manifest: Manifest
    storage: FileStore

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return self.manifest.documents

    @property
    def tokens(self) -> int:
        """How many tokens there are, each document's eos included."""
        return self.manifest.tokens

    @property
    def contents(self) -> DataFile:
        """The shard as a file to be known again: by the checksums of its ids, offsets and weights, wherever it is."""
        made = self.manifest
        sums = ",".join(f"{ending}={made.checksums.get(ending)}" for ending in ("ids", "offsets", "weights"))
        return DataFile(self.path, sum(made.sizes().values()), sums)

    def file(self, ending: str) -> str:
        """Path or URL of the shard's file with this ending."""
        return self.path.removesuffix("json") + ending

    def ids(self) -> Map:
        """Open the ids: read-only uint8, uint16 or uint32 [tokens]."""
        return self._map("ids", DTYPES[self.manifest.dtype])

    def offsets(self) -> Map:
        """Open the offsets: read-only uint64 [documents + 1]."""
        return self._map("offsets", OFFSET)

    def weights(self) -> Map | None:
        """Open the loss weights: read-only float32 [tokens], or None where the shard has none."""
        return self._map("weights", WEIGHT) if self.manifest.weights else None

    def sums(self) -> npt.NDArray[np.uint64]:
        """Read the checksums of blocks: uint64 [1 or 2, blocks], of the ids and of the weights."""
        path = self.file("sums")
        try:
            values = np.fromfile(self.storage.local(path), SUM)
        except OSError as error:
            raise DataError(f"this file of the shard {self.path} cannot be read: {error}", file=path) from None
        self.check_size("sums", values.nbytes)
        return values.reshape(1 + self.manifest.weights, self.manifest.blocks)

    def check_size(self, ending: str, found: int) -> None:
        """Refuse a file that has not as many bytes as the manifest promises. Raises DataError."""
        manifest = self.manifest
        if found != (size := manifest.sizes()[ending]):
            promised = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens of {manifest.dtype}"
            problem = f"{found:,} bytes where its manifest promises {size:,}: {promised}"
            raise DataError(problem, file=self.file(ending))

    def check_bytes(self, ending: str) -> None:
        """Compare a file with its checksum in the manifest. Raises DataError."""
        found, promised = checksum(self.storage.local(self.file(ending))), self.manifest.checksums.get(ending)
        if found != promised:
            problem = f"its bytes have changed: checksum {found}, and the manifest says {promised}"
            raise DataError(problem, file=self.file(ending))

    def _map(self, ending: str, dtype: np.dtype[Any]) -> Map:
        import torch  # 2 s, which the processes of `cistron prepare` save

        path = self.file(ending)
        local = self.storage.local(path)
        try:
            size = Path(local).stat().st_size
            self.check_size(ending, size)
            # Unlike numpy's, torch's map keeps no file handle: a lane's block has documents of thousands of shards.
            values: Map = torch.from_file(local, shared=False, size=size, dtype=torch.uint8).numpy().view(dtype)
        except (OSError, RuntimeError) as error:
            raise DataError(f"this file of the shard {self.path} cannot be mapped: {error}", file=path) from None
        values.flags.writeable = False
        return values


def open_shards(files: Sequence[DataFile], storage: FileStore) -> list[Shard]:
    """Read manifests and check that the files keep what these promise.

    Checked are version and fields, sizes, offsets that are as they were written, begin at 0, rise and end at the number
    of tokens, an eos at the end of every document, and ids that fit the vocabulary by the manifest's own word. Remote
    shards are fetched.

    Raises:
        DataError: Something is missing or does not hold; the message names the file and, from 0 on, the document.
        DataConfigError: The remote shards do not fit in the cache.
    """
    shards = [_read(file, storage) for file in files]
    remote = [sum(shard.manifest.sizes().values()) for shard in shards if is_remote(shard.path)]
    if sum(remote) > storage.config.cache_gb * 1e9:
        raise DataConfigError(
            f"data.cache_gb: {storage.config.cache_gb:g} GB do not hold the {len(remote)} remote shards of this source, which "
            f"take {sum(remote):,} bytes and are all read in random order; raise data.cache_gb or name fewer shards"
        )
    for shard in shards:
        _check(shard)
    return shards


def _read(file: DataFile, storage: FileStore) -> Shard:
    if not file.path.endswith(".json"):
        raise DataError("a token shard is named by its manifest, which ends in .json", file=file.path)
    text = read_bytes(storage.local(file.path), DataError)
    version = json_object(text, file.path, DataError).get("version")
    if version != VERSION:
        problem = f"expected the manifest of a token shard, version {VERSION}, found version {version}"
        remedy = "write the shard anew with `cistron prepare`"
        if version == 1:
            remedy = "`cistron prepare --upgrade FOLDER` adds the checksums of blocks that it lacks"
        raise DataError(f"{problem}; {remedy}", file=file.path)
    return Shard(path=file.path, manifest=parse_manifest(text, file.path), storage=storage)


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Return what a manifest of this version says. Raises DataError, which names the key that is wrong."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise DataError(f"this manifest of a token shard is damaged: {key}: {wrong['msg']}", file=path) from None


def _check(shard: Shard) -> None:
    manifest = shard.manifest
    for ending in manifest.sizes():
        path = shard.file(ending)
        try:
            found = Path(shard.storage.local(path)).stat().st_size
        except FileNotFoundError:
            raise DataError(f"this file of the shard {shard.path} is missing", file=path) from None
        shard.check_size(ending, found)
    for ending in ("offsets", "sums"):  # a thousandth of the shard
        shard.check_bytes(ending)
    if manifest.largest_id >= manifest.vocab_size:
        problem = f"its largest id is {manifest.largest_id}, outside its vocabulary of {manifest.vocab_size}"
        raise DataError(problem, file=shard.path)

    ids, offsets = shard.ids(), shard.offsets()
    if offsets[0] != 0:
        raise DataError(f"the first document begins at token {offsets[0]}, not 0", file=shard.file("offsets"))
    if offsets[-1] != manifest.tokens:
        problem = f"the last document ends at token {offsets[-1]}, not at the {manifest.tokens} that there are"
        raise DataError(problem, file=shard.file("offsets"))
    longest = 0
    for first, bounds in chunks(offsets, overlap=1):
        lengths = np.diff(bounds.view(np.int64))
        if lengths.min() <= 0:
            at = int(lengths.argmin())
            problem = f"it begins at token {bounds[at]} and ends at {bounds[at + 1]}: offsets must rise"
            raise DataError(problem, file=shard.file("offsets"), record=first + at)
        longest = max(longest, int(lengths.max()))
        last = ids[bounds[1:] - np.uint64(1)]
        wrong = last != manifest.eos_id
        if wrong.any():
            at = int(wrong.argmax())
            problem = f"its last id is {last[at]}, not the eos {manifest.eos_id}"
            raise DataError(problem, file=shard.file("ids"), record=first + at)
    if longest != manifest.longest_document:
        problem = f"its longest document has {longest:,} tokens, and its manifest says {manifest.longest_document:,}"
        raise DataError(problem, file=shard.file("offsets"))


def chunks(values: Map, overlap: int = 0) -> Iterator[tuple[int, Map]]:
    """Yield parts of a map with the index of their first element; each repeats the last `overlap` elements of the one
    before.
    """
    for start in range(0, len(values) - overlap, CHUNK):
        yield start, values[start : start + CHUNK + overlap]
