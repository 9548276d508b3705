"""The sources of a run as they are found: which files, cut into which pieces or shards, assigned to which lanes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ..documents import DocumentConfig, Letters, Strands
from ..errors import BadRecords, DataConfigError, refuse
from ..files import DataFile, FileStore
from ..lanes import Documents, RawDocuments, ShardCorpus, ShardDocuments
from ..readers import READERS, Label, Piece, Reader, SourceFiles, assign, build_reader, target_size
from ..rows import Packer
from ..shards import Shard, open_shards
from ..tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source ready to be read: either raw files with their reader, or token shards.

    Attributes:
        config: As given.
        files: All of its files, those without a byte included; of token shards the manifests.
        lanes: Pieces of each lane; empty for token shards.
        reader: Of the format; None for token shards.
        corpus: Token shards; None for raw files.
        document_config: What is done with documents.
    """

    config: SourceFiles
    files: list[DataFile]
    lanes: list[list[Piece]]
    reader: Reader | None
    corpus: ShardCorpus | None
    document_config: DocumentConfig

    @property
    def weighted(self) -> bool:
        """Whether some of its targets may weigh other than 1."""
        of_shards = self.corpus is not None and any(shard.manifest.weights for shard in self.corpus.shards)
        return of_shards or self.document_config.weighted or self.document_config.window_overlap > 0

    def remarks(self) -> list[str]:
        """Return a line where the shards were prepared with other letter settings than the job's; theirs hold."""
        if self.corpus is None:
            return []
        wanted, found = self.document_config.letters, {shard.manifest.letters for shard in self.corpus.shards}
        kept = {key: {str(getattr(made, key)).lower() for made in found} for key in Letters.model_fields}
        job = {key: str(getattr(wanted, key)).lower() for key in kept}
        others = [key for key in kept if kept[key] != {job[key]}]
        if not others:
            return []
        made = ", ".join(f"{key} = {' or '.join(sorted(kept[key]))}" for key in others)
        present = ", ".join(f"{key} = {job[key]}" for key in others)
        return [f"source {self.config.name!r}: its shards were prepared with {made}, and are read so; [data] has {present}"]

    def lane_name(self, lane: int) -> str:
        """Return the key of a lane in the loader's state."""
        return f"{self.config.name}/{lane}"

    def documents(self, lane: int, tokenizer: Tokenizer, packer: Packer, key: tuple[int, int], skip_bad: bool) -> Documents:
        """Return what a lane reads; `key` is (seed, number of the source)."""
        if self.corpus is not None:
            strands = Strands(self.document_config.reverse_complement, key[0], tokenizer)
            return ShardDocuments(self.corpus, lane, key, packer.policy == "concat", strands, BadRecords(skip=skip_bad))
        assert self.reader is not None
        return RawDocuments(self.lanes[lane], self.reader, tokenizer, packer, (*key, lane), skip_bad, self.document_config)

    def sample(self) -> list[bytes]:
        """Return the heads of some raw documents from some lanes: at most 64 of 16 KiB."""
        heads = []
        for pieces in self.lanes[:4]:
            assert self.reader is not None
            groups = self.reader.groups(pieces[0], pieces[0].start, True)
            documents = (document for group in groups for document in group.documents)
            heads += [document[: 2**14] for document in islice(documents, 16)]
        return heads


def open_source(
    config: SourceFiles,
    lanes: int,
    seq_len: int,
    storage: FileStore,
    document_config: DocumentConfig | None = None,
    classes: Sequence[str] = (),
) -> Source:
    """Look up a source's files and assign them to `lanes`.

    Args:
        config: Which files, and where their labels are.
        lanes: Of the source.
        seq_len: Tokens of a row.
        storage: Opens files.
        document_config: What is done with its documents; None: nothing.
        classes: Names of the classes that labels are of; empty: labels are values.

    Raises:
        DataConfigError: A setting is wrong, or there are fewer pieces than lanes.
        DataError: A file is missing, or cannot be read.
    """
    document_config = document_config or DocumentConfig()
    refuse([f"data.sources.{line}" for line in config.complaints()])
    if READERS[config.format] is None:
        files = storage.expand(config.paths, "*.json")
        corpus = ShardCorpus(open_shards(files, storage), seq_len, lanes, config.name, document_config)
        _check_letters(corpus.shards, document_config.letters)
        return Source(config=config, files=files, lanes=[], reader=None, corpus=corpus, document_config=document_config)
    label = None if config.label is None else Label(config.label, tuple(classes))
    reader = build_reader(config.format, config.field, storage, label)
    files = storage.expand(config.paths)
    target = target_size(files, lanes)
    pieces = [piece for file in files for piece in reader.split(file, target)]
    assigned = assign(pieces, lanes, config.name, f"format {config.format!r} is split {reader.cut}")
    return Source(config=config, files=files, lanes=assigned, reader=reader, corpus=None, document_config=document_config)


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
