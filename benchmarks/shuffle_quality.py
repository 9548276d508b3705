"""How far the loader's order is from a full shuffle, on a source that is sorted by length.

    python benchmarks/shuffle_quality.py

Documents begin with their number in the source. After an epoch two things are told beside what a uniformly random order
gives: how far documents that were neighbours in the source end up from each other, and how much the mean length of the
documents of a batch varies from batch to batch. An order that leaves a sorted source sorted has a spread of its own
lengths there.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cistron.datasets.config import DataConfig
from cistron.datasets.errors import DataEnd
from cistron.datasets.loading import Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.shards import ShardWriter
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from corpora import Lengths, protein_lengths

BATCH, SEQ_LEN, DIGITS = 8, 2048, 7

Places = list[tuple[int, int]]  # number of a document in the source, number of its batch


def write(folder: Path, lengths: Lengths) -> None:
    """Write documents of these lengths as four token shards and as jsonl."""
    texts = [b"%0*d" % (DIGITS, number) + b"a" * (length - DIGITS - 1) for number, length in enumerate(lengths.tolist())]
    (folder / "jsonl").mkdir()
    (folder / "jsonl" / "0.jsonl").write_bytes(b"".join(b'{"text": "%s"}\n' % text for text in texts))
    tokenizer = ByteTokenizer()
    for number in range(4):
        part = texts[number * len(texts) // 4 : (number + 1) * len(texts) // 4]
        writer = ShardWriter(folder / "tokens", f"{number}", tokenizer, np.dtype(np.uint8))
        ids, ends, _ = tokenizer.encode_batch(part)
        writer.write(ids, np.cumsum(ends))
        writer.finish([])


def one_epoch(folder: Path, form: str, lanes: int) -> Places:
    """Return where each document of an epoch ended up, in the order of the rows."""
    paths = str(folder / form / ("*.jsonl" if form == "jsonl" else ""))
    source = SourceConfig(name="source", format=form, paths=[paths], max_epochs=1)
    config = DataConfig(sources=[source], lanes=lanes, packing="best_fit")
    places: Places = []
    with Loader(config, ByteTokenizer(), RowSettings(seq_len=SEQ_LEN, seed=0, batch_size=BATCH)) as loader:
        number = 0
        while True:
            try:
                batch = loader.next()
            except DataEnd:
                return places
            assert batch is not None
            opens = (batch.positions == 0) & (batch.sequence_ids >= 0)
            rows, starts = opens.numpy().nonzero()
            digits = batch.tokens.numpy()[rows[:, None], starts[:, None] + np.arange(DIGITS)] - ord("0")
            places += [(document, number) for document in (digits @ 10 ** np.arange(DIGITS)[::-1]).tolist()]
            number += 1


def report(name: str, places: Places, lengths: Lengths) -> None:
    """Print a row of the table."""
    documents, batches = np.array(places).T
    count = len(lengths)
    order = np.full(count, -1)
    order[documents] = np.arange(len(documents))
    both = (order[:-1] >= 0) & (order[1:] >= 0)  # the last rows of an epoch that end no whole batch are not seen
    apart: npt.NDArray[np.int64] = np.abs(np.diff(order))[both]
    sums = np.bincount(batches, lengths[documents])
    means = sums / np.bincount(batches)
    print(
        f"| {name} | {np.median(apart) / count:.3f} | {(apart < count / 100).mean():.2%} | {(apart < 64).mean():.3%} | "
        f"{means.std():.1f} | {means.min():.0f} to {means.max():.0f} |",
        flush=True,
    )


def main() -> None:
    """Print a table with a line for each order of the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000, help="documents of the source (default: 200,000)")
    parser.add_argument("--lanes", type=int, nargs="+", default=[16, 64], help="numbers of lanes (default: 16 64)")
    options = parser.parse_args()
    lengths = np.sort(np.clip(protein_lengths(options.documents), DIGITS + 2, SEQ_LEN))
    print("| order | neighbours: median apart | within 1 % | within 64 documents | spread of batch means | range |")
    print("|---|---:|---:|---:|---:|---:|")
    random = np.random.default_rng(0).permutation(len(lengths))
    per_batch = BATCH * SEQ_LEN / lengths.mean()
    for name, order in (("as it is", np.arange(len(lengths))), ("full shuffle", random)):
        batches = (np.cumsum(lengths[order]) // (BATCH * SEQ_LEN)).tolist()
        report(name, list(zip(order.tolist(), batches, strict=True)), lengths)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), lengths)
        for form in ("tokens", "jsonl"):
            for lanes in options.lanes:
                report(f"{form}, {lanes} lanes", one_epoch(Path(folder), form, lanes), lengths)
    print(
        f"\n{len(lengths):,} documents, mean length {lengths.mean():.0f}, standard deviation {lengths.std():.0f}, "
        f"{per_batch:.0f} documents per batch"
    )


if __name__ == "__main__":
    main()
