"""Activation checkpointing: which intermediate results of a block wait for the backward pass, and which it recomputes.

| mode | kept between the passes, besides each block's input |
|---|---|
| none | everything that the backward pass reads |
| full | nothing |
| selective, "op" | attention, every second matrix product, and what was summed over ranks |
| selective, n | everything, except that every n-th block keeps nothing |
| memory_budget | up to a share of all: what costs most to recompute, as the compiler's partitioner finds |

Applied after tensor parallelism, so that what is recomputed is sharded: by operator inside a compiled block, else
around it.
"""

import torch._functorch.config
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.attention.varlen import varlen_attn  # noqa: F401  # registers its operator
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, create_selective_checkpoint_contexts

from ...models.decoder import Decoder
from ..config import ActivationCheckpoint

_SAVED = frozenset(
    {
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
        torch.ops.torch_attn._varlen_attn.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
    }
)


def apply_activation_checkpointing(model: Decoder, table: ActivationCheckpoint) -> None:
    """Wrap the blocks of `model`, in place, as the mode says."""
    if table.mode == "memory_budget":
        # read when a block is compiled; there are no arguments for them
        settings = torch._functorch.config
        settings.activation_memory_budget = table.memory_budget
        # torch 2.13 fails on objects that it cannot measure; here that is the process group of tensor parallelism
        if hasattr(settings, "unsafe_treat_script_objects_as_zero_size"):
            settings.unsafe_treat_script_objects_as_zero_size = True
        return
    if table.mode == "none":
        return
    option = table.selective_ac_option if table.mode == "selective" else 1
    for index, (name, block) in enumerate(list(model.layers.named_children())):
        if option == "op":
            wrapped = checkpoint_wrapper(block, preserve_rng_state=False, context_fn=_selective_contexts)
        elif index % option == 0:
            wrapped = checkpoint_wrapper(block, preserve_rng_state=False)  # nothing in a block draws random numbers
        else:
            continue
        model.layers.register_module(name, wrapped)


def _selective_contexts() -> object:
    """Make the policy of one call of one block, which counts matrix products, and again when recomputing."""
    products = {False: 0, True: 0}

    def policy(context: SelectiveCheckpointContext, operator: object, *_: object, **__: object) -> CheckpointPolicy:
        if operator in (torch.ops.aten.mm.default, torch.ops.aten._scaled_mm.default):
            # wk, wo, w3 rather than wq, wv, w1, w2: the backward pass never reads what w2 gives
            products[context.is_recompute] += 1
            saved = products[context.is_recompute] % 2 == 0
        else:
            saved = operator in _SAVED
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
