"""AdamW and its learning-rate schedule."""

import math

import torch
from torch import nn

from .config import JobConfig


def build_optimizer(model: nn.Module, config: JobConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices decay, vectors (norms) do not. Fused, which torch has for CPU and CUDA alike."""
    o = config.optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": o.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)


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
