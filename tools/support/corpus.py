"""Report what the sources of a job hold, for `cistron check` and `cistron inspect`.

Token shards list the lengths of all documents, so their numbers are exact. Of raw files, a random sample of pieces is
read and encoded, which takes some seconds at most. What follows from the sample for the whole source is called
estimated.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.padding import Padding
from rich.table import Table

from ...datasets.documents import make_encoder
from ...datasets.loading import Loader, Source
from ...datasets.prepare import Lengths, LengthStatistics, length_statistics, shard_lengths
from ...datasets.randomness import Shuffle
from ...datasets.readers import Piece, Reader
from ...datasets.tokenizers import Encoded, TokenizeError, Tokenizer
from ...trainer.config import JobConfig
from ...trainer.processes import Terminal
from .alphabet import Counts, alphabet_report, count_ids, count_letters

# Read of a raw source, in bytes: in all, and of one piece, so that the sample comes from at least 8 places.
SAMPLE, SAMPLE_PER_PIECE = 2**21, 2**18
COUNTED_UNITS = 2**20  # 0.2 s
SAMPLED_PIECES = 256  # each may be a file of its own on a remote store
BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class Holdings:
    """What a source holds.

    Attributes:
        statistics: Of all documents, or of the sampled ones.
        scale: Size of the whole divided by that of the sample: 1 for all documents, None where it is unknown.
        cut: Sampled documents that continue behind the sample. Their number is a guess, and their lengths are too
            short.
        mapped: Letters of the sample that the tokenizer read as others, or unknown tokens, see `Encoded`.
        letters: How often each byte is in the sample, see `alphabet`; of token shards, each letter in theirs.
    """

    statistics: LengthStatistics
    scale: float | None
    cut: int = 0
    mapped: int = 0
    letters: Counts = field(default_factory=lambda: np.zeros(256, dtype=np.int64))

    def rows(self, config: JobConfig) -> float:
        """Return how many rows the job packs the documents into."""
        s, seq_len = self.statistics, config.training.seq_len
        if config.data.layout == "padded":
            return s.documents - s.split + s.fragments
        return s.tokens / seq_len if config.data.packing == "concat" else s.rows


def report_sources(console: Terminal, config: JobConfig, loader: Loader, tokenizer: Tokenizer, rows_per_step: int) -> None:
    """Print what encodes raw text and, for each source, its size, how it packs, its epochs and its lengths.

    Args:
        console: To print to.
        config: Of the job.
        loader: Of the job; its sources are looked into.
        tokenizer: Of the job.
        rows_per_step: Rows of an optimizer step over all ranks.
    """
    console.print(f"encoding: {loader.encoding}")
    for number, source in enumerate(loader.sources):
        holdings = look_into(source, tokenizer, config.training.seq_len)
        lines = ["", f"{source.config.name} ({source.config.format}): {on_disk(source, loader.lanes)}"]
        lines += [f"  {remark}" for remark in source.remarks()]
        if holdings is None:
            lines.append("  no document in the sample")
        else:
            lines += [
                f"  {in_tokens(holdings)}",
                f"  {in_rows(holdings, config)}",
                f"  {in_steps(holdings, config, number, rows_per_step, loader)}",
                f"  tokens of a document: median {holdings.statistics.median:,}, longest {holdings.statistics.longest:,}",
            ]
            if holdings.mapped:
                lines.append(f"  {holdings.mapped:,} letters mapped or unknown tokens in the sample")
        console.print("\n".join(lines))
        if holdings is not None:
            console.print(Padding(histogram_table(holdings.statistics.histogram), (0, 0, 0, 4), expand=False))
        if holdings is not None and tokenizer.alphabet is not None and holdings.letters.any():
            for told in alphabet_report(holdings.letters, tokenizer.alphabet):
                console.print(told if isinstance(told, str) else Padding(told, (0, 0, 0, 4), expand=False))


def look_into(source: Source, tokenizer: Tokenizer, seq_len: int) -> Holdings | None:
    """Return all lengths of token shards, or those of a sample of raw files; None where there is no document."""
    if source.corpus is not None:
        letters = count_letters([]) if tokenizer.alphabet is None else count_ids(source.corpus.shards, tokenizer)
        return Holdings(length_statistics(shard_lengths(source.corpus.shards), seq_len), scale=1.0, letters=letters)
    assert source.pieces is not None
    pieces, reader = source.pieces.line.pieces, source.pieces.reader
    encode = tokenizer.encode_batch
    if reader.content != "text":
        encoder = make_encoder(reader.content, source.data, tokenizer)
        encode = lambda documents: encoder(documents).encoded  # noqa: E731
    lengths: list[Lengths] = []
    left, covered, cut, mapped, letters = SAMPLE, 0.0, 0, 0, count_letters([])
    for piece in random.Random(0).sample(pieces, min(len(pieces), SAMPLED_PIECES)):
        documents, share, goes_on = head_of(reader, piece)
        encoded = encoded_of(documents, encode)
        lengths.append(np.array(encoded.lengths, dtype=np.int64))
        mapped += sum(encoded.mapped or ())
        letters += count_letters(documents if reader.content == "text" else [])
        covered += piece.size * share
        cut += goes_on
        left -= sum(map(len, documents))
        if left <= 0:
            break
    if not sum(map(len, lengths)):
        return None
    scale = sum(piece.size for piece in pieces) / covered
    return Holdings(length_statistics(lengths, seq_len), None if np.isnan(scale) else scale, cut, mapped, letters)


def head_of(reader: Reader, piece: Piece) -> tuple[list[bytes], float, bool]:
    """Return the first documents of a piece, the share of it that they are, and whether the last document continues.

    The share is NaN for a compressed piece of which a part is left: its size in text is unknown.
    """
    documents: list[bytes] = []
    size = 0
    for group in reader.groups(piece, piece.start, True):
        goes_on = not group.first
        for document, offset in zip(group.documents, group.offsets, strict=True):
            if size >= SAMPLE_PER_PIECE:
                share = piece.share(offset)
                return documents, float("nan") if share is None else share, goes_on
            if goes_on:
                documents[-1] += document
            else:
                documents.append(document)
            size += len(document)
            goes_on = False
    return documents, 1.0, False


def encoded_of(documents: list[bytes], encode: Callable[[list[bytes]], Encoded]) -> Encoded:
    """Return documents as ids. Those that cannot be encoded are left out: training names them."""
    while True:
        try:
            return encode(documents)
        except TokenizeError as error:
            documents = documents[: error.index] + documents[error.index + 1 :]


def on_disk(source: Source, lanes: int) -> str:
    """Describe the files, their size, and how they are assigned to lanes."""
    if source.corpus is not None:
        shards = source.corpus.shards
        size = sum(sum(shard.manifest.sizes().values()) for shard in shards)
        return f"{len(shards):,} shards, {size / 1e6:,.2f} MB; documents assigned one by one to {lanes} lanes"
    size, empty = sum(file.size for file in source.files), sum(file.size == 0 for file in source.files)
    pieces = len(source.pieces.line.pieces) if source.pieces else 0
    return (
        f"{len(source.files):,} files{f' ({empty:,} empty)' if empty else ''}, {size / 1e6:,.2f} MB; {pieces:,} pieces, "
        f"a share of them for each of {lanes} lanes"
    )


def in_tokens(holdings: Holdings) -> str:
    """Describe how many documents and tokens the source has."""
    s, scale = holdings.statistics, holdings.scale
    if scale == 1.0:
        return f"{s.documents:,} documents, {s.tokens:,} tokens"
    sample = f"a sample of {s.documents:,} documents and {s.tokens:,} tokens"
    if scale is None:
        return f"{sample}; the whole is not estimated, since its files are compressed"
    documents = f"about {(s.documents - holdings.cut) * scale:,.0f} documents, " if s.documents > holdings.cut else ""
    return f"{documents}about {s.tokens * scale:,.0f} tokens, estimated from {sample}"


def in_rows(holdings: Holdings, config: JobConfig) -> str:
    """Describe how the documents fill rows."""
    s, d, seq_len = holdings.statistics, config.data, config.training.seq_len
    split = f"{s.split:,} documents are longer than a row and make {s.fragments:,} fragments"
    of = "" if holdings.scale == 1.0 else "of the sample "
    if d.layout == "padded":
        return f"padded: a row for each document; {of}{split}"
    if d.packing == "concat":
        return f'packing "concat" fills all {seq_len} positions of a row, and cuts documents wherever one ends'
    return f"packing uses {s.packing_efficiency:.2%} of {seq_len} positions; {of}{split}"


def largest_lane(source: Source, config: JobConfig, number: int, lanes: int) -> float:
    """Return what the largest lane of the first epoch has, divided by the mean: of bytes, or of tokens.

    An epoch takes so many times the rows of its documents, since the other lanes wait. Lanes of more than 2^20 units
    of token shards, which chance divides, count as equal.
    """
    if source.pieces is not None:
        loads = [float(source.pieces.line.bytes_of(lane, 0)) for lane in range(lanes)]
    elif source.corpus is None or source.corpus.units > COUNTED_UNITS:
        return 1.0
    else:
        units = Shuffle(source.corpus.units, config.training.seed, number, 0)[np.arange(source.corpus.units)]
        lengths = source.corpus.locate(units).lengths
        loads = [float(lengths[lane::lanes].sum()) for lane in range(lanes)]
    return max(loads) * lanes / sum(loads)


def in_steps(holdings: Holdings, config: JobConfig, number: int, rows_per_step: int, loader: Loader) -> str:
    """Describe how many steps an epoch takes at the source's share, and how many epochs the job makes.

    Args:
        holdings: Of the source.
        config: Of the job.
        number: Of the source.
        rows_per_step: Rows of an optimizer step over all ranks.
        loader: Of the job.
    """
    name = config.data.sources[number].name
    phases = list(weight_phases(config))
    shares = ", then ".join(
        f"{of[name]:.1%} of the rows" + (f" from step {first}" if first > 1 else "") for first, _, of in phases
    )
    first = next((of[name] for _, _, of in phases if of[name]), 0.0)
    if holdings.scale is None or not first:  # compressed, or of a stage that the job does not reach
        return shares
    filled = holdings.rows(config) * holdings.scale
    rows = max(filled * largest_lane(loader.sources[number], config, number, loader.lanes), loader.lanes)
    idle = f" and about {rows - filled:,.0f} idle ones" if rows - filled >= 0.5 else ""
    epochs = sum(steps * of[name] for _, steps, of in phases) * rows_per_step / rows
    about = "" if holdings.scale == 1.0 and holdings.statistics.planned == holdings.statistics.documents else "about "
    of_epoch = rows / (rows_per_step * first)
    takes = f"{about}{of_epoch:,.0f} steps" if of_epoch >= 1 else "less than a step"
    return (
        f"{shares}: an epoch of {about}{filled:,.0f} rows{idle} takes {takes}; the job's "
        f"{config.training.steps:,} make {epochs:.2f} epochs"
    )


def weight_phases(config: JobConfig) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Yield first step, number of steps and shares of the sources by name, for each stage of the job."""
    steps, names = config.training.steps, [source.name for source in config.data.sources]
    phases = [(first, weights) for first, weights in config.data.phases() if first <= steps]
    ends = [first for first, _ in phases[1:]] + [steps + 1]
    for (first, weights), end in zip(phases, ends, strict=True):
        total = sum(weights)
        yield first, end - first, {name: weight / total for name, weight in zip(names, weights, strict=True)}


def histogram_table(histogram: list[tuple[int, int]]) -> Table:
    """Return a line for each class of lengths: the shortest length in it, a bar, and how many documents it has."""
    most = max(count for _, count in histogram)
    grid = Table.grid("length", "bar", "documents", padding=(0, 1))
    grid.columns[0].justify = "right"
    for low, count in histogram:
        grid.add_row(f"{low:,}", "█" * round(BAR * count / most), f"{count:,}")
    return grid
