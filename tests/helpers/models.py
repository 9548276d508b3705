"""Random models that are ready to be used, and checkpoints of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cistron.datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer
from cistron.models.config import DecoderConfig
from cistron.tests.helpers.packed import LLAMA, random_decoder
from cistron.trainer.build import contract_of, make_model
from cistron.trainer.checkpoints import Progress, RunState, Spec, write_whole
from cistron.trainer.config import JobConfig
from cistron.trainer.inference import OpenedModel, inference_mask

CAUSAL = LLAMA.replace(vocab_size=512)
ENCODER = CAUSAL.replace(causal=False, head_dim=8)  # of EuroBERT's class: as many as dim / n_heads
BYTE, PROTEIN = build_tokenizer(TokenizerConfig(kind="byte")), build_tokenizer(TokenizerConfig(kind="protein"))


def ready(config: DecoderConfig, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> OpenedModel:
    """A random model on the CPU."""
    mask = inference_mask(tokenizer, config, torch.device("cpu"), dtype)
    return OpenedModel(
        model=random_decoder(config).to(dtype),
        tokenizer=tokenizer,
        mask=mask,
        seq_len=64,
        trained=config,
        where="random",
        fingerprint="0",
    )


def write_checkpoint(folder: Path, config: DecoderConfig, tokenizer: Tokenizer = BYTE, **tables: Any) -> Path:
    """A checkpoint of random weights, of a job with these tables of the TOML."""
    sources = [{"name": "corpus", "format": "fasta", "paths": ["corpus.fa"]}]
    data = {"sources": sources, **tables.pop("data", {})}
    tables = {"training": {"seq_len": 64}, "tokenizer": {"kind": tokenizer.kind}, "data": data, **tables}
    job = JobConfig.model_validate(tables)
    weights = make_model(job, config).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        weight.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    step = Progress(
        step=int(folder.name.removeprefix("step-")) if folder.name.startswith("step-") else 0,
        tokens_seen=0,
        rows_hash=0,
        source_tokens={},
    )
    state = RunState.of(config=job, model=config, contract=contract_of(tokenizer, config), progress=step)
    write_whole(folder, {k: Spec.of(v) for k, v in weights.items()}, weights.__getitem__, state)
    return folder


def random_sequences(seed: int, lengths: Sequence[int]) -> list[str]:
    """Nucleotides, which are letters of a protein too."""
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("ACGTN"), size=length)) for length in lengths]


def write_fasta(path: Path, sequences: Sequence[str]) -> Path:
    """Records `s0`, `s1`, ... with a description."""
    path.write_text("".join(f">s{number} of nothing\n{text}\n" for number, text in enumerate(sequences)))
    return path
