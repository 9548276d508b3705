"""What a run counts and reports: a console line or progress bar, metrics.jsonl and TensorBoard, one record per logged step."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """What the rows of one optimizer step hold: those of some micro-batches, of all ranks, or of all steps of a window.

    Attributes:
        documents: or fragments.
        rows: how many.
        positions: of tokens and of padding.
        rows_hash: sum of `row_hash`.
        tokens: of each source, without padding.
        targets: of each source; where it states weights of its targets, their sum.
    """

    documents: int
    rows: int
    positions: int
    rows_hash: int
    tokens: list[int]
    targets: list[float]

    @classmethod
    def of(cls, batches: Sequence[Batch], sources: int) -> "StepTotals":
        """Count some micro-batches of a job with so many sources."""
        tokens, targets = torch.zeros(sources, dtype=torch.float64), torch.zeros(sources, dtype=torch.float64)
        for batch in batches:
            of = torch.tensor(batch.sources)
            weights = (batch.labels >= 0).double()
            if batch.weights is not None:
                weights *= batch.weights
            tokens += torch.bincount(of, (batch.sequence_ids >= 0).sum(1), sources)
            targets += torch.bincount(of, weights.sum(1), sources)
        return cls(
            documents=sum(int((b.sequence_ids.amax(1) + 1).sum()) for b in batches),
            rows=sum(len(b.rows) for b in batches),
            positions=sum(b.tokens.numel() for b in batches),
            rows_hash=sum(row_hash(b, i) for b in batches for i in range(len(b.rows))),
            tokens=[int(count) for count in tokens],  # float64 is exact up to 2^53
            targets=targets.tolist(),
        )

    @property
    def counts(self) -> list[int]:
        """All that is counted in integers, in order, as `from_counts` takes it."""
        return [self.documents, self.rows, self.positions, self.rows_hash, *self.tokens]

    @classmethod
    def from_counts(cls, counts: list[int], targets: list[float]) -> "StepTotals":
        """From sums of `counts` and of `targets`."""
        documents, rows, positions, rows_hash, *tokens = counts
        return cls(documents, rows, positions, rows_hash, tokens, targets)

    def plus(self, other: "StepTotals") -> "StepTotals":
        """Both together."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return self.from_counts(counts, [a + b for a, b in zip(self.targets, other.targets, strict=True)])


def row_hash(batch: Batch, index: int) -> int:
    """48 bits of one row's number, tokens, labels and weights. Sums over rows tell any difference, on any layout.

    Padding is left out: a padded row has as much of it as its neighbours need. 48 bits leave room for a step of 32,768 rows
    in an int64 sum. Hashing 2,048 tokens takes about 40 microseconds.
    """
    used = int((batch.sequence_ids[index] >= 0).sum())
    digest = hashlib.blake2b(str(batch.rows[index]).encode(), digest_size=6)
    for plane in (batch.tokens, batch.labels, batch.weights):
        if plane is not None:
            digest.update(plane[index, :used].numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


@dataclass
class Progress:
    """How far a job has come; saved with every checkpoint."""

    step: int = 0
    tokens_seen: int = 0
    rows_hash: int = 0
    source_tokens: dict[str, int] = field(default_factory=dict)

    def advance(self, totals: StepTotals, sources: Sequence[str]) -> None:
        """Count one optimizer step on the named sources. `rows_hash` covers every row since step 1."""
        self.step += 1
        self.tokens_seen += sum(totals.tokens)
        self.rows_hash = (self.rows_hash + totals.rows_hash) % 2**64
        for name, tokens in zip(sources, totals.tokens, strict=True):
            self.source_tokens[name] = self.source_tokens.get(name, 0) + tokens


class Outcome(NamedTuple):
    """What one optimizer step came to, on the device: reading it waits.

    Attributes:
        loss: float32 [], mean over all targets (nats), by their weights where there are any.
        grad_norm: float32 [], global 2-norm before clipping.
        shares: float32 [sources], what each source contributes to the loss; they sum to it.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    shares: torch.Tensor


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
        self.sources = [source.name for source in config.data.sources]
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
        self.sums = StepTotals.of([], len(self.sources))
        self.nats = torch.zeros(len(self.sources), dtype=torch.float64, device=self.world.device)

    def say(self, message: str) -> None:
        """One line on stdout."""
        if self.world.is_first:
            self.console.print(message, markup=False)

    def due(self, step: int) -> bool:
        """Whether `step` is reported: the first, the last and every `metrics.log_freq`-th."""
        return step % self.config.metrics.log_freq == 0 or step in (1, self.config.training.steps)

    def step(self, progress: Progress, totals: StepTotals, outcome: Outcome, data_seconds: float, seconds: float) -> None:
        """Count one step of `seconds`, of which `data_seconds` were spent waiting for rows; report it when it is due.

        The clock runs over the steps alone, so saving a checkpoint does not look like slow training.
        """
        self.seconds += seconds
        self.data_seconds += data_seconds
        self.sums = self.sums.plus(totals)
        self.nats += outcome.shares.double() * sum(totals.targets)
        if self.world.is_first and self.bar:
            self.bar.update(self.task, completed=progress.step)
        if not self.due(progress.step):
            return
        tokens = sum(self.sums.tokens)
        self.write(
            {
                "step": progress.step,
                "loss": float(outcome.loss),
                "grad_norm": float(outcome.grad_norm),
                "lr": learning_rate(self.config, progress.step),
                "tokens_per_second": tokens / self.seconds,
                "tokens_seen": progress.tokens_seen,
                "mfu": self.mfu(tokens / self.seconds),
                "data_wait": self.data_seconds / self.seconds,
                "packing_use": tokens / self.sums.positions,
                "documents_per_row": self.sums.documents / self.sums.rows,
                "memory_gib": memory_gib(self.world.device),
                "rows_hash": f"{progress.rows_hash:016x}",
                **self.by_source(progress),
            }
        )
        self.start_window()

    def by_source(self, progress: Progress) -> dict[str, Any]:
        """Loss since the last record (None without a target) and tokens so far of each source, where there are several."""
        if len(self.sources) == 1:
            return {}
        losses = [
            nats / targets if targets else None for nats, targets in zip(self.nats.tolist(), self.sums.targets, strict=True)
        ]
        return {
            "sources": {
                name: {"loss": loss, "tokens": progress.source_tokens[name]}
                for name, loss in zip(self.sources, losses, strict=True)
            }
        }

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
            for name, of_source in record.get("sources", {}).items():
                for key, value in of_source.items():
                    if value is not None:
                        self.writer.add_scalar(f"{key}/{name}", value, record["step"])

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
