"""From the configuration to the parts that datasets and models provide. Shared by training and by every tool."""

import torch
from torch.nn.attention import activate_flash_attention_impl

from ...datasets.tokenizers import Tokenizer, build_tokenizer
from ...models.attention import (
    DocumentMask,
    FlashFacts,
    choose_executor,
    choose_flex_backend,
    executor_complaints,
    flash_facts,
    flex_backend_complaints,
    has_flash_attention_3,
)
from ...models.config import DecoderConfig, Executor, FlexBackend, check_training
from ...models.decoder import Decoder
from ..config import JobConfig
from ..errors import refuse
from ..parallel import context_complaints
from .fine_tuning import fine_tune


def make_tokenizer(config: JobConfig) -> Tokenizer:
    """Return the tokenizer of `[tokenizer]`."""
    return build_tokenizer(config.tokenizer)


def make_decoder_config(config: JobConfig, tokenizer: Tokenizer) -> DecoderConfig:
    """Return the decoder of `[model]` and `[head]`, with the tokenizer's vocabulary unless the TOML sets another.

    Raises:
        ModelError: for a shape that does not fit together.
    """
    hf_vocab_size = (tokenizer.hf_config or {}).get("vocab_size") or 0  # embeddings are often padded beyond the tokenizer's ids
    return config.model.decoder(
        vocab_size=max(tokenizer.vocab_size, hf_vocab_size),
        causal=config.causal,
        head_outputs=(len(config.head.classes) or 1) if config.has_head else 0,
        pool=config.head.pool if config.has_head else "mean",
    )


def rows_complaints(config: JobConfig) -> list[str]:
    """Return why rows of `training.seq_len` tokens do not fit `[model.rope]` and `[model.attention]`, a line each."""
    begun = bool(config.checkpoint.initial_load_path)  # what its scaling was is known when it is opened
    return check_training(config.model.rope, config.model.attention, config.training.seq_len, learned=begun)


def make_model(config: JobConfig, decoder: DecoderConfig) -> Decoder:
    """Return the decoder of a job with its adapters, frozen where `[fine_tuning]` says so, on torch's present device.

    Raises:
        ConfigError: `[fine_tuning]` does not fit the decoder.
    """
    model = Decoder(decoder, config.training.seq_len)
    fine_tune(model, config.fine_tuning)
    return model


def attention_of(config: JobConfig, device: torch.device) -> tuple[Executor, str]:
    """Return the executor of `model.attention.executor`, and why it is this one."""
    if config.model.attention.executor != "auto":
        return config.model.attention.executor, "as model.attention.executor says"
    spread, plain = config.parallelism.context_parallel_degree > 1, config.model.attention.plain
    return choose_executor(device, half=is_half(config), compiled=config.compile.enable, spread=spread, plain=plain)


def flex_backend_of(config: JobConfig, device: torch.device) -> tuple[FlexBackend, str]:
    """Return the kernels of `model.attention.flex_backend` for a job whose executor is flex, and why it is these."""
    if config.model.attention.flex_backend != "auto":
        return config.model.attention.flex_backend, "as model.attention.flex_backend says"
    return choose_flex_backend(flash_facts_of(config, device))


def flash_facts_of(config: JobConfig, device: torch.device) -> FlashFacts:
    """Return what decides whether FlashAttention 4 can train a job on a device."""
    m = config.model
    return flash_facts(device, half=is_half(config), head_dim=m.head_dim, attention=m.attention)


def attention_said(config: JobConfig, device: torch.device) -> tuple[str, str]:
    """Return what computes attention, in words, and why it is that."""
    executor, why = attention_of(config, device)
    if executor != "flex":
        return executor, why
    backend, because = flex_backend_of(config, device)
    return executor, f"{why}; kernels: {backend}, {because}"


def is_half(config: JobConfig) -> bool:
    """Return whether attention computes in 16 bits."""
    return config.training.mixed_precision_param != "float32"


def attention_complaints(config: JobConfig, device: torch.device) -> list[str]:
    """Return why attention cannot be computed as `[model.attention]` says on a device of this type, a line each."""
    (executor, _), attention = attention_of(config, device), config.model.attention
    wrong = executor_complaints(executor, device, half=is_half(config), compiled=config.compile.enable, attention=attention)
    wrong += flex_backend_complaints(attention.flex_backend, executor, flash_facts_of(config, device))
    return wrong + context_complaints(config, executor, attention)


def training_mask(config: JobConfig, tokenizer: Tokenizer, device: torch.device) -> DocumentMask:
    """Return the document mask, with the model's own statement of its ids: `model.eos_id` where the TOML gives one.

    Raises:
        ConfigError: attention cannot be computed so on this device.
    """
    refuse(attention_complaints(config, device))
    (executor, _), attention = attention_of(config, device), config.model.attention
    if executor == "varlen" and has_flash_attention_3(device):
        activate_flash_attention_impl("FA3")
    m = config.model
    eos_id = tokenizer.eos_id if m.eos_id is None else m.eos_id
    flash = executor == "flex" and flex_backend_of(config, device)[0] == "flash"
    return DocumentMask(
        eos_id=eos_id,
        pad_id=tokenizer.pad_id,
        causal=config.causal,
        executor=executor,
        attention=attention,
        flash_queries=flash_facts_of(config, device).queries if flash else None,
    )
