"""AdamW over parameters and moments of either type, sharded or whole.

The arithmetic is torch's own, on this rank's shards: element by element, no rank needs another's. What is stored in bfloat16
is widened, updated in float32 and rounded stochastically (`rounding.py`), one parameter at a time, so that float32 copies of
no more than one shard exist at once.

A step can be called off on the device, by a flag that the host never reads: a non-finite step must not be taken, and asking
would make every step wait for the device.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..processes import gradient, local, offset


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    The state exists from the start, so that a checkpoint can be loaded into it in place.

    Args:
        groups: parameter groups, each with a `weight_decay`.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the denominator.
        implementation: `fused`, `foreach` or `for-loop`, as torch has them.
        state_dtype: of the moments.
        seed: of the rounding where anything is stored in bfloat16.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        implementation: str,
        state_dtype: torch.dtype,
        seed: int,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.fused, self.foreach, self.state_dtype = implementation == "fused", implementation == "foreach", state_dtype
        parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        self.rounding = Rounding(seed, parameters[0].device)
        self.places = {p: (number, offset(p)) for number, p in enumerate(parameters)}
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = self.initial_state(p, group)

    def initial_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Zeros, named as torch.optim.AdamW names them. The count of steps is where the implementation reads it."""
        step = torch.zeros((), dtype=torch.float32, device=p.device if self.fused else "cpu")
        moments = {key: torch.zeros_like(p, dtype=self.state_dtype) for key in ("exp_avg", "exp_avg_sq")}
        return {"step": step, **moments}

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, number: int = 0, skip: Tensor | None = None
    ) -> None:
        """Take one step.

        Args:
            closure: never used; torch's interface has it.
            number: of the step in the run, which decides how it is rounded.
            skip: float32 [], on the device; where it is 1 nothing changes. Only `fused` does without reading it.
        """
        assert closure is None
        if skip is not None and not self.fused and bool(skip):
            return
        for group in self.param_groups:
            self.update(group, number, skip)

    def update(self, group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        """One step of one group."""
        parameters = [p for p in group["params"] if p.grad is not None]
        plain = all(p.dtype == self.state_dtype == torch.float32 for p in parameters)
        for some in [parameters] if plain else [[p] for p in parameters]:
            self.update_together(some, group, number, skip)

    def update_together(self, some: list[Tensor], group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        """One step of some parameters; their float32 copies go with this call, before there are those of others."""
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
            fused=self.fused,
            foreach=self.foreach,
            found_inf=skip if self.fused else None,
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


class Rounding:
    """Stores float32 values; where the place is bfloat16, by draws that are a function of the seed and what they are for.

    Args:
        seed: of all draws.
        device: where the tensors are.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.generator = torch.Generator(device)

    def store(self, place: Tensor, value: Tensor, purpose: object) -> None:
        """Write `value` to `place`.

        Args:
            place: float32 or bfloat16.
            value: float32, of the same shape; used up.
            purpose: the same on ranks that hold copies and different everywhere else, for its text seeds the draws.
        """
        if place.dtype == torch.float32:
            if place is not value:
                place.copy_(value)
            return
        digest = hashlib.blake2b(f"{self.seed}/{purpose}".encode(), digest_size=8).digest()
        self.generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        # A bfloat16 number is a float32 one whose low 16 bits are zero: noise below them carries into the next number.
        bits = value.view(torch.int32)
        noise = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=self.generator)
        bits.add_(noise).bitwise_and_(-(1 << 16))
        place.copy_(value)
