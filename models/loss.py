"""The output projection fused with its cross-entropy: full-vocabulary logits of the batch are never stored.

Tokens go through in chunks (`chunk_length`), whose logits live until their losses and gradients are known:

    logits = hidden · weightᵀ                                       compute dtype
    loss   = w · (logsumexp(logits) - logits[label])                float32
    g      = w · (softmax(logits) - onehot(label))                  float32, rounded to the compute dtype
    hidden.grad = g · weight,   weight.grad += gᵀ · hidden          weight.grad in float32

Gradients are taken in the forward pass, where the logits are at hand. That is exact whenever the caller sums the
losses, since the sum's upstream gradient is one number s, which multiplies them in the backward pass; weights of
targets belong inside for this reason. Other upstream gradients, one number per token, enter the sum over tokens in
weight.grad and could only come too late: then the chunks are computed again. Summing saves that quarter of the head's
products, 7 % of a step of llama3_1b. Which case it is shows in the strides: autograd hands the gradient of a sum down
as one number, expanded.

A weight that is frozen has no weight.grad, and that quarter of the head's products is saved.

With the vocabulary sharded over a tensor-parallel group, each rank computes its columns, and one all-gather of two
numbers per token and rank completes logsumexp and the label's logit; hidden.grad is summed over ranks.

Why not `torch.nn.functional.linear_cross_entropy` (2.13 and later): its losses per token have the dtype of hidden, and
in bfloat16 a loss near 11 comes in steps of 1/16; its `reduction="none"` always computes logits twice; by default its
weight gradient is rounded to bfloat16 after each chunk on CUDA, and a chunk at these widths is 2 tokens of 1,024, which
took tens of times as long on a CPU; it does not know of a sharded vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

IGNORE = -100  # label of a position without a target
# Logits of a chunk where nothing else is asked for, by where they are. On CUDA 0.5 GB in bfloat16: 2,093 tokens at a
# vocabulary of 128,256. A chunk reads and writes the float32 gradient of the weight once, 8 bytes per element against
# 6 · tokens FLOPs, so at 4.8 TB/s and 700 TFLOP/s 2,093 tokens add 9 % to the head, and 8,192 tokens 2 %. On a CPU
# 32 MB in float32: from 32 to 512 tokens a chunk the time stayed the same, and memory is what chunks are for. A Mac's
# GPU, on which `open_model` may put a model, shares the memory of its CPU.
CHUNK_LOGITS = {"cuda": 2**28, "cpu": 2**23, "mps": 2**23}


class VocabularyShard(NamedTuple):
    """A rank's columns of the vocabulary: `first` and as many as its weight has; `group` holds all of them."""

    first: int
    group: dist.ProcessGroup | None


class Output(nn.Linear):
    """The output projection, to logits or, given labels, straight to losses.

    Its `forward` is the only place that reads the weight, as FSDP2 has it whole only within.

    Args:
        dim: width of the hidden states.
        vocab_size: number of logits.
    """

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__(dim, vocab_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        compiled: bool = False,
        chunk: int = 0,
    ) -> Tensor:
        """Return logits [batch, seq_len, vocab_size], whole on every rank, or what `linear_cross_entropy` returns.

        Args:
            hidden: [batch, seq_len, dim]; a DTensor in any layout where the weight is one.
            labels: int64 [batch, seq_len], IGNORE where there is no target; None: logits are wanted.
            weights: float32 [batch, seq_len] of each target; None: all 1.
            compiled: see `linear_cross_entropy`.
            chunk: likewise.
        """
        if labels is not None:
            return linear_cross_entropy(hidden, self.weight, labels, weights, compiled=compiled, chunk=chunk)
        if isinstance(hidden, DTensor):
            hidden = hidden.redistribute(placements=[Replicate()])
        logits = F.linear(hidden, self.weight)
        return logits.full_tensor() if isinstance(logits, DTensor) else logits


class Kernels(NamedTuple):
    """What happens to a chunk's logits between the matrix products; elementwise work that fusing makes cheaper."""

    statistics: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None = None, *, compiled: bool = False, chunk: int = 0
) -> Tensor:
    """Return cross-entropy (nats) of every position under logits `hidden · weightᵀ`, times its weight.

    Sum the result for the gradient: any other use is right too, but computes the logits a second time in the backward
    pass.

    Args:
        hidden: [batch, seq_len, dim]; where `weight` is a DTensor, a DTensor on the same mesh in any layout.
        weight: [vocab, dim], of the dtype of `hidden`; a DTensor sharded evenly along the vocabulary in a
            one-dimensional mesh.
        labels: int64 [batch, seq_len], IGNORE where there is no target; the same on all ranks of the mesh.
        weights: float32 [batch, seq_len] of each target, without gradient; None: all 1.
        compiled: whether the work between matrix products is fused by torch.compile: one compilation for all shapes.
        chunk: tokens at most whose logits are in memory at once; 0: as many as make `CHUNK_LOGITS`.

    Returns:
        float32 [batch, seq_len], 0 where there is no target (float64 for float64 inputs).
    """
    shard = VocabularyShard(0, None)
    if isinstance(weight, DTensor):
        assert isinstance(hidden, DTensor)
        mesh = weight.device_mesh
        # its own columns give a rank a part of hidden's gradient: the sum over ranks is scattered back to hidden's
        # layout
        hidden = hidden.redistribute(mesh, [Replicate()]).to_local(grad_placements=[Partial()])
        weight = weight.to_local()
        shard = VocabularyShard(mesh.get_local_rank() * len(weight), mesh.get_group())
    target_weights = (labels != IGNORE).to(_accumulator(hidden))
    if weights is not None:
        target_weights *= weights
    run = functools.partial(_run, shard=shard, kernels=_compiled() if compiled else EAGER, chunk=chunk)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        losses: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, target_weights, run)
        return losses
    return run(hidden, weight, labels, target_weights, gradients=False)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """`_run` with gradients, see the head of the file."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, run: Callable[..., Any]) -> Tensor:
        losses: Tensor
        run = functools.partial(run, of_weight=ctx.needs_input_grad[1])
        losses, *gradients = run(hidden, weight, labels, weights)
        ctx.save_for_backward(hidden, weight, labels, weights, *gradients)
        ctx.run = run
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, weights, of_hidden, of_weight = ctx.saved_tensors
        scale = upstream[0, 0]
        if any(upstream.stride()):
            _, of_hidden, of_weight = ctx.run(hidden, weight, labels, weights * upstream)
            scale = torch.ones_like(scale)
        if of_weight is not None:
            # into the weight's dtype at once: a float32 product of its own would be as large as the gradient
            of_weight = torch.mul(of_weight, scale, out=torch.empty_like(weight))
        return of_hidden * scale, of_weight, None, None, None


def _run(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    shard: VocabularyShard,
    kernels: Kernels,
    chunk: int,
    gradients: bool = True,
    of_weight: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return losses float32 [batch, seq_len], and gradients of their sum: `hidden`'s in its dtype, `weight`'s float32.

    Without `gradients` neither is taken, without `of_weight` that of `hidden` alone.
    """
    tokens = hidden.flatten(0, 1)
    labels, weights = labels.flatten(), weights.flatten()
    losses = weights.new_empty(hidden.shape[:-1])
    each = losses.view(-1)  # the base is what is returned: FSDP2 warns of views
    of_hidden = torch.empty_like(tokens) if gradients else None
    weight_gradient = torch.zeros_like(weight, dtype=weights.dtype) if gradients and of_weight else None
    step = chunk_length(len(tokens), len(weight), hidden.device.type, chunk)
    for start in range(0, len(tokens), step):
        at = slice(start, start + step)
        logits = tokens[at] @ weight.T
        lse, target = kernels.statistics(logits, labels[at], shard.first)
        if shard.group is not None:
            lse, target = _over_ranks(lse, target, shard.group)
        # not by multiplication alone: 0 times a loss that is not finite would be NaN
        each[at] = torch.where(weights[at] == 0, 0, (lse - target) * weights[at])
        if of_hidden is not None:
            g = kernels.gradient(logits, lse, target, labels[at], weights[at], shard.first)
            torch.mm(g, weight, out=of_hidden[at])
            if weight_gradient is not None:
                _accumulate(weight_gradient, g.T, tokens[at])
            del g
        del logits  # or they would be there beside those of the next chunk
    return losses, None if of_hidden is None else of_hidden.view_as(hidden), weight_gradient


def chunk_length(tokens: int, columns: int, device: str, most: int) -> int:
    """Return the tokens of a chunk, by shapes alone: sums depend on it, and a resume must take them alike.

    Chunks are as equal as can be, so that there are two shapes at most.

    Args:
        tokens: of a micro-batch on one rank.
        columns: of the vocabulary on one rank.
        device: its type, of those in `CHUNK_LOGITS`.
        most: tokens of a chunk at most; 0: as many as make `CHUNK_LOGITS`.
    """
    chunks = -(-tokens // most) if most else -(-tokens * columns // CHUNK_LOGITS[device])
    return -(-tokens // chunks)


def _statistics(logits: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return logsumexp and the label's logit per row of `logits` [tokens, columns]; 0 if it is on another rank."""
    column, mine = _columns(logits, labels, first)
    target = logits.gather(1, column)[:, 0].to(_accumulator(logits))
    return logits.to(_accumulator(logits)).logsumexp(1), torch.where(mine, target, 0)


def _gradient(logits: Tensor, lse: Tensor, target: Tensor, labels: Tensor, weights: Tensor, first: int) -> Tensor:
    """Return the gradient of the weighted losses for `logits` [tokens, columns], in their dtype; may overwrite them."""
    column, mine = _columns(logits, labels, first)
    g = logits.to(lse.dtype).sub_(lse[:, None]).exp_().mul_(weights[:, None]).to(logits.dtype)
    # p - 1 before rounding: in bfloat16 every p above 0.998 is 1, and nearly learnt targets would have no gradient
    of_target = ((target - lse).exp() - 1) * weights
    return g.scatter_(1, column, torch.where(mine, of_target.to(g.dtype), g.gather(1, column)[:, 0])[:, None])


EAGER = Kernels(_statistics, _gradient)


@functools.cache
def _compiled() -> Kernels:
    """Return the kernels fused: compiled once whatever the row's length, as the number of tokens is dynamic."""

    def fuse(kernel: Callable[..., Any]) -> Callable[..., Any]:
        fused = torch.compile(kernel)

        def call(*args: Tensor | int) -> Any:
            for tensor in args:
                if isinstance(tensor, Tensor):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return fused(*args)

        return call

    return Kernels(fuse(_statistics), fuse(_gradient))


def _columns(logits: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return each label's column in this rank's `logits`, clamped, int64 [tokens, 1]; and whether it is here, bool."""
    column = labels - first
    last = logits.shape[1] - 1
    return column.clamp(0, last)[:, None], (column >= 0) & (column <= last)


def _over_ranks(lse: Tensor, target: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return the logsumexp and label's logit over all columns, from those over each rank's."""
    mine = torch.stack((lse, target))
    ranks = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(ranks, mine, group=group)
    parts, targets = torch.stack(ranks).unbind(1)
    return parts.logsumexp(0), targets.sum(0)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, in place, `total` in float32 although the factors may be bfloat16."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:  # the tensor cores' own float32 sums, never rounded
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _accumulator(x: Tensor) -> torch.dtype:
    """float32, in which softmax is taken and losses are summed; float64 for float64, so that tests can be exact."""
    return torch.promote_types(x.dtype, torch.float32)
