"""Everything that can be checked before data or model are touched, all complaints in one message."""

import torch

from ...datasets.tokenizers import Tokenizer
from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ...models.huggingface import architecture
from ..build import (
    attention_complaints,
    fine_tune,
    fine_tuning_complaints,
    make_decoder_config,
    make_tokenizer,
    rows_complaints,
)
from ..config import JobConfig
from ..errors import refuse
from ..metrics import profiling_complaints, sink_complaints
from ..optim import optimizer_complaints
from ..parallel import float8_complaints
from ..processes import Layout, layout_complaints, symmetric_memory_complaints
from .data import make_data_config, make_objective


def export_complaints(config: JobConfig, decoder: DecoderConfig) -> list[str]:
    """Return why a job could not be exported at its end. Raises ModelError where no family has such a decoder."""
    if not config.checkpoint.last_save_in_hf:
        return []
    if not config.checkpoint.enable:
        return ["checkpoint.last_save_in_hf = true: there is no last save, checkpoint.enable is false"]
    architecture(decoder)
    return []


def training_complaints(config: JobConfig, decoder: DecoderConfig) -> list[str]:
    """Return where `[fine_tuning]` does not fit the decoder, `[float8]` or `[optimizer]`."""
    with torch.device("meta"):
        model = Decoder(decoder, config.training.seq_len)
    complaints = fine_tuning_complaints(model, config.fine_tuning)
    if not complaints:
        fine_tune(model, config.fine_tuning)
        complaints = optimizer_complaints(config, model)
    if config.fine_tuning.lora.rank and config.float8.enable:
        complaints.append("float8.enable = true: its layers have no adapters; leave it out, or fine_tuning.lora.rank")
    return complaints


def verify(
    config: JobConfig, layout: Layout, device: torch.device | None = None, attention_device: torch.device | None = None
) -> tuple[Tokenizer, DecoderConfig]:
    """Check everything that can be checked before data or model are touched.

    Args:
        config: the job.
        layout: its processes.
        device: that this process trains on; None: none is asked what it can do.
        attention_device: a device of the type that attention is meant for, where it is not `device`.

    Raises:
        ConfigError: with all complaints, a line each.
        DataConfigError, ModelError: tokenizer, data or model are refused by their own rooms.
    """
    tokenizer = make_tokenizer(config)
    decoder = make_decoder_config(config, tokenizer)
    complaints = rows_complaints(config) + layout_complaints(config, decoder, layout)
    if (where := device or attention_device) is not None:
        complaints += attention_complaints(config, where)
    complaints += sink_complaints(config)
    if device is not None:
        complaints += profiling_complaints(config, device) + symmetric_memory_complaints(config, device)
    complaints += float8_complaints(config, decoder, layout, device)
    complaints += export_complaints(config, decoder)
    complaints += training_complaints(config, decoder)
    refuse(complaints)
    make_objective(config, tokenizer)
    make_data_config(config).check(tokenizer, config.training.seq_len)
    return tokenizer, decoder
