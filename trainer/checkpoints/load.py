"""Fill a model and its optimizer, in any layout, from a checkpoint of any other."""

import warnings
from collections.abc import Collection
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from ..errors import CheckpointError
from ..processes import local
from .dcp import CheckpointReader
from .format import Found, difference_table

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # keyed by parameter name, so that it can be resharded


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return this rank's tensors by the names that they have in a checkpoint.

    Of the optimizer only its own: its settings are the configuration's, and a resume may change them.
    """
    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in get_model_state_dict(model).items():
        memory = local(cast("Tensor", value)).data_ptr()
        if memory not in seen or not memory:  # tied parameters are one
            tensors[f"model.{name}"] = value
        seen.add(memory)
    if optimizer:
        state = get_optimizer_state_dict(model, optimizer, options=FLAT)
        tensors |= {f"optimizer.{name}": value for name, value in state.items() if name.startswith("state.")}
    return tensors


def load(
    found: Found,
    reader: CheckpointReader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    fresh: Collection[str] = (),
) -> None:
    """Fill the model, and the optimizer's state if one is given, in place.

    Any layout may have saved it, and any types: values are converted to those that are there.

    Args:
        found: the checkpoint.
        reader: of its tensors; all ranks must have one before any of them calls this.
        model: in any layout.
        optimizer: its optimizer.
        fresh: parameters that are left as they are.

    Raises:
        CheckpointError: it lacks a tensor, or one has another shape.
    """
    tensors = tensors_of(model, optimizer)
    for name in fresh:
        del tensors[f"model.{name}"]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    saved = {name: shape for name, ((_, shape), _) in reader.index.items()}
    if missing := {name: shape for name, shape in shapes.items() if saved.get(name) != shape}:
        rows = [(name, str(saved.get(name, "-")), str(shape)) for name, shape in missing.items()]
        raise CheckpointError(difference_table(found, "has other tensors", rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process, which is what is meant
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        try:
            dcp_load(tensors, storage_reader=reader, planner=planner, no_dist=not dist.is_initialized())
        except CheckpointException as e:
            reasons = [f"rank {rank}: {error}" for rank, (error, _) in e.failures.items()]
            raise CheckpointError("\n  ".join([f"{found.path}: cannot be loaded:", *reasons])) from None
