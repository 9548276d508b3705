"""What a run counts and reports: a console line or progress bar, metrics.jsonl and TensorBoard, one record per logged step."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from torch.utils.tensorboard import SummaryWriter

from ..datasets.loader import Batch
from ..models.config import DecoderConfig
from .checkpoint import set_aside, write_atomically
from .config import JobConfig
from .distributed import World
from .optimizer import learning_rate

# Dense bf16 FLOP/s by the vendors' datasheets. A device that is not listed has no MFU: a wrong number is worse than none.
PEAK_FLOPS = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4": 312e12, "NVIDIA B200": 2250e12}


class StepTotals(NamedTuple):
    """What the rows of one optimizer step hold: of some micro-batches, or summed over ranks."""

    targets: int = 0
    tokens: int = 0
    documents: int = 0
    rows: int = 0
    rows_hash: int = 0

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "StepTotals":
        """Count some micro-batches."""
        return cls(
            targets=sum(int((b.labels >= 0).sum()) for b in batches),
            tokens=sum(int((b.sequence_ids >= 0).sum()) for b in batches),
            documents=sum(int((b.sequence_ids.amax(1) + 1).sum()) for b in batches),
            rows=sum(len(b.rows) for b in batches),
            rows_hash=sum(row_hash(b, i) for b in batches for i in range(len(b.rows))),
        )


def row_hash(batch: Batch, index: int) -> int:
    """48 bits of one row's number, tokens and labels. Sums over rows tell any difference in content or order, on any layout.

    48 bits leave room for a step of 32,768 rows in an int64 sum. Hashing 2,048 tokens takes about 40 microseconds.
    """
    digest = hashlib.blake2b(str(batch.rows[index]).encode(), digest_size=6)
    digest.update(batch.tokens[index].numpy().tobytes())
    digest.update(batch.labels[index].numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


@dataclass
class Progress:
    """How far a job has come; saved with every checkpoint."""

    step: int = 0
    tokens_seen: int = 0
    rows_hash: int = 0

    def advance(self, totals: StepTotals) -> None:
        """Count one optimizer step. `rows_hash` covers every row since step 1."""
        self.step += 1
        self.tokens_seen += totals.tokens
        self.rows_hash = (self.rows_hash + totals.rows_hash) % 2**64


class MetricsLog:
    """Rank 0's reporter; on the other ranks every method does nothing.

    Args:
        folder: of the run.
        config: what and how often to report.
        world: this process among the others.
        start_step: step resumed from; records of later steps, from a run that was cut off, are removed.
        decoder: the model's shape, for its FLOPs.
    """

    def __init__(self, folder: Path, config: JobConfig, world: World, start_step: int, decoder: DecoderConfig) -> None:
        """Open the files and, on a terminal, show the bar."""
        self.config, self.world, self.decoder = config, world, decoder
        self.peak_flops = peak_flops(config.metrics.peak_flops, world.device)
        self.start_window()
        if not world.is_first:
            return
        self.file = folder / "metrics.jsonl"
        forget_after(self.file, start_step)
        tensorboard = config.metrics.enable_tensorboard
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1) if tensorboard else None
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar: ProgressBar | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = ProgressBar(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=config.training.steps, completed=start_step)
            self.bar.start()

    def start_window(self) -> None:
        """Forget what was summed for the last record."""
        self.seconds, self.data_seconds = 0.0, 0.0
        self.sums = StepTotals()

    def say(self, message: str) -> None:
        """One line on stdout."""
        if self.world.is_first:
            self.console.print(message, markup=False)

    def step(
        self, progress: Progress, totals: StepTotals, loss: float, grad_norm: float, data_seconds: float, seconds: float
    ) -> None:
        """Count one step of `seconds`, of which `data_seconds` were spent waiting for rows; report it when it is due.

        The clock runs over the steps alone, so saving a checkpoint does not look like slow training.
        """
        self.seconds += seconds
        self.data_seconds += data_seconds
        self.sums = StepTotals(*map(sum, zip(self.sums, totals, strict=True)))
        if self.world.is_first and self.bar:
            self.bar.update(self.task, completed=progress.step)
        if progress.step % self.config.metrics.log_freq and progress.step not in (1, self.config.training.steps):
            return
        tokens_per_second = self.sums.tokens / self.seconds
        self.write(
            {
                "step": progress.step,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": learning_rate(self.config, progress.step),
                "tokens_per_second": tokens_per_second,
                "tokens_seen": progress.tokens_seen,
                "mfu": self.mfu(tokens_per_second),
                "data_wait": self.data_seconds / self.seconds,
                "packing_use": self.sums.tokens / (self.sums.rows * self.config.training.seq_len),
                "documents_per_row": self.sums.documents / self.sums.rows,
                "memory_gib": memory_gib(self.world.device),
                "rows_hash": f"{progress.rows_hash:016x}",
            }
        )
        self.start_window()

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak that the model's FLOPs amount to; None where the peak is not known."""
        if self.peak_flops is None:
            return None
        flops = self.decoder.flops_per_token(self.config.training.seq_len) * tokens_per_second
        return flops / (self.peak_flops * self.world.layout.world_size)

    def write(self, record: dict[str, Any]) -> None:
        """One record everywhere. Losses keep all their digits, so that runs can be compared bit for bit."""
        if not self.world.is_first:
            return
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        mfu = "" if record["mfu"] is None else f"  mfu {record['mfu']:.1%}"
        self.say(
            f"step {record['step']:>6}  loss {record['loss']!r}  grad_norm {record['grad_norm']:.4f}  lr {record['lr']:.3e}  "
            f"{record['tokens_per_second']:,.0f} tok/s{mfu}  data wait {record['data_wait']:.1%}  packed "
            f"{record['packing_use']:.1%}  {record['memory_gib']:.2f} GiB"
        )
        if self.writer:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self.writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Flush the files and put the bar away."""
        if self.world.is_first:
            if self.bar:
                self.bar.stop()
            if self.writer:
                self.writer.close()


def forget_after(file: Path, step: int) -> None:
    """Drop the records of steps after `step`, and a last line that a crash cut in half; at step 0 set the file aside."""
    if not file.exists():
        return
    if step == 0:
        set_aside(file)
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            break
    write_atomically(file, "".join(kept))


def peak_flops(override: float | None, device: torch.device) -> float | None:
    """Peak FLOP/s of one device: `metrics.peak_flops`, else by the device's name, else None."""
    if override or device.type != "cuda":
        return override
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if name.startswith(known) and "NVL" not in name), None)


def memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: the allocator's on CUDA, the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    import resource  # Unix only

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**30 if sys.platform == "darwin" else 2**20)
