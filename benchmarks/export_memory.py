"""Resident memory of an export and an import: it must not grow with the model.

    python benchmarks/export_memory.py                  # 2 GB of weights, which are written and removed again: 6 GB of disk
    python benchmarks/export_memory.py --layers 4       # a fifth of it, to see that the numbers stay

A random checkpoint is written one tensor at a time, exported and imported, each in a process of its own; what is printed is
the highest resident memory of that process above what it had after its imports (VmHWM and VmRSS of /proc, Linux), beside the
largest tensor. Then the imported bits are compared with the first ones.
"""

import argparse
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cistron.datasets.tokenizers import TokenizerConfig
from cistron.models.config import DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.trainer.checkpoints import RunState, SavedContract, Spec, WholeTensors, read, write_whole
from cistron.trainer.config import JobConfig
from cistron.trainer.huggingface import export, import_folder


def describe(layers: int) -> DecoderConfig:
    """A Llama of about 25 million parameters a layer."""
    return DecoderConfig(
        vocab_size=32_000,
        dim=1536,
        n_layers=layers,
        n_heads=12,
        n_kv_heads=4,
        head_dim=128,
        hidden_dim=4096,
        norm_eps=1e-5,
        qk_norm=False,
        tie_embeddings=False,
        rope=RopeConfig(),
    )


def specs_of(shape: DecoderConfig) -> dict[str, Spec]:
    """Type and shape of every parameter."""
    with torch.device("meta"):
        return {name: (torch.float32, tuple(tensor.shape)) for name, tensor in Decoder(shape).state_dict().items()}


def write(folder: Path, layers: int) -> None:
    """A checkpoint of random weights."""
    shape = describe(layers)
    specs = specs_of(shape)
    job = JobConfig(tokenizer=TokenizerConfig(kind="hf"))
    contract = SavedContract(eos=0, pad=1, vocab=shape.vocab_size, tokenizer=None)
    state = RunState.of(config=job, model=shape, contract=contract)
    torch.manual_seed(0)
    write_whole(folder / "step-1", specs, lambda name: torch.randn(specs[name][1]), state)


def export_it(folder: Path) -> None:
    """To safetensors in files of 500 MB."""
    export(read(folder / "step-1"), folder / "hf", tokenizer=None, max_shard_size=500_000_000)


def import_it(folder: Path) -> None:
    """And back."""
    import_folder(folder / "hf", folder / "back")


def compare(folder: Path) -> None:
    """Bit for bit."""
    first, back = WholeTensors(folder / "step-1"), WholeTensors(folder / "back" / "step-0")
    assert sorted(first.names()) == sorted(back.names())
    assert all(torch.equal(first.read(name), back.read(name)) for name in first.names())


def memory(key: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most so far."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * 1024 / 1e6


def measured(queue: Any, step: Callable[..., None], *args: Any) -> None:
    """Run a step; put MB before it, at its peak, and seconds."""
    torch.randn(8).sum()  # what torch loads when it first computes
    before, started = memory("VmRSS"), time.perf_counter()
    step(*args)
    queue.put((before, memory("VmHWM"), time.perf_counter() - started))


def main() -> None:
    """Write, export, import, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="of the model (default: 16, 2 GB)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    sizes = [dtype.itemsize * torch.Size(shape).numel() / 1e6 for dtype, shape in specs_of(describe(options.layers)).values()]
    print(f"{sum(sizes):,.0f} MB of weights, the largest tensor {max(sizes):,.0f} MB")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        steps: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [
            ("write", write, (folder, options.layers)),
            ("export", export_it, (folder,)),
            ("import", import_it, (folder,)),
        ]
        for title, step, args in steps:
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=measured, args=(queue, step, *args))
            process.start()
            process.join()
            assert process.exitcode == 0, title
            before, peak, seconds = queue.get()
            print(f"{title:<8} {before:,.0f} MB before, {peak - before:+,.0f} MB at the peak, {seconds:.0f} s", flush=True)
        compare(folder)
        print("the imported weights are the written ones, bit for bit")


if __name__ == "__main__":
    main()
