"""Small decoders and packed rows, made document by document and without the code under test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cistron.models.config import DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from torch import Tensor

EOS, PAD, VOCAB = 0, 1, 61

LLAMA = DecoderConfig(
    vocab_size=VOCAB,
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=48,
    norm_eps=1e-5,
    qk_norm=False,
    tie_embeddings=False,
    rope=RopeConfig(theta=500_000.0),
)
QWEN = LLAMA.replace(qk_norm=True, norm_eps=1e-6, n_kv_heads=1, rope=RopeConfig(theta=1_000_000.0))
CONFIGS = {
    "llama": LLAMA,
    "llama-tied": LLAMA.replace(tie_embeddings=True),
    "llama-one-kv-head-per-head": LLAMA.replace(n_kv_heads=4),
    "qwen": QWEN,
    "qwen-tied": QWEN.replace(tie_embeddings=True),
}

# Lengths of the documents of each row of 64 tokens, eos included: what is missing is padding; the second row ends in a
# fragment, which has no eos; the third is a single document; the fourth is padding but for one lone eos.
ROWS = [[20, 1, 7, 25], [30, 34], [64], [1]]
FRAGMENT = (1, 1)
SEQ_LEN = 64


@dataclass
class Packed:
    """A batch of packed rows and the documents it was made of.

    Attributes:
        tokens: int64 [rows, 64].
        positions: int32 [rows, 64], 0 on padding.
        sequence_ids: int32 [rows, 64].
        labels: int64 [rows, 64], the next token of the same document, -100 where there is none.
        documents: (row, slice of the row) of every document.
    """

    tokens: Tensor
    positions: Tensor
    sequence_ids: Tensor
    labels: Tensor
    documents: list[tuple[int, slice]]

    def text(self) -> Tensor:
        """Bool [rows, 64]: False on padding."""
        return self.sequence_ids >= 0


def pack(seed: int = 0) -> Packed:
    """The rows of `ROWS`, filled with random tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(ROWS), SEQ_LEN)
    batch = Packed(
        tokens=torch.full(shape, PAD),
        positions=torch.zeros(shape, dtype=torch.int32),
        sequence_ids=torch.full(shape, -1, dtype=torch.int32),
        labels=torch.full(shape, -100),
        documents=[],
    )
    for row, lengths in enumerate(ROWS):
        start = 0
        for number, length in enumerate(lengths):
            document = torch.randint(2, VOCAB, (length,), generator=generator)
            if (row, number) != FRAGMENT:
                document[-1] = EOS
            where = slice(start, start + length)
            batch.tokens[row, where] = document
            batch.positions[row, where] = torch.arange(length, dtype=torch.int32)
            batch.sequence_ids[row, where] = number
            batch.labels[row, start : start + length - 1] = document[1:]
            batch.documents.append((row, where))
            start += length
    return batch


def random_decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder whose every parameter, norms included, is random and large enough for attention to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model


def mean_loss(logits: Tensor, labels: Tensor, targets: int) -> Tensor:
    """Cross-entropy summed over labels other than -100, divided by `targets`."""
    summed = torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
    return summed / targets
