"""Presets have the published shapes, counts are exact, mistakes come back together."""

from __future__ import annotations

import pytest
import torch
from cistron.models.config import PRESETS, DecoderConfig, ModelConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.errors import ModelError
from cistron.models.huggingface import hf_names
from cistron.tests.helpers.packed import CONFIGS, LLAMA
from pydantic import ValidationError

# Parameters of the published checkpoints, a tied table counted once.
PUBLISHED = {
    "llama3_1b": 1_235_814_400,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "qwen3_0.6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
}
SHAPES = CONFIGS | {name: PRESETS[name] for name in PRESETS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_parameters_as_the_published_model(name: str) -> None:
    assert PRESETS[name].parameter_count() == PUBLISHED[name]


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_the_count_and_the_names_are_those_of_the_module(config: DecoderConfig) -> None:
    with torch.device("meta"):
        model = Decoder(config)
    assert config.parameter_count() == sum(parameter.numel() for parameter in model.parameters())
    assert hf_names(config).keys() == model.state_dict().keys()
    assert len(set(hf_names(config).values())) == len(hf_names(config))


def test_the_debug_preset_trains_in_minutes_and_splits_over_two_ranks() -> None:
    debug = PRESETS["debug"]
    assert 1_000_000 < debug.parameter_count() < 3_000_000
    assert debug.n_kv_heads % 2 == 0
    assert debug.n_heads > debug.n_kv_heads


def test_all_mistakes_are_reported_at_once_by_key() -> None:
    with pytest.raises(ModelError) as error:
        LLAMA.replace(vocab_size=0, n_heads=6, n_kv_heads=4, head_dim=15, rope=RopeConfig(theta=1.0))
    for key in ("model.vocab_size is 0", "model.n_heads is 6", "model.head_dim is 15", "model.rope.theta is 1.0"):
        assert key in str(error.value)


def test_a_table_has_its_presets_values_and_knows_which_the_toml_sets() -> None:
    table = ModelConfig.model_validate({"preset": "llama3_1b", "n_layers": 2, "rope": {"scaling": "none"}})
    assert table.n_layers == 2
    assert (table.dim, table.rope.theta) == (PRESETS["llama3_1b"].dim, 500_000.0)
    assert table.model_fields_set == {"preset", "n_layers", "rope"}
    assert table.rope.model_fields_set == {"scaling"}
    decoder = table.decoder(vocab_size=512, causal=True)
    assert decoder == PRESETS["llama3_1b"].replace(vocab_size=512, n_layers=2)
    assert ModelConfig.model_validate(table.model_dump(exclude_none=True)) == table
    assert table.complaints() == decoder.complaints() == []


def test_a_preset_of_a_plug_in_is_one_like_ours() -> None:
    PRESETS.add("of_a_test", says="for this test")(LLAMA)
    assert ModelConfig.model_validate({"preset": "of_a_test"}).decoder(vocab_size=LLAMA.vocab_size, causal=True) == LLAMA


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"preset": "lama_7b"}, "no such preset, did you mean 'llama_7b'"),
        ({"attention": {"executor": "fast"}}, "'auto', 'flex', 'varlen' or 'sdpa'"),
        ({"attention": "sdpa"}, "attention\n"),
        ({"rope": {"thetta": 1.0}}, "rope.thetta\n"),
    ],
)
def test_a_mistake_in_the_table_is_told_alone(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match="1 validation error") as error:
        ModelConfig.model_validate(keys)
    assert said in str(error.value)


def test_tied_weights_are_one_parameter_also_after_the_table_was_replaced() -> None:
    model = Decoder(LLAMA.replace(tie_embeddings=True))
    assert model.output.weight is model.tok_embeddings.weight
    model.tok_embeddings.weight = torch.nn.Parameter(torch.zeros(LLAMA.vocab_size, LLAMA.dim))
    assert model.output.weight is not model.tok_embeddings.weight
    model.tie_weights()
    assert model.output.weight is model.tok_embeddings.weight
