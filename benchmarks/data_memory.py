"""Resident memory of the loader and its workers over many tokens: it must not grow after the warm-up.

    python benchmarks/data_memory.py --tokens 2_000_000_000 --workers 0 2

Token shards are read from a memory map, whose pages count as resident while they are cached; so private memory is printed as
well, in which copies and leaks show. Both are summed over this process and all that it started, from /proc (Linux).
"""

import argparse
import gc
import multiprocessing
import re
import tempfile
import time
from pathlib import Path

from cistron.datasets.config import DataConfig
from cistron.datasets.loading import Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer

BATCH, SEQ_LEN = 8, 2048
WARM_UP = 0.1  # of all tokens


def memory() -> tuple[float, float, int]:
    """Return resident and private MiB and open files of this process and its children."""
    gc.collect()
    children = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(number for file in children for number in file.read_text().split())]
    resident = private = files = 0
    for process in processes:
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE))
        resident += int(sizes["Rss"])
        private += int(sizes["Private_Dirty"])
        files += len(list(Path(f"/proc/{process}/fd").iterdir()))
    return resident / 1024, private / 1024, files


def run(folder: Path, case: str, tokens: int, workers: int) -> None:
    """Read `tokens` and print memory after the warm-up and at the end."""
    hf = case != "bytes"
    form, paths = ("tokens", "shards") if case == "tokens" else ("jsonl", "text/*.jsonl")
    tokenizer = (
        build_tokenizer(TokenizerConfig(kind="hf", path=str(folder / "tokenizer")))
        if hf
        else build_tokenizer(TokenizerConfig(kind="byte"))
    )
    source = SourceConfig(name="source", format=form, paths=[str(folder / paths)])
    config = DataConfig(sources=[source], lanes=16, packing="best_fit", num_workers=workers)
    batches = tokens // (BATCH * SEQ_LEN)
    with Loader(config, tokenizer, RowSettings(seq_len=SEQ_LEN, seed=0, batch_size=BATCH)) as loader:
        begun, seen = time.perf_counter(), []
        for number in range(batches):
            loader.next()
            if number == int(batches * WARM_UP) or (number + 1) % max(batches // 10, 1) == 0:
                seen.append(memory())
        seconds = time.perf_counter() - begun
    (warm, warm_private, _), (end, end_private, files) = seen[1], seen[-1]
    highest = max(resident for resident, *_ in seen[1:])
    print(f"{case}, {workers} workers, {tokens:.1e} tokens in {seconds:.0f} s, {files} open files", flush=True)
    print(f"  resident {warm:.0f} -> {end:.0f} MiB ({end / warm - 1:+.1%}), at most {highest:.0f}")
    print(f"  private {warm_private:.0f} -> {end_private:.0f} MiB ({end_private / warm_private - 1:+.1%})", flush=True)


def main() -> None:
    """Run each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data_speed.py keeps its data (default: where it does by default)")
    parser.add_argument("--tokens", type=int, default=2 * 10**9, help="tokens to read (default: 2*10^9)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of workers (default: 0 2)")
    parser.add_argument("--case", choices=["tokens", "bytes", "text"], default="tokens", help="what to read (default: tokens)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.gettempdir(), "cistron-benchmarks")
    if not (folder / "complete").exists():
        parser.error(f"there is no data in {folder}; run data_speed.py first")
    for workers in options.workers:
        process = multiprocessing.get_context("spawn").Process(target=run, args=(folder, options.case, options.tokens, workers))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
