"""Resident memory of `cistron embed` over many sequences: it must not grow after the warm-up, nor when parts are put together.

    python benchmarks/embed_memory.py --sequences 100_000

The debug shape with random weights on the CPU, random nucleotides of 20 to 80 bases. Private memory is printed beside resident
memory, of which mapped files are a part; both are read from /proc (Linux) ten times a second.
"""

import argparse
import multiprocessing
import re
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
from cistron.models.config import PRESETS
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.tools import embed
from cistron.trainer.checkpoints import RunState, SavedContract, write_whole
from cistron.trainer.config import JobConfig

WARM_UP = 0.1  # of the time
CASES = (("mean", ".safetensors"), ("mean", ".parquet"), ("none", ".safetensors"), ("none", ".parquet"))


def memory() -> tuple[float, float]:
    """Resident and private MiB of this process."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE))
    return int(sizes["Rss"]) / 1024, int(sizes["Private_Dirty"]) / 1024


def write_model(folder: Path) -> None:
    """A checkpoint of random weights."""
    config = PRESETS["debug"]
    model = Decoder(config)
    init_weights(model, seed=0)
    weights = model.state_dict()
    contract = SavedContract(eos=0, pad=1, vocab=config.vocab_size, tokenizer="byte")
    state = RunState.of(config=JobConfig(), model=config, contract=contract)
    write_whole(folder, {k: (v.dtype, tuple(v.shape)) for k, v in weights.items()}, weights.__getitem__, state)


def write_sequences(path: Path, sequences: int) -> None:
    """FASTA of random nucleotides."""
    draw = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(sequences):
            text = draw.choice(np.frombuffer(b"ACGT", dtype=np.uint8), size=draw.integers(20, 81)).tobytes().decode()
            file.write(f">s{number}\n{text}\n")


def run(folder: Path, pool: str, ending: str, sequences: int) -> None:
    """Embed, and print memory after the warm-up, at the end and at its highest."""
    seen: list[tuple[float, float]] = []
    over = Event()

    def watch() -> None:
        while not over.wait(0.1):
            seen.append(memory())

    watcher = Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    output = folder / f"{pool}{ending}"
    layer = "layers.0.feed_forward"
    embed.main(
        [str(folder / "step-1"), "--input", str(folder / "x.fasta"), "--layer", layer, "--pool", pool, "--output", str(output)]
    )
    seconds = time.perf_counter() - begun
    over.set()
    watcher.join()
    size = output.stat().st_size / 2**20
    print(f"{pool}, {ending}: {sequences:,} sequences in {seconds:.0f} s, output {size:,.0f} MiB")
    for name, values in zip(("resident", "private"), zip(*seen, strict=True), strict=True):
        warm = values[int(len(values) * WARM_UP)]
        print(f"  {name} {warm:.0f} -> {values[-1]:.0f} MiB, at most {max(values):.0f}", flush=True)
    output.unlink()


def main() -> None:
    """Run each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10**5, help="to embed (default: 10^5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "step-1")
        write_sequences(folder / "x.fasta", options.sequences)
        for case in CASES:
            process = multiprocessing.get_context("spawn").Process(target=run, args=(folder, *case, options.sequences))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
