"""What a run reports: a console line or progress bar, and one record per logged step and per validation."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from ...models.config import DecoderConfig
from ..checkpoints import Progress
from ..config import JobConfig
from ..estimates import document_flops, document_pairs, frozen_flops, peak_flops, row_flops, sizes_of
from ..optim import learning_rate
from ..processes import World
from .label_scores import SCORES
from .reports import Reports
from .totals import StepCounts


class Outcome(NamedTuple):
    """What one optimizer step came to, on the device: reading it waits.

    Attributes:
        loss: float32 [], mean over all targets (nats), by their weights where there are any.
        grad_norm: float32 [], global 2-norm before clipping.
        shares: float32 [sources], what each source contributes to the loss; they sum to it.
        skipped: int64 [], steps of the run that were not taken, up to and with this one.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    shares: torch.Tensor
    skipped: torch.Tensor


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
        self.peak_flops = peak_flops(config.metrics.peak_flops, world.device, float8=config.float8.enable)
        self.sizes = sizes_of(config, decoder)
        self.start_window()
        if not world.is_first:
            return
        self.reports = Reports(folder, config, start_step)
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
        self.sums = StepCounts.of([], len(self.sources))
        self.nats = torch.zeros(len(self.sources), dtype=torch.float64, device=self.world.device)

    def say(self, message: str) -> None:
        """One line on stdout."""
        if self.world.is_first:
            self.console.print(message, markup=False)

    def due(self, step: int) -> bool:
        """Whether `step` is reported: the first, the last and every `metrics.log_freq`-th."""
        return step % self.config.metrics.log_freq == 0 or step in (1, self.config.training.steps)

    def step(self, progress: Progress, totals: StepCounts, outcome: Outcome, data_seconds: float, seconds: float) -> None:
        """Count one step of `seconds`, of which `data_seconds` were spent waiting for rows; report it when it is due.

        The clock runs over the steps alone, so that neither a checkpoint nor a validation looks like slow training. Of the
        outcome, only a step that is reported is read; others are summed where they are, which may be a GPU.
        """
        self.seconds += seconds
        self.data_seconds += data_seconds
        self.sums = self.sums.plus(totals)
        self.nats += outcome.shares.double() * sum(totals.targets)
        if self.world.is_first and self.bar:
            self.bar.update(self.task, completed=progress.step)
        if not self.due(progress.step):
            return
        if self.world.is_first:
            self.report(
                {
                    "step": progress.step,
                    "loss": float(outcome.loss),
                    "grad_norm": float(outcome.grad_norm),
                    "lr": learning_rate(self.config, progress.step),
                    "steps_skipped": int(outcome.skipped),
                    "tokens_per_second": sum(self.sums.tokens) / self.seconds,
                    "tokens_seen": progress.tokens_seen,
                    **self.utilisation(),
                    "data_wait": self.data_seconds / self.seconds,
                    "packing_use": sum(self.sums.tokens) / self.sums.positions,
                    "documents_per_row": self.sums.documents / self.sums.rows,
                    **memory(self.world.device),
                    "rows_hash": f"{progress.rows_hash:016x}",
                    **self.by_source(progress),
                }
            )
        self.start_window()

    def by_source(self, progress: Progress) -> dict[str, Any]:
        """Loss since the last record (None without a target) and tokens so far of each source, where there are several."""
        if len(self.sources) == 1:
            return {}
        sums = zip(self.nats.tolist(), self.sums.targets, strict=True)
        losses = [nats / targets if targets else None for nats, targets in sums]
        return {
            "sources": {
                name: {"loss": loss, "tokens": progress.source_tokens[name]}
                for name, loss in zip(self.sources, losses, strict=True)
            }
        }

    def utilisation(self) -> dict[str, float | None]:
        """Model TFLOP/s of a device, and the shares of its peak by both conventions of `flops`; None: an unknown peak."""
        tokens = sum(self.sums.tokens)
        device_seconds = self.seconds * self.world.layout.world_size
        decoder, seq_len, causal_pairs = self.decoder, self.config.training.seq_len, self.sums.causal_pairs
        pairs = document_pairs(decoder, tokens, causal_pairs)
        whole = row_flops(decoder, seq_len, tokens) - frozen_flops(decoder, self.sizes, tokens, tokens * seq_len)
        masked = document_flops(decoder, tokens, causal_pairs) - frozen_flops(decoder, self.sizes, tokens, pairs)
        by_row, by_document = whole / device_seconds, masked / device_seconds
        peak = self.peak_flops
        return {
            "tflops": by_row / 1e12,
            "mfu": by_row / peak if peak else None,
            "mfu_documents": by_document / peak if peak else None,
        }

    def report(self, record: dict[str, Any]) -> None:
        """The record of a step. The loss is printed with all its digits, so that runs can be compared bit for bit."""
        self.reports.add("metrics", record)
        mfu = "" if record["mfu"] is None else f"  mfu {record['mfu']:.1%} (documents {record['mfu_documents']:.1%})"
        self.say(
            f"step {record['step']:>6}  loss {record['loss']!r}  grad_norm {record['grad_norm']:.4f}  lr {record['lr']:.3e}  "
            f"{record['tokens_per_second']:,.0f} tok/s{mfu}  data wait {record['data_wait']:.1%}  packed "
            f"{record['packing_use']:.1%}  {record['memory_gib']:.2f} GiB"
        )

    def validation(self, record: dict[str, Any]) -> None:
        """The record of a validation; see `validation.Validation`."""
        if not self.world.is_first:
            return
        self.reports.add("validation", record)
        perplexity, bits = record.get("perplexity"), record.get("bits_per_byte")
        words = [f"step {record['step']:>6}  validation loss {record['loss']!r}"]
        words += [] if perplexity is None else [f"perplexity {perplexity:.3f}"]
        words += [] if bits is None else [f"{bits:.4f} bits per byte"]
        words += [f"{name} {record[name]:.4f}" for name in SCORES if record.get(name) is not None]
        self.say("  ".join([*words, f"{record['documents']:,} documents in {record['seconds']:.1f} s"]))

    def extrapolation(self, record: dict[str, Any]) -> None:
        """The record of an evaluation on longer documents; see `train_extrapolation.LongEvaluation`."""
        if not self.world.is_first:
            return
        self.reports.add("extrapolation", record)
        self.say(f"step {record['step']:>6}  extrapolation/step-{record['step']}.png in {record['seconds']:.1f} s")

    def close(self) -> None:
        """Flush the files and put the bar away."""
        if self.world.is_first:
            if self.bar:
                self.bar.stop()
            self.reports.close()


def memory(device: torch.device) -> dict[str, float | None]:
    """Peak memory so far in GiB: what the process holds (resident set on a CPU), and on CUDA what tensors take of it."""
    if device.type == "cuda":
        return {
            "memory_gib": torch.cuda.max_memory_reserved(device) / 2**30,
            "memory_allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        }
    import resource  # Unix only

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_gib": kilobytes / (2**30 if sys.platform == "darwin" else 2**20), "memory_allocated_gib": None}
