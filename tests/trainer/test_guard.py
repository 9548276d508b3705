"""Non-finite steps: never taken, never saved, found where the device is waited for anyway, and laid at the right door."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cistron.tests.spawn import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.distributed import join
from cistron.trainer.failures import NonFiniteError
from cistron.trainer.signals import StopRequest
from cistron.trainer.train import Trainer
from torch import Tensor

from .jobs import metrics, write_job

BAD_STEP = 3


class Poison:
    """Makes one tensor NaN in the third step of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor, or NaN when its time has come."""
        return tensor * math.nan if self.trainer.progress.step == BAD_STEP - 1 else tensor


def run_into_nan(argv: list[str], where: str) -> tuple[str, int, bool]:
    """A NaN on the last rank: the message, the step at which it came, and whether the weights are those of step 2."""
    config, _ = load_config(argv)
    world = join(config)
    trainer = Trainer(config, world, StopRequest())
    weights: dict[int, list[Tensor]] = {}
    step = trainer.optimizer.step

    def remember(*, number: int, skip: Tensor) -> None:
        step(number=number, skip=skip)
        weights[number] = [p.to_local().clone() for p in trainer.model.parameters()]  # type: ignore[attr-defined]

    trainer.optimizer.step = remember  # type: ignore[method-assign, assignment]
    if world.rank == world.layout.world_size - 1:
        poison = Poison(trainer)
        if where == "loss":
            trainer.model.register_forward_hook(lambda _m, _i, logits: poison(logits))
        else:
            weight = trainer.model.layers[1].feed_forward.w2
            weight.register_full_backward_hook(lambda _m, gradients, _: (poison(gradients[0]),))
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    trainer.close()
    last = max(weights)
    same = all(torch.equal(a, b) for a, b in zip(weights[BAD_STEP - 1], weights[last], strict=True))
    return str(caught.value), last, same


@pytest.mark.parametrize(
    ("where", "due", "found_at"),
    [
        ("loss", ("--metrics.log_freq", "5", "--checkpoint.interval", "99"), 5),
        ("gradient", ("--metrics.log_freq", "50", "--checkpoint.interval", "2"), 4),
        ("loss", ("--metrics.log_freq", "50", "--checkpoint.interval", "99", "--validation.freq", "6"), 6),
    ],
    ids=["loss_at_metrics", "gradient_at_checkpoint", "loss_at_validation"],
)
def test_no_step_is_taken_or_saved_from_a_nan_on_until_it_is_found(
    tmp_path: Path, where: str, due: tuple[str, ...], found_at: int
) -> None:
    validation = f'[[validation.sources]]\nname = "held_out"\nformat = "jsonl"\npaths = ["{tmp_path}/corpus/0.jsonl"]\n'
    config = write_job(tmp_path, more=f"[validation]\nenable = {str('--validation.freq' in due).lower()}\n{validation}")
    results = run_on_ranks(run_into_nan, 2, ["--config", str(config), *due], where)
    for message, last, same in results:
        assert message.startswith(f"step {BAD_STEP}: loss ")
        assert last == found_at
        assert same
        if where == "loss":
            assert "rank 1: its loss is nan" in message
            assert "rank 0" not in message
        else:
            assert "gradients are not finite, the first " in message
    folder = tmp_path / "run" / "checkpoint"
    assert {path.name for path in folder.iterdir()} == ({"step-2"} if "2" in due else set())
    assert [record["step"] for record in metrics(config)] == [1]
