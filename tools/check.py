"""`cistron check CONFIG`: everything that a run would verify before its first step, without a GPU and without training.

Resolved configuration, eos contract held against real rows, parameters, memory per device, and the packing of the first rows.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from ..datasets.loader import Batch
from ..models.config import DecoderConfig
from ..models.masks import DocumentMask
from ..trainer.components import make_mask, verify
from ..trainer.config import JobConfig, load_config
from ..trainer.context import block_size
from ..trainer.contract import table
from ..trainer.data import open_feed
from ..trainer.distributed import Layout
from ..trainer.failures import run_command
from ..trainer.parallelize import DTYPES, global_batch_size
from .corpus import report_sources

TOKENS = 2**19  # looked at, in at most 256 rows: 256 rows of 2,048 tokens pack and check in 0.1 s


def main(argv: Sequence[str]) -> None:
    """Parse, verify, report."""
    usage = "cistron check FILE [--world-size N] [--device {cpu,cuda}] [--section.key value ...]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument("--world-size", type=int, help="number of processes to check for; default: as many as the degrees name")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="device to choose attention for (default: cpu)"
    )
    options, others = parser.parse_known_args(argv)
    run_command(lambda: check(others, options.world_size, options.device))


def check(argv: Sequence[str], world_size: int | None, device: str) -> None:
    """Verify the job and print what it would do. Raises one of USER_ERRORS where training would."""
    config, _ = load_config(argv, prog="cistron check")
    layout = Layout.resolve(config, world_size)
    tokenizer, decoder = verify(config, layout)
    mask = make_mask(config, tokenizer, torch.device(device))
    console = Console(highlight=False, soft_wrap=True)
    console.rule("configuration")
    console.print(config.to_toml(), markup=False)

    rows = max(8, min(256, TOKENS // config.training.seq_len))
    feed = open_feed(config, layout, tokenizer, mask, decoder.vocab_size, batch_size=rows)
    feed.loader.close()
    console.rule("eos contract")
    console.print(table(feed.statements), markup=False)
    if feed.first is None:
        console.print(f"no rows are looked at: the data ends within the first {rows} (data.sources.max_epochs)")
    else:
        console.print(f"the first {rows} rows agree: the packer's documents are those that eos {mask.eos_id} implies")
    console.rule("layout")
    report_layout(console, config, layout, mask)
    console.rule("model and memory")
    report_model(console, config, decoder, layout)
    console.rule("data")
    rows_per_step = global_batch_size(config, layout)
    positions = rows_per_step * config.training.seq_len
    console.print(f"a step: {rows_per_step} rows = {positions:,} positions on {layout.world_size} process(es)")
    if feed.first is not None:
        report_rows(console, feed.first)
    report_sources(console, config, feed.loader, tokenizer, rows_per_step)
    console.print("\nall checks passed")


def report_layout(console: Console, config: JobConfig, layout: Layout, mask: DocumentMask) -> None:
    """The degrees, and what of a row one process has."""
    seq_len = config.training.seq_len
    console.print(f"{layout} process(es), parameters over shard x context = {layout.shard * layout.cp}")
    if layout.cp > 1:
        block = block_size(seq_len, layout.cp, mask.executor)
        console.print(
            f"a row's {seq_len:,} tokens in {seq_len // block} blocks of {block}, dealt out by mask work: "
            f"{seq_len // layout.cp // block} to each of {layout.cp} ranks"
        )


def report_model(console: Console, config: JobConfig, decoder: DecoderConfig, layout: Layout) -> None:
    """Parameters, FLOPs, and the memory of one device by part."""
    seq_len = config.training.seq_len
    console.print(f"{config.model.preset}: {decoder.parameter_count():,} parameters")
    console.print(f"{decoder.flops_per_token(seq_len):,} FLOPs per token (6N + attention over the whole row)")
    grid = Table("memory of one device", "GiB", "how", box=None)
    parts = memory_parts(config, decoder, layout)
    for part in parts:
        grid.add_row(part.name, f"{part.size / 2**30:.3f}", part.how)
    grid.add_row("sum, an estimate", f"{sum(p.size for p in parts) / 2**30:.3f}", "without the allocator's slack")
    console.print(grid)


@dataclass(frozen=True)
class Part:
    """One part of a device's memory, `size` in bytes."""

    name: str
    size: float
    how: str


def memory_parts(config: JobConfig, decoder: DecoderConfig, layout: Layout) -> list[Part]:
    """Estimate the memory of one device from the shapes alone."""
    d, t = decoder, config.training
    sharded = layout.shard * layout.cp * layout.tp
    width = DTYPES[t.mixed_precision_param].itemsize
    parameters = d.parameter_count()
    tables = (1 if d.tie_embeddings else 2) * d.vocab_size * d.dim
    block = (parameters - tables) / d.n_layers
    rows = min(t.local_batch_size, global_batch_size(config, layout) // layout.data_parallel)
    tokens = rows * t.seq_len // layout.cp
    per_token = d.dim
    what = "block inputs"
    if config.activation_checkpoint.mode == "none":
        heads, kv = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
        per_token = 4 * d.dim + 3 * heads + 4 * kv + 4 * d.hidden_dim
        what = "what the backward pass of every block reads"
    return [
        Part("parameters", 4 * parameters / sharded, f"float32, over shard x context x tensor = {sharded}"),
        Part("gradients", 4 * parameters / sharded, "float32, sharded alike"),
        Part("AdamW", 8 * parameters / sharded, "two float32 moments"),
        Part("gathered", width * (2 * block + tables) / layout.tp, f"two blocks and the tables, {t.mixed_precision_param}"),
        Part("activations", width * tokens * per_token * d.n_layers / layout.tp, f"{rows} rows, {what}"),
        Part("logits", (2 * 4 + width) * tokens * d.vocab_size, "with their float32 copy and its gradient"),
    ]


def report_rows(console: Console, batch: Batch) -> None:
    """How well real rows are filled."""
    used = batch.sequence_ids >= 0
    documents = (batch.sequence_ids.amax(1) + 1).float().mean()
    last = batch.labels.gather(1, used.sum(1, keepdim=True) - 1)
    console.print(
        f"the first {len(batch.rows)} rows: {used.float().mean():.2%} of the positions used, {documents:.2f} documents or "
        f"fragments per row, {int((last >= 0).sum())} rows end in a fragment that goes on"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
