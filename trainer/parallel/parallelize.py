"""Parallelism applied to a plain decoder: float8 -> TP, CP -> compile -> activation checkpointing -> FSDP2.

Each step wraps what the one before left: compile sees sharded matmuls, checkpointing runs compiled blocks again, FSDP2
gathers parameters around them. Every parameter ends up a DTensor over (data[, tp]), norms and embeddings included:
clipping by a global norm needs all gradients on comparable meshes. One process that computes in the type it stores has
nothing to gather, to sum or to cast: there the decoder stays plain.
"""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ...models.decoder import Decoder
from ..config import JobConfig
from ..processes import DTYPES, Layout, World
from .activation_checkpoint import apply_activation_checkpointing
from .compile import apply_compile
from .context_parallel import apply_context_parallel
from .float8 import convert
from .tensor_parallel import apply_tensor_parallel, overlap_tensor_parallel


def parallelize(model: Decoder, config: JobConfig, world: World) -> None:
    """Apply the layout of `world` to a decoder on the meta device, in place."""
    model.loss_chunk = config.training.loss_chunk_tokens
    if config.float8.enable:
        convert(model, config)
    if world.layout.tp > 1:
        apply_tensor_parallel(model, world.mesh["tp"])
    if config.parallelism.enable_async_tensor_parallel:
        overlap_tensor_parallel(world.mesh["tp"])
    if world.layout.cp > 1:
        apply_context_parallel(model, world.mesh["cp"])
    # A policy for operators must see them, inside what is compiled. The others go around it: torch 2.13 fails on a
    # recomputation within a compiled block that holds tensor parallelism.
    recomputed = config.activation_checkpoint
    if recomputed.by_operator:
        apply_activation_checkpointing(model, recomputed)
    if config.compile.enable:
        apply_compile(model, one_width=config.data.layout == "packed")
    if not recomputed.by_operator:
        apply_activation_checkpointing(model, recomputed)
    if needs_fsdp(config, world.layout):
        apply_fsdp(model, config, world.data_mesh)


def needs_fsdp(config: JobConfig, layout: Layout) -> bool:
    """Return whether FSDP2 has anything to do.

    On one process in float32 it would copy each parameter once and each gradient twice a micro-batch, and every
    operator on parameters would be one on DTensors: 3 to 10 % of a step of the debug job on a CPU, for the same bits.
    """
    t = config.training
    return layout.world_size > 1 or {t.dtype, t.mixed_precision_param, t.mixed_precision_reduce} != {"float32"}


def apply_fsdp(model: Decoder, config: JobConfig, mesh: DeviceMesh) -> None:
    """Apply FSDP2, on one rank for its casts to the compute type: groups that are gathered and scattered as one.

    They are the embedding, each block, and the last norm with the output, so that the first block waits for no output
    weight, and the output's gradient leaves while the blocks go backward. A tied table is needed at both ends: it stays
    with the root, gathered first and scattered last.
    """
    param, reduce = DTYPES[config.training.mixed_precision_param], DTYPES[config.training.mixed_precision_reduce]
    # inputs are not cast: the residual stream has its type already, and cosines or loss weights in bfloat16 would blur
    within = MixedPrecisionPolicy(param, reduce, cast_forward_inputs=False)
    of_root = MixedPrecisionPolicy(param, reduce, output_dtype=torch.float32, cast_forward_inputs=False)
    policy = config.parallelism.fsdp_reshard_after_forward
    if policy == "default" and mesh.size(-1) == 1:
        policy = "never"  # on one rank there is less to free than to cast again
    at_end = policy == "always"  # by default what the end has is kept: its backward starts at once
    for block in model.layers.children():
        fully_shard(block, mesh=mesh, mp_policy=within, reshard_after_forward=policy != "never")
    if model.config.head_outputs or not model.config.tie_embeddings:
        # freed in any case: the gradient of rows that were looked up does not read the table
        table = fully_shard(model.tok_embeddings, mesh=mesh, mp_policy=within, reshard_after_forward=True)
        table.set_unshard_in_backward(False)
        last = model.score if model.config.head_outputs else model.output
        fully_shard([model.norm, last], mesh=mesh, mp_policy=within, reshard_after_forward=at_end)
    fully_shard(model, mesh=mesh, mp_policy=of_root, reshard_after_forward=at_end)


def sum_over_replicas(model: Decoder, enable: bool) -> None:
    """Choose whether the next backward pass sums gradients over the model's replicas, or keeps them for one that does.

    Gradients are scattered over the shards in every pass, so that no rank keeps whole ones. Their sum over replicas is
    needed once a step.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_all_reduce(enable)
