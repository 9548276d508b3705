"""What FSDP2 communicates and copies in a step, and in which order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cistron.tests.helpers.jobs import write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.parallel import parallelize
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
    """Records collectives, with how many elements of the whole group are in each, and copies of flat parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []
        self.copies: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kind := KINDS.get(func.overloadpacket):
            tensors = [t for arg in args[:2] for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]
            self.seen.append((kind, max(t.numel() for t in tensors)))
        if func.overloadpacket is torch.ops.aten.copy_ and args[0].dim() == 1:
            self.copies.append(args[0].numel())
        return func(*args, **(kwargs or {}))


class Step(NamedTuple):
    """What the second step of a job had."""

    collectives: list[tuple[str, int]]
    numbers: list[float]  # loss and norm of both steps
    micro_batches: int
    trained: int  # parameters
    copies: list[int]  # elements of flat tensors that were copied

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
    return Step(mode.seen, numbers, trainer.micro_batches, trained, mode.copies)


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


DIM, WIDE, VOCAB = 32, 64, 512
TABLE, MATRIX = VOCAB * DIM, WIDE * DIM  # elements of a table, and of each of the three matrices of a feed-forward part


def moved(step: Step, kind: str) -> list[int]:
    """Sizes of collectives of FSDP2 of one kind, in order."""
    return [size for name, size in step.collectives if name == kind]


def test_the_first_block_waits_for_the_embedding_alone_and_the_output_is_scattered_first(tmp_path: Path) -> None:
    step = run_on_ranks(second_step, 2, str(write_job(tmp_path, steps=2)), [])[0]
    block = (step.trained - 2 * TABLE - DIM) // 2
    forward, backward = [TABLE, block, block, TABLE + DIM], [block, block]
    assert moved(step, "gather") == forward + backward, "the embedding is not gathered again"
    assert moved(step, "scatter") == [TABLE + DIM, block, block, TABLE]


def test_a_tied_table_is_gathered_once_and_scattered_when_both_of_its_gradients_are_there(tmp_path: Path) -> None:
    step = run_on_ranks(second_step, 2, str(write_job(tmp_path, steps=2)), ["--model.tie_embeddings", "true"])[0]
    block = (step.trained - TABLE - DIM) // 2
    assert moved(step, "gather") == [TABLE + DIM, block, block, block, block]
    assert moved(step, "scatter") == [block, block, TABLE + DIM]


def test_a_frozen_embedding_has_no_gradient_to_scatter(tmp_path: Path) -> None:
    step = run_on_ranks(second_step, 2, str(write_job(tmp_path, steps=2)), ["--fine_tuning.freeze", '["tok_embeddings"]'])[0]
    block = (step.trained - TABLE - DIM) // 2
    assert moved(step, "scatter") == [TABLE + DIM, block, block]


@pytest.mark.parametrize(("policy", "times"), [("default", 1), ("always", 2)])
def test_one_rank_casts_its_parameters_once_a_micro_batch(tmp_path: Path, policy: str, times: int) -> None:
    half = ["--training.mixed_precision_param", "bfloat16"]
    options = ["--parallelism.fsdp_reshard_after_forward", policy, *half, *ACCUMULATED]
    step = run_on_ranks(second_step, 1, str(write_job(tmp_path, steps=2)), options)[0]
    assert step.micro_batches == 16
    assert step.copies.count(MATRIX) == times * 16 * 2 * 3, "of two blocks"
    assert step.copies.count(TABLE) == 16 * (2 if policy == "default" else 3) + 16, "and the embedding's gradient"


def second_step_under_fsdp(config_path: str, options: list[str]) -> Step:
    """As `second_step`, with FSDP2 applied whether it is needed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[parallelize.__module__], "needs_fsdp", lambda *_: True)
        return second_step(config_path, options)


@pytest.mark.parametrize("tied", ["false", "true"])
def test_one_process_in_float32_copies_nothing_and_takes_the_steps_that_fsdp_would(tmp_path: Path, tied: str) -> None:
    config, options = str(write_job(tmp_path, steps=2)), ["--model.tie_embeddings", tied, *ACCUMULATED]
    plain = run_on_ranks(second_step, 1, config, options)[0]
    wrapped = run_on_ranks(second_step_under_fsdp, 1, config, options)[0]
    assert {MATRIX, TABLE} <= set(wrapped.copies)
    assert not {MATRIX, TABLE} & set(plain.copies)
    assert moved(plain, "gather") == moved(plain, "scatter") == []
    assert plain.numbers == wrapped.numbers, "bit by bit"
