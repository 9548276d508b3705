"""`cistron check CONFIG`: everything that a run would verify before its first step, without a GPU and without training.

It prints the resolved configuration, the eos contract against real rows, parameters, memory per device, and the packing
of the first rows.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from rich.table import Table

from ..datasets.loading import Batch
from ..models.attention import DocumentMask
from ..models.config import DecoderConfig, Executor
from ..models.positions import keys_seen
from ..trainer.build import attention_said, training_mask
from ..trainer.config import JobConfig, load_config
from ..trainer.estimates import HOST, HOW, checkpoint_bytes, estimate, frozen_flops, host_estimate, peak_of, row_flops, sizes_of
from ..trainer.extrapolation import plan_of
from ..trainer.parallel import context_block_size
from ..trainer.processes import Layout, Terminal, global_batch_size, host_memory, private_memory
from ..trainer.start import Launch, open_data, verify
from . import cli
from .support import report_sources, report_targets, whole_number

TOKENS = 2**19  # looked at, in at most 256 rows: 256 rows of 2,048 tokens pack and check in 0.1 s


def main(argv: Sequence[str]) -> None:
    """Parse the command line, verify the job, and print what it would do."""
    usage = "cistron check FILE [--world-size N] [--device {cpu,cuda}] [--section.key value ...]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--world-size",
        type=whole_number(1, 2**20),
        help="number of processes to check for; default: as many as the degrees name",
    )
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="for attention and the memory estimate (default: cpu)"
    )
    options, others = parser.parse_known_args(argv)
    check(others, options.world_size, options.device)


def check(argv: Sequence[str], world_size: int | None, device: str) -> None:
    """Verify the job and print what it would do. Raises UserError where training would."""
    kernels = torch.device(device)
    launch = Launch(world_size, kernels)
    config, _ = load_config(argv, "cistron check", launch.complaints)
    layout = Layout.resolve(config, world_size)
    tokenizer, decoder = launch.parts or verify(config, layout)
    mask = training_mask(config, tokenizer, kernels)
    programs = private_memory()  # before there are rows
    console = Terminal()
    console.rule("configuration")
    console.print(config.to_toml())

    rows = max(8, min(256, TOKENS // config.training.seq_len))
    feed = open_data(config, layout, tokenizer, mask, decoder.vocab_size, batch_size=rows).begun(mask)
    feed.loader.close()
    console.rule("eos contract")
    console.print(str(feed.contract))
    if feed.first is None:
        console.print(f"no rows are looked at: the data ends within the first {rows} (data.sources.max_epochs)")
    else:
        console.print(f"the first {rows} rows agree: {rows_said(config, feed.first, mask.eos_id)}")
    console.rule("layout")
    report_layout(console, config, layout, mask)
    console.rule("model and memory")
    report_model(console, config, decoder, layout, mask.executor, device)
    parts = host_estimate(config, decoder, tokenizer, layout, mask.executor, device, programs)
    report_host(console, parts, layout, device)
    console.rule("data")
    rows_per_step = global_batch_size(config, layout)
    positions = rows_per_step * config.training.seq_len
    console.print(f"a step: {rows_per_step} rows = {positions:,} positions on {layout.world_size} process(es)")
    if feed.first is not None:
        report_rows(console, feed.first)
        report_targets(console, feed.first, feed.loader.packer.objective, tokenizer)
    report_sources(console, config, feed.loader, tokenizer, rows_per_step)
    if config.eval.extrapolation.enable:
        console.rule("longer documents")
        for line in plan_of(config, tokenizer, decoder).messages:
            console.print(line)
    console.print("\nall checks passed")


def report_layout(console: Terminal, config: JobConfig, layout: Layout, mask: DocumentMask) -> None:
    """The degrees, and what of a row one process has."""
    seq_len = config.training.seq_len
    console.print(f"{layout} process(es), parameters over shard x context = {layout.shard * layout.cp}")
    if layout.cp > 1:
        block = context_block_size(seq_len, layout.cp, mask.executor)
        console.print(
            f"a row's {seq_len:,} tokens in {seq_len // block} blocks of {block}, dealt out by mask work: "
            f"{seq_len // layout.cp // block} to each of {layout.cp} ranks"
        )


def report_model(
    console: Terminal, config: JobConfig, decoder: DecoderConfig, layout: Layout, executor: Executor, device: str
) -> None:
    """Parameters, FLOPs, and what the memory of one device holds at its peak."""
    seq_len = config.training.seq_len
    sizes = sizes_of(config, decoder)
    console.print(f"{config.model.preset}: {sizes}")
    flops = row_flops(decoder, seq_len, 1) - frozen_flops(decoder, sizes, 1, seq_len)
    what = "6N + attention over the whole row" + ("" if sizes.trained == sizes.all else ", less what freezing saves")
    console.print(f"{flops:,.0f} FLOPs per token ({what})")
    console.print(f"{executor} attention: {attention_said(config, torch.device(device))[1]}")
    rope = decoder.rope
    if rope.scaling != "none":
        console.print(f"rotary scaling {rope.scaling}: made for {rope.covered:,} tokens, from {rope.original_seq_len:,}")
    if decoder.attention.logn:
        console.print(f"queries grow with ln(position) beyond {rope.original_seq_len:,} tokens (logn)")
    if not decoder.attention.plain:
        seen = int(keys_seen(decoder.attention, torch.arange(seq_len)).sum())
        passes = "two passes, near and far" if decoder.attention.position_map != "none" else "one pass"
        whole = seq_len * (seq_len + 1) // 2
        console.print(f"{decoder.attention.named}: {passes}; {seen / whole:.1%} of the pairs of a document as long as a row")
    moments = estimate(config, decoder, layout, executor, device)
    peak = peak_of(moments)
    grid = Table(f"memory of one device ({device})", "GiB", "what", box=None)
    for part, size in peak.parts.items():
        grid.add_row(part, f"{size / 2**30:.3f}", HOW[part])
    grid.add_row("sum, an estimate", f"{peak.size / 2**30:.3f}", f"at the peak: {peak.name}; without the allocator's slack")
    for moment in moments:
        if moment is not peak:
            grid.add_row("sum", f"{moment.size / 2**30:.3f}", f"at another moment: {moment.name}")
    console.print(grid)
    size = checkpoint_bytes(config, decoder)
    console.print(f"checkpoints of {size / 2**30:.3f} GiB" if config.checkpoint.enable else "no checkpoints")


def report_host(console: Terminal, parts: dict[str, float], layout: Layout, device: str) -> None:
    """What one process takes of its host, and how many of them this machine has room for."""
    grid, size = Table("host memory of one process", "GiB", "what", box=None), sum(parts.values())
    for part, taken in parts.items():
        if taken:
            grid.add_row(part, f"{taken / 2**30:.3f}", HOST[part])
    grid.add_row("sum, an estimate", f"{size / 2**30:.3f}", "without the CUDA context, NCCL and the compiler")
    console.print(grid)
    if (host := host_memory()) is None:
        return
    room, processes = int(host // size), layout.world_size
    known = torch.cuda.device_count() if device == "cuda" else processes  # of those that would run here
    short = "warning: " if room < min(processes, known) else ""
    console.print(f"{short}this machine has {host / 2**30:.1f} GiB: room for {room} such process(es); the job has {processes}")


def rows_said(config: JobConfig, batch: Batch, eos_id: int) -> str:
    """What packer and attention mask agree on."""
    if not config.data.keeps_eos:
        return f"the packer's documents are those that eos {eos_id} implies"
    inside = int(batch.interior_eos(eos_id).sum())
    return f"the packer's documents end in eos {eos_id}; {inside:,} more are inside of documents, where nothing ends"


def report_rows(console: Terminal, batch: Batch) -> None:
    """How well real rows are filled."""
    used = batch.sequence_ids >= 0
    documents = (batch.sequence_ids.amax(1) + 1).float().mean()
    console.print(
        f"the first {len(batch.rows)} rows: {used.float().mean():.2%} of the positions used, {documents:.2f} documents or "
        f"fragments per row, {sum(batch.goes_on)} rows end in a fragment that goes on"
    )


if __name__ == "__main__":
    cli.run("check", sys.argv[1:])
