"""The estimate of memory against the bytes that a training job really holds."""

import gc
from pathlib import Path
from typing import Any

import pytest
from cistron.models.decoder import Decoder
from cistron.tests.spawn import run_on_ranks
from cistron.tests.trainer.jobs import write_job
from cistron.trainer.components import verify
from cistron.trainer.config import load_config
from cistron.trainer.distributed import Layout, join
from cistron.trainer.memory import estimate
from cistron.trainer.signals import StopRequest
from cistron.trainer.train import Trainer
from torch.profiler import ProfilerActivity, profile, record_function

SECOND = "the second step"


def measure(config_file: Path, *overrides: str) -> tuple[float, float]:
    """Peak bytes of the second step of a job in this process, as measured and as estimated.

    Measured is what torch's CPU allocator has handed out and not got back, inside of its kernels too.
    """
    options = ["--checkpoint.enable", "false", "--training.steps", "2", *overrides]
    config, _ = load_config(["--config", str(config_file), *options])
    world = join(config)
    gc.collect()  # what is left of other jobs must not be given back meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer = Trainer(config, world, StopRequest())
        trainer.conclude = lambda: None  # type: ignore[method-assign]  # the sample is not part of a step
        optimize = trainer.optimize

        def optimize_marked(*args: Any) -> Any:
            with record_function(SECOND if trainer.progress.step == 1 else "the first step"):
                return optimize(*args)

        trainer.optimize = optimize_marked  # type: ignore[method-assign]
        try:
            trainer.train()
        finally:
            trainer.close()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    second = next(event for event in events if event.name() == SECOND)
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            if second.start_ns() <= event.start_ns() <= second.end_ns():
                peak = max(peak, held)
    moments = estimate(config, trainer.decoder_config, trainer.world.layout, trainer.mask.executor, "cpu")
    return peak, max(moment.size for moment in moments)


FULL = ("--activation_checkpoint.mode", "full")
BF16 = ("--training.mixed_precision_param", "bfloat16")
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
LONG = ("--training.seq_len", "256", "--model.dim", "64", "--model.hidden_dim", "256")
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
    "accumulated": (*LONG, "--training.local_batch_size", "1"),
}


@pytest.mark.parametrize("kind", JOBS)
def test_the_estimate_is_within_a_tenth_of_the_bytes_of_a_step(tmp_path: Path, kind: str) -> None:
    measured, estimated = measure(write_job(tmp_path), *JOBS[kind])
    assert estimated == pytest.approx(measured, rel=0.1)


def measure_layouts(config: Path) -> list[tuple[float, float]]:
    sharded = measure(config, *WIDE, "--training.global_batch_size", "2")
    return [sharded, measure(config, *LONG, "--parallelism.tensor_parallel_degree", "2")]


def test_the_estimate_holds_on_ranks_that_share_parameters_or_matrices(tmp_path: Path) -> None:
    for measured, estimated in run_on_ranks(measure_layouts, 2, write_job(tmp_path))[0]:
        assert estimated == pytest.approx(measured, rel=0.1)


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
