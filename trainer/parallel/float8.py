"""The blocks' linear layers in float8, by torchao, an optional extra.

`nn.Linear` becomes torchao's `Float8Linear`, which rounds inputs, weights and output gradients to float8 with scales
computed on the spot and multiplies on the tensor cores at twice the bfloat16 rate (Micikevicius et al. 2022,
arXiv:2209.05433). Parameters, optimizer, checkpoints and names stay what they are. Only compiled blocks are fast: eager
ones read each tensor several times to scale it.
"""

import importlib.util
from dataclasses import replace

import torch
from torch import nn

from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ..config import JobConfig
from ..processes import Layout

MULTIPLE = 16  # of every side of a float8 product, on the device
CAPABILITY = (8, 9)


def float8_complaints(config: JobConfig, model: DecoderConfig, layout: Layout, device: torch.device | None) -> list[str]:
    """Return why `[float8]` cannot work, a line for each reason.

    Args:
        config: the job.
        model: whose sides must divide.
        layout: by which they are split.
        device: that it is to run on; None: not known, and not checked.
    """
    f = config.float8
    if not f.enable:
        return []
    complaints = []
    if importlib.util.find_spec("torchao") is None:
        complaints.append("float8.enable = true: needs torchao, which is not installed: pip install 'cistron[float8]'")
    able = device is None or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY)
    if device is not None and not able and not f.emulate:
        complaints.append(
            f"float8.enable = true: this device ({device.type}) has no float8 products; they need a GPU of compute capability "
            "8.9 or later (Ada, Hopper). float8.emulate = true rounds alike anywhere, slowly"
        )
    if not excluded("output", f.filter_fqns):
        complaints.append(
            f'float8.filter_fqns = {f.filter_fqns}: must hold "output": the loss needs its products in more than 3 bits'
        )
    sides = {
        "model.dim": (model.dim, 1),
        "model.n_heads x model.head_dim": (model.n_heads * model.head_dim, layout.tp),
        "model.n_kv_heads x model.head_dim": (model.n_kv_heads * model.head_dim, layout.tp),
        "model.hidden_dim": (model.hidden_dim, layout.tp),
        "training.seq_len": (config.training.seq_len, config.parallelism.context_parallel_degree),
    }
    with torch.device("meta"):
        names = [name for name, module in Decoder(model).named_modules() if isinstance(module, nn.Linear)]
    if idle := [part for part in f.filter_fqns if not any(part in name for name in (*names, "output"))]:
        complaints.append(f"float8.filter_fqns: no linear layer's name contains {idle}; there are: {', '.join(names)}")
    complaints += [
        f"{key} = {value}: must be a multiple of {MULTIPLE * parts} with float8.enable"
        + (f" ({MULTIPLE} on each of {parts} ranks)" if parts > 1 else "")
        for key, (value, parts) in sides.items()
        if value % (MULTIPLE * parts)
    ]
    return complaints


def excluded(name: str, filters: list[str]) -> bool:
    """Return whether the layer called `name` stays as it is."""
    return any(part in name for part in filters)


def convert(model: nn.Module, config: JobConfig) -> None:
    """Replace linear layers that `float8.filter_fqns` does not name by float8 ones, before any parallelism."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # optional, and slow to import

    f = config.float8
    recipe = replace(Float8LinearConfig.from_recipe_name(f.recipe_name), emulate=f.emulate)
    convert_to_float8_training(model, config=recipe, module_filter_fn=lambda _, name: not excluded(name, f.filter_fqns))
