"""From the configuration to the parts that datasets and models provide. Shared by training and by every tool."""

from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import activate_flash_attention_impl

from ...base import nearest
from ...datasets.tokenizers import Tokenizer, build_tokenizer
from ...models.attention import DocumentMask, Executor, check_executor, choose_executor, has_flash_attention_3
from ...models.config import PRESETS, AttentionConfig, DecoderConfig, check_training
from ...models.decoder import Decoder
from ...models.errors import ModelError
from ..config import JobConfig, TokenizerTable
from ..errors import ConfigError, refuse
from ..parallel import context_complaints
from .fine_tuning import fine_tune


def make_tokenizer(config: JobConfig) -> Tokenizer:
    """The tokenizer of `[tokenizer]`."""
    return open_tokenizer(config.tokenizer)


def open_tokenizer(table: TokenizerTable) -> Tokenizer:
    """The tokenizer that a table describes. Raises DataConfigError where there is none."""
    return build_tokenizer(**table.model_dump())


def make_decoder_config(config: JobConfig, tokenizer: Tokenizer) -> DecoderConfig:
    """The preset of `[model]` with the keys that the TOML sets, and the tokenizer's vocabulary unless it sets one.

    Raises:
        ConfigError: for an unknown preset.
        ModelError: for a shape that does not fit together.
    """
    m = config.model
    if m.preset not in PRESETS:
        raise ConfigError(f"model.preset = {m.preset!r}: unknown preset{nearest(m.preset, list(PRESETS))}")
    overrides = m.model_dump(exclude_none=True, exclude={"preset", "eos_id", "causal", "attention", "rope"})
    stated = (tokenizer.hf_config or {}).get("vocab_size") or 0  # embeddings are often padded beyond the tokenizer's ids
    overrides.setdefault("vocab_size", max(tokenizer.vocab_size, stated))
    preset = PRESETS[m.preset]
    rope: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in m.rope.model_dump(exclude_none=True).items()
    }
    overrides["rope"] = replace(preset.rope, **rope)
    overrides["attention"] = make_attention(config)
    overrides["causal"] = config.causal
    if config.has_head:
        overrides |= {"head_outputs": len(config.head.classes) or 1, "pool": config.head.pool}
    decoder = replace(preset, **overrides)
    begun = bool(config.checkpoint.initial_load_path)  # what its scaling was is known when it is opened
    if complaints := check_training(decoder.rope, decoder.attention, config.training.seq_len, learned=begun):
        raise ModelError("; ".join(complaints))
    return decoder


def make_attention(config: JobConfig) -> AttentionConfig:
    """The preset's windows and position map with the keys that the TOML sets; the preset must exist."""
    stated = config.model.attention.model_dump(exclude_none=True, exclude={"executor"})
    return replace(PRESETS[config.model.preset].attention, **stated)


def make_model(config: JobConfig, decoder: DecoderConfig) -> Decoder:
    """The decoder of a job with its adapters, frozen where `[fine_tuning]` says so: a plain module, on torch's present device.

    Raises:
        ConfigError: `[fine_tuning]` does not fit the decoder.
    """
    model = Decoder(decoder, config.training.seq_len)
    fine_tune(model, config.fine_tuning)
    return model


def attention_of(config: JobConfig, device: torch.device) -> tuple[Executor, str]:
    """The executor of `model.attention.executor`, and why it is this one."""
    if config.model.attention.executor != "auto":
        return config.model.attention.executor, "as model.attention.executor says"
    spread, plain = config.parallelism.context_parallel_degree > 1, make_attention(config).plain
    return choose_executor(device, half=is_half(config), compiled=config.compile.enable, spread=spread, plain=plain)


def is_half(config: JobConfig) -> bool:
    """Whether attention computes in 16 bits."""
    return config.training.mixed_precision_param != "float32"


def make_mask(config: JobConfig, tokenizer: Tokenizer, device: torch.device) -> DocumentMask:
    """The document mask with the model's own statement of its ids: `model.eos_id` where the TOML gives one."""
    executor, _ = attention_of(config, device)
    attention = make_attention(config)
    check_executor(executor, device, half=is_half(config), compiled=config.compile.enable, attention=attention)
    refuse(context_complaints(config, executor, attention))
    if executor == "varlen" and has_flash_attention_3(device):
        activate_flash_attention_impl("FA3")
    m = config.model
    eos_id = tokenizer.eos_id if m.eos_id is None else m.eos_id
    return DocumentMask(eos_id=eos_id, pad_id=tokenizer.pad_id, causal=config.causal, executor=executor, attention=attention)
