"""Keeping float32 results in bfloat16 without bias.

Next to a weight of 0.1, bfloat16 numbers lie 5e-4 apart: rounding to the nearest drops every update below half of that, so at
small learning rates nothing is learnt. Stochastic rounding takes the neighbour above with a probability that is the share of
the gap covered, so that its expectation is the float32 value and small updates arrive on average (Zamirai et al. 2020,
arXiv:2010.06192; Ozkara et al. 2025, arXiv:2502.20566).
"""

import hashlib

import torch
from torch import Tensor


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
