"""Initial values of a decoder's parameters, the same on one device and on any parallel layout.

| parameter | value |
|---|---|
| tok_embeddings, output, score, wq, wk, wv, w1, w3 | normal, standard deviation 1 / sqrt(dim) |
| wo, w2: what a block adds to the residual stream | normal, standard deviation 1 / sqrt(dim · 2 · n_layers) |
| every norm | 1 |
| an adapter's lora_a, lora_b | uniform within ±1 / sqrt(its input's width); 0 (`lora.py`) |

The depth scaling of GPT-2 (Radford et al. 2019): after 2·n_layers additions the residual stream's variance does not depend
on depth. Its constant 0.02 is 1 / sqrt(dim) at a width of 2,500; following the width instead took the debug model (width 128)
to a loss of 1.93 after 120 steps, where 0.02 took it to 2.12. A tied table is one parameter, drawn once.

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

_MATRICES = frozenset({"tok_embeddings", "output", "score", "wq", "wk", "wv", "w1", "w3"})
_RESIDUAL_MATRICES = frozenset({"wo", "w2"})
_NORMS = frozenset({"attention_norm", "ffn_norm", "q_norm", "k_norm", "norm"})
# What torch.compile and activation checkpointing insert into the names of the modules they wrap.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


@torch.no_grad()
def init_weights(model: Decoder, seed: int, only: Collection[str] | None = None) -> None:
    """Give every parameter its initial value, in place, on the device it is on (after `to_empty` if it was on meta).

    Args:
        model: the decoder, its parameters plain or DTensors.
        seed: the run's seed. CPU and CUDA generators differ, so values agree among devices of one type.
        only: names of those to give values to; None: all.
    """
    matrix_std = 1 / math.sqrt(model.config.dim)
    residual_std = matrix_std / math.sqrt(2 * model.config.n_layers)
    for name, parameter in model.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        module, kind = name.split(".")[-2:]
        if only is not None and name not in only:
            continue
        if kind == "lora_b":
            nn.init.zeros_(parameter)
            continue
        if kind == "lora_a":
            bound = 1 / math.sqrt(parameter.shape[1])
            _fill(parameter, _blank(parameter).uniform_(-bound, bound, generator=_generator(name, parameter, seed)))
            continue
        if module in _NORMS:
            nn.init.ones_(parameter)
            continue
        assert module in _MATRICES | _RESIDUAL_MATRICES, f"no initial value is defined for {name}"
        std = residual_std if module in _RESIDUAL_MATRICES else matrix_std
        _fill(parameter, _blank(parameter).normal_(std=std, generator=_generator(name, parameter, seed)))


def _blank(like: Tensor) -> Tensor:
    """Room for the values of a whole parameter: float32, of the global shape of `like` and on its device."""
    return torch.empty(like.shape, device=like.device)


def _generator(name: str, like: Tensor, seed: int) -> torch.Generator:
    """What the values of the parameter called `name` are drawn from, on the device of `like`."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator(like.device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _fill(parameter: Tensor, whole: Tensor) -> None:
    """Copy `whole`, or this rank's shard of it, into `parameter`, rounding to its dtype."""
    if isinstance(parameter, DTensor):
        # src_data_rank None: every rank holds the same values and cuts out its own part.
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)
