"""Initial values of a decoder's parameters, the same on one device and on any parallel layout.

| kind of parameter | value |
|---|---|
| matrix, embedding (also the output projection and a head) | normal, standard deviation 1 / sqrt(dim) |
| residual matrix: what a block adds to the residual stream | normal, standard deviation 1 / sqrt(dim · 2 · n_layers) |
| norm | 1 |
| bias | 0 |
| the two factors of an adapter | uniform within ±1 / sqrt(its input's width); 0 (`lora.py`) |

`parameters.py` says which kind each parameter is of.

The depth scaling of GPT-2 (Radford et al. 2019): after 2·n_layers additions the residual stream's variance does not
depend on depth. Its constant 0.02 is 1 / sqrt(dim) at a width of 2,500; following the width instead took the debug
model (width 128) to a loss of 1.93 after 120 steps, where 0.02 took it to 2.12. A tied table is one parameter, drawn
once.

Each parameter is drawn whole from a generator of its own, seeded by the run's seed and the parameter's name, and every
rank keeps its shard. So values depend neither on how parameters are split nor on which others a rank holds, and
nothing is communicated. The cost is one whole parameter of scratch memory at a time: 4.2 GB for llama3_70b's table.
"""

import hashlib
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .decoder import Decoder
from .parameters import Kind, parameters_with_kinds


@torch.no_grad()
def init_weights(model: Decoder, seed: int, only: Collection[str] | None = None) -> None:
    """Give every parameter its initial value, in place, on the device it is on (after `to_empty` if it was on meta).

    Args:
        model: the decoder, its parameters plain or DTensors.
        seed: the run's seed. CPU and CUDA generators differ, so values agree among devices of one type.
        only: names of those to give values to; None: all.

    Raises:
        AssertionError: a parameter is of no known kind.
    """
    matrix_std = 1 / math.sqrt(model.config.dim)
    residual_std = matrix_std / math.sqrt(2 * model.config.n_layers)
    for name, parameter, kind in parameters_with_kinds(model):
        if only is not None and name not in only:
            continue
        if kind is Kind.NORM:
            nn.init.ones_(parameter)
        elif kind in (Kind.BIAS, Kind.ADAPTER_B):
            nn.init.zeros_(parameter)
        elif kind is Kind.ADAPTER_A:
            bound = 1 / math.sqrt(parameter.shape[1])
            _fill(parameter, _blank(parameter).uniform_(-bound, bound, generator=_generator(name, parameter, seed)))
        else:
            std = residual_std if kind is Kind.RESIDUAL_MATRIX else matrix_std
            _fill(parameter, _blank(parameter).normal_(std=std, generator=_generator(name, parameter, seed)))


def _blank(like: Tensor) -> Tensor:
    """Return the room for the values of a whole parameter: float32, of the global shape of `like` and on its device."""
    return torch.empty(like.shape, device=like.device)


def _generator(name: str, like: Tensor, seed: int) -> torch.Generator:
    """Return what the values of the parameter called `name` are drawn from, on the device of `like`."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator(like.device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _fill(parameter: Tensor, whole: Tensor) -> None:
    """Copy `whole`, or this rank's shard of it, into `parameter`, rounding to its dtype."""
    if isinstance(parameter, DTensor):
        # src_data_rank None: every rank holds the same values and cuts out its own part.
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)
