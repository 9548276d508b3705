"""What a job is refused for before data or model are touched: every room's complaints, gathered and raised once.

What depends on a part that cannot be built is not examined. Where it is the tokenizer, the decoder is examined with the
vocabulary of another one.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from ...base import UserError
from ...datasets.documents import Content, content_complaints, content_settings, document_complaints
from ...datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer
from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ...models.huggingface import architecture
from ..build import (
    attention_complaints,
    attention_said,
    contract_of,
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
from ..processes import Layout, degree_complaints, layout_complaints, pick_device, split_complaints, symmetric_memory_complaints
from .data import data_config, make_objective

T = TypeVar("T")
Parts = tuple[Tokenizer, DecoderConfig]


def verify(config: JobConfig, layout: Layout, device: torch.device | None = None) -> Parts:
    """Return the tokenizer and the decoder's shape of a job that fits its processes and its device.

    Args:
        config: of the job.
        layout: its processes.
        device: what it is to run on; None: of the device nothing is checked.

    Raises:
        ConfigError: with a line for every mistake.
    """
    job = Examination(config)
    job.examine(layout, device)
    refuse(job.complaints)
    return job.parts


class Launch:
    """A job that is examined when its configuration is read, before its processes join.

    Args:
        processes: how many there are or will be; None: as many as the degrees name.
        kernels: of a job that is to run elsewhere, the device whose attention kernels are asked; nothing else of it is,
            as it need not be here. None: it runs here, and the device of this process is asked for everything.

    Attributes:
        parts: tokenizer and decoder's shape of the job: a tokenizer of 128k tokens takes a second to load. None: it was
            not examined, or refused.
        passing: whether a complaint may pass by itself, see `UserError`.
    """

    def __init__(self, processes: int | None, kernels: torch.device | None = None) -> None:
        self.processes, self.kernels = processes, kernels
        self.parts: Parts | None = None
        self.passing = False

    def complaints(self, config: JobConfig) -> list[str]:
        """Return what is wrong with the job; where nothing is, keep its parts."""
        job = Examination(config)
        here = job.attempt(pick_device) if self.kernels is None else None
        job.examine(job.layout(self.processes), here)
        if kernels := self.kernels or here:
            job.add(attention_complaints(config, kernels))
        self.parts, self.passing = None if job.complaints else job.parts, job.passing
        return job.complaints


class Examination:
    """A job's parts, as far as they can be built, and what is wrong with them.

    Args:
        config: of the job.

    Attributes:
        complaints: a line for every mistake found so far.
        passing: whether one of them may pass by itself, see `UserError`.
    """

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.complaints: list[str] = []
        self.passing = False
        self.tokenizer: Tokenizer | None = None
        self.tokenizer = self.attempt(lambda: make_tokenizer(config))
        self.some_tokenizer = self.tokenizer or build_tokenizer(TokenizerConfig())
        self.decoder = self.attempt(lambda: make_decoder_config(config, self.some_tokenizer))

    @property
    def parts(self) -> Parts:
        """The tokenizer and the decoder's shape of a job without complaints."""
        assert self.tokenizer
        assert self.decoder
        return self.tokenizer, self.decoder

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Return what `step` returns; where it refuses, None, and its message is among the complaints."""
        try:
            return step()
        except UserError as error:
            self.passing |= error.passing
            self.add(line.strip() for line in str(error).split("\n") if not line.endswith(":"))
            return None

    def add(self, complaints: Iterable[str]) -> None:
        """Add those that are not there yet, without those about a vocabulary that the job does not have."""
        known = self.tokenizer is not None
        self.complaints += [
            line for line in complaints if line not in self.complaints and (known or "model.vocab_size" not in line)
        ]

    def layout(self, processes: int | None) -> Layout | None:
        """Return the layout on so many processes; where the degrees do not fit them, that of the degrees alone."""
        wrong = degree_complaints(self.config, processes)
        self.add(wrong)
        if not wrong:
            return Layout.resolve(self.config, processes)
        return None if degree_complaints(self.config, None) else Layout.resolve(self.config)

    def examine(self, layout: Layout | None, device: torch.device | None) -> None:
        """Ask every room; of the device only what it has, not its attention kernels."""
        config, tokenizer, decoder = self.config, self.tokenizer, self.decoder
        self.add(rows_complaints(config))
        if layout:
            self.add(layout_complaints(config, layout))
        if layout and decoder:
            self.add(split_complaints(decoder, layout))
            self.add(float8_complaints(config, decoder, layout, device))
        self.add(sink_complaints(config))
        if device is not None:
            self.add(profiling_complaints(config, device))
            self.add(symmetric_memory_complaints(config, device))
        if decoder:
            if config.checkpoint.last_save_in_hf:
                self.attempt(lambda: architecture(decoder))
            self.add(parameter_complaints(config, decoder))
        if tokenizer:
            self.attempt(lambda: make_objective(config, tokenizer))
            data = data_config(config)
            self.add(document_complaints(data, tokenizer, data.policy, config.training.seq_len))
            self.add(content_complaints(contents(config), data, tokenizer))


def contents(config: JobConfig) -> list[Content | None]:
    """Return what documents are, in each source of training and validation."""
    validation = config.validation.sources if config.validation.enable else []
    return [source.content for source in (*config.data.sources, *validation)]


def host_facts(config: JobConfig, parts: Parts) -> dict[str, str]:
    """Return what depends on the host and must be alike on all ranks: the tokenizer, attention's kernels."""
    tokenizer, decoder = parts
    ids = contract_of(tokenizer, decoder).model_dump(exclude={"tokenizer", "vocab"})
    of_content = [content_settings(content, tokenizer) for content in contents(config)]
    return {
        **{f"tokenizer: {key}": str(value) for found in of_content for key, value in found.items()},
        "tokenizer (fingerprint)": tokenizer.fingerprint,
        **{f"tokenizer.{role}": str(id_) for role, id_ in ids.items()},
        "vocabulary": str(decoder.vocab_size),
        "attention": ": ".join(attention_said(config, pick_device())),
    }


def parameter_complaints(config: JobConfig, decoder: DecoderConfig) -> list[str]:
    """Return where `[fine_tuning]` does not fit the decoder or `[optimizer]`."""
    with torch.device("meta"):
        model = Decoder(decoder, config.training.seq_len)
    complaints = fine_tuning_complaints(model, config.fine_tuning)
    if not complaints:
        fine_tune(model, config.fine_tuning)
        complaints = optimizer_complaints(config, model)
    return complaints
