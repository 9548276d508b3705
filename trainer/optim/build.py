"""The optimizer of `[optimizer]`, and the learning rate of each step by `[lr_scheduler]`."""

import math
from typing import Any

import torch
from torch import nn

from ..config import OPTIMIZERS, JobConfig
from ..processes import DTYPES
from .optimizer import Optimizer


def build_optimizer(model: nn.Module, config: JobConfig) -> Optimizer:
    """Build the optimizer that `optimizer.name` chooses, for what is trained of `model`."""
    o = config.optimizer
    chosen: type[Optimizer] = OPTIMIZERS[o.name]
    groups = [group for group in chosen.groups_of(model, o.weight_decay) if group["params"]]  # all of a kind may be frozen
    settings: dict[str, Any] = {"lr": o.lr, "betas": (o.beta1, o.beta2), "eps": o.eps, "seed": config.training.seed}
    return chosen(groups, state_dtype=DTYPES[o.state_dtype], **settings)


def optimizer_complaints(config: JobConfig, model: nn.Module) -> list[str]:
    """Return why the optimizer of `optimizer.name` cannot train `model`, which may be on the meta device."""
    chosen: type[Optimizer] = OPTIMIZERS[config.optimizer.name]
    return chosen.complaints(model)


def learning_rate(config: JobConfig, step: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1.

    Warmup rises linearly to the peak at `warmup_steps`; the last `decay_ratio` of the steps fall towards
    `min_lr_factor` of it, which the step after the last would have, so that the last one still teaches. Where the two
    overlap, the smaller holds. Warmup-stable-decay is Hu et al. 2024, arXiv:2404.06395; the sqrt shape Hägele et al.
    2024, arXiv:2405.18392.
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
