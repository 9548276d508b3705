"""What a run reports: sums over the steps since the last record, and one record per logged step."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from ...models.config import DecoderConfig
from ..checkpoints import Progress
from ..config import SINKS, JobConfig
from ..estimates import document_flops, document_pairs, frozen_flops, peak_flops, row_flops, sizes_of
from ..optim import learning_rate
from ..processes import World
from .guarded import GuardedSink
from .sinks import ConsoleLines, MetricsRecord, Sink
from .step_counts import StepCounts


class Outcome(NamedTuple):
    """What one optimizer step came to, on the device: reading it waits.

    Attributes:
        loss: float32 [], mean over all targets (nats), by their weights where there are any.
        grad_norm: float32 [], global 2-norm before clipping.
        by_source: float32 [sources], what each source contributes to the loss; they sum to it.
        skipped: int64 [], steps of the run that were not taken, up to and with this one.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    by_source: torch.Tensor
    skipped: torch.Tensor


def sink_classes(config: JobConfig) -> dict[str, type[Sink]]:
    """Return the metric sinks of a job by their names."""
    m = config.metrics
    chosen = ["jsonl", *["tensorboard"] * m.enable_tensorboard, *["wandb"] * m.enable_wandb, *m.sinks, "console"]
    return {name: SINKS[name] for name in chosen}


def sink_complaints(config: JobConfig) -> list[str]:
    """Return why a job's metric sinks cannot be opened: a line for each reason, which begins with a TOML key."""
    return [complaint for sink in sink_classes(config).values() for complaint in sink.complaints(config)]


class MetricsLog:
    """Sums what steps count, and writes records to the sinks. On ranks other than 0 nothing is written.

    Args:
        folder: of the run.
        config: what and how often to report.
        world: this process among the others.
        start_step: step resumed from; records of later steps, from a run that was cut off, are removed.
        decoder: the model's shape, for its FLOPs.
    """

    def __init__(self, folder: Path, config: JobConfig, world: World, start_step: int, decoder: DecoderConfig) -> None:
        self.config, self.world, self.decoder = config, world, decoder
        self.sources, self.reached = [source.name for source in config.data.sources], start_step
        self.peak_flops = peak_flops(config.metrics.peak_flops, world.device, float8=config.float8.enable)
        self.sizes = sizes_of(config, decoder)
        self.start_window()
        chosen = sink_classes(config) if world.is_first else {}
        self.guarded = {name: GuardedSink(partial(sink, folder, config), start_step) for name, sink in chosen.items()}
        self.console = self.guarded.get("console")

    @property
    def sinks(self) -> dict[str, Sink]:
        """The sinks that are open, by name."""
        return {name: guarded.sink for name, guarded in self.guarded.items() if guarded.sink}

    @property
    def remarks(self) -> list[str]:
        """What people should know of how the sinks were opened."""
        return [f"warning: {remark}" for sink in self.sinks.values() for remark in sink.remarks]

    def start_window(self) -> None:
        """Start the sums of the next record at 0."""
        self.seconds, self.data_seconds = 0.0, 0.0
        self.sums = StepCounts.of([], len(self.sources))
        self.nats = torch.zeros(len(self.sources), dtype=torch.float64, device=self.world.device)

    def say(self, message: str) -> None:
        """Print a message on rank 0."""
        if self.console:
            self.console.use(self.reached, lambda console: cast(ConsoleLines, console).say(message))

    def write(self, record: MetricsRecord) -> None:
        """Write a record to every sink."""
        for guarded in self.guarded.values():
            guarded.write(record)

    def due(self, step: int) -> bool:
        """Return whether `step` is reported: the first, the last and every `metrics.log_freq`-th."""
        return step % self.config.metrics.log_freq == 0 or step in (1, self.config.training.steps)

    def step(self, progress: Progress, totals: StepCounts, outcome: Outcome, data_seconds: float, seconds: float) -> None:
        """Count one step of `seconds`, of which `data_seconds` were spent waiting for rows; report it when it is due.

        The clock runs over the steps alone, so that neither a checkpoint nor a validation looks like slow training. Of
        the outcome, only a step that is reported is read; others are summed where they are, which may be a GPU.
        """
        self.seconds += seconds
        self.data_seconds += data_seconds
        self.sums = self.sums.plus(totals)
        self.nats += outcome.by_source.double() * sum(totals.targets)
        self.reached = progress.step
        if self.console and isinstance(self.console.sink, ConsoleLines):
            self.console.sink.advance(progress.step)
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
                    **self.unknown(),
                    **self.lost(),
                }
            )
        self.start_window()

    def by_source(self, progress: Progress) -> dict[str, Any]:
        """Return loss since the last record (None: no target) and tokens so far of each of several sources."""
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

    def unknown(self) -> dict[str, Any]:
        """Return the unknown tokens since the last record of each source that had any; nothing where none had."""
        unknown = {name: count for name, count in zip(self.sources, self.sums.unknown, strict=True) if count}
        return {"unknown_tokens": unknown} if unknown else {}

    def lost(self) -> dict[str, Any]:
        """Return how many records each sink has lost so far, by its name; nothing where none has."""
        lost = {name: guarded.lost for name, guarded in self.guarded.items() if guarded.lost}
        return {"lost_records": lost} if lost else {}

    def utilisation(self) -> dict[str, float | None]:
        """Return TFLOP/s of a device, and parts of its peak by both conventions of `estimates`; None: unknown."""
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

    def report(self, values: dict[str, Any]) -> None:
        """Write the record of a step. The line has all digits of the loss, so that runs can be compared bit for bit."""
        mfu = "" if values["mfu"] is None else f"  mfu {values['mfu']:.1%} (documents {values['mfu_documents']:.1%})"
        line = (
            f"step {values['step']:>6}  loss {values['loss']!r}  grad_norm {values['grad_norm']:.4f}  lr {values['lr']:.3e}  "
            f"{values['tokens_per_second']:,.0f} tok/s{mfu}  data wait {values['data_wait']:.1%}  packed "
            f"{values['packing_use']:.1%}  {values['memory_gib']:.2f} GiB"
        )
        self.write(MetricsRecord("metrics", values, line))

    def close(self) -> None:
        """Close every sink; nothing may be written afterwards."""
        for guarded in self.guarded.values():
            guarded.close()


def memory(device: torch.device) -> dict[str, float | None]:
    """Return the peak memory so far in GiB: of the process (resident set on a CPU), and on CUDA that of tensors."""
    if device.type == "cuda":
        return {
            "memory_gib": torch.cuda.max_memory_reserved(device) / 2**30,
            "memory_allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        }
    import resource  # Unix only

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_gib": kilobytes / (2**30 if sys.platform == "darwin" else 2**20), "memory_allocated_gib": None}
