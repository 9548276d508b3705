"""One document of 10^8 tokens against documents of 10^3: tokens/s and memory of a lane; and what a resume costs.

Both corpora are FASTA files of the same size, read, tokenised and packed by one lane in this process, without a queue.
Cases are interleaved, each in a process of its own so that its peak memory is its own.
"""

import argparse
import multiprocessing
import re
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from cistron.datasets.lane import Lane, LaneState
from cistron.datasets.packing import Packer
from cistron.datasets.pieces import Piece
from cistron.datasets.readers import FastaReader
from cistron.datasets.tokenizers import ByteTokenizer

LINE = 80


def write_fasta(path: Path, tokens: int, document: int) -> None:
    """Write records of `document` bases each, `tokens` in all."""
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for number in range(tokens // document):
            file.write(b">record %d\n" % number)
            for start in range(0, document, LINE * 10_000):
                bases = random.choice(letters, size=min(LINE * 10_000, document - start)).tobytes()
                file.write(b"".join(bases[i : i + LINE] + b"\n" for i in range(0, len(bases), LINE)))


def open_lane(path: Path, packing: str, seq_len: int, state: LaneState) -> Lane:
    """Return a lane that reads all of one file."""
    tokenizer = ByteTokenizer()
    packer = Packer(seq_len, tokenizer.eos_id, tokenizer.pad_id, packing)
    size = path.stat().st_size
    return Lane([Piece(str(path), 0, size, size)], FastaReader(), tokenizer, packer, (0, 0, 0), state)


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB, which Linux alone tells (getrusage counts the parent's)."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) / 1024 if peak else float("nan")


def measure_epoch(path: Path, packing: str, seq_len: int) -> tuple[float, float]:
    """Return (tokens/s, growth of peak memory in MiB) of one epoch."""
    before = peak_memory()
    started = time.perf_counter()
    tokens = 0
    for planes, state in open_lane(path, packing, seq_len, LaneState()).rows():
        if state.epoch:
            break
        tokens += int((planes[3] >= 0).sum())
    seconds = time.perf_counter() - started
    return tokens / seconds, peak_memory() - before


def measure_resume(path: Path, packing: str, seq_len: int, rows: int) -> tuple[int, float]:
    """Return (rows done, seconds to the first row after a resume there), half-way through a block."""
    states = islice((state for _, state in open_lane(path, packing, seq_len, LaneState()).rows()), rows)
    *_, state = states
    started = time.perf_counter()
    next(open_lane(path, packing, seq_len, state).rows())
    return rows, time.perf_counter() - started


def main() -> None:
    """Run and print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10**8, help="tokens of each corpus")
    parser.add_argument("--short", type=int, default=10**3, help="tokens of a short document")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens per row")
    parser.add_argument("--repeats", type=int, default=3, help="times that each case is run")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**2, 10**5], help="rows done before a resume")
    arguments = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        files = {"short": Path(folder, "short.fasta"), "long": Path(folder, "long.fasta")}
        write_fasta(files["short"], arguments.tokens, arguments.short)
        write_fasta(files["long"], arguments.tokens, arguments.tokens)
        for packing in ("best_fit", "concat"):
            results: dict[str, list[tuple[float, float]]] = {"short": [], "long": []}
            for _ in range(arguments.repeats):
                for name, path in files.items():
                    with context.Pool(1) as pool:
                        results[name].append(pool.apply(measure_epoch, (path, packing, arguments.seq_len)))
            speed = {name: statistics.median(speed for speed, _ in runs) for name, runs in results.items()}
            memory = {name: max(growth for _, growth in runs) for name, runs in results.items()}
            print(
                f"{packing}: short documents {speed['short'] / 1e6:.1f} M tokens/s, +{memory['short']:.0f} MiB; "
                f"one long document {speed['long'] / 1e6:.1f} M tokens/s, +{memory['long']:.0f} MiB; "
                f"long/short {speed['long'] / speed['short']:.2f}"
            )
            for rows in arguments.rows:
                for name, path in files.items():
                    done, seconds = measure_resume(path, packing, arguments.seq_len, rows)
                    print(f"{packing}: resume after {done} rows of {name} documents: {seconds * 1e3:.0f} ms to the first row")


if __name__ == "__main__":
    main()
