"""From a state to the first batch: what a resume of the data costs, by how far the run has come.

    python benchmarks/data_resume.py

A loader runs to each number of rows and its state is kept, as a checkpoint would. Then loaders are opened at these states
in turn, each in this process and each with everything that a start does: listing and stamping the files, opening shards,
comparing ids with tiktoken's, reading up to the first batch.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from cistron.datasets.config import DataConfig
from cistron.datasets.loading import Batch, DataShard, DataState, Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer

BATCH = 8
CASES = {
    "tokens": ("shards", "hf", (100, 10_000, 1_000_000)),
    "text": ("text/*.jsonl", "hf", (100, 10_000)),
    "bytes": ("text/*.jsonl", "byte", (100, 10_000, 100_000)),
}


def open_loader(folder: Path, case: str, tokenizer: Tokenizer, state: DataState | None) -> Loader:
    """Open a case's loader."""
    form = "tokens" if case == "tokens" else "jsonl"
    source = SourceConfig(name="source", format=form, paths=[str(folder / CASES[case][0])])
    config = DataConfig(sources=[source], lanes=16, packing="best_fit")
    return Loader(config, tokenizer, RowSettings(seq_len=2048, seed=0, batch_size=BATCH), DataShard(state=state))


def states(folder: Path, case: str, tokenizer: Tokenizer) -> dict[int, tuple[str, str]]:
    """Return state and next batch, as text, after each number of rows."""
    found = {}
    with open_loader(folder, case, tokenizer, None) as loader:
        for rows in CASES[case][2]:
            batch = loader.next()
            while batch is not None and batch.state.rows < rows:
                batch = loader.next()
            state = loader.state().model_dump_json()
            found[rows] = state, fingerprint(loader.next())
    return found


def fingerprint(batch: Batch | None) -> str:
    """Which batch it is."""
    assert batch is not None
    return f"{batch.rows} {hash(batch.tokens.numpy().tobytes())}"


def main() -> None:
    """Print medians of the times, and how large the states are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data_speed.py keeps its data (default: where it does by default)")
    parser.add_argument("--repeats", type=int, default=15, help="resumes per state (default: 15)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.gettempdir(), "cistron-benchmarks")
    if not (folder / "complete").exists():
        parser.error(f"there is no data in {folder}; run data_speed.py first")

    for case, (_, kind, _) in CASES.items():
        tokenizer = build_tokenizer(TokenizerConfig(kind=kind, path=str(folder / "tokenizer") if kind == "hf" else None))
        kept = states(folder, case, tokenizer)
        seconds: dict[int, list[float]] = {rows: [] for rows in kept}
        for _ in range(options.repeats):
            for rows, (state, expected) in kept.items():
                begun = time.perf_counter()
                with open_loader(folder, case, tokenizer, DataState.read(json.loads(state))) as loader:
                    batch = loader.next()
                    seconds[rows].append(time.perf_counter() - begun)
                assert fingerprint(batch) == expected, "a resume went on with another batch"
        medians = {rows: statistics.median(times) for rows, times in seconds.items()}
        for rows, (state, _) in kept.items():
            print(
                f"{case}: after {rows:9,} rows {medians[rows] * 1e3:7.1f} ms ({min(seconds[rows]) * 1e3:.1f} to "
                f"{max(seconds[rows]) * 1e3:.1f}), state {len(state):,} bytes"
            )
        print(f"{case}: longest / shortest {max(medians.values()) / min(medians.values()):.2f}")


if __name__ == "__main__":
    main()
