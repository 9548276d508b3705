"""AdamW over parameters and moments of either type, sharded or whole.

The arithmetic is torch's own fused kernel, on this rank's shards: element by element, no rank needs another's. What is
stored in bfloat16 is widened, updated and rounded one parameter at a time, so that float32 copies of no more than one
shard exist at once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from typing_extensions import override

from ..processes import gradient, local
from .optimizer import Optimizer


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    @override
    def initial_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return the state of torch.optim.AdamW, by its names; the kernel reads the count of steps on the device."""
        moments = {key: torch.zeros_like(p, dtype=self.state_dtype) for key in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}

    @override
    def update(self, group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        plain = all(p.dtype == self.state_dtype == torch.float32 for p in parameters)
        for some in [parameters] if plain else [[p] for p in parameters]:
            self.update_together(some, group, number, skip)

    def update_together(self, some: list[Tensor], group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        """Take one step of some parameters; their float32 copies are freed before those of others exist."""
        states = [self.state[p] for p in some]
        stored = [[local(t) for t in (p, s["exp_avg"], s["exp_avg_sq"])] for p, s in zip(some, states, strict=True)]
        exact = [[t.float() for t in tensors] for tensors in stored]  # float32 tensors are themselves
        adamw(
            [tensors[0] for tensors in exact],
            [gradient(p).float() for p in some],
            [tensors[1] for tensors in exact],
            [tensors[2] for tensors in exact],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=skip,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for p, places, values in zip(some, stored, exact, strict=True):
            for kind, (place, value) in enumerate(zip(places, values, strict=True)):
                self.rounding.store(place, value, (number, kind, self.places[p]))
