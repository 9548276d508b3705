"""What it costs the loader to compare token shards with the checksums of their blocks, and where a block is read once.

    python benchmarks/block_checks.py

Two loaders over the same shards, one of which compares nothing, make batches of 8 rows of 2,048 in turn, in one process
and without threads; the CPU seconds of each are summed, so that a busy machine matters less, and those within the
checks are counted by themselves. Lines are for the first epoch, in which every block is compared, and for the second,
in which none is; and for one rank of 64 in the first, which uses 1/64 of the documents, and so compares a block for
nearly each of them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
from cistron.datasets.config import DataConfig
from cistron.datasets.loading import DataShard, Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from corpora import write_shards, write_text

BATCH, SEQ_LEN, TURN = 8, 2048, 16
TOKENS = BATCH * SEQ_LEN


def unchecked(*tokens: Any) -> list[tuple[int, list[int]]]:
    """Stand in for `BlockChecks.fresh`: there is nothing to check."""
    return []


class Clock:
    """Sums the CPU seconds of the calls of a function.

    Args:
        function: That is called.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> None:
        """Call the function, and add the CPU time that it takes."""
        begun = time.thread_time()
        self.function(*arguments)
        self.seconds += time.thread_time() - begun


def batches(folder: Path, ranks: int, checked: bool) -> tuple[Iterator[object], Clock]:
    """Return the batches of rank 0, made in this thread, and the time that checks take in them."""
    source = SourceConfig(name="source", format="tokens", paths=[str(folder / "shards")])
    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(folder / "tokenizer")))
    rows = RowSettings(seq_len=SEQ_LEN, seed=0, batch_size=BATCH)
    loader = Loader(DataConfig(sources=[source], lanes=64), tokenizer, rows, DataShard(dp_degree=ranks))
    corpus = loader.sources[0].corpus
    assert corpus is not None
    if not checked:
        vars(corpus.checks)["fresh"] = unchecked
    clock = Clock(corpus.check)
    vars(corpus)["check"] = clock
    return loader._batches(), clock


def compare(name: str, folder: Path, ranks: int, skipped: int, count: int) -> None:
    """Print the CPU time of `count` batches with checks and without, behind the first `skipped` ones."""
    contenders = {checked: batches(folder, ranks, checked) for checked in (True, False)}
    for contender, _ in contenders.values():
        for _ in islice(contender, skipped):
            pass
    before = contenders[True][1].seconds
    seconds = {True: 0.0, False: 0.0}
    for turn in range(count // TURN):
        for checked in (True, False) if turn % 2 else (False, True):
            begun = time.thread_time()
            for _ in islice(contenders[checked][0], TURN):
                pass
            seconds[checked] += time.thread_time() - begun
    on, off, within = seconds[True], seconds[False], contenders[True][1].seconds - before
    speed = count // TURN * TURN * TOKENS / 1e6
    print(
        f"{name:28s} {speed / off:6.1f} M tokens per CPU second without, {speed / on:6.1f} with: {on / off - 1:+.1%}; "
        f"within checks {within:.3f} s of {on:.2f} s, {within / (on - within):.2%}",
        flush=True,
    )


def main() -> None:
    """Write the shards, unless they are there, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "cistron-block-checks"))
    parser.add_argument("--millions", type=int, default=100, help="tokens of the shards (default: 100)")
    options = parser.parse_args()
    if not (options.folder / "shards").exists():
        write_text(options.folder)
        write_shards(options.folder, options.millions * 10**6)
    data = bytes(2**27)
    begun = time.thread_time()
    for start in range(0, len(data), 2**17):
        xxhash.xxh3_64_intdigest(data[start : start + 2**17])
    print(f"xxh3_64 of blocks of 128 KiB: {len(data) / (time.thread_time() - begun) / 1e9:.1f} GB/s")
    epoch = options.millions * 10**6 // TOKENS
    compare("first epoch, one rank", options.folder, 1, 0, epoch)
    compare("second epoch, one rank", options.folder, 1, epoch + epoch // 8, epoch // 2)
    compare("first epoch, rank 0 of 64", options.folder, 64, 0, epoch // 64)


if __name__ == "__main__":
    main()
