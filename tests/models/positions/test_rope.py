"""Rotary embedding: Hugging Face's numbers, the published formulas', relative in effect, precise far out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cistron.models.config import RopeConfig
from cistron.models.positions import rope_table, rotate
from cistron.models.positions.rope import rotation
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
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
    ours = tuple(rotate(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))  # theirs have heads first
    assert_close(ours, expected, rtol=0, atol=1e-6)


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


GRID = list(itertools.product((8, 64, 128), (10_000.0, 500_000.0), (256, 8192), (2.0, 4.5, 32.0)))
FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [1.1, 7.0]}  # from the first pair to the last


def spread(ends: tuple[float, float], pairs: int) -> list[float]:
    return torch.linspace(*ends, pairs).tolist()


def theirs(kind: str, dim: int, theta: float, trained: int, length: int, **options: Any) -> tuple[torch.Tensor, float]:
    """The table of transformers."""
    parameters = {"rope_type": kind, "rope_theta": theta, **options}
    if kind in ("yarn", "llama3", "longrope"):
        parameters["original_max_position_embeddings"] = trained
    config = LlamaConfig(head_dim=dim, max_position_embeddings=trained, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_a_table_is_that_of_hugging_face(kind: str) -> None:
    scaling = "dynamic_ntk" if kind == "dynamic" else kind
    for dim, theta, trained, factor in GRID:
        options: dict[str, Any] = {"factor": factor}
        variants = [options]
        if kind == "yarn":
            betas = {"beta_fast": 16.0, "beta_slow": 2.0}
            variants = [options, options | betas, options | {"attention_factor": 0.9}]
        if kind == "llama3":
            variants = [options | {"low_freq_factor": low, "high_freq_factor": low * 4} for low in (1.0, 3.0)]
        if kind == "longrope":
            lists = {key: spread(ends, dim // 2) for key, ends in FACTORS.items()}
            variants = [options | lists, options | lists | {"attention_factor": 1.25}]
        for variant in variants:
            config = RopeConfig(theta=theta, scaling=scaling, original_seq_len=trained, **variant)
            assert not config.complaints_beside(dim)
            for length in (trained // 2, trained, trained + 1, 4 * trained):
                inv_freq, attention_factor = rope_table(config, dim, length)
                expected, expected_factor = theirs(kind, dim, theta, trained, length, **variant)
                assert inv_freq.dtype == torch.float32
                assert_close(inv_freq, expected, rtol=1e-5, atol=0)
                assert attention_factor == pytest.approx(expected_factor, rel=1e-12)


def test_a_ramp_that_begins_and_ends_at_one_pair_is_a_step() -> None:
    config = RopeConfig(scaling="yarn", factor=2.0, original_seq_len=6)
    assert config.ramp_ends(HEAD_DIM) == (0, 0)
    assert not config.complaints_beside(HEAD_DIM)
    expected, _ = theirs("yarn", HEAD_DIM, config.theta, 6, 12, factor=2.0)
    assert_close(rope_table(config, HEAD_DIM, 12)[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        RopeConfig(original_seq_len=4),
        RopeConfig(original_seq_len=32, beta_slow=9.0),
        RopeConfig(theta=1.5, original_seq_len=10**7),
    ],
    ids=["rows too short", "beta_slow too large", "theta too small"],
)
def test_a_ramp_that_would_run_backwards_is_refused(config: RopeConfig) -> None:
    """The released code, and transformers, then keep every angle that they should divide, or the other way round."""
    ramped = config.replace(scaling="yarn", factor=4.0)
    low, high = ramped.ramp_ends(HEAD_DIM)
    assert low > high
    (complaint,) = ramped.complaints_beside(HEAD_DIM)
    assert f"a ramp from pair {low} to pair {high} would run backwards" in complaint
    assert not ramped.replace(ramp="paper").complaints_beside(HEAD_DIM)
    trained, factor = ramped.trained_length, ramped.factor
    table, _ = theirs("yarn", HEAD_DIM, ramped.theta, trained, 8, factor=factor, beta_slow=ramped.beta_slow)
    meant, _ = rope_table(ramped.replace(ramp="paper"), HEAD_DIM, 0)
    assert not torch.allclose(table[1:], meant[1:], rtol=0.5, atol=0)


def ntk(dim: int, theta: float, trained: int, factor: float, pair: int) -> float:
    return float((theta * factor ** (dim / (dim - 2))) ** (-2 * pair / dim))


def ntk_mixed(dim: int, theta: float, trained: int, factor: float, pair: int) -> float:
    """The product of all factors up to the last pair's is how much the longest wavelength grows: the factor itself."""
    return theta ** (-2 * pair / dim) * math.exp(-math.log(factor) * ((pair + 1) / (dim / 2)) ** 0.75)


def by_parts(dim: int, theta: float, trained: int, factor: float, pair: int) -> float:
    """The ramp of the released code: over pairs, between those with 32 rotations and one in the trained length."""
    first, last = (dim * math.log(trained / (2 * math.pi * rotations)) / (2 * math.log(theta)) for rotations in (32.0, 1.0))
    low, high = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
    divided = min(max((pair - low) / (high - low), 0.0), 1.0)
    angle = theta ** (-2 * pair / dim)
    return divided * angle / factor + (1 - divided) * angle


def by_parts_of_the_paper(dim: int, theta: float, trained: int, factor: float, pair: int) -> float:
    """Peng et al. 2023, equations 17 to 21: r(d) = L / wavelength, with alpha = 1 and beta = 32."""
    angle = theta ** (-2 * pair / dim)
    rotations = trained / (2 * math.pi / angle)
    kept = 0.0 if rotations < 1 else 1.0 if rotations > 32 else (rotations - 1) / (32 - 1)
    return (1 - kept) * angle / factor + kept * angle


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        (ntk, {"scaling": "ntk"}),
        (ntk_mixed, {"scaling": "ntk_mixed"}),
        (by_parts, {"scaling": "ntk_by_parts"}),
        (by_parts_of_the_paper, {"scaling": "ntk_by_parts", "ramp": "paper"}),
        (by_parts_of_the_paper, {"scaling": "yarn", "ramp": "paper"}),
    ],
    ids=["ntk", "ntk_mixed", "by_parts", "by_parts of the paper", "yarn of the paper"],
)
def test_a_table_is_that_of_its_formula_in_float64(formula: Callable[..., float], options: dict[str, Any]) -> None:
    for dim, theta, trained, factor in GRID:
        config = RopeConfig(theta=theta, factor=factor, original_seq_len=trained, **options)
        inv_freq, attention_factor = rope_table(config, dim, 0)
        expected = [formula(dim, theta, trained, factor, pair) for pair in range(dim // 2)]
        assert_close(inv_freq.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
        assert attention_factor == (0.1 * math.log(factor) + 1 if options["scaling"] == "yarn" else 1.0)


def test_ntk_interpolates_the_longest_wavelength_and_leaves_the_shortest() -> None:
    plain, _ = rope_table(RopeConfig(), HEAD_DIM, 0)
    for scaling in ("ntk", "ntk_mixed"):
        scaled, _ = rope_table(RopeConfig(scaling=scaling, factor=8.0, original_seq_len=256), HEAD_DIM, 0)
        assert scaled[-1] * 8 == pytest.approx(plain[-1].item(), rel=1e-5)
        assert scaled[0] > plain[0] / 1.25
    stretched = RopeConfig(scaling="dynamic_ntk", factor=3.0, original_seq_len=256)
    assert torch.equal(rope_table(stretched, HEAD_DIM, 100)[0], plain)
    fixed = stretched.replace(scaling="ntk", factor=3.0 * 5 - 2)  # what it comes to for documents of 5 x 256
    assert_close(rope_table(stretched, HEAD_DIM, 1280)[0], rope_table(fixed, HEAD_DIM, 1280)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "ntk_mixed", "dynamic_ntk", "ntk_by_parts", "yarn", "llama3"])
def test_a_scaled_table_has_values_also_while_a_model_is_made_on_meta(scaling: str) -> None:
    config = RopeConfig() if scaling == "none" else RopeConfig(scaling=scaling, factor=4.0, original_seq_len=256)
    with torch.device("meta"):
        inv_freq, _ = rope_table(config, HEAD_DIM, 1024)
    assert torch.equal(inv_freq, rope_table(config, HEAD_DIM, 1024)[0])
