"""The corpora of a run as they are found on disk: which files, cut into which pieces, dealt to which lanes."""

from dataclasses import dataclass

from .errors import DataConfigError
from .files import digest, expand
from .pieces import Piece, deal, split
from .readers import Reader, build_reader


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Files of one kind.

    Attributes:
        name: Unique among sources.
        format: `text` (a file is a document), `jsonl` or `fasta`.
        paths: Paths, globs or fsspec URLs.
        field: For jsonl: the field that holds the document.
        weight: Share of rows, and so of tokens, relative to the other sources' weights.
    """

    name: str
    format: str
    paths: tuple[str, ...]
    field: str = "text"
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What a source was found to hold, before reading it.

    Attributes:
        name: Of the source.
        files: Number of files.
        empty_files: Files of them without a byte, which are left out.
        bytes: Size of all files as stored.
        pieces: Parts that the files were split into.
        pieces_per_lane: (fewest, most).
    """

    name: str
    files: int
    empty_files: int
    bytes: int
    pieces: int
    pieces_per_lane: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source ready to be read.

    Attributes:
        config: As given.
        reader: Of its format.
        lanes: Pieces of each lane.
        files_digest: By which a resumed run knows the files again.
        summary: For a human reader.
    """

    config: SourceConfig
    reader: Reader
    lanes: list[list[Piece]]
    files_digest: str
    summary: SourceSummary

    def lane_name(self, lane: int) -> str:
        """Return the key of a lane in the loader's state."""
        return f"{self.config.name}/{lane}"


def find_source(config: SourceConfig, lanes: int) -> Source:
    """Look up a source's files and deal them to `lanes`.

    Raises:
        DataConfigError: A setting is wrong, or there are fewer pieces than lanes.
        DataError: A file is missing, or cannot be read.
    """
    if not config.weight > 0:
        raise DataConfigError(f"data.sources.weight: {config.weight} of source {config.name!r} must be above 0")
    reader = build_reader(config.format, config.field)
    files = expand(config.paths)
    pieces = split(files, reader.boundary, lanes)
    dealt = deal(pieces, lanes, config.name)
    counts = [len(lane) for lane in dealt]
    summary = SourceSummary(
        name=config.name,
        files=len(files),
        empty_files=sum(file.size == 0 for file in files),
        bytes=sum(file.size for file in files),
        pieces=len(pieces),
        pieces_per_lane=(min(counts), max(counts)),
    )
    return Source(config=config, reader=reader, lanes=dealt, files_digest=digest(files), summary=summary)
