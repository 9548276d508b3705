"""What FSDP2 communicates and copies in a step, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cistron.tests.helpers.jobs import write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    torch.ops.c10d._allgather_base_: "gather",
    torch.ops.c10d._reduce_scatter_base_: "scatter",
    torch.ops.c10d.allreduce_: "sum",
}
ACCUMULATED = ["--training.local_batch_size", "1", "--training.global_batch_size", "16"]


class Collectives(TorchDispatchMode):
    """Records which collectives run, and how many elements of the whole group are in each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kind := KINDS.get(func.overloadpacket):
            tensors = [t for arg in args[:2] for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]
            self.seen.append((kind, max(t.numel() for t in tensors)))
        return func(*args, **(kwargs or {}))


class Step(NamedTuple):
    """What the second step of a job had."""

    collectives: list[tuple[str, int]]
    numbers: list[float]  # loss and norm of both steps
    micro_batches: int
    trained: int  # parameters

    def total(self, kind: str) -> int:
        """Elements in collectives of FSDP2 of one kind; the sum of the loss is none."""
        return sum(size for name, size in self.collectives if name == kind and size > 16)


def second_step(config_path: str, options: list[str]) -> Step:
    """Train two steps, and record the second."""
    config, _ = load_config(["--config", config_path, *options, "--checkpoint.enable", "false"])
    trainer = Trainer(config, join(config), StopRequest())
    numbers: list[float] = []
    for _step in range(2):
        batches, error = trainer.fetch()
        counts = trainer.step_counts(batches, error)
        assert counts is not None
        with Collectives() as mode:
            outcome = trainer.optimize(batches, counts)
        numbers += [outcome.loss.item(), outcome.grad_norm.item()]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.close()
    return Step(mode.seen, numbers, trainer.micro_batches, trained)


@pytest.mark.parametrize("shard", [1, 2])
def test_replicas_sum_their_gradients_once_a_step(tmp_path: Path, shard: int) -> None:
    config = str(write_job(tmp_path, steps=2))
    degrees = ["--parallelism.data_parallel_replicate_degree", "2", "--parallelism.data_parallel_shard_degree", str(shard)]
    step = run_on_ranks(second_step, 2 * shard, config, [*degrees, *ACCUMULATED])[0]
    assert step.micro_batches == 8 // shard
    assert step.total("sum") == step.trained // shard
    assert step.total("scatter") == (step.micro_batches * step.trained if shard > 1 else 0), "in every micro-batch"
    whole = ["--training.local_batch_size", "8", "--training.global_batch_size", "16"]
    expected = run_on_ranks(second_step, 2, config, [*degrees[:3], "1", *whole])[0]
    assert expected.micro_batches == 1
    assert step.numbers == pytest.approx(expected.numbers, rel=1e-5)
