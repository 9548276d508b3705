"""Tokens per second of the data path and of other loaders: batches of 8 rows of 2,048, each in its own process.

    python benchmarks/data_speed.py --repeats 5
    python benchmarks/data_speed.py --only shards --peers-python /path/to/venv/bin/python

Contenders run one after another, as often as `--repeats` says; printed are medians and ratios to the first of each
group, and the range, which tells how busy the machine was. The other loaders (`pip install 'cistron[bench]'`) may live
in another environment; one that is missing is left out, saying why. Ours yield tokens, labels, positions and sequence
ids; of the others torchtitan's loader yields tokens, labels and positions, the rest tokens alone, OLMo-core's with the
lengths of documents.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

BATCH, SEQ_LEN = 8, 2048
ROWS_TOKENS = BATCH * SEQ_LEN
FASTA = {"proteins": b"ACDEFGHIKLMNPQRSTVWY", "records": b"ACGT", "chromosome": b"ACGT"}


def bare_map(folder: Path) -> Iterator[object]:
    """A memory map of ids, cut into batches of tokens: no documents, no labels, no order."""
    ids = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    while True:
        for start in range(0, len(ids) - ROWS_TOKENS, ROWS_TOKENS):
            yield torch.from_numpy(ids[start : start + ROWS_TOKENS].astype(np.int64)).view(BATCH, SEQ_LEN)


def cistron(
    folder: Path, kind: str, paths: str, workers: int = 0, packing: str = "best_fit", tiktoken: bool = True
) -> Iterator[object]:
    """The whole of `Loader`: `tokens` are shards, `hf` and `byte` the same jsonl files by another tokenizer."""
    from cistron.datasets.config import DataConfig
    from cistron.datasets.loading import Loader, RowSettings
    from cistron.datasets.readers import SourceConfig
    from cistron.datasets.tokenizers import HFTokenizer, TokenizerConfig, build_tokenizer

    if not tiktoken:
        HFTokenizer.choose_backend = lambda self, sample: "tokenizers encodes"  # type: ignore[method-assign]
    hf = kind in ("tokens", "hf")
    source = SourceConfig(name="source", format={"hf": "jsonl", "byte": "jsonl"}.get(kind, kind), paths=[str(folder / paths)])
    tokenizer = (
        build_tokenizer(TokenizerConfig(kind="hf", path=str(folder / "tokenizer")))
        if hf
        else build_tokenizer(TokenizerConfig(kind="byte"))
    )
    lanes = 1 if paths == "chromosome.fasta" else 16  # a record is not divided among lanes
    config = DataConfig(sources=[source], lanes=lanes, packing=packing, num_workers=workers)
    with Loader(config, tokenizer, RowSettings(seq_len=SEQ_LEN, seed=0, batch_size=BATCH)) as loader:
        while True:
            yield loader.next()


def torchtitan(folder: Path) -> Iterator[object]:
    """HuggingFaceTextDataLoader with torchtitan's own tokenizer class over the same jsonl files."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer
    from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader

    yield from HuggingFaceTextDataLoader(
        HuggingFaceTextDataLoader.Config(dataset="c4_test", dataset_path=str(folder / "text")),
        dp_world_size=1,
        dp_rank=0,
        tokenizer=HuggingFaceTokenizer(tokenizer_path=str(folder / "tokenizer")),
        seq_len=SEQ_LEN,
        local_batch_size=BATCH,
    )


def streaming(folder: Path) -> Iterator[object]:
    """MosaicML's StreamingDataset over an MDS of the same rows, int32, batched by torch's DataLoader."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        # Streaming imports it for image datasets; a build for CUDA does not load beside a torch for CPU.
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    target = folder / "mds"
    if not (target / "index.json").exists():
        ids = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
        with MDSWriter(out=str(target), columns={"tokens": "ndarray:int32"}) as writer:
            for start in range(0, len(ids) // 4 - SEQ_LEN, SEQ_LEN):
                writer.write({"tokens": ids[start : start + SEQ_LEN].astype(np.int32)})
    dataset = StreamingDataset(local=str(target), shuffle=True, batch_size=BATCH)
    while True:
        yield from DataLoader(dataset, batch_size=BATCH)


def olmo_core(folder: Path) -> Iterator[object]:
    """OLMo-core's packed data set (best-fit decreasing over a file) and its loader, over the same ids."""
    from olmo_core.data import DataCollator, NumpyDataLoaderBase, NumpyPackedFSLDatasetConfig, TokenizerConfig
    from olmo_core.data.types import NumpyDatasetDType

    ids = folder / "olmo.npy"  # raw ids, whatever the name
    if not ids.exists():
        np.fromfile(folder / "tokens.bin", dtype=np.uint16, count=5 * 10**7).tofile(ids)
    dataset = NumpyPackedFSLDatasetConfig(
        tokenizer=TokenizerConfig(vocab_size=32_000, eos_token_id=0, pad_token_id=0),
        paths=[str(ids)],
        sequence_length=SEQ_LEN,
        dtype=NumpyDatasetDType.uint16,
        generate_doc_lengths=True,
        work_dir=str(folder / "olmo"),
    ).build()
    dataset.prepare()
    loader = NumpyDataLoaderBase.wrap_numpy_dataset(
        dataset, global_batch_size=ROWS_TOKENS, collator=DataCollator(pad_token_id=0), work_dir=str(folder / "olmo")
    )
    for epoch in range(1, 1000):
        loader.reshuffle(epoch)
        yield from loader
        loader.reset()


GROUPS = {
    "shards": {
        "bare memory map, tokens only": bare_map,
        "token shards": lambda folder: cistron(folder, "tokens", "shards"),
        "token shards, concat": lambda folder: cistron(folder, "tokens", "shards", packing="concat"),
        "token shards, 1 worker": lambda folder: cistron(folder, "tokens", "shards", workers=1),
        "token shards, 2 workers": lambda folder: cistron(folder, "tokens", "shards", workers=2),
        "MosaicML Streaming": streaming,
        "OLMo-core packed": olmo_core,
    },
    "text": {
        "torchtitan": torchtitan,
        "jsonl": lambda folder: cistron(folder, "hf", "text/*.jsonl"),
        "jsonl, without tiktoken": lambda folder: cistron(folder, "hf", "text/*.jsonl", tiktoken=False),
        "jsonl, 1 worker": lambda folder: cistron(folder, "hf", "text/*.jsonl", workers=1),
        "jsonl, 2 workers": lambda folder: cistron(folder, "hf", "text/*.jsonl", workers=2),
    },
    "bytes": {
        "FASTA, records of 1,000": lambda folder: cistron(folder, "fasta", "records.fasta"),
        "FASTA, proteins, mean 350": lambda folder: cistron(folder, "fasta", "proteins.fasta"),
        "FASTA, one record of 2.5e8": lambda folder: cistron(folder, "fasta", "chromosome.fasta"),
        "FASTA, one record, concat": lambda folder: cistron(folder, "fasta", "chromosome.fasta", packing="concat"),
        "FASTA, records, concat": lambda folder: cistron(folder, "fasta", "records.fasta", packing="concat"),
        "text as bytes (jsonl)": lambda folder: cistron(folder, "byte", "text/*.jsonl"),
        "text as bytes, 2 workers": lambda folder: cistron(folder, "byte", "text/*.jsonl", workers=2),
    },
    "one file": {
        "jsonl, eight files": lambda folder: cistron(folder, "byte", "text/*.jsonl"),
        "jsonl, one .gz": lambda folder: cistron(folder, "byte", "one.jsonl.gz"),
        "parquet, one row group": lambda folder: cistron(folder, "parquet", "one.parquet"),
        "text, one file of 2 GB": lambda folder: cistron(folder, "text", "one.txt"),
    },
}
PEERS = {"torchtitan": "torchtitan", "MosaicML Streaming": "streaming", "OLMo-core packed": "olmo_core"}
DISTRIBUTIONS = {"torchtitan": "torchtitan", "streaming": "mosaicml-streaming", "olmo_core": "ai2-olmo-core"}


def measure(name: str, folder: Path, seconds: float) -> None:
    """Print JSON: tokens/s of a contender over `seconds`, after one second, or what is missing; and versions."""
    package = PEERS.get(name)
    if package and find_spec(package) is None:
        print(json.dumps({"missing": package}))
        return
    batches = next(group[name] for group in GROUPS.values() if name in group)(folder)
    next(batches)
    warm = time.perf_counter() + 1.0
    while time.perf_counter() < warm:
        next(batches)
    count, begun = 0, time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        next(batches)
        count += 1
    found = {"torch": torch.__version__, "numpy": np.__version__}
    if package:
        found[package] = version(DISTRIBUTIONS[package])
    print(json.dumps({"speed": count * ROWS_TOKENS / (now - begun), "versions": found}), flush=True)
    batches.close()


def write_data(folder: Path) -> None:
    """Write what contenders read, unless it is there."""
    from corpora import protein_lengths, write_fasta, write_one_file, write_shards, write_text

    if (folder / "complete").exists():
        return
    write_text(folder)
    write_shards(folder, 2 * 10**8)
    lengths = {
        "proteins": protein_lengths(2 * 10**8 // 350),
        "records": np.full(2 * 10**5, 1000),
        "chromosome": np.array([250_000_000]),
    }
    for name, letters in FASTA.items():
        write_fasta(folder / f"{name}.fasta", lengths[name], letters)
    write_one_file(folder)
    (folder / "complete").touch()


def main() -> None:
    """Write the data, run all contenders in turn, print a table per group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data is kept (default: cistron-benchmarks in the temporary folder)")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="groups to run (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contender (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a run (default: 4)")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has the others (default: this one)")
    parser.add_argument("--measure", metavar="CONTENDER", help="run this one alone and print JSON")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.gettempdir(), "cistron-benchmarks")
    if options.measure:
        measure(options.measure, folder, options.seconds)
        return

    write_data(folder)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")
    for group in options.only:
        speeds: dict[str, list[float]] = {}
        notes: dict[str, str] = {}
        for _ in range(options.repeats):
            for name in GROUPS[group]:
                if name in notes and name not in speeds:
                    continue
                python = options.peers_python if name in PEERS else sys.executable
                command = [python, __file__, "--measure", name, "--folder", str(folder), "--seconds", str(options.seconds)]
                done = subprocess.run(command, capture_output=True, text=True)
                told = done.stdout.strip().splitlines()
                if not told:  # OLMo-core may end in std::terminate once it has told its speed
                    notes[name] = f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
                    continue
                result = json.loads(told[-1])
                if "missing" in result:
                    notes[name] = f"left out: there is no {result['missing']}; pip install 'cistron[bench]'"
                else:
                    speeds.setdefault(name, []).append(result["speed"])
                    if name in PEERS:
                        notes[name] = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
        print(f"\n{group}")
        base = statistics.median(next(iter(speeds.values())))
        for name in GROUPS[group]:
            if name in speeds:
                median, low, high = statistics.median(speeds[name]), min(speeds[name]), max(speeds[name])
                line = f"{median / 1e6:9.2f} M tokens/s  {median / base:8.4f}x  ({low / 1e6:.2f} to {high / 1e6:.2f})"
            else:
                line = "-"
            print(f"  {name:30s} {line}  {notes.get(name, '')}")


if __name__ == "__main__":
    main()
