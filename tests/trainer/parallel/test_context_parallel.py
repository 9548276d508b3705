"""Keys and values are gathered over the ranks of a row, and their gradients summed and scattered, compiled or not."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.parallel.context_parallel import GatherContext
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

RANKS, BATCH, HEADS, LENGTH, DIM = 2, 2, 3, 4, 5


class Operators(TorchDispatchMode):
    """Keeps the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None) -> object:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def drawn(seed: int, tokens: int) -> Tensor:
    """Random numbers, [batch, tokens, heads, dim] in memory, handed out as [batch, heads, tokens, dim]."""
    numbers = torch.randn(BATCH, tokens, HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    return numbers.transpose(1, 2)


def gathered_on_a_rank(compiled: bool) -> tuple[Tensor, Tensor]:
    """What one rank has of the whole rows, and the gradient of its own part."""
    mesh = init_device_mesh("cpu", (RANKS,))
    gather = GatherContext(mesh)
    if compiled:
        gather.compile(backend="aot_eager", fullgraph=True)
    own = drawn(dist.get_rank(), LENGTH).requires_grad_()
    whole = gather(own)
    whole.backward(drawn(10 + dist.get_rank(), RANKS * LENGTH))
    assert own.grad is not None
    return whole.detach(), own.grad


def operators_on_a_rank() -> list[str]:
    """The operators of a gather of one row, forward and backward, whose tokens lie one after another in memory."""
    gather = GatherContext(init_device_mesh("cpu", (RANKS,)))
    own = torch.randn(1, LENGTH, HEADS, DIM).transpose(1, 2).requires_grad_()
    upstream = torch.randn(1, RANKS * LENGTH, HEADS, DIM).transpose(1, 2)
    with Operators() as operators:
        gather(own).backward(upstream)
    return operators.names


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_rows_come_whole_and_gradients_are_summed_where_they_came_from(compiled: bool) -> None:
    results = run_on_ranks(gathered_on_a_rank, RANKS, compiled)
    whole = torch.cat([drawn(rank, LENGTH) for rank in range(RANKS)], dim=2)
    summed = sum(drawn(10 + rank, RANKS * LENGTH) for rank in range(RANKS))
    assert isinstance(summed, Tensor)
    for rank, (rows, gradient) in enumerate(results):
        assert torch.equal(rows, whole)
        assert torch.equal(gradient, summed[:, :, rank * LENGTH : (rank + 1) * LENGTH])


def test_a_row_is_gathered_and_scattered_once_without_a_copy() -> None:
    for names in run_on_ranks(operators_on_a_rank, RANKS):
        views = {"aten.permute.default", "aten.transpose.int", "aten.detach.default"}
        assert [name.split(".")[1] for name in names if name not in views] == [
            "all_gather_into_tensor",
            "wait_tensor",
            "reduce_scatter_tensor",
            "wait_tensor",
        ]
