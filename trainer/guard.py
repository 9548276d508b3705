"""No step from non-finite numbers on is taken, and nobody waits to find out.

Whether the loss and the gradients' norm are finite is decided on the device: from the first step where they are not, the
optimizer changes nothing any more. The host learns of it when it waits for the device anyway, where metrics are due, before
a validation and before a checkpoint is written; then the run ends, and names the step, the rank and the gradients.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .adamw import local
from .distributed import World
from .failures import NonFiniteError
from .storage import Folder


class StepGuard:
    """What is known of the first bad step, on the device.

    Args:
        model: whose gradients are watched.
        device: where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        # step (0: none yet), loss, norm, this rank's part of the loss, the norm of this rank's part of each gradient
        self.evidence = torch.zeros(4 + len(self.names), device=device)

    def watch(self, step: int, loss: Tensor, norm: Tensor, local_loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """Look at the numbers of a step before it is taken.

        Args:
            step: counted from 1.
            loss: float32 [], of all ranks.
            norm: float32 [], of all gradients.
            local_loss: float32 [], this rank's part of the loss.
            gradients: float32 [] each, what `gradient_norm` says of this rank's part of each gradient.

        Returns:
            float32 [], on the device: 1 if this step or one before it is bad, and this one must not be taken.
        """
        known = torch.stack([torch.full_like(loss, step), loss, norm, local_loss, *gradients])
        first = (self.evidence[0] == 0) & ~known[1:3].isfinite().all()
        self.evidence = torch.where(first, known, self.evidence)
        return (self.evidence[0] > 0).float()

    def check(self, world: World, checkpoints: Folder) -> None:
        """Wait for the device and raise NonFiniteError, naming who brought it about, if a step was not taken."""
        step, loss, norm, local_loss, *gradients = self.evidence.tolist()
        if not step:
            return
        finite = torch.tensor(gradients).isfinite().tolist()
        reports = world.gather((local_loss, [name for name, fine in zip(self.names, finite, strict=True) if not fine]))
        # a rank's NaN reaches every rank's shard of the gradients, so these are only evidence when all losses are finite
        suspects = [f"rank {r}: its loss is {value}" for r, (value, _) in enumerate(reports) if not math.isfinite(value)]
        suspects = suspects or [
            f"rank {r}: {len(names)} gradients are not finite, the first {names[0]}"
            for r, (_, names) in enumerate(reports)
            if names
        ]
        raise NonFiniteError(
            "\n  ".join(
                [
                    f"step {step:.0f}: loss {loss}, gradient norm {norm}; the step was not taken, nor any since, and the last "
                    f"checkpoint in {checkpoints} is from before it",
                    *suspects,
                ]
            )
        )


def gradient_norm(parameters: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """The 2-norm of all gradients over all ranks, float32 [], and that of this rank's part of each, float32 [] each.

    In float32 whatever the gradients are: in bfloat16, which `torch.nn.utils.get_total_norm` would return, it has 3 digits.
    """
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None], 2.0, dtype=torch.float32)
    total: Any = torch.linalg.vector_norm(torch.stack(norms))
    return total.full_tensor(), [local(norm) for norm in norms]
