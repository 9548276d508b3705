"""Part `attention`: every executor on this device against dense attention in float64, forward and gradients.

The reference states the rule itself, pair by pair, and uses nothing of `models/attention`: a rule that is wrong there
is wrong here. Errors are relative to the largest number of the reference, which is computed once for all executors.
"""

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...models.attention import DocumentMask, attend_in_regions, executor_complaints, flash_facts, flash_obstacles
from ...models.config import AttentionConfig, Executor
from ...models.positions import reaches
from .examination import Examination, in_short

# Largest errors that are rounding: measured 1e-6 in float32 on a CPU; bfloat16 rounds each number to 1 part in 256.
MOST = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
WINDOWS = (
    AttentionConfig(mask="sliding", window=37),
    AttentionConfig(mask="lambda", window=37, sinks=3),
    AttentionConfig(position_map="rerope", map_window=37),
    AttentionConfig(position_map="distance_cap", map_window=37, sinks=3),
)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        executor: which kernel.
        lengths: documents of each row; the rest of the longest row's length is padding.
        seq_len: tokens of a row.
        head_dim: width of a head.
        causal: whether a token sees its past alone.
        attention: window or position map.
        dtype: of queries, keys, values.
        compiled: whether torch.compile takes the call.
        flash: whether flex is to take the kernels of FlashAttention 4.
    """

    executor: Executor
    lengths: tuple[tuple[int, ...], ...]
    seq_len: int
    head_dim: int
    causal: bool
    attention: AttentionConfig
    dtype: torch.dtype
    compiled: bool = False
    flash: bool = False


def examine(e: Examination) -> None:
    """Compare every executor that there is; a line for each with its largest error over all lengths."""
    for kind, cases in e.share(kinds(e)):
        try:
            compare(e, kind, cases)
        except Exception as error:  # whatever a kernel or its compiler raises: the other kernels are still of interest
            e.find(kind, "wrong", compared_with=in_short(error))


def kinds(e: Examination) -> Iterator[tuple[str, list[Case]]]:
    """Return groups of cases, each with its name."""
    executors: tuple[Executor, ...] = ("sdpa", "flex", "varlen")
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for executor in executors:
            if executor == "varlen" and e.on_gpu and dtype == torch.float32:
                e.find(f"varlen {name}", "not here", compared_with="flash attention computes in 16 bits")
                continue
            for head_dim in (64, 128):
                for causal in (True, False):
                    cases = [
                        Case(executor, lengths, seq_len, head_dim, causal, AttentionConfig(), dtype)
                        for lengths, seq_len in rows(e.on_gpu)
                    ]
                    yield f"{executor} {name}, head_dim {head_dim}, {'causal' if causal else 'full'}", cases
            if executor != "varlen" and dtype == torch.float32:
                for attention in WINDOWS:
                    what = attention.mask if attention.position_map == "none" else attention.position_map
                    lengths, seq_len = rows(e.on_gpu)[0]
                    yield f"{executor} {name}, {what}", [Case(executor, lengths, seq_len, 64, True, attention, dtype)]
    yield from flash_kinds(e)
    yield from compiled_kinds(e)


def flash_kinds(e: Examination) -> Iterator[tuple[str, list[Case]]]:
    """Return the cases of flex by FlashAttention 4, whether or not a job here would take it by itself."""
    name, dtype, plain = "flex by FlashAttention 4", torch.bfloat16, AttentionConfig()
    obstacles = flash_obstacles(flash_facts(e.device, half=True, head_dim=128, attention=plain)) if e.on_gpu else ["no GPU"]
    if obstacles:
        e.find(name, "not here", compared_with="; ".join(obstacles))
        return

    def case(lengths: tuple[tuple[int, ...], ...], seq_len: int, head_dim: int, **more: Any) -> Case:
        return Case("flex", lengths, seq_len, head_dim, **{"causal": True, "attention": plain, **more}, dtype=dtype, flash=True)

    some = rows(e.on_gpu)
    for head_dim in (64, 128):
        for causal in (True, False):
            what = f"{name}, head_dim {head_dim}, {'causal' if causal else 'full'}"
            yield what, [case(*row, head_dim, causal=causal) for row in some]
        yield f"{name}, head_dim {head_dim}, compiled", [case(*some[0], head_dim, compiled=True)]
    for attention in WINDOWS:
        if attention.position_map == "none":
            yield f"{name}, {attention.mask}", [case(*some[0], 64, attention=attention)]


def compiled_kinds(e: Examination) -> Iterator[tuple[str, list[Case]]]:
    """Return the cases that are compiled: as trained on a GPU, and the reference on a CPU."""
    if not e.on_gpu and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        e.find("compiled", "not here", compared_with="torch.compile needs a C++ compiler on a CPU")
        return
    executors: tuple[Executor, ...] = ("flex", "varlen", "sdpa") if e.on_gpu else ("sdpa", "flex")
    dtype = torch.bfloat16 if e.on_gpu else torch.float32
    for executor in executors:
        for head_dim in (64, 128) if e.on_gpu else (64,):
            lengths, seq_len = rows(e.on_gpu)[0]
            case = Case(executor, lengths, seq_len, head_dim, True, AttentionConfig(), dtype, compiled=True)
            yield f"{executor} {str(dtype).removeprefix('torch.')}, head_dim {head_dim}, compiled", [case]


def rows(on_gpu: bool) -> list[tuple[tuple[tuple[int, ...], ...], int]]:
    """Return documents of rows and the rows' lengths: odd, ragged, with padding; one document; whole blocks."""
    times = 8 if on_gpu else 1
    return [
        (((times * 70, 1, times * 100 + 3), (times * 33, times * 64)), times * 200 + 5),
        (((times * 200 - 1,),), times * 200 - 1),
        (((128, times * 128),), 128 + times * 128),
    ]


def compare(e: Examination, name: str, cases: list[Case]) -> None:
    """Add a line for cases of one kind, with the largest error of outputs and gradients."""
    gradients = not (cases[0].executor == "flex" and not e.on_gpu)  # FlexAttention has no backward on a CPU
    worst, most = 0.0, MOST[cases[0].dtype]
    for case in cases:
        error = largest_error(case, e.device, gradients)
        worst = max(worst, math.inf if math.isnan(error) else error)
    what = "forward, dq, dk, dv" if gradients else "forward alone: FlexAttention has no backward on a CPU"
    e.within(name, worst, most, "", f"{what}; against float64")


def largest_error(case: Case, device: torch.device, gradients: bool) -> float:
    """Return the largest error of outputs, and of gradients if asked, relative to the largest number of each."""
    half = case.dtype != torch.float32
    complaints = executor_complaints(case.executor, device, half=half, compiled=case.compiled, attention=case.attention)
    assert not complaints or case.executor == "flex", complaints
    ids, inputs, upstream, expected = reference(replace(case, executor="sdpa", compiled=False, flash=False))
    facts = flash_facts(device, half=half, head_dim=case.head_dim, attention=case.attention)
    queries = facts.queries if case.flash else None
    mask = DocumentMask(0, 1, case.causal, case.executor, case.attention, flash_queries=queries).build(ids, device)

    def attend(*inputs: Tensor) -> Tensor:
        return attend_in_regions([(inputs[i], inputs[i + 1]) for i in range(0, len(inputs) - 1, 2)], inputs[-1], mask)

    kernel = torch.compile(attend) if case.compiled else attend
    found = run(kernel, [t.to(device) for t in inputs], upstream.to(device), gradients)
    real = (ids >= 0)[:, None, :, None]  # what padding computes is no one's
    pairs = list(zip(found, expected, strict=False))  # without gradients the output alone
    pairs[0] = (pairs[0][0] * real.to(device), pairs[0][1] * real)
    return max(relative(a, b) for a, b in pairs)


@lru_cache(maxsize=16)  # of one dtype; a line of the report has three of them
def reference(case: Case) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Return ids, inputs, the output's gradient, and float64 output and gradients of dense attention, on the CPU.

    Inputs are queries [rows, heads, seq_len, head_dim] and keys of each region of distances, then the values.
    """
    draw = torch.Generator().manual_seed(1)
    heads, kv_heads, batch = 4, 2, len(case.lengths)

    def drawn(count: int) -> Tensor:
        return torch.randn(batch, count, case.seq_len, case.head_dim, generator=draw).to(case.dtype)

    ids = sequence_ids(case.lengths, case.seq_len)
    regions = 1 if case.attention.position_map == "none" else 2
    inputs = [t for _ in range(regions) for t in (drawn(heads), drawn(kv_heads))] + [drawn(kv_heads)]
    upstream = drawn(heads)
    exact = [t.double() for t in inputs]
    return ids, inputs, upstream, run(lambda *inputs: dense(inputs, ids, case), exact, upstream.double(), gradients=True)


def run(kernel: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor, gradients: bool) -> list[Tensor]:
    """Return the output and, if asked, the gradients of all inputs."""
    inputs = [t.detach().clone().requires_grad_(gradients) for t in inputs]
    if not gradients:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return [kernel(*inputs)]
    out = kernel(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest number that is expected."""
    return float((found.double().cpu() - expected.cpu()).abs().max() / expected.abs().max().cpu())


def sequence_ids(lengths: tuple[tuple[int, ...], ...], seq_len: int) -> Tensor:
    """Return int32 [rows, seq_len]: the number of each token's document, -1 on padding."""
    ids = torch.full((len(lengths), seq_len), -1, dtype=torch.int32)
    for row, documents in enumerate(lengths):
        start = 0
        for number, length in enumerate(documents):
            ids[row, start : start + length] = number
            start += length
    return ids


def dense(inputs: tuple[Tensor, ...], ids: Tensor, case: Case) -> Tensor:
    """Return attention written out, with the rule at every pair; inputs as of `reference`, float64."""
    *rotated, v = inputs
    index = torch.arange(case.seq_len)
    same = ids[:, :, None] == ids[:, None, :]
    distance = index[:, None] - index
    begins = ((ids[:, :, None] > ids[:, None, :]) & (ids >= 0)[:, None, :]).sum(-1)  # tokens of earlier documents
    position = torch.where(ids >= 0, index - begins, index - (ids >= 0).sum(1, keepdim=True))
    scores = torch.full((len(ids), v.shape[1] * 2, case.seq_len, case.seq_len), -math.inf, dtype=torch.float64)
    for region, reach in enumerate(reaches(case.attention)):
        seen = same & (distance >= reach.least) if case.causal else same
        if reach.below is not None:
            seen = seen & ((distance < reach.below) | (position[:, None, :] < reach.sinks))
        q, k = rotated[2 * region], rotated[2 * region + 1].repeat_interleave(2, dim=1)
        scores = torch.where(seen[:, None], q @ k.mT / math.sqrt(q.shape[-1]), scores)
    return scores.softmax(-1) @ v.repeat_interleave(2, dim=1)
