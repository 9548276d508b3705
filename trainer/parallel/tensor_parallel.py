"""Tensor parallelism: matrices split over ranks, and the sequence between them; and its overlap with communication."""

import torch
from torch import nn
from torch.distributed._symmetric_memory import enable_symm_mem_for_group
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ...models.decoder import Decoder
from ...models.lora import LoraLinear


def apply_tensor_parallel(model: Decoder, mesh: DeviceMesh) -> None:
    """Split every matrix by columns or rows, as Megatron, with sequence-parallel norms.

    Korthikanti et al. 2022, arXiv:2205.05198.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    parallelize_module(
        model,
        mesh,
        {"tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)), "norm": SequenceParallel()},
    )
    if model.config.head_outputs:
        distribute_module(model.score, mesh)  # whole on every rank; the head sees to the sequence itself
    else:  # by rows of the vocabulary; likewise
        model.output.weight = split_parameter(model.get_parameter("output.weight"), mesh, Shard(0))
    # The embedding hands out a tensor whose reduce-scatter may still be under way. Compiled blocks take such an input,
    # but give it no gradient (torch 2.13: the table's is 0, in silence); a copy has waited.
    model.tok_embeddings.register_forward_hook(lambda _module, _inputs, embedded: embedded.clone())
    for block in model.layers.children():
        whole = (Replicate(), None, None)  # x gathered along the sequence; rotary_tables and mask are whole already
        plan = {
            "attention_norm": SequenceParallel(),
            "attention": PrepareModuleInput(input_layouts=(Shard(1), None, None), desired_input_layouts=whole),
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

    The other factor is whole on every rank, so that whatever the adapter adds is split, or a part of a sum, like the
    product that it is added to, and nothing more is communicated.
    """
    whole, rows, columns = Replicate(), Shard(0), Shard(1)
    for module in block.modules():
        if isinstance(module, LoraLinear):
            assert isinstance(module.weight, DTensor)
            by_rows = module.weight.placements == (rows,)
            module.lora_a = split_parameter(module.lora_a, mesh, whole if by_rows else columns)
            module.lora_b = split_parameter(module.lora_b, mesh, rows if by_rows else whole)


def split_parameter(parameter: nn.Parameter, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    """Return a parameter of the same shape and type, on the meta device, laid out over `mesh`."""
    blank = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(distribute_tensor(blank, mesh, [placement], src_data_rank=None))


def overlap_tensor_parallel(mesh: DeviceMesh) -> None:
    """Let the compiler cut gathers and matmuls of tensor parallelism into pieces that overlap (async TP)."""
    from torch._inductor import config as inductor  # half a second to import, and compiling may be off

    enable_symm_mem_for_group(mesh.get_group().group_name)
    inductor._micro_pipeline_tp = True  # there is no public switch
