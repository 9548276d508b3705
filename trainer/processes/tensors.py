"""This rank's part of tensors that several ranks share, and torch's types by their names in the TOML."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, on every rank; where it is split or summed over ranks, all of them must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradient(p: Tensor) -> Tensor:
    """Return this rank's shard of the gradient of `p`, which is split as `p` itself is."""
    assert p.grad is not None
    assert not isinstance(p, DTensor) or (isinstance(p.grad, DTensor) and p.grad.placements == p.placements)
    return local(p.grad)


def offset(p: Tensor) -> tuple[int, ...]:
    """Return where in the whole parameter this rank's shard begins: the same for copies, different for shards."""
    if not isinstance(p, DTensor):
        return (0,) * p.ndim
    return tuple(compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)[1])
