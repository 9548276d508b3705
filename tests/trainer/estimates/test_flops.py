"""FLOPs by formula are those that torch counts."""

from __future__ import annotations

import pytest
import torch
from cistron.models.decoder import Decoder
from cistron.tests.helpers.packed import LLAMA
from cistron.trainer.estimates import row_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_flops_per_token_are_the_counted_ones_plus_six_per_norm_parameter(tied: bool) -> None:
    config, seq_len = LLAMA.replace(tie_embeddings=tied), 64
    tokens, positions = torch.zeros(2, seq_len, dtype=torch.long), torch.zeros(2, seq_len, dtype=torch.int32)
    model, mask = Decoder(config), torch.ones(2, 1, seq_len, seq_len, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, positions, mask).sum().backward()
    norms = sum(parameter.numel() for name, parameter in model.named_parameters() if "norm" in name)
    assert row_flops(config, seq_len, 1) == counter.get_total_flops() // tokens.numel() + 6 * norms
