"""The optimizers: torch's arithmetic where torch has it, else references in float64, and the same on any layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cistron.models.config import PRESETS
from cistron.tests.helpers.jobs import column, metrics, refusal, train, train_here, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.build import make_model
from cistron.trainer.config import OPTIMIZERS, JobConfig, load_config
from cistron.trainer.optim import Optimizer, build_optimizer
from cistron.trainer.optim.adamw import AdamW
from cistron.trainer.optim.muon import Muon, muon_matrices, orthogonalize
from cistron.trainer.processes import StopRequest, gradient, join, local
from cistron.trainer.train import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from typing_extensions import override

SHAPES = [(6, 10), (10, 6), (8, 8), (5, 7), (6, 10)]
SETTINGS: dict[str, Any] = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "state_dtype": torch.float32, "seed": 0}
MATRICES = [
    *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
]
DECAY = 0.1
STEPS = 3
MUON = ("--optimizer.name", "Muon")
TENSOR = ("--parallelism.tensor_parallel_degree", "2")


def values(seed: int, scale: float = 1.0) -> list[Tensor]:
    """Random matrices float32 of SHAPES."""
    draw = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=draw) for shape in SHAPES]


def test_frozen_parameters_and_adapters_are_not_muons() -> None:
    freeze = {"freeze": ["layers.0", "layers.[23].*", "output", "*norm"]}
    config = JobConfig.model_validate({"optimizer": {"name": "Muon"}, "fine_tuning": freeze})
    model = make_model(config, PRESETS["debug"])
    optimizer = build_optimizer(model, config)
    name_of = {p: name for name, p in model.named_parameters()}
    matrices, others = ([name_of[p] for p in group["params"]] for group in optimizer.param_groups)
    assert matrices == [f"layers.1.{name}.weight" for name in MATRICES]
    assert others == ["tok_embeddings.weight"]
    adapted = make_model(JobConfig.model_validate({"fine_tuning": {"lora": {"rank": 2}}}), PRESETS["debug"])
    assert not muon_matrices(adapted)


def take_steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """STEPS steps on the same random gradients for every optimizer."""
    for number in range(1, STEPS + 1):
        for p, g in zip(parameters, values(number), strict=True):
            p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
        optimizer.step()


def parameters() -> list[nn.Parameter]:
    """Random parameters float32 of SHAPES."""
    return [nn.Parameter(t) for t in values(0, 0.1)]


def muon_groups(matrices: list[nn.Parameter]) -> list[dict[str, Any]]:
    """All of them Muon's."""
    return [{"params": matrices, "weight_decay": DECAY, "muon": True}]


def test_adamw_in_float32_is_that_of_torch_bit_for_bit() -> None:
    ours, theirs = parameters(), parameters()
    take_steps(ours, AdamW([{"params": ours, "weight_decay": DECAY}], **SETTINGS))
    reference = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY, fused=True)
    take_steps(theirs, reference)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def newton_schulz_float64(matrix: Tensor) -> Tensor:
    """Jordan's iteration on the singular values alone, in float64: every step maps s to a·s + b·s^3 + c·s^5."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (32, 32), (1, 9)])
def test_newton_schulz_maps_the_singular_values_by_the_polynomial(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(matrix.double()), newton_schulz_float64(matrix), rtol=1e-9, atol=1e-9)
    error = (orthogonalize(matrix.bfloat16()).double() - newton_schulz_float64(matrix)).norm()
    assert error < 0.03 * newton_schulz_float64(matrix).norm()


def test_a_muon_step_is_that_of_torch_bit_for_bit_and_close_to_float64() -> None:
    ours, theirs, exact = parameters(), parameters(), values(0, 0.1)
    take_steps(ours, Muon(muon_groups(ours), **SETTINGS))
    take_steps(theirs, torch.optim.Muon(theirs, lr=0.02, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    for i, (shape, weight) in enumerate(zip(SHAPES, exact, strict=True)):
        start, reference, momentum = weight.double(), weight.double(), torch.zeros(shape, dtype=torch.float64)
        for number in range(1, STEPS + 1):
            new = values(number)[i].double()
            momentum = 0.95 * momentum + 0.05 * new
            direction = newton_schulz_float64(0.05 * new + 0.95 * momentum)
            reference = reference * (1 - 0.02 * DECAY) - 0.02 * 0.2 * math.sqrt(max(shape)) * direction
        assert (ours[i].double() - reference).norm() < 0.03 * (reference - start).norm()


def test_an_update_of_muon_has_the_size_of_one_of_adamw() -> None:
    """Why one learning rate serves both: root mean squares near 0.2 for a matrix of full rank."""
    draw = torch.Generator().manual_seed(0)
    for shape in [(64, 256), (256, 64), (128, 128)]:
        direction = orthogonalize(torch.randn(shape, generator=draw)) * 0.2 * math.sqrt(max(shape))
        assert direction.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


LAYOUTS: list[tuple[tuple[int, ...], list[list[Placement]]]] = [
    ((4,), [[Shard(0)]] * 5),
    ((2, 2), [[Replicate(), Shard(0)]] * 5),
    # two dimensions of ranks, as FSDP over tensor parallelism has them: blocks of rows and columns, or of rows alone
    ((2, 2), [[Shard(0), Shard(1)], [Shard(0), Shard(0)], [Shard(0), Shard(1)], [Shard(0), Shard(0)], [Shard(0), Shard(1)]]),
]


def muon_on_ranks() -> list[list[Tensor]]:
    """The parameters after STEPS steps in each of LAYOUTS, gathered."""
    results = []
    for sizes, placements in LAYOUTS:
        mesh = init_device_mesh("cpu", sizes)
        whole = zip(values(0, 0.1), placements, strict=True)
        sharded = [nn.Parameter(distribute_tensor(t, mesh, place)) for t, place in whole]
        take_steps(sharded, Muon(muon_groups(sharded), **SETTINGS))
        results.append([p.full_tensor().detach() for p in sharded if isinstance(p, DTensor)])
    return results


def test_a_muon_step_on_shards_is_the_unsharded_one_bit_for_bit() -> None:
    """Also where rows do not divide by the ranks, and some ranks hold nothing of a matrix."""
    expected = parameters()
    take_steps(expected, Muon(muon_groups(expected), **SETTINGS))
    for by_layout in run_on_ranks(muon_on_ranks, 4):
        for found in by_layout:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_step_called_off_changes_nothing() -> None:
    ours = parameters()
    groups = [*muon_groups(ours[:3]), {"params": ours[3:], "weight_decay": DECAY, "muon": False}]
    optimizer = Muon(groups, **SETTINGS)
    take_steps(ours, optimizer)
    kept = [*ours, *(t for p in ours for t in optimizer.state[p].values())]
    before = [t.detach().clone() for t in kept]
    for p in ours:
        p.grad = torch.full_like(p, math.nan)
    optimizer.step(number=STEPS + 1, skip=torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    optimizer.step(number=STEPS + 1, skip=torch.zeros(()))
    assert not any(p.isfinite().any() for p in ours), "the same step, not called off"


def state_of(trainer: Trainer) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and the optimizer's tensors, whole."""
    model = list(trainer.model.parameters())
    states = [t for p in model for _, t in sorted(trainer.optimizer.state[p].items())]
    whole = [[t.full_tensor() if isinstance(t, DTensor) else t for t in tensors] for tensors in (model, states)]
    return whole[0], whole[1]


def whole_state(argv: list[str]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """What is loaded from the newest checkpoint in each of three layouts of two processes."""
    layouts = ([], ["--parallelism.data_parallel_replicate_degree", "2"], [*TENSOR])
    results = []
    for layout in layouts:
        config, _ = load_config([*argv, *layout])
        trainer = Trainer(config, join(config), StopRequest())
        results.append(state_of(trainer))
        trainer.close()
    dist.barrier()
    return results


def test_muon_resumes_bit_for_bit_and_its_state_moves_to_any_layout(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=8)
    overrides = (*MUON, "--training.dtype", "bfloat16", "--lr_scheduler.decay_ratio", "0.0")
    parted = (*overrides, "--job.dump_folder", str(tmp_path / "parted"))
    train_here(config, *overrides)
    train_here(config, *parted, "--training.steps", "4")
    train_here(config, *parted)
    assert column(metrics(config, "parted"), "loss") == column(metrics(config), "loss")

    argv = ["--config", str(config), *parted]
    resumed, _ = load_config(argv)
    trainer = Trainer(resumed, join(resumed), StopRequest())
    model, states = state_of(trainer)
    trainer.close()
    dist.destroy_process_group()
    assert {t.dtype for t in states} == {torch.float32}
    for by_rank in run_on_ranks(whole_state, 2, argv):
        for other_model, other_states in by_rank:
            assert all(torch.equal(a, b) for a, b in zip(model, other_model, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(states, other_states, strict=True))


def test_muon_trains_alike_on_shards_and_whole(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=6)
    train_here(config, *MUON)
    one = metrics(config)
    assert one[-1]["loss"] < 0.8 * one[0]["loss"]
    train(config, *MUON, *TENSOR, "--job.dump_folder", str(tmp_path / "shards"), processes=4)
    # a rounding in the float32 gradients becomes one in bfloat16, 2^-9, wherever it crosses a border
    assert column(metrics(config, "shards"), "loss") == pytest.approx(column(one, "loss"), rel=1e-3)


def test_a_resume_with_another_optimizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path, steps=2)
    train_here(config)
    message = refusal(capsys, config, *MUON, "--training.steps", "4")
    assert "optimizer.name: checkpoint 'AdamW', this job 'Muon'" in message
    assert "checkpoint.initial_load_path" in message


class Descent(Optimizer):
    """What a plug-in might add: gradient descent."""

    @override
    def initial_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {}

    @override
    def update(self, group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        for p in group["params"]:
            moved = local(p) - group["lr"] * gradient(p)
            local(p).copy_(moved if skip is None else torch.where(skip.bool(), local(p), moved))


def test_an_optimizer_of_a_plug_in_trains_and_only_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for registered in ("_says", "_parts"):
        monkeypatch.setattr(OPTIMIZERS, registered, dict(getattr(OPTIMIZERS, registered)))
    OPTIMIZERS.add("Descent", says="gradient descent")(Descent)
    config = write_job(tmp_path, steps=8)
    train_here(config, "--optimizer.name", "Descent", "--optimizer.lr", "0.5", "--training.steps", "4")
    train_here(config, "--optimizer.name", "Descent", "--optimizer.lr", "0.5")
    losses = column(metrics(config), "loss")
    assert losses[8] < 0.9 * losses[1]
    message = refusal(capsys, config, "--training.steps", "9")
    assert "optimizer.name: checkpoint 'Descent', this job 'AdamW'" in message
