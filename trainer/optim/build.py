"""The optimizer of `[optimizer]` and its learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from ...models.lora import is_adapter
from ..config import JobConfig
from ..processes import DTYPES
from .adamw import AdamW
from .muon import Muon


def build_optimizer(model: nn.Module, config: JobConfig) -> AdamW:
    """AdamW in two groups: matrices decay, vectors (norms) do not. With Muon, the matrices of blocks are a group of its own."""
    o = config.optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}
    settings: dict[str, Any] = {
        "lr": o.lr,
        "betas": (o.beta1, o.beta2),
        "eps": o.eps,
        "implementation": o.implementation,
        "state_dtype": DTYPES[o.state_dtype],
        "seed": config.training.seed,
    }
    if o.name == "AdamW":
        return AdamW(some([{"params": matrices, "weight_decay": o.weight_decay}, vectors]), **settings)
    in_blocks = muon_matrices(model)
    others = [p for p in matrices if p not in set(in_blocks)]
    groups = [
        {"params": in_blocks, "weight_decay": o.weight_decay, "muon": True},
        {"params": others, "weight_decay": o.weight_decay, "muon": False},
        {**vectors, "muon": False},
    ]
    return Muon(some(groups), **settings)


def some(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that hold anything: all of one kind may be frozen."""
    return [group for group in groups if group["params"]]


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon trains.

    Tables are not its: their rows are looked up one by one, not multiplied as a whole (Jordan et al. 2024). Nor are adapters,
    whose two factors are not split alike.
    """
    return [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim >= 2 and name.startswith("layers.") and not is_adapter(name)
    ]


def learning_rate(config: JobConfig, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 1.

    Warmup rises linearly to the peak at `warmup_steps`; the last `decay_ratio` of the steps fall towards `min_lr_factor` of it,
    which the step after the last would have, so that the last one still teaches. Where the two overlap, the smaller holds.
    Warmup-stable-decay is Hu et al. 2024, arXiv:2404.06395; the sqrt shape Hägele et al. 2024, arXiv:2405.18392.
    """
    schedule, steps = config.lr_scheduler, config.training.steps
    warmup = step / schedule.warmup_steps if step < schedule.warmup_steps else 1.0
    decay_steps = round(schedule.decay_ratio * steps)
    progress = max(0.0, (step - 1 - (steps - decay_steps)) / decay_steps) if decay_steps else 0.0
    shape = {"linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "sqrt": 1.0 - math.sqrt(progress)}[
        schedule.decay_type
    ]
    return config.optimizer.lr * min(warmup, schedule.min_lr_factor + (1.0 - schedule.min_lr_factor) * shape)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
