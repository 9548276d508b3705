"""Parallelism applied to a plain decoder from outside: float8 -> TP, CP -> compile -> activation checkpointing -> FSDP2.

Each step wraps what the one before left: compile sees sharded matmuls, checkpointing runs compiled blocks again, FSDP2 gathers
parameters around them. Every parameter ends up a DTensor over (data[, tp]), norms and embeddings included:
clipping by a global norm needs all gradients on comparable meshes.
"""

import torch
from torch import nn
from torch.distributed._symmetric_memory import enable_symm_mem_for_group
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ..models.config import DecoderConfig
from ..models.decoder import Decoder
from ..models.lora import LoraLinear
from .activations import apply_activation_checkpointing
from .compilation import apply_compile
from .config import ConfigError, JobConfig
from .context import apply_context_parallel
from .distributed import Layout, World
from .float8 import convert

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_layout(config: JobConfig, model: DecoderConfig, layout: Layout) -> None:
    """Refuse what the layout cannot divide, all complaints in one message.

    Raises:
        ConfigError: naming each key, its value and what it must be a multiple of.
    """
    rows = global_batch_size(config, layout)
    per_rank = rows // layout.data_parallel
    local = min(config.training.local_batch_size, per_rank)
    loaders = layout.data_parallel * max(1, config.data.num_workers)
    cp, tp = layout.cp, layout.tp
    # (key, value, must be a multiple of, why)
    divisions = [
        ("training.global_batch_size", rows, layout.data_parallel, "data-parallel ranks"),
        ("data.lanes", config.data.lanes, loaders, "data-parallel ranks x data.num_workers"),
        ("training.seq_len", config.training.seq_len, cp * tp, f"{layout.sequence}, which split the sequence"),
        ("model.n_heads", model.n_heads, tp, "parallelism.tensor_parallel_degree"),
        ("model.n_kv_heads", model.n_kv_heads, tp, "parallelism.tensor_parallel_degree"),
        ("model.hidden_dim", model.hidden_dim, tp, "parallelism.tensor_parallel_degree"),
        ("model.vocab_size", model.vocab_size, tp, "parallelism.tensor_parallel_degree"),
    ]
    complaints = [
        f"{key} = {value}: must be a multiple of {divisor} ({why}); the next is {-(-value // divisor) * divisor}"
        for key, value, divisor, why in divisions
        if value % divisor
    ]
    if per_rank and rows % layout.data_parallel == 0 and per_rank % local:
        complaints.append(
            f"training.local_batch_size = {local}: must divide the {per_rank} rows of a rank "
            f"(training.global_batch_size {rows} / {layout.data_parallel} data-parallel ranks)"
        )
    if config.data.layout == "padded" and config.data.pad_multiple % (cp * tp):
        step = f"data.pad_multiple = {config.data.pad_multiple}"
        complaints.append(f"{layout.sequence}: must divide {step}, of which padded widths are multiples")
    if config.data.length_buckets and per_rank == local:
        complaints.append(
            f"data.length_buckets = true: the {per_rank} rows of a rank's step are one micro-batch, so that nothing is there "
            "to deal them out to; lower training.local_batch_size, or raise training.global_batch_size"
        )
    if config.parallelism.enable_async_tensor_parallel and not (tp > 1 and config.compile.enable):
        complaints.append(
            "parallelism.enable_async_tensor_parallel = true: needs parallelism.tensor_parallel_degree > 1 and "
            f"compile.enable = true, found {tp} and {str(config.compile.enable).lower()}; the compiler is what overlaps the two"
        )
    if config.activation_checkpoint.mode == "memory_budget" and not config.compile.enable:
        complaints.append('activation_checkpoint.mode = "memory_budget": is up to the compiler, set compile.enable = true')
    if not config.data.sources:
        complaints.append("data.sources: no [[data.sources]] table; name at least one source of documents, or the job's TOML")
    if complaints:
        raise ConfigError("\n  ".join(["the configuration does not fit:", *complaints]))


def global_batch_size(config: JobConfig, layout: Layout) -> int:
    """Rows per optimizer step over all ranks. Raises ConfigError for a value below the number of data-parallel ranks."""
    t = config.training
    rows = t.local_batch_size * layout.data_parallel if t.global_batch_size == -1 else t.global_batch_size
    if rows < layout.data_parallel:
        raise ConfigError(
            f"training.global_batch_size = {t.global_batch_size}: must be -1 or at least {layout.data_parallel}, one row per "
            "data-parallel rank"
        )
    return rows


def parallelize(model: Decoder, config: JobConfig, world: World) -> None:
    """Apply the layout of `world` to a decoder on the meta device, in place."""
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
    apply_fsdp(model, config, world.data_mesh)


def apply_tensor_parallel(model: Decoder, mesh: DeviceMesh) -> None:
    """Megatron's column/row split of every matrix with sequence-parallel norms (Korthikanti et al. 2022, arXiv:2205.05198)."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    output = ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate())
    parallelize_module(
        model,
        mesh,
        {
            "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            **({} if model.config.head_outputs else {"output": output}),
        },
    )
    if model.config.head_outputs:
        distribute_module(model.score, mesh)  # whole on every rank; the head sees to the sequence itself
    # The embedding hands out a tensor whose reduce-scatter may still be under way. Compiled blocks take such an input, but give
    # it no gradient (torch 2.13: the table's is 0, in silence); a copy has waited.
    model.tok_embeddings.register_forward_hook(lambda _module, _inputs, embedded: embedded.clone())
    for block in model.layers.children():
        whole = (Replicate(), None, None, None)  # x gathered along the sequence; cos, sin and mask are whole already
        plan = {
            "attention_norm": SequenceParallel(),
            "attention": PrepareModuleInput(input_layouts=(Shard(1), None, None, None), desired_input_layouts=whole),
            "attention.wq": ColwiseParallel(),
            "attention.wk": ColwiseParallel(),
            "attention.wv": ColwiseParallel(),
            "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
            "ffn_norm": SequenceParallel(),
            "feed_forward": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
            "feed_forward.w1": ColwiseParallel(),
            "feed_forward.w3": ColwiseParallel(),
            "feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
        }
        if model.config.qk_norm:  # applied to [batch, seq, heads, head_dim]: "sequence" parallel over the heads
            per_head = SequenceParallel(sequence_dim=2, use_local_output=True)
            plan |= {"attention.q_norm": per_head, "attention.k_norm": per_head}
        parallelize_module(block, mesh, plan)
        split_adapters(block, mesh)
    model.tie_weights()  # the plan replaced both parameters of a tied pair
    for name in frozen:  # and all others, of which torch 2.13 forgets whether norms were frozen
        model.get_parameter(name).requires_grad_(False)


def split_adapters(block: nn.Module, mesh: DeviceMesh) -> None:
    """Split the adapters of a block as their weights are, in place: B where those are by rows, else A by its columns.

    The other factor is whole on every rank, so that whatever the adapter adds is split, or a part of a sum, like the product
    that it is added to, and nothing more is communicated.
    """
    whole, rows, columns = Replicate(), Shard(0), Shard(1)
    for module in block.modules():
        if isinstance(module, LoraLinear):
            assert isinstance(module.weight, DTensor)
            by_rows = module.weight.placements == (rows,)
            module.lora_a = split(module.lora_a, mesh, whole if by_rows else columns)
            module.lora_b = split(module.lora_b, mesh, rows if by_rows else whole)


def split(parameter: nn.Parameter, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    """A parameter of the same shape and type, on the meta device, laid out over `mesh`."""
    blank = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(distribute_tensor(blank, mesh, [placement], src_data_rank=None))


def overlap_tensor_parallel(mesh: DeviceMesh) -> None:
    """Let the compiler cut gathers and matmuls of tensor parallelism into pieces that overlap (async TP)."""
    from torch._inductor import config as inductor  # half a second to import, and compiling may be off

    enable_symm_mem_for_group(mesh.get_group().group_name)
    inductor._micro_pipeline_tp = True  # there is no public switch


def apply_fsdp(model: Decoder, config: JobConfig, mesh: DeviceMesh) -> None:
    """FSDP2 per block and for the rest. Also on one rank, where it is what casts to the compute type."""
    param, reduce = DTYPES[config.training.mixed_precision_param], DTYPES[config.training.mixed_precision_reduce]
    # inputs are not cast: the residual stream has its type already, and cosines or loss weights in bfloat16 would blur
    of_block = MixedPrecisionPolicy(param, reduce, cast_forward_inputs=False)
    of_rest = MixedPrecisionPolicy(param, reduce, output_dtype=torch.float32, cast_forward_inputs=False)
    policy = config.parallelism.fsdp_reshard_after_forward
    for block in model.layers.children():
        fully_shard(block, mesh=mesh, mp_policy=of_block, reshard_after_forward=policy != "never")
    # by default the rest is kept: its backward starts at once
    fully_shard(model, mesh=mesh, mp_policy=of_rest, reshard_after_forward=policy == "always")
