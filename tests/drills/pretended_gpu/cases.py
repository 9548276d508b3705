"""The cases of the drill, what is expected of each, and what of it did not hold.

A case is a shipped TOML with few layers and some options. Every value of a factor is in some case, and so are pairs
that meet in the code: kernel and layout, kernel and recomputation, kernel and model, all dimensions and recomputation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .device import MAX_SHARED, REGISTERS, WARP
from .training import MICRO_BATCHES, STEPS, Observed

CONFIGS = Path(__file__).parents[3] / "train_configs"
LAYERS = 2
# Bytes of a thread. FlexAttention's forward kernel of a bidirectional mask spills 680, of causal ones 40 to 232:
# whether that costs time, a GPU will say. More than that would be new.
STACK = 700
# degrees of (replicate, shard, context, tensor)
LAYOUTS = {
    "one GPU": (1, 1, 1, 1),
    "FSDP": (1, 8, 1, 1),
    "HSDP": (2, 4, 1, 1),
    "TP": (1, 4, 1, 2),
    "CP": (1, 4, 2, 1),
    "all": (2, 2, 2, 2),
}
OPTIMIZERS = {
    "AdamW": [],
    "Muon": ["--optimizer.name", "Muon"],
    "float8": ["--float8.enable", "true"],
    "LoRA": ["--fine_tuning.lora.rank", "16"],
}
# Where the host may wait in a step that is reported: the numbers of the report, and steps that were called off.
MAY_WAIT = ("trainer/optim/step_guard.py", "trainer/metrics/log.py", "trainer/validation.py")
TRAINED = 3  # graphs: a block, and two of the loss
VALIDATED = 4  # and a block without gradients
FROZEN = 4  # and the first block, whose input needs no gradient where the embedding is frozen


@dataclass(frozen=True)
class Case:
    """A job and what is expected of it.

    Attributes:
        model: name of a shipped TOML.
        executor: of attention.
        layout: key of LAYOUTS.
        recomputed: `activation_checkpoint.mode`.
        optimizer: key of OPTIMIZERS.
        per_layer: launches of a block for a micro-batch, at most; None: not measured yet, and any number will do.
        graphs: that are compiled.
    """

    model: str
    executor: str
    layout: str
    recomputed: str
    optimizer: str
    per_layer: int | None = None
    graphs: int = TRAINED

    @property
    def name(self) -> str:
        """Its factors, as the command line selects cases by them."""
        return f"{self.model}, {self.executor}, {self.layout}, {self.recomputed}, {self.optimizer}"

    @property
    def processes(self) -> int:
        """Number of ranks: the product of the degrees of its layout."""
        replicate, shard, context, tensor = LAYOUTS[self.layout]
        return replicate * shard * context * tensor

    def arguments(self, rows: int, run: Path) -> list[str]:
        """Return the command line of the job.

        Args:
            rows: `training.local_batch_size` of the TOML.
            run: its folder.
        """
        replicate, shard, context, tensor = LAYOUTS[self.layout]
        options = {
            "job.dump_folder": run,
            "model.n_layers": LAYERS,
            "model.attention.executor": self.executor,
            "training.steps": STEPS,
            "training.global_batch_size": rows * MICRO_BATCHES * replicate * shard,
            "activation_checkpoint.mode": self.recomputed,
            "parallelism.data_parallel_replicate_degree": replicate,
            "parallelism.data_parallel_shard_degree": shard,
            "parallelism.context_parallel_degree": context,
            "parallelism.tensor_parallel_degree": tensor,
            "metrics.log_freq": STEPS,
            "metrics.enable_tensorboard": "false",
            "checkpoint.enable": "false",
        }
        pairs = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        return ["--config", str(CONFIGS / f"{self.model}.toml"), *pairs, *OPTIMIZERS[self.optimizer]]


CASES = [
    Case("llama3_1b", "flex", "one GPU", "none", "AdamW", 39),
    Case("llama3_1b", "varlen", "FSDP", "none", "AdamW", 41),
    Case("llama3_8b", "flex", "FSDP", "selective", "AdamW", 45, VALIDATED),
    Case("llama3_8b", "varlen", "HSDP", "full", "AdamW", 57, VALIDATED),
    Case("dna_7b", "flex", "HSDP", "none", "Muon", 37),
    Case("dna_7b", "varlen", "TP", "selective", "LoRA", 91, FROZEN),
    Case("protein_650m", "flex", "TP", "full", "Muon", 62),
    Case("protein_650m", "varlen", "one GPU", "none", "AdamW", 36),
    Case("llama3_1b", "flex", "CP", "full", "float8", 147),
    Case("llama3_8b", "flex", "all", "selective", "float8", 161, VALIDATED),
    Case("dna_7b", "flex", "all", "none", "LoRA", 75, FROZEN),
    Case("protein_650m", "flex", "all", "full", "AdamW", 65),
    Case("llama3_1b", "varlen", "TP", "none", "float8", 126),
]


def complaints(case: Case, seen: Observed) -> Iterator[str]:
    """Say what was expected of a case and not found, a line each."""
    if seen.graphs != case.graphs:
        yield f"expected {case.graphs} compiled graphs, found {seen.graphs}"
    if seen.recompiled:
        yield f"expected no compilation after step 2, found {seen.recompiled}"
    for reason in seen.breaks:
        yield f"expected no graph break, found: {reason}"
    for wait, times in seen.quiet_waits.items():
        yield f"expected no wait of the host in a step that is not reported, found {times} at {wait}"
    for wait, times in seen.waits.items():
        if not wait.startswith(MAY_WAIT):
            yield f"expected waits of a reported step in {', '.join(MAY_WAIT)} alone, found {times} at {wait}"
    if not seen.waits:
        yield "expected some wait in a reported step: is the record blind?"
    for copy, times in seen.pageable.items():
        yield f"expected no copy from pageable memory after step 1, found {times} at {copy}"
    if not seen.per_layer:
        yield "expected launches of a layer, found none"
    if case.per_layer is not None and seen.per_layer > case.per_layer:
        yield f"expected at most {case.per_layer} launches of a layer for a micro-batch, found {seen.per_layer:g}"
    for name, kernel in seen.kernels.items():
        if kernel.shared > MAX_SHARED:
            yield f"expected kernels of at most {MAX_SHARED:,} bytes of shared memory, found {kernel.shared:,} in {name}"
        if kernel.registers * kernel.warps * WARP > REGISTERS:
            used = f"{kernel.registers} x {kernel.warps * WARP} threads"
            yield f"expected kernels of at most {REGISTERS:,} registers a block, found {used} in {name}"
        if kernel.stack > STACK:
            yield f"expected kernels with at most {STACK} bytes of stack a thread, found {kernel.stack} in {name}"
    if not seen.kernels:
        yield "expected compiled kernels, found none"
