"""Random models that are ready to be used, and checkpoints of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from cistron.datasets.tokenizers import Tokenizer, build_tokenizer
from cistron.models.config import DecoderConfig
from cistron.tests.models.packed import LLAMA, random_decoder
from cistron.trainer.checkpoint import write_whole
from cistron.trainer.config import JobConfig
from cistron.trainer.inference import OpenedModel, make_mask
from cistron.trainer.totals import Progress

CAUSAL = replace(LLAMA, vocab_size=512)
ENCODER = replace(CAUSAL, causal=False, head_dim=8)  # of EuroBERT's class: as many as dim / n_heads
BYTE, PROTEIN = build_tokenizer("byte"), build_tokenizer("protein")


def ready(config: DecoderConfig, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> OpenedModel:
    """A random model on the CPU."""
    mask = make_mask(tokenizer, config, torch.device("cpu"), dtype)
    return OpenedModel(
        model=random_decoder(config).to(dtype), tokenizer=tokenizer, mask=mask, seq_len=64, where="random", fingerprint="0"
    )


def write_checkpoint(folder: Path, config: DecoderConfig, tokenizer: Tokenizer = BYTE) -> Path:
    """A checkpoint of the same model."""
    weights = random_decoder(config).state_dict()
    state = {
        "progress": asdict(Progress()),
        "data": None,
        "contract": {
            "eos": tokenizer.eos_id,
            "pad": tokenizer.pad_id,
            "vocab": config.vocab_size,
            "tokenizer": tokenizer.fingerprint,
        },
        "model": asdict(config),
        "config": JobConfig.model_validate({"training": {"seq_len": 64}, "tokenizer": {"kind": tokenizer.kind}}).to_dict(),
        "versions": {},
    }
    write_whole(folder, {k: (v.dtype, tuple(v.shape)) for k, v in weights.items()}, weights.__getitem__, state)
    return folder


def random_sequences(seed: int, lengths: Sequence[int]) -> list[str]:
    """Nucleotides, which are letters of a protein too."""
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("ACGTN"), size=length)) for length in lengths]


def write_fasta(path: Path, sequences: Sequence[str]) -> Path:
    """Records `s0`, `s1`, ... with a description."""
    path.write_text("".join(f">s{number} of nothing\n{text}\n" for number, text in enumerate(sequences)))
    return path
