"""Model FLOPs of a step by two conventions, and the devices' peaks that they are a share of.

| | attention counted | what it is for |
|---|---|---|
| `row_flops` | every pair of a row of `seq_len`, as PaLM's MFU does | comparing with published numbers |
| `document_flops` | pairs that document mask and window leave | what the model needs: less if documents are short |

Both count 6 FLOPs per multiplying parameter and token, forward and backward, padding and recomputation left out. Of
frozen parts `frozen_flops` says what is never computed.
"""

import re

import torch

from ...models.config import DecoderConfig
from .sizes import Sizes

# Dense FLOP/s in bf16 and float8 (None: no such units) by the vendors' datasheets, which often print twice as much,
# "with sparsity"; by torch's name of the whole device. Slices of one (MIG) and what is not listed have no MFU: a wrong
# number is worse than none.
PEAKS: tuple[tuple[str, float, float | None], ...] = (
    (r"NVIDIA A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe", 312e12, None),
    (r"NVIDIA H100 80GB HBM3|NVIDIA GH200 \d+GB|NVIDIA H800", 989e12, 1979e12),
    (r"NVIDIA H100 PCIe", 756e12, 1513e12),
    (r"NVIDIA H100 NVL|NVIDIA H200 NVL", 835e12, 1671e12),
    (r"NVIDIA H200", 989e12, 1979e12),
    (r"NVIDIA B200", 2250e12, 4500e12),
    (r"NVIDIA GB200", 2500e12, 5000e12),
    (r"NVIDIA L40S", 362e12, 733e12),
    (r"AMD Instinct MI300X|AMD Instinct MI325X", 1307e12, 2615e12),
    (r"AMD Instinct MI355X", 2500e12, 5000e12),
)


def row_flops(decoder: DecoderConfig, seq_len: int, tokens: int) -> int:
    """Return model FLOPs of forward and backward for tokens of rows of `seq_len`: `6N + 12·L·H·D·seq_len` for each.

    The convention of PaLM (Chowdhery et al. 2022, appendix B). N counts every parameter that multiplies activations:
    all but the embedding table, whose rows are looked up, and including the output projection, tied or not. The
    attention term counts the full seq_len x seq_len products: halved neither for causality nor for the blocks that a
    document mask skips, so that utilisation compares with published numbers.
    """
    looked_up = decoder.vocab_size * decoder.dim if decoder.output_parameters() else 0
    return (6 * (decoder.parameter_count() - looked_up) + flops_per_pair(decoder) * seq_len) * tokens


def document_flops(decoder: DecoderConfig, tokens: int, causal_pairs: int) -> int:
    """Return model FLOPs of so many tokens that attend within their documents.

    Args:
        decoder: the shape.
        tokens: without padding.
        causal_pairs: (query, key) pairs, key <= query, of one document and in reach; `StepCounts.causal_pairs`.
    """
    return row_flops(decoder, 0, tokens) + flops_per_pair(decoder) * document_pairs(decoder, tokens, causal_pairs)


def document_pairs(decoder: DecoderConfig, tokens: int, causal_pairs: int) -> int:
    """Return the pairs that the mask leaves of a document of n tokens: n (n + 1) / 2 where causal, else n^2."""
    return causal_pairs if decoder.causal else 2 * causal_pairs - tokens


def flops_per_pair(decoder: DecoderConfig) -> int:
    """Return the FLOPs of attention for each (query, key) pair, over all blocks, forward and backward."""
    return 12 * decoder.n_layers * decoder.n_heads * decoder.head_dim


def frozen_flops(decoder: DecoderConfig, sizes: Sizes, tokens: int, pairs: int) -> float:
    """Return what `[fine_tuning]` saves of the FLOPs of the whole model, less what its adapters add.

    A frozen matrix has no gradient, a third of its products. Blocks before the first that trains anything have no
    backward pass: two thirds.

    Args:
        decoder: the shape.
        sizes: of the job's model.
        tokens: as `row_flops` or `document_flops` count them.
        pairs: of attention, likewise.
    """
    adapters = sizes.all - decoder.parameter_count()
    below = sizes.first / decoder.n_layers
    per_token = 2 * sizes.frozen_products + 2 * below * sizes.blocks - 6 * adapters
    return per_token * tokens + 2 / 3 * below * flops_per_pair(decoder) * pairs


def peak_flops(override: float | None, device: torch.device, *, float8: bool = False) -> float | None:
    """Peak FLOP/s of one device: `metrics.peak_flops`, else by the device's name, else None."""
    if override or device.type != "cuda":
        return override
    return named_peak(torch.cuda.get_device_name(device), float8=float8)


def named_peak(name: str, *, float8: bool) -> float | None:
    """Return the datasheet's peak of a device that torch calls `name`; None where it is not known."""
    for pattern, bf16, fp8 in PEAKS:
        if re.fullmatch(pattern, name):
            return fp8 if float8 else bf16
    return None
