"""Which losses and gradient norms are spikes: far above those of the last steps, decided on the device.

A value is a spike where it is above mean + sigma x standard deviation of a window of values before it, as in
OLMo-core's SkipStepOptimizer (github.com/allenai/OLMo-core, optim/skip_step_optimizer.py), with its defaults, 6 and
128, and like there nothing is one before the window holds half its length, and at least 20. Three things differ:

- Only what is above is a spike: a loss that falls is no reason to lose a step.
- A spike enters the window as the limit that it exceeded. Entered as it is, a spike of 100 standard deviations would
  make the deviation 9 times as large, and for the rest of the window a spike of 50 would pass. Left out, a lasting
  change of level would be refused for ever. As the limit, each widens the deviation by 13 %: after 5 steps 10
  deviations above are the new level, after 22 steps 100, after 98 steps a million.
- What is not finite never enters: one NaN would make every limit NaN for as long as it stays.
"""

import math

import torch
from torch import Tensor

from ..checkpoints import SpikeWindowState

FEWEST = 20  # values to judge by; 6 standard deviations of 20 normal ones are exceeded 6 times in a million


class SpikeWindow:
    """The last losses and gradient norms, and what the next may be.

    Args:
        sigma: standard deviations above the mean that are allowed.
        length: values that the window holds.
        device: where it is.
    """

    def __init__(self, sigma: float, length: int, device: torch.device) -> None:
        self.sigma, self.length, self.fewest = sigma, length, max(FEWEST, length // 2)
        # the newest last, so that sums over it are the same bits after a resume
        self.values = torch.zeros(2, length, device=device)
        self.filled = torch.zeros((), dtype=torch.int64, device=device)
        self.ages = torch.arange(length, 0, -1, device=device)

    def watch(self, values: Tensor) -> Tensor:
        """Judge a step's loss and norm by those before it, then remember them.

        Args:
            values: float32 [2], the loss and the gradient norm; remembered where both are finite.

        Returns:
            float32 [2]: the largest loss and norm that are no spikes; infinite where there is nothing to judge by, also
            where all values of the window are the same.
        """
        held = self.ages <= self.filled
        known = self.values.double()  # no sum of 128 float32 values is rounded in it, so equal ones have no deviation
        mean = (known * held).sum(1) / self.filled
        deviation = (((known - mean[:, None]) * held).square().sum(1) / (self.filled - 1)).sqrt()
        judged = (self.filled >= self.fewest) & (deviation > 0)
        limits = torch.where(judged, mean + self.sigma * deviation, math.inf).float()
        longer = torch.cat([self.values[:, 1:], values.minimum(limits)[:, None]], dim=1)
        finite = values.isfinite().all()
        self.values = torch.where(finite, longer, self.values)
        self.filled = (self.filled + finite).clamp(max=self.length)
        return limits

    def state(self) -> SpikeWindowState:
        """Return the values, oldest first. Waits for the device."""
        losses, norms = self.values[:, self.length - int(self.filled) :].tolist()
        return SpikeWindowState(loss=losses, grad_norm=norms)

    def load(self, state: SpikeWindowState) -> None:
        """Continue from a state, or from its newest values where the window is shorter now."""
        saved = torch.tensor([state.loss, state.grad_norm], dtype=torch.float32)[:, -self.length :]
        self.filled.fill_(saved.shape[1])
        self.values[:, self.length - saved.shape[1] :] = saved
