"""The estimate of memory against the bytes that a training job really holds."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.models.decoder import Decoder
from cistron.tests.helpers.jobs import write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.estimates import estimate
from cistron.trainer.processes import Layout, StopRequest, join
from cistron.trainer.start import verify
from cistron.trainer.train import Trainer
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The size of every living storage that an operator has touched, measured at each call, as FSDP2 resizes some."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref[Any]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                self.remember(leaf.to_local() if isinstance(leaf, DTensor) else leaf)
        live = [storage() for storage in self.storages.values()]
        inside = args[0].nbytes if func is torch.ops.aten.logsumexp.default else 0  # its exponentials, which nobody sees
        self.peak = max(self.peak, inside + sum(storage.nbytes() for storage in live if storage is not None))
        return result

    def remember(self, tensor: torch.Tensor) -> None:
        """Hold its storage weakly."""
        if tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.storages.pop(key, None))


def measure(config_file: Path, *overrides: str) -> tuple[float, float]:
    """Peak bytes of the second step of a job in this process, as measured and as estimated."""
    options = ["--checkpoint.enable", "false", "--training.steps", "2", *overrides]
    config, _ = load_config(["--config", str(config_file), *options])
    trainer = Trainer(config, join(config), StopRequest())
    trainer.conclude = lambda: None  # type: ignore[method-assign]  # the sample is not part of a step
    live, optimize = LiveBytes(), trainer.optimize

    def optimize_from_here(*args: Any) -> Any:
        live.peak = 0
        return optimize(*args)

    trainer.optimize = optimize_from_here  # type: ignore[method-assign]
    try:
        with live:
            trainer.train()
    finally:
        trainer.close()
    moments = estimate(config, trainer.decoder_config, trainer.world.layout, trainer.mask.executor, "cpu")
    return live.peak, max(moment.size for moment in moments)


FULL = ("--activation_checkpoint.mode", "full")
SOME = ("--activation_checkpoint.mode", "selective", "--model.n_layers", "6")
BF16 = ("--training.mixed_precision_param", "bfloat16")
KEPT = (*BF16, "--training.dtype", "bfloat16", "--optimizer.state_dtype", "bfloat16")
WIDE = (
    "--model.dim",
    "192",
    "--model.hidden_dim",
    "768",
    "--training.local_batch_size",
    "1",
    "--training.global_batch_size",
    "1",
)
TABLES = ("--model.vocab_size", "20000", "--training.local_batch_size", "1", "--training.global_batch_size", "1")
LONG = (
    *("--training.seq_len", "256", "--training.global_batch_size", "4"),
    *("--model.dim", "64", "--model.hidden_dim", "256"),
)
RELATIVE = (
    *("--model.attention.position_map", "rerope", "--model.attention.map_window", "64"),
    *("--model.rope.original_seq_len", "128"),
)
LORA = ("--fine_tuning.lora.rank", "8")
JOBS = {
    "parameters": WIDE,
    "parameters, bf16": (*WIDE, *BF16),
    "tables": TABLES,
    "one table": (*TABLES, "--model.tie_embeddings", "true"),
    "tables, bf16": (*TABLES, *BF16),
    "activations": LONG,
    "activations, bf16": (*LONG, *BF16),
    "activations, norms of queries and keys": (*LONG, "--model.qk_norm", "true"),
    "checkpointed": (*LONG, *FULL, "--model.n_layers", "6"),
    "checkpointed, bf16": (*LONG, *FULL, *BF16),
    "logits": (*LONG, "--model.vocab_size", "4096"),
    "chunks of logits, bf16": (*LONG, *BF16, "--model.vocab_size", "20000"),
    "larger chunks of logits": (*LONG, "--model.vocab_size", "20000", "--training.loss_chunk_tokens", "1024"),
    "smaller chunks of logits, bf16": (*LONG, *BF16, "--model.vocab_size", "4096", "--training.loss_chunk_tokens", "100"),
    "checkpointed by operator": (*LONG, *SOME),
    "checkpointed by operator, bf16": (*LONG, *SOME, *BF16),
    "every second block checkpointed": (*LONG, *SOME, "--activation_checkpoint.selective_ac_option", "2"),
    "never resharded": (*WIDE, "--parallelism.fsdp_reshard_after_forward", "never", "--model.n_layers", "6"),
    "all kept in bf16": (*WIDE, *KEPT),
    "Muon": (*WIDE, "--optimizer.name", "Muon"),
    "the optimizer's copies": (*TABLES, *KEPT, "--training.seq_len", "16", "--optimizer.name", "Muon"),
    "adapters, large tables": (*LORA, *TABLES, *BF16),
    "blocks frozen": ("--fine_tuning.freeze", '["layers.*"]', *WIDE),
    "upper half": ("--fine_tuning.freeze", '["tok_embeddings", "layers.[012].*"]', *LONG, "--model.n_layers", "6"),
    "a position map": (*LONG, *RELATIVE),
    "a position map, bf16": (*LONG, *RELATIVE, *BF16),
    "accumulated": (*LONG, "--training.local_batch_size", "1"),
}


@pytest.mark.parametrize("kind", JOBS)
def test_the_estimate_is_within_a_tenth_of_the_bytes_of_a_step(tmp_path: Path, kind: str) -> None:
    measured, estimated = measure(write_job(tmp_path), *JOBS[kind])
    assert estimated == pytest.approx(measured, rel=0.1)


SHARED = (*WIDE, "--training.global_batch_size", "2")
TENSOR = ("--parallelism.tensor_parallel_degree", "2")
CONTEXT = ("--parallelism.context_parallel_degree", "2")
LAYOUTS = {
    "shard": SHARED,
    "tp": (*LONG, *TENSOR),
    "cp": (*LONG, *CONTEXT, "--model.n_kv_heads", "4", "--model.head_dim", "32"),
    "cp, checkpointed by operator": (*LONG, *CONTEXT, "--activation_checkpoint.mode", "selective"),
}


def measure_layouts(config: Path) -> dict[str, tuple[float, float]]:
    return {kind: measure(config, *overrides) for kind, overrides in LAYOUTS.items()}


def test_the_estimate_holds_on_ranks_that_share_parameters_matrices_or_rows(tmp_path: Path) -> None:
    sizes = run_on_ranks(measure_layouts, 2, write_job(tmp_path))[0]
    estimates = {kind: estimated for kind, (_, estimated) in sizes.items()}
    assert estimates == pytest.approx({kind: measured for kind, (measured, _) in sizes.items()}, rel=0.1)


def test_parameters_gradients_and_optimizer_take_16_bytes_each_over_the_ranks_that_share_them(tmp_path: Path) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path)), "--training.local_batch_size", "1"])
    _, shape = verify(config, Layout.resolve(config))
    parameters = sum(p.numel() for p in Decoder(shape).parameters())
    for layout in (Layout(replicate=1, shard=1, cp=1, tp=1), Layout(replicate=2, shard=2, cp=2, tp=2)):
        moments = estimate(config, shape, layout, "sdpa", "cpu")
        held = {part: max(moment.parts[part] for moment in moments) for part in moments[0].parts}
        assert held["parameters"] + held["gradients"] + held["optimizer"] == 16 * parameters / (
            layout.shard * layout.cp * layout.tp
        )
