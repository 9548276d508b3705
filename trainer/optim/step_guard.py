"""Steps that must not be taken: those with non-finite numbers and, by `[skip_step]`, spikes. The host does not wait.

Whether the loss and the gradients' norm are finite, and whether they are spikes (`spikes.py`), is decided on the device
from numbers that all ranks have alike; where a step is called off, the optimizer changes nothing. The host learns of it
when it waits for the device anyway, where metrics are due, before a validation and before a checkpoint is written, and
says so. After `training.max_nonfinite_steps` non-finite ones in a row no step is taken any more, and there the run
ends.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..checkpoints import GuardState
from ..config import JobConfig
from ..errors import NonFiniteError
from ..processes import World, local, whole
from .spikes import SpikeWindow


class StepGuard:
    """What is known of the steps that were not taken, on the device.

    Args:
        model: whose gradients are watched.
        config: what to call off, and how often.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, config: JobConfig, device: torch.device) -> None:
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.most = config.training.max_nonfinite_steps
        skip = config.skip_step
        self.window = SpikeWindow(skip.sigma, skip.window, device) if skip.enable else None
        self.no_limits = torch.full((2,), math.inf, device=device)
        # non-finite steps so far, spikes so far, non-finite steps in a row up to now, the last step of either kind
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)
        # Of the first step of the last non-finite ones in a row: its number (0: none was seen), loss, norm, this rank's
        # part of the loss, the norm of this rank's part of each gradient. Of the last spike: its number, loss, norm,
        # limits of the two.
        self.evidence = torch.zeros(4 + len(self.names), device=device)
        self.spike = torch.zeros(5, device=device)
        self.told = (0, 0)  # non-finite steps and spikes that have been reported

    @property
    def skipped(self) -> Tensor:
        """Number of steps of the run that were not taken, int64 []."""
        return self.counts[:2].sum()

    def watch(self, step: int, loss: Tensor, norm: Tensor, local_loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """Look at the numbers of a step before it is taken.

        Args:
            step: counted from 1.
            loss: float32 [], of all ranks, the same bits on each.
            norm: float32 [], of all gradients, likewise.
            local_loss: float32 [], this rank's part of the loss.
            gradients: float32 [] each, what `gradient_norm` says of this rank's part of each gradient.

        Returns:
            float32 [], on the device: 1 if this step must not be taken.
        """
        number, values = torch.full_like(loss, step), torch.stack([loss, norm])
        limits = self.window.watch(values) if self.window else self.no_limits
        bad = ~values.isfinite().all()
        spike = ~bad & (values > limits).any()
        nonfinite, spikes, in_a_row, last = self.counts.unbind()
        over = in_a_row >= self.most
        first = bad & ~over & ((in_a_row == 0) | (self.evidence[0] == 0))
        self.evidence = torch.where(first, torch.stack([number, *values, local_loss, *gradients]), self.evidence)
        self.spike = torch.where(spike, torch.cat([number[None], values, limits]), self.spike)
        in_a_row = torch.where(over, in_a_row, (in_a_row + 1) * bad)
        last = torch.where(bad | spike, step, last)
        self.counts = torch.stack([nonfinite + bad, spikes + spike, in_a_row, last])
        return (over | bad | spike).float()

    def check(self, world: World, checkpoints: str) -> str:
        """Wait for the device, and say which steps were not taken since the last time, the same on every rank.

        Args:
            world: whose ranks report their part in it.
            checkpoints: what to go on from when the run ends.

        Returns:
            The message; empty if all were taken.

        Raises:
            NonFiniteError: there have been too many non-finite steps in a row.
        """
        nonfinite, spikes, in_a_row, last = self.counts.tolist()
        new = (nonfinite - self.told[0], spikes - self.told[1])
        self.told = (nonfinite, spikes)
        if in_a_row >= self.most:
            what, *suspects = self.explain(world)
            ending = f"none was taken, nor any step since, and no checkpoint in {checkpoints} has anything of them"
            row = f"non-finite steps in a row: {self.most}, as many as training.max_nonfinite_steps"
            raise NonFiniteError("\n  ".join([f"{what}; {row}; {ending}", *suspects]))
        lines = self.explain(world) if new[0] else []
        if new[1]:
            step, loss, norm, loss_limit, norm_limit = self.spike.tolist()
            lines.append(
                f"step {step:.0f}: loss {loss:.6g} (limit {loss_limit:.6g}), gradient norm {norm:.6g} (limit {norm_limit:.6g})"
            )
        if not lines:
            return ""
        kinds = [f"{n} {kind}" for n, kind in zip(new, ("not finite", "above a limit of [skip_step]"), strict=True) if n]
        return "\n  ".join([f"{sum(new)} step(s) not taken, the last of them step {last}: {', '.join(kinds)}", *lines])

    def explain(self, world: World) -> list[str]:
        """Describe the first of the last non-finite steps in a row, and the ranks that caused it; all must call it."""
        step, loss, norm, local_loss, *gradients = self.evidence.tolist()
        finite = torch.tensor(gradients).isfinite().tolist()
        reports = world.gather((local_loss, [name for name, fine in zip(self.names, finite, strict=True) if not fine]))
        # a rank's NaN reaches every rank's shard of the gradients, so these are only evidence when all losses are
        # finite
        suspects = [f"rank {r}: its loss is {value}" for r, (value, _) in enumerate(reports) if not math.isfinite(value)]
        suspects = suspects or [
            f"rank {r}: {len(names)} gradients are not finite, the first {names[0]}"
            for r, (_, names) in enumerate(reports)
            if names
        ]
        return [f"step {step:.0f}: loss {loss}, gradient norm {norm}", *suspects]

    def state(self) -> GuardState:
        """Return all that later decisions depend on, the same on every rank. Waits for the device."""
        nonfinite, spikes, in_a_row, last = self.counts.tolist()
        window = self.window.state() if self.window else None
        return GuardState(nonfinite=nonfinite, spikes=spikes, nonfinite_in_a_row=in_a_row, last_skipped=last, window=window)

    def load(self, state: GuardState) -> None:
        """Continue from a state. The settings may be others: a window that is not kept any more is dropped."""
        self.told = (state.nonfinite, state.spikes)
        in_a_row = min(state.nonfinite_in_a_row, self.most - 1)  # a lower limit is met by the next step, not by past ones
        self.counts.copy_(torch.tensor([*self.told, in_a_row, state.last_skipped]))
        if self.window and state.window:
            self.window.load(state.window)


def gradient_norm(parameters: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """Return the 2-norm of all gradients over all ranks, float32 [], and of this rank's part of each, float32 [] each.

    In float32 whatever the gradients are: in bfloat16, which `torch.nn.utils.get_total_norm` would return, it has 3
    digits.
    """
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None], 2.0, dtype=torch.float32)
    total = torch.linalg.vector_norm(torch.stack(norms))
    return whole(total), [local(norm) for norm in norms]


def clip_gradients(parameters: list[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale this rank's part of all gradients by one factor, so that their norm is at most `max_norm`.

    As `torch.nn.utils.clip_grads_with_norm_` does, without DTensor's rules for lists of tensors, which take half a
    second of a core at the first step of two small blocks, and longer with more.

    Args:
        parameters: Those without a gradient are passed over.
        norm: of all gradients over all ranks, float32 [], on the device.
        max_norm: the greatest that stays as it is.
    """
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))


def reduce_losses(losses: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Sum `losses`, float32 [n], over all ranks, and give all of them one `norm`, float32 [], in the same all-reduce.

    It is rank 0's, or not finite where that of any rank is not. Copies of the model may have summed the same gradients
    in other orders, and a last bit must not make one of them take a step that another one calls off.
    """
    of_one = norm if dist.get_rank() == 0 else torch.where(norm.isfinite(), 0.0, norm)
    summed = torch.cat([losses, of_one[None]])
    dist.all_reduce(summed)
    return summed[:-1], summed[-1]
