"""Context extension: train on rows of L tokens, continue on rows of 4 L with YaRN, evaluate on held-out text.

    python benchmarks/context_extension.py                         some minutes on one core

A byte model of the debug kind, smaller, on the standard library's sources; its `email` and `logging` packages are held
out. Both runs are ordinary jobs, the second begun with `checkpoint.initial_load_path`. A third, which goes on at L for
as many tokens, tells what more training does by itself. Losses are nats per byte over the same windows of 4 L bytes,
one document each.
"""

import argparse
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from cistron.models.config import RopeConfig
from cistron.trainer.inference import OpenedModel, open_model
from cistron.trainer.train import run
from rich.console import Console
from rich.table import Table

TRAINED, FACTOR = 128, 4
LONG = TRAINED * FACTOR
TOKENS = 2048  # in a step, whatever its rows
HELD_OUT = ("email", "logging")
JOB = f"""
[model]
preset = "debug"
n_layers = 2
dim = 64
head_dim = 16
hidden_dim = 192
[[data.sources]]
name = "stdlib"
format = "text"
paths = [
    "{{stdlib}}/*.py", "{{stdlib}}/asyncio/*.py", "{{stdlib}}/json/*.py", "{{stdlib}}/unittest/*.py", "{{stdlib}}/xml/**/*.py",
]
[training]
seq_len = {TRAINED}
local_batch_size = {TOKENS // TRAINED}
global_batch_size = {TOKENS // TRAINED}
mixed_precision_param = "float32"
[optimizer]
lr = 4e-3
[lr_scheduler]
warmup_steps = 20
decay_ratio = 0.5
decay_type = "linear"
[metrics]
log_freq = 100
enable_tensorboard = false
"""
YARN = RopeConfig(scaling="yarn", factor=FACTOR, original_seq_len=TRAINED)
PI = YARN.replace(scaling="linear")


def options(rope: RopeConfig) -> Iterator[str]:
    """The command line's words for a scaling."""
    for key in ("scaling", "factor", "original_seq_len"):
        yield from (f"--model.rope.{key}", str(getattr(rope, key)))


def train(folder: Path, name: str, steps: int, *more: str) -> Path:
    """Run a job to its end; returns its last checkpoint."""
    (folder / "job.toml").write_text(JOB)
    home = folder / name
    run(["--config", str(folder / "job.toml"), "--job.dump_folder", str(home), "--training.steps", str(steps), *more])
    return home / "checkpoint" / f"step-{steps}"


def held_out(windows: int) -> torch.Tensor:
    """Bytes of files that training does not read: int64 [windows, 4 L], spread evenly over them."""
    files = [
        path.read_bytes() for name in HELD_OUT for path in sorted((Path(sysconfig.get_path("stdlib")) / name).glob("*.py"))
    ]
    pieces = [file[start : start + LONG] for file in files for start in range(0, len(file) - LONG + 1, LONG)]
    chosen = [pieces[index * len(pieces) // windows] for index in range(windows)]
    return torch.from_numpy(np.frombuffer(b"".join(chosen), dtype=np.uint8).astype(np.int64)).view(windows, LONG)


@torch.no_grad()
def losses(opened: OpenedModel, rope: RopeConfig, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of every byte but the first of each window with these rotary angles, float32 [windows, 4 L - 1]."""
    model, parts = opened.model, []
    model.set_positions(rope, model.config.attention, LONG)
    for batch in tokens.split(8):
        mask = opened.mask.build(torch.zeros_like(batch, dtype=torch.int32), opened.device)
        positions = torch.arange(LONG, dtype=torch.int32).expand_as(batch)
        logits = model(batch, positions, mask)[:, :-1]
        parts.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none"))
    return torch.cat(parts)


def main() -> None:
    """Train, extend, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of the first run (1200)")
    parser.add_argument("--more", type=int, default=400, help="of the runs that continue it (400)")
    parser.add_argument("--windows", type=int, default=128, help="of held-out text (128)")
    args = parser.parse_args()
    tokens = held_out(args.windows)
    table = Table(title=f"nats per byte, L = {TRAINED}, {args.windows} windows of {LONG} bytes that no run has read")
    for column in ("model", f"first {TRAINED}", f"all {LONG}", f"last {TRAINED}"):
        table.add_column(column, justify="left" if column == "model" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = train(folder, "first", args.steps)
        begin = ("--checkpoint.initial_load_path", str(first), "--optimizer.lr", "1e-3")
        rows = str(TOKENS // LONG)
        longer = ("--training.seq_len", str(LONG), "--training.local_batch_size", rows, "--training.global_batch_size", rows)
        extended = train(folder, "extended", args.more, *begin, *longer, *options(YARN))
        control = train(folder, "control", args.more, *begin)
        for what, path, rope in (
            (f"trained on rows of {TRAINED}", first, RopeConfig()),
            ("the same with position interpolation, untrained", first, PI),
            ("the same with YaRN, untrained", first, YARN),
            (f"continued on rows of {LONG} with YaRN", extended, YARN),
            (f"continued on rows of {TRAINED}, as many tokens", control, RopeConfig()),
            ("the same with YaRN, untrained", control, YARN),
        ):
            loss = losses(open_model(path), rope, tokens)
            spans = (loss[:, : TRAINED - 1], loss, loss[:, -TRAINED:])
            table.add_row(what, *(f"{span.mean().item():.3f}" for span in spans))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
