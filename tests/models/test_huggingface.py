"""Hugging Face's classes read our config.json as we mean it, we read theirs, and what either side lacks is refused by key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cistron.models.config import PRESETS, DecoderConfig, ModelError, RopeConfig
from cistron.models.huggingface import from_hf, hf_names, to_hf
from cistron.tests.models.packed import CONFIGS, LLAMA, QWEN, random_decoder
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, EuroBertConfig, EuroBertForMaskedLM

EUROBERT = replace(LLAMA, causal=False, head_dim=10)


def described(config: DecoderConfig) -> dict[str, Any]:
    return to_hf(config, max_positions=99, eos_id=5, pad_id=6, dtype="bfloat16")


@pytest.mark.parametrize("config", [*CONFIGS.values(), *PRESETS.values(), EUROBERT])
def test_transformers_reads_our_config_and_we_read_back_what_it_writes(config: DecoderConfig) -> None:
    ours = described(config)
    theirs = CONFIG_MAPPING[ours["model_type"]].from_dict(ours)
    for key in ours.keys() - {"torch_dtype", "rope_theta"}:
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
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
    stated = described(LLAMA) | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rope_scaling": llama3}
    stated |= {"attention_dropout": 0.1, "hidden_size": "wide", "quantization_config": {"bits": 4}, "head_dim": 2.5}
    with pytest.raises(ModelError) as caught:
        from_hf(stated)
    for line in (
        "attention_bias is True; supported: False",
        "mlp_bias is True; supported: False",
        "hidden_act is 'gelu'; supported: 'silu'",
        "rope_scaling: rope_type is 'llama3'; supported: 'default'",
        "attention_dropout is 0.1; supported: 0.0",
        "hidden_size is 'wide'; it must be an integer",
        "head_dim is 2.5; it must be an integer",
        "quantization_config is {'bits': 4}; supported: None",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is True; supported: False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "supported: one set for all layers"),
        ({"architectures": ["MixtralForCausalLM"]}, "architectures is ['MixtralForCausalLM']"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type 'gpt2'"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_hf(described(QWEN) | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("config", [replace(QWEN, causal=False), replace(LLAMA, n_heads=6, n_kv_heads=2)])
def test_a_decoder_that_no_class_can_hold_is_refused(config: DecoderConfig) -> None:
    with pytest.raises(ModelError, match="no Hugging Face class holds this model"):
        described(config)


def test_no_rotary_setting_is_left_behind() -> None:
    assert set(RopeConfig.__dataclass_fields__) == {"theta"}, "a setting that config.json does not carry"
