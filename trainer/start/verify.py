"""What a job is refused for before data or model are touched: every room's complaints, gathered and raised once.

What depends on a part that cannot be built is not looked at, or, where the part is the tokenizer, is looked at with another
one's vocabulary.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from ...base import UserError
from ...datasets.tokenizers import Tokenizer, build_tokenizer
from ...models.config import DecoderConfig
from ...models.huggingface import architecture
from ..build import make_decoder_config, make_mask, make_model, make_tokenizer
from ..config import JobConfig
from ..errors import ConfigError
from ..metrics import check_profiling, check_reports
from ..optim import optimizer_complaints
from ..parallel import check_float8
from ..processes import Layout, check_layout, check_symmetric_memory, pick_device, world_size
from .data import make_data_config

T = TypeVar("T")


def verify(config: JobConfig, layout: Layout, device: torch.device | None = None) -> tuple[Tokenizer, DecoderConfig]:
    """Return the tokenizer and the decoder's shape of a job that fits its processes and its device.

    Args:
        config: of the job.
        layout: its processes.
        device: what it is to run on; None: of the device nothing is checked.

    Raises:
        ConfigError: with a line for every mistake.
    """
    parts = Examination(config)
    parts.examine(layout, device)
    if parts.lines:
        raise ConfigError("\n  ".join([f"the configuration does not fit: {len(parts.lines)} mistake(s)", *parts.lines]))
    assert parts.tokenizer
    assert parts.decoder
    return parts.tokenizer, parts.decoder


def job_complaints(config: JobConfig, processes: int | None, kernels: torch.device) -> list[str]:
    """Return what is wrong with a job that is to run elsewhere.

    Args:
        config: of the job.
        processes: how many there will be; None: as many as the degrees name.
        kernels: the device whose attention kernels are asked about; nothing else of it is.
    """
    parts = Examination(config)
    parts.examine(parts.layout(processes), None)
    parts.examine_attention(kernels)
    return parts.lines


def launch_complaints(config: JobConfig) -> list[str]:
    """Return what is wrong with a job that is to run here, on the device and the number of processes that this one is of."""
    parts = Examination(config)
    device = parts.attempt(pick_device)
    parts.examine(parts.layout(world_size()), device)
    if device is not None:
        parts.attempt(lambda: check_symmetric_memory(config, device))
        parts.examine_attention(device)
    return parts.lines


class Examination:
    """A job's parts as far as they can be built, and a line for each mistake.

    Args:
        config: of the job.
    """

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.lines: list[str] = []
        self.tokenizer: Tokenizer | None = None
        self.tokenizer = self.attempt(lambda: make_tokenizer(config))
        self.decoder = self.attempt(lambda: make_decoder_config(config, self.some_tokenizer))

    @property
    def some_tokenizer(self) -> Tokenizer:
        """The job's tokenizer, or one in its place where there is none."""
        return self.tokenizer or build_tokenizer("byte")

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Return what `step` returns; where it refuses, None, and its message stands in `lines`."""
        try:
            return step()
        except UserError as error:
            self.add([line.strip() for line in str(error).split("\n") if not line.endswith(":")])
            return None

    def add(self, lines: list[str]) -> None:
        """Add lines that are not there yet, without those about a vocabulary that the job does not have."""
        known = self.tokenizer is not None
        self.lines += [line for line in lines if line not in self.lines and (known or "model.vocab_size" not in line)]

    def layout(self, processes: int | None) -> Layout | None:
        """Return the layout on so many processes; where the degrees do not fit them, that of the degrees alone."""
        fitting = self.attempt(lambda: Layout.resolve(self.config, processes))
        return fitting or self.attempt(lambda: Layout.resolve(self.config))

    def examine(self, layout: Layout | None, device: torch.device | None) -> None:
        """Ask every room."""
        config, tokenizer, decoder = self.config, self.tokenizer, self.decoder
        if layout and decoder:
            self.attempt(lambda: check_layout(config, decoder, layout))
            self.attempt(lambda: check_float8(config, decoder, layout, device))
        if layout and tokenizer:
            self.attempt(lambda: make_data_config(config, layout, tokenizer).check(tokenizer))
        self.attempt(lambda: check_reports(config))
        if device is not None:
            self.attempt(lambda: check_profiling(config, device))
        if decoder:
            self.attempt(lambda: check_export(config, decoder))
            self.attempt(lambda: check_fine_tuning(config, decoder))

    def examine_attention(self, device: torch.device) -> None:
        """Ask the kernels of a device for the mask."""
        if self.decoder:
            self.attempt(lambda: make_mask(self.config, self.some_tokenizer, device))


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
