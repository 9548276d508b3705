"""Low-rank adapters beside linear layers, trained in place of their weights (Hu et al. 2021, arXiv:2106.09685).

    y = x Wᵀ + (alpha / rank) · (x Aᵀ) Bᵀ          W [out, in] as it was, A [rank, in], B [out, rank]

A begins as the reference implementation (microsoft/LoRA) draws it, uniform within ±1/sqrt(in), and B as zeros, so that
an adapted model begins as the model it adapts. The layer stays an nn.Linear whose weight keeps its name: checkpoints of
the model without adapters fit, and whatever is applied to linear layers by name finds it.
"""

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .parameters import Kind

ADAPTERS = ("lora_a", "lora_b")


class LoraLinear(nn.Linear):
    """A linear layer and its adapter.

    Args:
        base: the layer to adapt; its weight and bias are taken over, not copied.
        rank: inner width of the adapter.
        alpha: the adapter counts alpha / rank times.
    """

    kinds: ClassVar[dict[str, Kind]] = {"lora_a": Kind.ADAPTER_A, "lora_b": Kind.ADAPTER_B}

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # within ±1/sqrt(in)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        y: Tensor = F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)
        return y


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the weight of a plain layer equal to an adapted one: `weight + scale · b a`, float32 [out, in]."""
    return weight.float().addmm(b.float(), a.float(), alpha=scale)


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name is one of an adapter's two."""
    return name.endswith(ADAPTERS)
