"""Rows that grow by a token at a time, in a causal model of any layout: a prefill, then a step for each token.

A step runs one token of each row, and attention reads what its cache holds (`models/attention/cache.py`). So a token
costs the same whatever stands before it, but for attention's reading of the keys. Rotary angles never depend on how
long a row has become (`positions.rope_table` has the length that a model is meant for, also with `dynamic_ntk` and
`longrope`), so a key is rotated once, and the cached keys are those of a whole row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...models.attention import KEYS_MULTIPLE, Cache, Cached, DocumentMask, empty_caches
from ...models.decoder import Decoder
from .documents import make_rows


@dataclass(frozen=True)
class Decoding:
    """Rows of a model, each a document that has begun.

    Attributes:
        model: causal, in any layout; where rows are spread over ranks, every rank has all of them.
        pad_id: fills what runs beside a row's tokens.
        multiple_of: tokens run in multiples of this, for sequence-parallel layouts.
        lengths: tokens of each row.
        caches: by mixer.
        logits: [rows, vocab_size of the model], behind the last token of each row.
    """

    model: Decoder
    pad_id: int
    multiple_of: int
    lengths: list[int]
    caches: dict[nn.Module, Cache]
    logits: Tensor

    @classmethod
    def begin(
        cls, model: Decoder, prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device, multiple_of: int = 1
    ) -> Self:
        """Run the tokens of prompts, at least one in each, as rows side by side."""
        rows = make_rows([[np.asarray(ids)] for ids in prompts], _prefill_mask(model, pad_id, device), device, multiple_of)
        lengths = [len(ids) for ids in prompts]
        caches = empty_caches(model)
        first = min(lengths) - 1
        with logits_of(model, slice(first, max(lengths))):
            logits = _run(model, rows.tokens, rows.positions, Cached(rows.mask, caches))
        last = torch.tensor(lengths, device=device) - 1 - first
        behind = logits[torch.arange(len(last), device=device), last]
        return cls(model, pad_id, multiple_of, lengths, caches, behind)

    def rows(self, rows: Sequence[int]) -> Self:
        """Return these rows, in this order; a row may occur several times. They grow apart, and these here stay."""
        index = torch.tensor(rows, device=self.logits.device)
        caches = {mixer: cache.rows(index) for mixer, cache in self.caches.items()}
        return replace(self, lengths=[self.lengths[row] for row in rows], caches=caches, logits=self.logits[index])

    def append(self, tokens: Sequence[int]) -> Self:
        """Return the rows with one more token each. The caches are changed in place: what was before has no use."""
        device, beside = self.logits.device, self.multiple_of - 1
        ids = torch.tensor([[token, *[self.pad_id] * beside] for token in tokens], device=device)
        places = torch.tensor([[length + place for place in range(beside + 1)] for length in self.lengths], device=device)
        keys = max(self.lengths) + self.multiple_of
        whole = torch.zeros(1, 1, dtype=torch.int32, device=device).expand(len(tokens), keys + -keys % KEYS_MULTIPLE)
        mask = _rule(self.model, self.pad_id, "sdpa").build(whole, queries=places)
        with logits_of(self.model, slice(0, 1)):
            logits = _run(self.model, ids, places.int(), Cached(mask, self.caches, places))
        return replace(self, lengths=[length + 1 for length in self.lengths], logits=logits[:, 0])


def _rule(model: Decoder, pad_id: int, executor: Literal["varlen", "sdpa"]) -> DocumentMask:
    """Return the mask rule of one document a row, in which no eos is looked for."""
    return DocumentMask(eos_id=-1, pad_id=pad_id, executor=executor, attention=model.config.attention)


def _prefill_mask(model: Decoder, pad_id: int, device: torch.device) -> DocumentMask:
    """Return the mask rule of the prompts, for a kernel that needs no compilation, by documents where it can be."""
    half = model.tok_embeddings.weight.dtype in (torch.float16, torch.bfloat16)
    by_document = model.config.attention.plain and (device.type == "cpu" or (device.type == "cuda" and half))
    return _rule(model, pad_id, "varlen" if by_document else "sdpa")


@torch.no_grad()
def _run(model: Decoder, tokens: Tensor, positions: Tensor, cached: Cached) -> Tensor:
    with torch.compiler.set_stance("force_eager"):  # lengths change with every token: a compiled block would recompile
        logits: Tensor = model(tokens, positions, cached)
    return logits


@contextmanager
def logits_of(model: Decoder, places: slice) -> Iterator[None]:
    """Within it the model computes logits of these places alone: [batch, places, vocab_size]."""
    handle = model.output.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, places],))
    try:
        yield
    finally:
        handle.remove()
