"""The corpora of a run as they are found on disk: which files, cut into which pieces, dealt to which lanes."""

from dataclasses import dataclass

from .errors import DataConfigError
from .files import DataFile, expand
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
class Source:
    """A source ready to be read.

    Attributes:
        config: As given.
        reader: Of its format.
        files: All of its files, those without a byte included.
        lanes: Pieces of each lane.
    """

    config: SourceConfig
    reader: Reader
    files: list[DataFile]
    lanes: list[list[Piece]]

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
    dealt = deal(split(files, reader.boundary, lanes), lanes, config.name)
    return Source(config=config, reader=reader, files=files, lanes=dealt)
