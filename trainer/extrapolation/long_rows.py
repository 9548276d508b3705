"""Documents of one length through a model of any layout: losses and most likely tokens, without all logits in memory.

A document has a row of its own, padded to a multiple of 128; rows run in batches of a budget of tokens. Data-parallel
ranks take batches round robin, all as many, and every rank gets all results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...datasets.tokenizers import Ids, Tokenizer
from ...models.decoder import Decoder
from ..inference import Rows, inference_mask, logits_of, make_rows
from ..processes import World

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LongRowModel:
    """A model that is asked about long documents.

    Attributes:
        model: in any layout; its rotary embedding and attention are as `Decoder.set_positions` was last told.
        tokenizer: of its training.
        device: where it is.
        dtype: that attention computes in.
        batch_tokens: that run at once, or those of one longer document.
        world: the processes that share the work; None: this one alone.
        executor: of attention, as `model.attention.executor` has it.
        tick: told of tokens that have run, on all ranks after each batch; what it raises ends the work.
    """

    model: Decoder
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    world: World | None = None
    executor: str = "auto"
    tick: Callable[[int], None] = lambda tokens: None

    def losses(self, documents: Sequence[Ids]) -> Array:
        """Cross-entropies of all tokens of documents but their first, in nats: float64 [documents, length - 1]."""

        def run(rows: Rows, length: int) -> Array:
            losses = self.model(rows.tokens, rows.positions, rows.mask, rows.labels)
            found: Array = losses[:, : length - 1].double().cpu().numpy()
            return found

        return self._each(documents, run)

    def likeliest(self, documents: Sequence[Ids], last: int) -> Array:
        """Return the most likely token behind each of the `last` tokens of documents: int64 [documents, last]."""

        def run(rows: Rows, length: int) -> Array:
            with logits_of(self.model, slice(length - last, length)):
                logits = self.model(rows.tokens, rows.positions, rows.mask)
            found: Array = logits[..., : self.tokenizer.vocab_size].argmax(-1).cpu().numpy()
            return found

        return self._each(documents, run)

    @torch.no_grad()
    def _each(self, documents: Sequence[Ids], run: Callable[[Rows, int], Array]) -> Array:
        """Return what `run` returns for documents of one length, in their order."""
        length = len(documents[0])
        assert all(len(document) == length for document in documents)
        mask = inference_mask(self.tokenizer, self.model.config, self.device, self.dtype, self.executor)
        rows = max(1, self.batch_tokens // length)
        batches = [documents[start : start + rows] for start in range(0, len(documents), rows)]
        rank, ranks = (self.world.dp_rank, self.world.layout.data_parallel) if self.world else (0, 1)
        found: dict[int, Array] = {}
        for number in range(rank, -(-len(batches) // ranks) * ranks, ranks):
            batch = batches[number % len(batches)]  # beyond the last one again: all ranks must run as many
            found[number] = run(make_rows([[document] for document in batch], mask, self.device), length)
            self.tick(length * sum(map(len, batches[number - rank : number - rank + ranks])))
        parts = self.world.gather(found if self.world.is_row_leader else {}) if self.world else [found]
        whole = {number: rows for part in parts for number, rows in part.items()}
        return np.concatenate([whole[number] for number in range(len(batches))])
