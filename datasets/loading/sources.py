"""The sources of a run as they are found: which files, cut into which pieces or shards, shared by which lanes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ..config import DataConfig
from ..documents import Letters, Strands
from ..errors import BadRecords, DataConfigError, refuse
from ..files import DataFile, FileStore, Listing, saved_order
from ..lanes import Documents, Lane, LanePieces, LaneRow, LaneState, RawDocuments, ShardCorpus, ShardDocuments, unit_bytes
from ..readers import READERS, Label, PieceLine, SourceFiles, build_reader, in_folder, target_size
from ..rows import Packer
from ..shards import Shard, open_shards
from ..tokenizers import Tokenizer
from .batch import RowSettings

DEFAULT_LANES = 16  # at most, unless ranks and workers are more
# What a lane should have in an epoch of each source, so that lanes end it nearly together.
LANE_BYTES, LANE_UNITS = 2**16, 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source ready to be read: either raw files with their reader, or token shards.

    Attributes:
        config: As given.
        files: All of its files in their order, those without a byte included; of token shards their contents.
        pieces: Of raw files, with their reader; None for token shards.
        corpus: Token shards; None for raw files.
        data: How documents are read.
    """

    config: SourceFiles
    files: list[DataFile]
    pieces: LanePieces | None
    corpus: ShardCorpus | None
    data: DataConfig

    @property
    def weighted(self) -> bool:
        """Whether some of its targets may weigh other than 1."""
        of_shards = self.corpus is not None and any(shard.manifest.weights for shard in self.corpus.shards)
        of_roles = self.config.content == "messages"
        return of_shards or of_roles or self.data.weighted or self.data.window_overlap > 0

    @property
    def interior_eos(self) -> int:
        """How many eos ids lie inside of documents, as token shards say; raw files do not say."""
        return sum(shard.manifest.interior_eos for shard in self.corpus.shards) if self.corpus is not None else 0

    @property
    def letters(self) -> set[Letters]:
        """What was done with letters: the job's settings, or those that its shards were prepared with."""
        if self.corpus is None:
            return {self.data.letters}
        return {shard.manifest.letters for shard in self.corpus.shards}

    def remarks(self) -> list[str]:
        """Return what is to be known of the shards: eos ids inside, and other letter settings than the job's."""
        if self.corpus is None:
            return []
        inside = f"source {self.config.name!r}: {self.interior_eos:,} eos ids are inside of documents, where nothing ends"
        return [inside] * (self.interior_eos > 0) + self._letter_remarks()

    def _letter_remarks(self) -> list[str]:
        """Return a line where the shards were prepared with other letter settings than the job's; theirs hold."""
        kept = {key: {str(getattr(made, key)).lower() for made in self.letters} for key in Letters.model_fields}
        job = {key: str(getattr(self.data, key)).lower() for key in kept}
        others = [key for key in kept if kept[key] != {job[key]}]
        if not others:
            return []
        made = ", ".join(f"{key} = {' or '.join(sorted(kept[key]))}" for key in others)
        present = ", ".join(f"{key} = {job[key]}" for key in others)
        return [f"source {self.config.name!r}: its shards were prepared with {made}, and are read so; [data] has {present}"]

    def lane_name(self, lane: int) -> str:
        """Return the key of a lane in the loader's state."""
        return f"{self.config.name}/{lane}"

    def rows(
        self, lane: int, tokenizer: Tokenizer, packer: Packer, key: tuple[int, int], state: LaneState
    ) -> Iterator[LaneRow]:
        """Yield the rows of a lane, see `Lane`; `key` is (seed, number of the source)."""
        return Lane(self.documents(lane, tokenizer, packer, key), packer, (*key, lane), state).rows()

    def documents(self, lane: int, tokenizer: Tokenizer, packer: Packer, key: tuple[int, int]) -> Documents:
        """Return what a lane reads; `key` is (seed, number of the source)."""
        skip_bad = self.data.on_bad_record == "skip"
        if self.corpus is not None:
            strands = Strands(self.data.reverse_complement, key[0], tokenizer)
            return ShardDocuments(self.corpus, lane, key, packer.policy == "concat", strands, BadRecords(skip=skip_bad))
        assert self.pieces is not None
        return RawDocuments(self.pieces, lane, tokenizer, packer, key[0], skip_bad, self.data)

    def sample(self) -> list[bytes]:
        """Return the heads of some raw documents from some files: at most 64 of 16 KiB."""
        heads: list[bytes] = []
        assert self.pieces is not None
        opening = [piece for piece in self.pieces.line.pieces if piece.start == 0 and self.config.content == "text"]
        for piece in opening[:: max(len(opening) // 4, 1)][:4]:
            groups = self.pieces.reader.groups(piece, piece.start, True)
            documents = (document for group in groups for document in group.documents)
            heads += [document[: 2**14] for document in islice(documents, 16)]
        return heads


def choose_lanes(config: DataConfig, owners: int, units: bool) -> int:
    """Return a number of lanes for a job that names none: a multiple of `owners`, at most 16 if they are not more.

    A lane that has little of a source waits for others at the end of each epoch. So there are fewer where a source has
    less than 16 times 64 KiB, or than 4 documents for each lane where it is known how many it has.

    Args:
        config: Which sources there are.
        owners: Data-parallel ranks x workers.
        units: Whether a long text may be cut into units for several lanes.

    Raises:
        DataError: A file is missing, or cannot be read.
    """
    room, storage = DEFAULT_LANES, FileStore(config)
    for source in config.sources:
        if READERS[source.format] is None:
            manifests = [shard.manifest for shard in open_shards(storage.expand(source.paths, "*.json"), storage)]
            parts = sum(max(manifest.documents, manifest.tokens // 2**20) for manifest in manifests)
            room = min(room, parts // LANE_UNITS)
        else:
            sizes = [file.size for file in storage.expand(source.paths, *in_folder(source.format)) if file.size]
            parts = max(len(sizes), sum(sizes) // 2**20 * units)
            room = min(room, parts // LANE_UNITS if source.format == "text" else sum(sizes) // LANE_BYTES)
    return owners * max(1, room // owners)


def open_source(
    config: SourceFiles,
    lanes: int,
    rows: RowSettings,
    data: DataConfig,
    saved: Listing | None = None,
    *,
    number: int = 0,
    units: bool = False,
) -> Source:
    """Look up a source's files and share them among `lanes`.

    Args:
        config: Which files, and where their labels are.
        lanes: Of the source.
        rows: How rows become batches.
        data: How files and documents are read; its own sources are not looked at.
        saved: The files in the order of a run that goes on; None: the run begins.
        number: Of the source in the job.
        units: Whether a long document may be cut into units for several lanes.

    Raises:
        DataConfigError: A setting is wrong, or no file has a byte.
        DataError: A file is missing, or cannot be read.
    """
    storage = FileStore(data)
    refuse([f"data.sources.{line}" for line in config.complaints()])
    if READERS[config.format] is None:
        shards = open_shards(storage.expand(config.paths, "*.json"), storage)
        shards = [shards[place] for place in saved_order(saved, [shard.contents for shard in shards])]
        corpus = ShardCorpus(shards, rows.seq_len, lanes, data)
        _check_letters(shards, data)
        _check_interior_eos(shards, data)
        return Source(config=config, files=[shard.contents for shard in shards], pieces=None, corpus=corpus, data=data)
    label = None if config.label is None else Label(config.label, rows.objective.classes)
    reader = build_reader(config.format, config.field, storage, label)
    reader = replace(reader, unit=unit_bytes(rows.seq_len) if units else None)
    files = storage.expand(config.paths, *in_folder(config.format))
    files = [files[place] for place in saved_order(saved, files)]
    target = target_size(files, lanes)
    pieces = [piece for file in files for piece in reader.split(file, target)]
    if not pieces:
        raise DataConfigError(f"data.sources.paths: no file of source {config.name!r} has a byte in it")
    line = PieceLine(pieces, [reader.divided(piece) for piece in pieces], lanes, (rows.seed, number))
    return Source(config=config, files=files, pieces=LanePieces(line, reader), corpus=None, data=data)


def _check_letters(shards: Sequence[Shard], letters: Letters) -> None:
    """Refuse shards without the weights that the job wants: their ids may no longer tell the letters."""
    for shard in shards:
        made = shard.manifest.letters
        for key in letters.changed_letters:
            wanted, found = getattr(letters, key), getattr(made, key)
            if wanted != found:
                raise DataConfigError(
                    f"data.{key} = {str(wanted).lower()}: {shard.path} was prepared with {str(found).lower()}; "
                    "leave the key out to take its weights as they are, or prepare it anew with this one"
                )


def _check_interior_eos(shards: Sequence[Shard], data: DataConfig) -> None:
    """Refuse shards that keep eos ids inside of documents where the job does not."""
    for shard in shards:
        if shard.manifest.interior_eos and not data.keeps_eos:
            raise DataConfigError(
                f'data.interior_eos = "refuse": {shard.path} was prepared to keep {shard.manifest.interior_eos:,} eos ids '
                'inside of documents; set interior_eos = "keep" to read it'
            )
