"""DOOR of start: verify, origin, open_data."""

import torch

from ...datasets.tokenizers import Tokenizer
from ...models.config import DecoderConfig
from ...models.huggingface import architecture
from ..build import make_decoder_config, make_model, make_tokenizer
from ..config import JobConfig
from ..errors import ConfigError
from ..metrics import check_profiling, check_reports
from ..optim import optimizer_complaints
from ..parallel import check_float8
from ..processes import Layout, check_layout
from .data import make_data_config


def check_export(config: JobConfig, decoder: DecoderConfig) -> None:
    """Refuse a job that could not be exported at its end. Raises ConfigError or ModelError."""
    if not config.checkpoint.last_save_in_hf:
        return
    if not config.checkpoint.enable:
        raise ConfigError("checkpoint.last_save_in_hf = true: there is no last save, checkpoint.enable is false")
    architecture(decoder)


def check_fine_tuning(config: JobConfig, decoder: DecoderConfig) -> None:
    """Refuse `[fine_tuning]` where it does not fit the decoder or another table. Raises ConfigError."""
    with torch.device("meta"):
        model = make_model(config, decoder)
    if config.fine_tuning.lora.rank and config.float8.enable:
        raise ConfigError("float8.enable = true: its layers have no adapters; leave it out, or fine_tuning.lora.rank")
    if complaints := optimizer_complaints(config, model):
        raise ConfigError("\n  ".join(complaints))


def verify(config: JobConfig, layout: Layout, device: torch.device | None = None) -> tuple[Tokenizer, DecoderConfig]:
    """Everything that can be checked before data or model are touched; of the device nothing where it is None."""
    tokenizer = make_tokenizer(config)
    decoder = make_decoder_config(config, tokenizer)
    check_layout(config, decoder, layout)
    make_data_config(config, layout, tokenizer).check(tokenizer)
    check_reports(config)
    if device is not None:
        check_profiling(config, device)
    check_float8(config, decoder, layout, device)
    check_export(config, decoder)
    check_fine_tuning(config, decoder)
    return tokenizer, decoder
