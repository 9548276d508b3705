"""How much of its rows each way of packing fills, on three kinds of lengths.

    python benchmarks/packing_use.py

`best fit, shards` and `best fit, jsonl` are what one lane of the loader makes of token shards, block by block, and of
text that is tokenised while it is read; every token of an epoch is counted in and out. Beside them: all documents at
once by best-fit decreasing (the limit), whole documents in the order that they come (next fit), nanochat's best fit
that crops what does not fit, and concat.
"""

import argparse
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cistron.datasets.config import DataConfig
from cistron.datasets.lanes.blocks import Address
from cistron.datasets.loading import RowSettings
from cistron.datasets.loading.sources import open_source
from cistron.datasets.readers import SourceConfig
from cistron.datasets.rows import Packer, best_fit
from cistron.datasets.shards import ShardWriter
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from corpora import contig_lengths, protein_lengths, text_lengths

BUFFER = 1000  # documents that nanochat chooses from


class Use(NamedTuple):
    """Tokens kept per token of row; documents split although a row holds them; tokens dropped: shares of 1."""

    use: float
    split: float
    dropped: float


def loader(folder: Path, form: str, lengths: Sequence[int], seq_len: int) -> Use:
    """What one lane makes of an epoch of documents of these lengths."""
    tokenizer = ByteTokenizer()
    packer = Packer(seq_len, tokenizer.eos_id, tokenizer.pad_id, "best_fit")
    source = open_source(
        SourceConfig(name="use", format=form, paths=[str(folder / form / ("*" if form == "jsonl" else ""))]),
        1,
        RowSettings(seq_len=seq_len, seed=0, batch_size=1),
        DataConfig(),
    )
    rows = tokens = split = 0
    for block, *_ in source.documents(0, tokenizer, packer, (0, 0)).blocks(0, Address(0, -1, 1, 0)):
        plan = packer.plan(block)
        rows += len(plan)
        tokens += int(block.lengths.sum())
        parts = np.bincount([segment for row in plan for segment, _, _ in row])
        split += int(((parts > 1) & (block.lengths <= seq_len)).sum())
    assert split == 0, "a document was split that fits"
    assert tokens == sum(lengths), "a token was dropped"
    return Use(tokens / (rows * seq_len), 0.0, 0.0)


def everything_at_once(lengths: Sequence[int], seq_len: int) -> Use:
    """Best-fit decreasing over the whole corpus."""
    return Use(sum(lengths) / (len(best_fit(lengths, seq_len)) * seq_len), 0.0, 0.0)


def next_fit(lengths: Sequence[int], seq_len: int) -> Use:
    """A document that does not fit in the open row opens the next; a longer one than a row fills rows of its own."""
    rows = room = 0
    for length in lengths:
        rest = length % seq_len if length > seq_len else length
        rows += (length - rest) // seq_len
        if rest > room:
            rows += 1
            room = seq_len
        room -= rest
    return Use(sum(lengths) / (rows * seq_len), 0.0, 0.0)


def crop(lengths: Sequence[int], seq_len: int) -> Use:
    """Nanochat's: repeatedly the longest of 1,000 documents that fits; then the shortest is cropped to fit."""
    documents = iter(lengths)
    buffer = sorted(length for length, _ in zip(documents, range(BUFFER), strict=False))
    rows = dropped = split = 0

    def take(place: int) -> int:
        length = buffer.pop(place)
        if (following := next(documents, None)) is not None:
            buffer.insert(bisect_right(buffer, following), following)
        return length

    while buffer:
        room = seq_len
        while room and buffer:
            place = bisect_right(buffer, room) - 1
            length = take(max(place, 0))
            dropped += max(length - room, 0)
            split += room < length <= seq_len
            room -= min(length, room)
        rows += 1
    return Use((sum(lengths) - dropped) / (rows * seq_len), split / len(lengths), dropped / sum(lengths))


def concat(lengths: Sequence[int], seq_len: int) -> Use:
    """Cut the stream every `seq_len` tokens."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    split = (starts // seq_len != (ends - 1) // seq_len) & (np.asarray(lengths) <= seq_len)
    return Use(float(ends[-1] / (-(-ends[-1] // seq_len) * seq_len)), float(split.mean()), 0.0)


def write(folder: Path, lengths: Sequence[int]) -> None:
    """Write documents of these lengths, eos included, as a token shard and as jsonl, in folders named by format."""
    writer = ShardWriter(folder / "tokens", "0", ByteTokenizer(), np.dtype(np.uint8))
    (folder / "jsonl").mkdir()
    with (folder / "jsonl" / "0.jsonl").open("wb") as file:
        for length in lengths:
            writer.write(np.frombuffer(b"a" * (length - 1) + b"\0", dtype=np.uint8), [length])
            file.write(b'{"text": "' + b"a" * (length - 1) + b'"}\n')
    writer.finish([])


def table(tokens: int) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    kinds = {"text": (text_lengths, 870), "protein": (protein_lengths, 350), "contigs": (contig_lengths, 3400)}
    for seq_len in (2048, 8192):
        yield f"| {seq_len} | best fit, shards | best fit, jsonl | all at once | next fit | crop | concat |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for kind, (draw, mean) in kinds.items():
            lengths = draw(tokens // mean).tolist()
            with tempfile.TemporaryDirectory() as name:
                write(Path(name), lengths)
                uses = [loader(Path(name), form, lengths, seq_len) for form in ("tokens", "jsonl")]
            uses += [policy(lengths, seq_len) for policy in (everything_at_once, next_fit, crop, concat)]
            cells = []
            for use, split, dropped in uses:
                notes = [f"{split:.1%} split"] * (split > 0) + [f"{dropped:.1%} dropped"] * (dropped > 0)
                cells.append(f"{use:.2%}" + (f" ({', '.join(notes)})" if notes else ""))
            yield f"| {kind} | {' | '.join(cells)} |"
        yield ""


def main() -> None:
    """Print how full rows are for both kinds of corpora."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10**8, help="tokens of each corpus, about (default: 10^8)")
    for line in table(parser.parse_args().tokens):
        print(line, flush=True)


if __name__ == "__main__":
    main()
