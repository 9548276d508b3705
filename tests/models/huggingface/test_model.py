"""Hugging Face's classes read our config.json and we theirs, alike; what either side lacks is refused by key."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cistron.models.config import PRESETS, AttentionConfig, DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.errors import ModelError
from cistron.models.huggingface import from_hf, hf_names, to_hf
from cistron.models.positions import rope_table
from cistron.tests.helpers.packed import CONFIGS, LLAMA, QWEN, random_decoder
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, EuroBertConfig, EuroBertForMaskedLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

EUROBERT = LLAMA.replace(causal=False, head_dim=10)
TRAINED = 32  # tokens
SCALED = {"factor": 4.0, "original_seq_len": TRAINED, "theta": 10_000.0}
LISTS = {"short_factor": [1.0] * 4 + [1.5] * 4, "long_factor": [1.25] * 4 + [4.0] * 4}
ROPES = {
    "linear": RopeConfig(scaling="linear", **SCALED),
    "dynamic": RopeConfig(scaling="dynamic_ntk", **SCALED),
    "yarn": RopeConfig(scaling="yarn", beta_fast=16.0, beta_slow=0.5, **SCALED),
    "yarn of a stated factor": RopeConfig(scaling="yarn", attention_factor=1.5, **SCALED),
    "llama3": RopeConfig(scaling="llama3", high_freq_factor=8.0, **SCALED),
    "longrope": RopeConfig(scaling="longrope", **LISTS, **SCALED),
}


def described(config: DecoderConfig) -> dict[str, Any]:
    return to_hf(config, max_positions=99, eos_id=5, pad_id=6, dtype="bfloat16")


@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS.values(),
        *(PRESETS[name] for name in PRESETS),
        EUROBERT,
        *(shape.replace(head_dim=16, rope=rope) for shape in (LLAMA, QWEN, EUROBERT) for rope in ROPES.values()),
        LLAMA.replace(rope=RopeConfig(original_seq_len=TRAINED)),
        QWEN.replace(attention=AttentionConfig(mask="sliding", window=7)),
    ],
)
def test_transformers_reads_our_config_and_we_read_back_what_it_writes(config: DecoderConfig) -> None:
    ours = described(config)
    theirs = CONFIG_MAPPING[ours["model_type"]].from_dict(ours)
    for key in ours.keys() - {"torch_dtype", "rope_theta", "rope_scaling"}:
        assert getattr(theirs, key) == ours[key], key
    assert theirs.dtype == torch.bfloat16
    assert from_hf(ours) == from_hf(theirs.to_dict()) == config


def test_a_config_of_transformers_4_is_read_with_the_defaults_of_its_class() -> None:
    old = {"model_type": "llama", "vocab_size": 7, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    old |= {"intermediate_size": 3, "rope_theta": 5e5, "rope_scaling": None, "pretraining_tp": 2}
    config = from_hf(old)
    assert (config.rope.theta, config.n_kv_heads, config.head_dim, config.norm_eps) == (5e5, 4, 6, 1e-6)
    assert not config.tie_embeddings
    theirs = CONFIG_MAPPING["llama"].from_dict(old)
    assert from_hf(theirs.to_dict() | {"architectures": ["LlamaForCausalLM"]}) == config


def test_a_bidirectional_decoder_is_eurobert() -> None:
    ours = random_decoder(EUROBERT)
    theirs = EuroBertForMaskedLM(EuroBertConfig.from_dict(described(EUROBERT) | {"mask_token_id": 7})).eval()
    state = ours.state_dict()
    theirs.load_state_dict({name: state[key] for key, name in hf_names(EUROBERT).items()}, strict=True)
    tokens = torch.randint(8, EUROBERT.vocab_size, (2, 30))
    with torch.no_grad():
        mask = torch.ones(2, 1, 30, 30, dtype=torch.bool)
        logits = ours(tokens, torch.arange(30, dtype=torch.int32).expand(2, -1), mask)
        assert_close(logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_pad_that_is_the_eos_is_not_stated_since_the_classes_would_freeze_its_embedding() -> None:
    assert to_hf(LLAMA, max_positions=9, eos_id=5, pad_id=5, dtype="float32")["pad_token_id"] is None


def test_everything_that_the_decoder_lacks_is_listed_with_what_was_found() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": "8", "truncate": False, "partial_rotary_factor": 0.5}
    stated = described(LLAMA) | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rope_scaling": yarn}
    stated |= {"attention_dropout": 0.1, "hidden_size": "wide", "quantization_config": {"bits": 4}, "head_dim": 2.5}
    with pytest.raises(ModelError) as caught:
        from_hf(stated)
    for line in (
        "attention_bias is True; supported: False",
        "mlp_bias is True; supported: False",
        "hidden_act is 'gelu'; supported: 'silu'",
        "rope_scaling: factor is '8'; it must be a number above 0",
        "rope_scaling: truncate is False; supported: True",
        "partial_rotary_factor is 0.5; supported: 1.0",
        "attention_dropout is 0.1; supported: 0.0",
        "hidden_size is 'wide'; it must be an integer",
        "head_dim is 2.5; it must be an integer",
        "quantization_config is {'bits': 4}; supported: None",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"use_sliding_window": True, "max_window_layers": 1},
            "sliding_window is 4096 in some layers; supported: one window in",
        ),
        ({"use_sliding_window": True, "architectures": ["LlamaForCausalLM"]}, "use_sliding_window is True; supported: False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "proportional"}},
            "rope_type is 'proportional'; supported: 'default', 'linear', 'dyn",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling: factor is 0.5 with rope_type 'linear'; supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, "factor is 1.0 with rope_type 'dynamic'; supported: above 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 1, "attention_factor": 2.0}}, "rope_scaling: factor is 1 with rope_type"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "max_position_embeddings is 99; supported with rope_type 'linear'",
        ),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "model.rope.short_factor has 0 numbers"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "supported: one set for all layers"),
        ({"architectures": ["MixtralForCausalLM"]}, "architectures is ['MixtralForCausalLM']"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type 'gpt2'"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_hf(described(QWEN) | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("config", [QWEN.replace(causal=False), LLAMA.replace(n_heads=6, n_kv_heads=2)])
def test_a_decoder_that_no_class_can_hold_is_refused(config: DecoderConfig) -> None:
    with pytest.raises(ModelError, match="no Hugging Face class holds this model"):
        described(config)


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=["llama", "qwen"])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_a_scaled_model_has_the_same_logits_in_transformers(rope: RopeConfig, shape: DecoderConfig, times: int) -> None:
    config, length = shape.replace(rope=rope), times * TRAINED
    assert_same_logits(config, length)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA.replace(rope=RopeConfig(scaling="ntk", **SCALED)),
        LLAMA.replace(rope=RopeConfig(scaling="ntk_by_parts", **SCALED)),
        QWEN.replace(attention=AttentionConfig(mask="sliding", window=7)),
    ],
    ids=["ntk is another theta", "by parts is yarn without its factor", "windows of Qwen 3"],
)
def test_what_has_another_name_there_has_the_same_logits_too(config: DecoderConfig) -> None:
    assert_same_logits(config, 4 * TRAINED)
    back = from_hf(described(config))
    assert to_hf(back, max_positions=128, eos_id=5, pad_id=6, dtype="bfloat16") == to_hf(
        config, max_positions=128, eos_id=5, pad_id=6, dtype="bfloat16"
    )


def assert_same_logits(config: DecoderConfig, length: int) -> None:
    """Of one document, and the class gets them from what `config.json` says alone."""
    weights = random_decoder(config).state_dict()
    ours = Decoder(config, length)
    ours.load_state_dict(weights)
    stated = described(config)
    theirs = AutoModelForCausalLM.from_config(CONFIG_MAPPING[stated["model_type"]].from_dict(stated)).float().eval()
    theirs.load_state_dict({name: weights[key] for key, name in hf_names(config).items()}, strict=True)
    tokens = torch.randint(8, config.vocab_size, (1, length))
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    if config.attention.window:
        mask = mask.triu(1 - config.attention.window)
    with torch.no_grad():
        logits = ours(tokens, torch.arange(length, dtype=torch.int32)[None], mask)
        assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-5 * logits.abs().max().item())


def test_keys_of_both_generations_of_transformers_are_written() -> None:
    stated = described(LLAMA.replace(rope=ROPES["yarn"]))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0, "beta_slow": 0.5}
    assert stated["rope_scaling"] == yarn
    assert stated["rope_parameters"] == {**yarn, "rope_theta": 10_000.0}
    assert stated["rope_theta"] == 10_000.0
    longest = {name: described(LLAMA.replace(rope=rope))["max_position_embeddings"] for name, rope in ROPES.items()}
    assert longest == dict.fromkeys(ROPES, 128) | {"dynamic": 32, "llama3": 99}, "llama3's is what training had, here 99"


def test_published_scalings_are_read() -> None:
    llama = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama |= {"original_max_position_embeddings": 8192}
    stated = described(PRESETS["llama3_8b"]) | {"max_position_embeddings": 131_072, "rope_scaling": llama}
    config = from_hf(stated)
    assert config.rope == RopeConfig(theta=500_000.0, scaling="llama3", factor=8.0, original_seq_len=8192)
    assert to_hf(config, max_positions=131_072, eos_id=5, pad_id=6, dtype="bfloat16")["max_position_embeddings"] == 131_072

    qwen = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert from_hf(described(QWEN) | {"rope_scaling": qwen}).rope.original_seq_len == 32_768
    deepseek = qwen | {"mscale": 2.0, "mscale_all_dim": 1.0}
    expected = (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    assert from_hf(described(QWEN) | {"rope_scaling": deepseek}).rope.attention_factor == pytest.approx(expected)
    coder = {"type": "linear", "factor": 4.0}
    rope = from_hf(described(LLAMA) | {"rope_scaling": coder, "max_position_embeddings": 16_384}).rope
    assert (rope.scaling, rope.factor, rope.original_seq_len) == ("linear", 4.0, 4096)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_a_factor_of_1_is_no_scaling_where_transformers_has_the_plain_table(kind: str) -> None:
    scaling = {"rope_type": kind, "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    stated = described(LLAMA) | {"rope_scaling": scaling | {"original_max_position_embeddings": 64}}
    ours, theirs = from_hf(stated), CONFIG_MAPPING["llama"].from_dict(stated)
    assert ours.rope.scaling == "none"
    expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    assert_close(rope_table(ours.rope, ours.head_dim, 256)[0], expected, rtol=1e-6, atol=0)
    assert factor == 1


def test_the_length_that_dynamic_scaling_begins_beyond_is_the_one_that_transformers_takes() -> None:
    stated = described(LLAMA.replace(rope=ROPES["dynamic"])) | {"max_position_embeddings": 48}
    ours, theirs = from_hf(stated), CONFIG_MAPPING["llama"].from_dict(stated)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](theirs, torch.device("cpu"), seq_len=96)
    assert_close(rope_table(ours.rope, ours.head_dim, 96)[0], expected, rtol=1e-6, atol=0)
    assert ours.rope.original_seq_len == 48


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rope": RopeConfig(scaling="ntk_mixed", **SCALED)}, 'model.rope.scaling is "ntk_mixed"'),
        ({"rope": RopeConfig(scaling="yarn", ramp="paper", **SCALED)}, 'model.rope.ramp is "paper"'),
        ({"attention": AttentionConfig(mask="sliding", window=7)}, 'model.attention.mask is "sliding"'),
        ({"attention": AttentionConfig(mask="lambda", window=7)}, 'model.attention.mask is "lambda"'),
        (
            {"attention": AttentionConfig(position_map="rerope", map_window=7), "rope": RopeConfig(original_seq_len=9)},
            'model.attention.position_map is "rerope"',
        ),
        ({"attention": AttentionConfig(logn=True), "rope": RopeConfig(original_seq_len=9)}, "model.attention.logn is true"),
    ],
)
def test_distances_that_no_class_has_are_refused_by_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError) as caught:
        described(LLAMA.replace(**change))
    assert f"no Hugging Face class computes what this model does: {key}" in str(caught.value)
