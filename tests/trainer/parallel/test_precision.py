"""Precision: bfloat16 where it is meant, float32 where it matters, and nothing lost on average where it is stored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.tests.helpers.jobs import column, metrics, train_here, write_job
from cistron.trainer.config import load_config
from cistron.trainer.optim import gradient_norm
from cistron.trainer.optim.adamw import AdamW
from cistron.trainer.optim.optimizer import Rounding
from cistron.trainer.processes import StopRequest, join, local
from cistron.trainer.train import Trainer
from torch import Tensor, nn

STORED = ("--training.dtype", "bfloat16")
MOMENTS = ("--optimizer.state_dtype", "bfloat16")


def open_trainer(folder: Path, *overrides: str, steps: int = 1) -> Trainer:
    """A job about to begin."""
    config, _ = load_config(["--config", str(write_job(folder, steps=steps)), *overrides])
    return Trainer(config, join(config), StopRequest())


def test_activations_are_bfloat16_but_cosines_logits_and_master_weights_float32(tmp_path: Path) -> None:
    trainer = open_trainer(tmp_path, "--training.mixed_precision_param", "bfloat16")
    seen: dict[str, torch.dtype] = {}

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.update(x=inputs[0].dtype, cos=inputs[1][0].q[0].dtype, weight=module.wq.weight.dtype)

    trainer.model.layers[0].attention.register_forward_pre_hook(look)
    trainer.model.register_forward_hook(lambda _m, _i, logits: seen.update(logits=logits.dtype))
    trainer.train()
    trainer.close()
    assert seen["x"] == seen["weight"] == torch.bfloat16
    assert seen["cos"] == seen["logits"] == torch.float32
    assert {p.dtype for group in trainer.optimizer.param_groups for p in group["params"]} == {torch.float32}


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_stored_types_are_those_asked_for_and_norm_and_clipping_stay_exact(tmp_path: Path, state_dtype: str) -> None:
    trainer = open_trainer(tmp_path, *STORED, "--optimizer.state_dtype", state_dtype, "--training.max_norm", "0.01")
    step = trainer.optimizer.step

    def look(**arguments: Any) -> None:
        gradients = [local(p.grad) for p in trainer.model.parameters()]
        exact = torch.cat([g.double().flatten() for g in gradients]).norm().item()
        assert {g.dtype for g in gradients} == {torch.bfloat16}
        assert gradient_norm(list(trainer.model.parameters()))[0].item() == pytest.approx(exact, rel=1e-6)
        assert exact == pytest.approx(0.01, rel=1e-3), "each clipped gradient is rounded once more, the norm hardly"
        step(**arguments)

    trainer.optimizer.step = look  # type: ignore[method-assign, assignment]
    trainer.train()
    trainer.close()
    stored = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    states = [trainer.optimizer.state[p] for p in stored]
    assert {p.dtype for p in stored} == {torch.bfloat16}
    assert {s["exp_avg"].dtype for s in states} == {s["exp_avg_sq"].dtype for s in states} == {getattr(torch, state_dtype)}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job trained in float32."""
    config = write_job(tmp_path_factory.mktemp("float32"))
    train_here(config)
    return config


@pytest.mark.parametrize("overrides", [("--training.mixed_precision_param", "bfloat16"), STORED, (*STORED, *MOMENTS), MOMENTS])
def test_a_bfloat16_run_follows_the_float32_run(exact: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    train_here(exact, "--job.dump_folder", str(tmp_path / "run"), *overrides)
    assert column(metrics(tmp_path / "job.toml"), "loss") == pytest.approx(column(metrics(exact), "loss"), rel=0.05)


def rounded(value: Tensor, purpose: object) -> Tensor:
    """What is stored of `value` in bfloat16."""
    place = torch.empty_like(value, dtype=torch.bfloat16)
    Rounding(0, value.device).store(place, value.clone(), purpose)
    return place


def test_rounding_takes_one_of_the_two_neighbours_and_is_right_on_average() -> None:
    gap = 2.0**-7  # between bfloat16 numbers from 1 to 2
    for share in (0.1, 0.5, 0.75):
        draws = rounded(torch.full((100_000,), -1 - share * gap), "x").float()
        assert set(draws.tolist()) == {-1.0, -1 - gap}
        deviation = math.sqrt(share * (1 - share) / 100_000)
        assert (draws != -1).float().mean().item() == pytest.approx(share, abs=4 * deviation)


def test_what_bfloat16_can_hold_is_stored_as_it_is() -> None:
    held = torch.tensor([0.0, -1.5, 3e38, 1e-38, math.inf, -math.inf]).bfloat16()
    assert torch.equal(rounded(held.float(), "x"), held)
    assert rounded(torch.tensor([math.nan]), "x").isnan().all()


def test_draws_are_a_function_of_seed_and_purpose() -> None:
    value = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(value, (1, "a")), rounded(value, (1, "a")))
    assert not torch.equal(rounded(value, (1, "a")), rounded(value, (2, "a")))


def adamw_in_float64(start: Tensor, gradient: Tensor, steps: int, lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Parameter and moments after some steps on one gradient, by the paper's algorithm 2 with weight decay 0.1."""
    p, m, v, g = start.double(), torch.zeros_like(start.double()), torch.zeros_like(start.double()), gradient.double()
    for step in range(1, steps + 1):
        p = p - lr * 0.1 * p
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    return p, m, v


def bfloat16_adamw(start: Tensor, state_dtype: torch.dtype, lr: float) -> tuple[nn.Parameter, AdamW]:
    """A bfloat16 parameter and its optimizer."""
    p = nn.Parameter(start.clone())
    settings: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "seed": 0}
    return p, AdamW([{"params": [p], "weight_decay": 0.1}], lr=lr, state_dtype=state_dtype, **settings)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_a_step_stored_in_bfloat16_is_a_neighbour_of_the_float64_one(state_dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(50, 20, generator=draw).bfloat16() for _ in range(2))
    p, optimizer = bfloat16_adamw(start, state_dtype, lr=1e-2)
    p.grad = gradient
    optimizer.step(number=1)
    expected, m, v = adamw_in_float64(start, gradient, 1, lr=1e-2)
    assert ((p.double() - expected).abs() <= 2**-7 * expected.abs() + 1e-6).all()
    bound = 1e-6 if state_dtype == torch.float32 else 2**-7
    for name, exact in (("exp_avg", m), ("exp_avg_sq", v)):
        assert ((optimizer.state[p][name].double() - exact).abs() <= bound * exact.abs() + 1e-12).all()


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_updates_too_small_for_bfloat16_arrive_on_average(state_dtype: torch.dtype) -> None:
    """Each is a 50th of the gap between neighbours: torch's own AdamW, which rounds to nearest, does not move."""
    start, gradient = torch.full((64, 64), 0.1).bfloat16(), torch.full((64, 64), -0.3).bfloat16()
    p, optimizer = bfloat16_adamw(start, state_dtype, lr=1e-5)
    nearest = nn.Parameter(start.clone())
    other = torch.optim.AdamW([nearest], lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for number in range(1, 101):
        p.grad, nearest.grad = gradient, gradient
        optimizer.step(number=number)
        other.step()
    moved = (adamw_in_float64(start, gradient, 100, lr=1e-5)[0] - start.double()).mean().item()
    assert (p.double() - start.double()).mean().item() == pytest.approx(moved, rel=0.05)
    assert torch.equal(nearest, start)
