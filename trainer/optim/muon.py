"""Muon: momentum, orthogonalised, for the matrices of the blocks; AdamW for everything else.

The update of a matrix is its Nesterov momentum with all singular values brought near 1 by five Newton-Schulz iterations
(Jordan et al. 2024, kellerjordan.github.io/posts/muon), in bfloat16 and with the constants of `torch.optim.Muon`. It is
scaled by 0.2·sqrt(larger side), which gives its elements the root mean square that AdamW's updates have, so that one
learning rate and one weight decay, those tuned for AdamW, serve both (Liu et al. 2025, arXiv:2502.16982, section 2.2).

Newton-Schulz needs the whole matrix, and each rank holds a block of it. Applied to DTensors, `torch.optim.Muon` would
gather every matrix for every product, on every rank. Here each matrix of a round has one owner among the ranks that
share it: an all-to-all brings the blocks to the owners, each orthogonalises its matrix, and a second all-to-all takes
them back. Per step a rank sends and receives 2 x 2 bytes per parameter it holds, and does 1 / ranks of the work; with W
ranks a round is W matrices, so that a rank holds one whole matrix at a time.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from ...models.parameters import parameters_with_kinds
from ..processes import gradient, local, offset
from .adamw import AdamW

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
UPDATE_RMS = 0.2
EPSILON = 1e-7  # of the Frobenius norm; a gradient of zeros stays zeros
Block = tuple[slice, slice]


class Muon(AdamW):
    """Groups with `"muon": True` hold matrices that are orthogonalised; the others are AdamW's.

    Args:
        groups: parameter groups, each with `weight_decay` and `muon`.
        settings: those of `Optimizer`.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.owners = Owners([p for group in self.param_groups if group["muon"] for p in group["params"]])

    @override
    @classmethod
    def groups_of(cls, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Divide what is trained into the blocks' matrices, which Muon updates, and AdamW's matrices and vectors."""
        matrices, vectors = super().groups_of(model, weight_decay)
        in_blocks = muon_matrices(model)
        others = [p for p in matrices["params"] if p not in set(in_blocks)]
        return [
            {"params": in_blocks, "weight_decay": weight_decay, "muon": True},
            {"params": others, "weight_decay": weight_decay, "muon": False},
            {**vectors, "muon": False},
        ]

    @override
    @classmethod
    def complaints(cls, model: nn.Module) -> list[str]:
        if muon_matrices(model):
            return []
        return ['optimizer.name = "Muon": it is for the matrices of the blocks, and [fine_tuning] trains none; use "AdamW"']

    @override
    def initial_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return one momentum where AdamW has two moments and a count."""
        if not group["muon"]:
            return super().initial_state(p, group)
        return {"momentum_buffer": torch.zeros_like(p, dtype=self.state_dtype)}

    @override
    def update(self, group: dict[str, Any], number: int, skip: Tensor | None) -> None:
        if not group["muon"]:
            super().update(group, number, skip)
            return
        for matrices in self.owners.rounds:
            directions = []
            for p in matrices:
                place = local(self.state[p]["momentum_buffer"])
                new = gradient(p).float()
                momentum = place.float().lerp(new, 1 - MOMENTUM)
                directions.append(new.lerp(momentum, MOMENTUM).bfloat16())
                self.keep(p, 1, place, momentum, number, skip)
            for p, direction in zip(matrices, self.owners.orthogonalize(matrices, directions), strict=True):
                weight = local(p).float() * (1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * UPDATE_RMS * math.sqrt(max(p.shape)))
                self.keep(p, 0, local(p), weight, number, skip)

    def keep(self, p: Tensor, kind: int, place: Tensor, value: Tensor, number: int, skip: Tensor | None) -> None:
        """Store the new `value` of `place`, which stays as it is where `skip` is 1."""
        if skip is not None:
            value = torch.where(skip.bool(), place.float(), value)
        self.rounding.store(place, value, (number, kind, self.places[p]))


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices that Muon trains.

    Tables are not its: their rows are looked up one by one, not multiplied as a whole (Jordan et al. 2024). Nor are
    adapters, whose two factors are not split alike.
    """
    return [p for _, p, kind in parameters_with_kinds(model) if p.requires_grad and kind.multiplies]


class Owners:
    """Which rank orthogonalises which matrix: they are assigned in rounds to the ranks that share them, one each.

    Args:
        matrices: parameters split alike, over ranks that are the whole process group together with the copies they
        have.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        self.group = sharing_group(matrices[0])
        self.rank, self.size = (0, 1) if self.group is None else (dist.get_rank(self.group), self.group.size())
        everyones: list[Any] = [[block(p) for p in matrices]] * self.size
        if self.group is not None:
            dist.all_gather_object(everyones, [block(p) for p in matrices], group=self.group)
        self.blocks: dict[Tensor, list[Block]] = dict(zip(matrices, map(list, zip(*everyones, strict=True)), strict=True))
        # matrices of one size together, so that owners do equal work
        ordered = sorted(matrices, key=lambda p: tuple(p.shape), reverse=True)
        self.rounds = [ordered[start : start + self.size] for start in range(0, len(ordered), self.size)]

    def orthogonalize(self, matrices: list[Tensor], blocks: list[Tensor]) -> list[Tensor]:
        """Orthogonalise one round.

        Args:
            matrices: the parameters of the round; the n-th is the n-th rank's.
            blocks: bfloat16, of each this rank's block of what is to be orthogonalised.

        Returns:
            The same blocks of the orthogonalised matrices.
        """
        if self.group is None:
            return [orthogonalize(whole) for whole in blocks]
        mine = matrices[self.rank] if self.rank < len(matrices) else None
        places = self.blocks[mine] if mine is not None else []
        spare = [0] * (self.size - len(matrices))
        given = [b.numel() for b in blocks] + spare
        taken = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in places] or [0] * self.size
        sent = torch.cat([b.flatten() for b in blocks])
        received = sent.new_empty(sum(taken))
        dist.all_to_all_single(received, sent, taken, given, self.group)
        if mine is not None:
            whole = received.new_empty(mine.shape)
            for place, part in zip(places, received.split(taken), strict=True):
                whole[place] = part.view_as(whole[place])
            whole = orthogonalize(whole)
            received = torch.cat([whole[place].flatten() for place in places])
        dist.all_to_all_single(sent, received, given, taken, self.group)
        return [part.view_as(b) for part, b in zip(sent.split([b.numel() for b in blocks]), blocks, strict=True)]


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values brought to about 0.7 .. 1.2, by Newton-Schulz iterations.

    X <- a·X + b·(X X^T) X + c·(X X^T)^2 X, from X of Frobenius norm 1. Five of them cost 5·(4·m^2·n + 2·m^3) FLOPs for
    m <= n.

    Args:
        matrix: [m, n] of any floating type, in which it is computed.
    """
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def block(p: Tensor) -> Block:
    """Return the rows and columns of the whole matrix that this rank holds."""
    (row, column), (rows, columns) = offset(p), local(p).shape
    return slice(row, row + rows), slice(column, column + columns)


def sharing_group(p: Tensor) -> dist.ProcessGroup | None:
    """Return the ranks that hold `p` together with this one; None: each has it whole. Every rank must call it."""
    if not isinstance(p, DTensor):
        return None
    mesh = p.device_mesh
    split = [n for n, placement in enumerate(p.placements) if not placement.is_replicate() and mesh.size(n) > 1]
    if len(split) < 2:
        return mesh.get_group(split[0]) if split else None
    assert mesh.size() == dist.get_world_size(), "all ranks make all groups"
    groups = mesh.mesh.movedim(split, list(range(-len(split), 0))).reshape(-1, math.prod(mesh.size(n) for n in split))
    mine: dist.ProcessGroup = dist.new_subgroups_by_enumeration(groups.tolist())[0]
    return mine
