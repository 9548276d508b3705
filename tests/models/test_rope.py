"""Rotary embedding: Hugging Face's numbers, relative in effect, precise far out."""

from __future__ import annotations

import pytest
import torch
from cistron.models.config import RopeConfig
from cistron.models.rope import rope_table, rotate, rotation
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

HEAD_DIM = 64


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
def test_rotation_equals_hugging_face_bit_for_bit(theta: float) -> None:
    parameters = {"rope_type": "default", "rope_theta": theta}
    theirs = LlamaRotaryEmbedding(LlamaConfig(head_dim=HEAD_DIM, rope_parameters=parameters))
    inv_freq, factor = rope_table(RopeConfig(theta=theta), HEAD_DIM, 0)
    assert inv_freq.dtype == torch.float32
    assert torch.equal(inv_freq, theirs.inv_freq)
    assert factor == theirs.attention_scaling

    positions = torch.cat((torch.arange(100), torch.arange(8000, 8100)))[None].int()
    q, k = torch.randn(1, 4, 200, HEAD_DIM), torch.randn(1, 2, 200, HEAD_DIM)
    cos, sin = rotation(positions, inv_freq, factor)
    expected = apply_rotary_pos_emb(q, k, *theirs(q, positions.long()))
    assert_close((rotate(q, cos, sin), rotate(k, cos, sin)), expected, rtol=0, atol=1e-6)


def test_a_score_depends_on_the_distance_of_its_tokens_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, HEAD_DIM)
    inv_freq, factor = rope_table(RopeConfig(), HEAD_DIM, 0)

    def score(q_position: int, k_position: int) -> torch.Tensor:
        rotated = [rotate(x, *rotation(torch.tensor([[p]]), inv_freq, factor)) for x, p in ((q, q_position), (k, k_position))]
        return (rotated[0] * rotated[1]).sum()

    assert_close(score(7, 4), score(1007, 1004), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(score(7, 4), score(4, 7), rtol=1e-2)


def test_bfloat16_heads_are_rotated_by_precise_angles() -> None:
    positions = torch.tensor([[30_001]])
    x = torch.randn(1, 1, 1, HEAD_DIM).bfloat16()
    inv_freq, factor = rope_table(RopeConfig(), HEAD_DIM, 0)
    rotated = rotate(x, *rotation(positions, inv_freq, factor))
    assert rotated.dtype == torch.bfloat16

    first, second = x.double().chunk(2, dim=-1)
    pair = torch.complex(first, second) * torch.polar(torch.ones(1).double(), 30_001 * inv_freq.double())
    expected = torch.cat((pair.real, pair.imag), dim=-1)
    # Half a unit in the last place of bfloat16 is 2^-9; angles rounded to bfloat16 would be off by tens of radians.
    assert_close(rotated.double(), expected, rtol=2**-8, atol=2**-8)


def test_the_table_has_values_also_while_a_model_is_made_on_meta() -> None:
    with torch.device("meta"):
        inv_freq, _ = rope_table(RopeConfig(), HEAD_DIM, 0)
    assert inv_freq.device.type == "cpu"
    assert inv_freq[0] == 1
