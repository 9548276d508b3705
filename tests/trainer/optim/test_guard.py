"""Steps called off: taken on no rank, without a trace, and all ranks say so where the device is waited for anyway."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from cistron.tests.helpers.jobs import column, metrics, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.checkpoints import GuardState, SpikeWindowState
from cistron.trainer.config import load_config
from cistron.trainer.errors import NonFiniteError
from cistron.trainer.optim import clip_gradients, reduce_losses
from cistron.trainer.processes import StopRequest, join, local
from cistron.trainer.train import Trainer
from torch import Tensor

# what a window of 20 steps that went well might hold
WINDOW = SpikeWindowState(loss=[6.0 + 0.02 * n for n in range(20)], grad_norm=[1.0 + 0.1 * n for n in range(20)])
SKIP = ("--skip_step.enable", "true", "--skip_step.window", "20")
CALM = GuardState(nonfinite=0, spikes=0, nonfinite_in_a_row=0, last_skipped=0, window=WINDOW)


@dataclass
class Ending:
    """What a run came to on one rank."""

    error: str = ""
    said: list[str] = field(default_factory=list)  # what the guard had to say
    weights: dict[int, list[Tensor]] = field(default_factory=dict)  # this rank's, after each step
    state: list[Tensor] = field(default_factory=list)  # the optimizer's, at the end


def train_with(argv: list[str], factors: dict[int, float], where: str, left_out: tuple[int, ...] = ()) -> Ending:
    """Train on this rank.

    Args:
        argv: the job.
        factors: by step, what the last rank's part of the loss, or of one weight's gradient, is multiplied by.
        where: loss or gradient.
        left_out: steps at which the optimizer is not called at all.
    """
    config, _ = load_config(argv)
    world = join(config)
    trainer = Trainer(config, world, StopRequest())
    if config.skip_step.enable:
        trainer.guard.load(CALM)
    trainer.prompt = []  # a sample at the end takes longer than the steps
    ending, step, check = Ending(), trainer.optimizer.step, trainer.guard.check

    def remember(*, number: int, skip: Tensor) -> None:
        if number not in left_out:
            step(number=number, skip=skip)
        ending.weights[number] = [local(p).clone() for p in trainer.model.parameters()]

    def listen(*args: Any) -> str:
        if message := check(*args):
            ending.said.append(message)
        return message

    def disturbed(tensor: Tensor) -> Tensor:
        factor = factors.get(trainer.progress.step + 1)
        return tensor if factor is None else tensor * factor

    trainer.optimizer.step = remember  # type: ignore[method-assign, assignment]
    trainer.guard.check = listen  # type: ignore[method-assign]
    if world.rank == world.layout.world_size - 1:
        if where == "loss":
            trainer.model.register_forward_hook(lambda _m, _i, losses: disturbed(losses))
        else:
            weight = trainer.model.layers[1].feed_forward.w2
            weight.register_full_backward_hook(lambda _m, gradients, _: (disturbed(gradients[0]),))
    try:
        trainer.train()
    except NonFiniteError as error:
        ending.error = str(error)
    trainer.close()
    ending.state = [t for p in trainer.model.parameters() for _, t in sorted(trainer.optimizer.state[p].items())]
    ending.state = [getattr(t, "_local_tensor", t).clone() for t in ending.state]
    return ending


NORMS = [(1.0, 1.0000001), (2.0, math.nan), (math.inf, 3.0), (4.0, math.inf)]  # of two ranks


def run_all(runs: list[tuple[Any, ...]]) -> tuple[list[Ending], list[list[float]]]:
    """One run after another in the same processes, and then the losses and norm of all ranks for each of NORMS."""
    endings = [train_with(*run) for run in runs]
    rank = dist.get_rank()
    agreed = [reduce_losses(torch.tensor([0.5, rank]), torch.tensor(norms[rank])) for norms in NORMS]
    return endings, [[*losses.tolist(), norm.item()] for losses, norm in agreed]


def argv_of(config: Path, name: str, *overrides: str) -> list[str]:
    """The job with a folder of its own."""
    return ["--config", str(config), "--job.dump_folder", str(config.parent / name), *overrides]


NAN, SPIKE = 3, 5  # the steps to be left out
LEFT_OUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "fsdp": ("gradient", ()),
    "tp": ("gradient", ("--parallelism.tensor_parallel_degree", "2")),
    "hsdp, accumulated": ("loss", ("--parallelism.data_parallel_replicate_degree", "2", "--training.local_batch_size", "2")),
    "fsdp, muon in bfloat16": ("loss", ("--optimizer.name", "Muon", "--training.dtype", "bfloat16")),
}


class Series(NamedTuple):
    """Non-finite steps, `limit` in a row from `first` on, and the step after which the run must end."""

    where: str
    factors: dict[int, float]
    limit: int
    first: int
    found_at: int
    due: tuple[str, ...]


RARE = ("--metrics.log_freq", "50", "--checkpoint.interval")
TOO_MANY = {
    "metric": Series("loss", {3: math.nan}, 1, 3, 5, ("--metrics.log_freq", "5", "--checkpoint.interval", "99")),
    "checkpoint": Series("gradient", {3: math.nan, 4: math.inf}, 2, 3, 4, (*RARE, "2")),
    "validation": Series(
        *("loss", dict.fromkeys((3, 5, 6, 7), math.nan), 3, 5, 8),
        (*RARE, "99", "--validation.enable", "true", "--validation.freq", "8"),
    ),
}


class Spoilt(NamedTuple):
    """The job, the results of its runs on two processes, by rank, and what `reduce_losses` made of NORMS there."""

    config: Path
    endings: dict[str, tuple[Ending, Ending]]
    agreed: tuple[list[list[float]], list[list[float]]]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Spoilt:
    """One pair of processes makes all runs."""
    folder = tmp_path_factory.mktemp("spoilt")
    held_out = f'[[validation.sources]]\nname = "held_out"\nformat = "jsonl"\npaths = ["{folder}/corpus/0.jsonl"]\n'
    config, runs = write_job(folder, steps=9, more=held_out), {}
    for name, (where, options) in LEFT_OUT.items():
        always = ("--training.steps", "7", "--metrics.log_freq", "4", "--checkpoint.enable", "false", *options)
        runs[name] = (argv_of(config, name, *always, *SKIP), {NAN: math.nan, SPIKE: 1e5}, where)
        runs[f"{name}, left out"] = (argv_of(config, f"{name}, left out", *always), {}, where, (NAN, SPIKE))
    for name, series in TOO_MANY.items():
        argv = argv_of(config, name, "--training.max_nonfinite_steps", str(series.limit), *series.due)
        runs[name] = (argv, series.factors, series.where)
    (first, agreed), (second, agreed_too) = run_on_ranks(run_all, 2, list(runs.values()))
    return Spoilt(config, dict(zip(runs, zip(first, second, strict=True), strict=True)), (agreed, agreed_too))


def test_all_ranks_judge_by_one_norm_and_know_of_any_that_is_not_finite(spoilt: Spoilt) -> None:
    for agreed in spoilt.agreed:
        assert str(agreed) == str([[1.0, 1.0, 1.0], [1.0, 1.0, math.nan], [1.0, 1.0, math.inf], [1.0, 1.0, math.inf]])


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_run_equals_one_without_the_updates_that_are_called_off(spoilt: Spoilt, name: str) -> None:
    """A NaN on one of two ranks, then a spike: bit for bit a run whose optimizer is not called at these two steps."""
    config, endings, _ = spoilt
    for found, reference in zip(endings[name], endings[f"{name}, left out"], strict=True):
        assert not found.error
        assert reference.weights.keys() == found.weights.keys() == set(range(1, 8))
        for step, weights in reference.weights.items():
            assert all(torch.equal(a, b) for a, b in zip(weights, found.weights[step], strict=True)), step
        assert all(torch.equal(a, b) for a, b in zip(reference.state, found.state, strict=True))
    said, others = (ending.said for ending in endings[name])
    assert said == others
    assert [message.split("\n")[0] for message in said] == [
        "1 step(s) not taken, the last of them step 3: 1 not finite",
        "1 step(s) not taken, the last of them step 5: 1 above a limit of [skip_step]",
    ]
    in_loss = LEFT_OUT[name][0] == "loss"
    assert ("rank 1: its loss is nan" if in_loss else "gradients are not finite, the first ") in said[0]
    assert said[1].split("\n")[1].startswith("  step 5: loss ")
    assert column(metrics(config, name), "steps_skipped") == {1: 0, 4: 1, 7: 2}


@pytest.mark.parametrize("name", TOO_MANY)
def test_too_many_non_finite_steps_in_a_row_end_the_run_where_the_device_is_waited_for(spoilt: Spoilt, name: str) -> None:
    config, endings, _ = spoilt
    series = TOO_MANY[name]
    for ending in endings[name]:
        assert ending.error.startswith(f"step {series.first}: loss ")
        assert f"in a row: {series.limit}, as many as training.max_nonfinite_steps" in ending.error
        if series.where == "loss":
            assert "rank 1: its loss is nan" in ending.error
            assert "rank 0" not in ending.error
        else:
            assert "gradients are not finite, the first " in ending.error
        assert max(ending.weights) == series.found_at
        good = ending.weights[series.first - 1]
        assert all(torch.equal(a, b) for a, b in zip(good, ending.weights[series.found_at], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(good, ending.weights[1], strict=True)), "steps before were taken"
    saved = {path.name for path in (config.parent / name / "checkpoint").iterdir()}
    assert saved == ({"step-2"} if name == "checkpoint" else set())
    assert [record["step"] for record in metrics(config, name)] == [1]


def test_a_series_goes_on_through_a_resume_and_its_numbers_are_null(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=12)
    always = ("--training.max_nonfinite_steps", "4", "--lr_scheduler.decay_ratio", "0.0")
    factors = dict.fromkeys((2, 5, 6, 7, 8), math.nan)
    interrupted = train_with(argv_of(config, "run", *always, "--training.steps", "6"), factors, "loss")
    assert not interrupted.error
    resumed = train_with(argv_of(config, "run", *always), factors, "loss")
    assert resumed.said == [
        "1 step(s) not taken, the last of them step 7: 1 not finite\n"
        "  step 7: loss nan, gradient norm nan\n  rank 0: its loss is nan"
    ]
    assert resumed.error.startswith("step 7: loss nan, gradient norm nan; non-finite steps in a row: 4, ")
    records = metrics(config)
    assert column(records, "steps_skipped") == {1: 0, 2: 1, 3: 1, 4: 1, 5: 2, 6: 3, 7: 4}
    assert [record["step"] for record in records if record["loss"] is None] == [2, 5, 6, 7]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    saved = json.loads((tmp_path / "run" / "checkpoint" / "step-6" / "state.json").read_text())["guard"]
    assert saved == {"nonfinite": 3, "spikes": 0, "nonfinite_in_a_row": 2, "last_skipped": 6}
    lowered = argv_of(config, "run", "--training.max_nonfinite_steps", "1", "--lr_scheduler.decay_ratio", "0.0")
    assert not train_with(lowered, {}, "loss").error, "steps that were good are no reason to stop"


@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
def test_gradients_are_clipped_as_torch_clips_them(max_norm: float) -> None:
    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 5), (7,), (2, 2, 2))]
        for parameter in made[:2]:  # the last has no gradient
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        return made

    ours, theirs = parameters(), parameters()
    norm = torch.nn.utils.get_total_norm([p.grad for p in ours if p.grad is not None])
    clip_gradients(ours, norm, max_norm)
    torch.nn.utils.clip_grads_with_norm_(theirs, max_norm, norm)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
