"""What all optimizers share: groups, a state that exists from the start, steps called off on the device, rounding.

What is stored in bfloat16 is widened, updated in float32 and rounded stochastically (`Rounding`). A step can be called
off by a flag on the device, which the host never reads: a step with non-finite numbers must not be taken, and a
question to the device would make every step wait for it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...models.parameters import parameters_with_kinds
from ..processes import offset


class Optimizer(torch.optim.Optimizer, ABC):
    """Base of the optimizers that `optimizer.name` chooses from; a plug-in derives its own and adds it to `OPTIMIZERS`.

    The state exists from the start, so that a checkpoint can be loaded into it in place.

    Args:
        groups: parameter groups, as `groups_of` makes them.
        lr: learning rate.
        betas: `optimizer.beta1` and `optimizer.beta2`, decays of the two moments.
        eps: added to the denominator.
        state_dtype: of the moments, float32 or bfloat16.
        seed: of the rounding where anything is stored in bfloat16.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        state_dtype: torch.dtype,
        seed: int,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.state_dtype = state_dtype
        parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        self.rounding = Rounding(seed, parameters[0].device)
        self.places = {p: (number, offset(p)) for number, p in enumerate(parameters)}
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = self.initial_state(p, group)

    @classmethod
    def groups_of(cls, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Divide what is trained into what decays (matrices) and what does not (norms, biases); both may be empty."""
        trained = [(p, kind.decays) for _, p, kind in parameters_with_kinds(model) if p.requires_grad]
        return [
            {"params": [p for p, decays in trained if decays], "weight_decay": weight_decay},
            {"params": [p for p, decays in trained if not decays], "weight_decay": 0.0},
        ]

    @classmethod
    def complaints(cls, model: nn.Module) -> list[str]:
        """Return why this optimizer cannot train `model`: a line for each reason, which begins with a TOML key."""
        return []

    @abstractmethod
    def initial_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return the state of one parameter by name: tensors of `state_dtype`, split over ranks as the parameter is."""

    @abstractmethod
    def update(self, group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        """Take one step of one group, in place, with the gradients that its parameters have.

        Args:
            group: with `params`, `lr` and what else it was made with.
            number: of the step in the run.
            skip: float32 [], on the device; where it is 1 nothing may change. Must not be read by the host.
        """

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, number: int = 0, skip: Tensor | None = None
    ) -> None:
        """Take one step.

        Args:
            closure: never used; torch's interface has it.
            number: of the step in the run, which decides how it is rounded.
            skip: float32 [], on the device; where it is 1 nothing changes.
        """
        assert closure is None
        for group in self.param_groups:
            self.update(group, number, skip)


class Rounding:
    """Stores float32 values; in bfloat16 by draws that are a function of the seed and of their purpose.

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
