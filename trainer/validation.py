"""Validation between steps: the loss over every document of `[[validation.sources]]` once, the same in any layout.

Each rank runs its part of the rows, without gradients, and keeps sums in float64; one all-reduce at the end joins them.
All ranks have the same number of batches (`SinglePass`), so that collectives inside the model match. Before each batch
they agree, through CPU memory, whether any rank was told to stop or met bad data.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from typing_extensions import override

from ..base import UserError
from ..datasets.loading import Batch, SinglePass
from ..datasets.tokenizers import Tokenizer, token_bytes
from ..models.decoder import Decoder
from ..models.head import document_losses
from .config import JobConfig
from .errors import NonFiniteError
from .evaluation import Evaluation
from .heartbeat import Heartbeat
from .metrics import SCORES, MetricsRecord, label_metrics, target_weights
from .parallel import Inputs
from .processes import World, global_batch_size


class Validation(Evaluation):
    """Measures a model on documents that it is not trained on.

    A rank's own sums are `sums`, float64 [sources + ranges, 3]: nats times weight, what that is divided by
    (`target_weights`), and nats, over the targets of a source or, below, of a range of positions in the document; a
    target of weight 0 is none. Range 0 is predicted from position 0, which sees one token, range n from positions
    2^(n-1) to 2^n - 1.

    Args:
        config: of the job.
        world: this process among the others.
        data: what to read; every rank has its part.
        tokenizer: of the job; says how many bytes of text an id stands for.
        stage: takes a batch to the device, as for training.
        done: step of the last validation, which is that of a checkpoint to resume from.
    """

    def __init__(
        self,
        config: JobConfig,
        world: World,
        data: SinglePass,
        tokenizer: Tokenizer,
        stage: Callable[[Batch], Inputs],
        done: int,
    ) -> None:
        super().__init__(done)
        self.config, self.world, self.data, self.stage = config, world, data, stage
        self.names = [source.config.name for source in data.sources]
        # a masked language model predicts a part of a text only, so that its losses are not the text's
        sizes = token_bytes(tokenizer) if config.training.objective == "causal" else None
        self.token_bytes = None if sizes is None else torch.from_numpy(sizes)
        steps = config.validation.steps
        self.limit = None if steps == -1 else steps * global_batch_size(config, world.layout)

    @override
    def is_due(self, step: int) -> bool:
        """Return whether to validate after `step`: the first, which shows early that it works, and every `freq`."""
        return step == 1 or step % self.config.validation.freq == 0

    @override
    @torch.no_grad()
    def run(self, step: int, model: Decoder, heartbeat: Heartbeat) -> MetricsRecord | None:
        """Read every document once.

        The model stays in training mode, which has no part in its mathematics; compiled blocks are compiled once more
        at the first validation, for calls without gradients, and not again.

        Raises:
            DataError: a file or record cannot be used, on this rank or another.
            NonFiniteError: the loss is not finite.
        """
        started = time.perf_counter()
        ranges = (self.config.training.seq_len - 1).bit_length() + 1
        sums = torch.zeros(len(self.names) + ranges, 3, dtype=torch.float64, device=self.world.device)
        counts = torch.zeros(2, len(self.names), dtype=torch.int64)
        predictions: list[torch.Tensor] = []
        batches = self.data.batches(self.limit)
        while True:
            batch, error = fetch(batches)
            stopped, (errors, going) = heartbeat(int(error is not None), int(batch is not None))
            if errors:
                self.world.raise_together(error)
            if stopped:
                return None
            if batch is None:
                assert going == 0, "ranks have the same number of batches"
                break
            inputs = self.stage(batch)
            if self.config.has_head:
                outputs = model(inputs.tokens, inputs.positions, inputs.mask)
                losses = document_losses(outputs, inputs.labels, None, inputs.values)
                predictions.append(predicted(outputs, inputs))
            else:
                losses = model(inputs.tokens, inputs.positions, inputs.mask, inputs.labels)
            self.add(sums, losses, inputs)
            counts += self.count(batch)
        if self.world.tp_rank:  # ranks of one tensor-parallel group have the same losses: only its first counts them
            sums.zero_()
        dist.all_reduce(sums)
        copies = self.world.layout.world_size // self.world.layout.data_parallel  # ranks with the same rows
        documents, text_bytes = (torch.tensor(self.world.sum(counts.flatten().tolist())) // copies).view_as(counts).tolist()
        values = self.means_of_all(sums.tolist(), documents, text_bytes)
        if self.config.has_head:
            self.add_scores(values, predictions)
        if values["loss"] is None or not math.isfinite(values["loss"]):
            raise NonFiniteError(f"validation after step {step}: loss {values['loss']} (None: no target has a weight)")
        return validation_record({"step": step, **values, "seconds": time.perf_counter() - started})

    def add(self, sums: torch.Tensor, losses: torch.Tensor, inputs: Inputs) -> None:
        """Add a batch to `sums`.

        Args:
            sums: float64 [sources + ranges, 3].
            losses: float32 [batch, seq_len], 0 where there is no target.
            inputs: what they are the losses of.
        """
        labels, weights = inputs.labels, inputs.weights
        targets = target_weights(labels, weights, normalize=False)
        divisor = target_weights(labels, weights, normalize=self.config.data.normalize_weights)
        nats = losses.double() * targets
        weighted = nats if weights is None else nats * weights
        of_target = torch.stack([weighted, divisor, nats], dim=-1).flatten(0, 1)
        ranges = torch.frexp(inputs.positions.double()).exponent.flatten()  # the bits of an integer
        sums.index_add_(0, inputs.drawn_from[:, None].expand_as(labels).flatten(), of_target)
        of_range = torch.stack([nats, targets, nats], dim=-1).flatten(0, 1)
        sums.index_add_(0, ranges + len(self.names), of_range)

    def count(self, batch: Batch) -> torch.Tensor:
        """Count the documents that end in a batch, and bytes of text whose loss is taken: int64 [2, sources]."""
        used = batch.sequence_ids >= 0
        documents = batch.ended
        sizes = torch.zeros_like(documents)
        if self.token_bytes is not None:
            sizes = (self.token_bytes[batch.tokens] * used).sum(1)
            if batch.weights is not None:
                left_out = (batch.labels >= 0) & (batch.weights == 0)
                sizes -= (self.token_bytes[batch.labels.clamp_min(0)] * left_out).sum(1)
        counts = torch.zeros(2, len(self.names), dtype=torch.int64)
        return counts.index_add_(1, torch.tensor(batch.sources), torch.stack([documents, sizes]))

    def add_scores(self, values: dict[str, Any], predictions: list[torch.Tensor]) -> None:
        """Add to a record how well labels are predicted, from what `predicted` gave for each batch of each rank."""
        mine = predictions if self.world.is_row_leader else []
        table = np.concatenate([part.numpy() for parts in self.world.gather(mine) for part in parts])
        sources, truths, outputs = table[:, 0], table[:, 1], table[:, 2:]
        values |= label_metrics(outputs, truths)
        for number, name in enumerate(self.names):
            if name in values.get("sources", {}):
                values["sources"][name] |= label_metrics(outputs[sources == number], truths[sources == number])

    def means_of_all(self, sums: list[list[float]], documents: list[int], text_bytes: list[int]) -> dict[str, Any]:
        """Return means over all documents, over those of each source and of each range, from sums over all ranks."""
        of_sources, of_ranges = sums[: len(self.names)], sums[len(self.names) :]
        values = self.means([sum(column) for column in zip(*of_sources, strict=True)], sum(documents), sum(text_bytes))
        if len(self.names) > 1:
            each = zip(of_sources, documents, text_bytes, strict=True)
            values["sources"] = {name: self.means(*of) for name, of in zip(self.names, each, strict=True)}
        values["positions"] = {
            range_name(number): nats / targets for number, (nats, targets, _) in enumerate(of_ranges) if targets
        }
        return values

    def means(self, sums: list[float], documents: int, text_bytes: int) -> dict[str, Any]:
        """Return loss, perplexity and bits per byte of some documents; None: no target, or bytes are not known.

        Labels have a loss alone: the other two are about text.
        """
        weighted, weight, nats = sums
        loss = weighted / weight if weight else None
        if self.config.has_head:
            return {"loss": loss, "documents": documents}
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss is not None and loss < 700 else None,
            "bits_per_byte": nats / math.log(2) / text_bytes if text_bytes else None,
            "documents": documents,
        }


def validation_record(values: dict[str, Any]) -> MetricsRecord:
    """Return the record of a validation, with its line."""
    words = [f"step {values['step']:>6}  validation loss {values['loss']!r}"]
    words += [] if values.get("perplexity") is None else [f"perplexity {values['perplexity']:.3f}"]
    words += [] if values.get("bits_per_byte") is None else [f"{values['bits_per_byte']:.4f} bits per byte"]
    words += [f"{name} {values[name]:.4f}" for name in SCORES if values.get(name) is not None]
    words += [f"{values['documents']:,} documents in {values['seconds']:.1f} s"]
    return MetricsRecord("validation", values, "  ".join(words))


def fetch(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """Return the next batch or None after the last, and how the data failed."""
    try:
        return next(batches, None), None
    except UserError as error:
        return None, error


def predicted(outputs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Return what a head predicts of the labelled documents of a batch: float64 [documents, 2 + outputs] on the CPU.

    Args:
        outputs: float32 [batch, seq_len, outputs].
        inputs: what they are the outputs of; `labels` has at one position of each document its class, or 0 for values.

    Returns:
        Number of the source, class or value, and the outputs.
    """
    at = inputs.labels >= 0
    source = inputs.drawn_from[:, None].expand_as(inputs.labels)
    truths = inputs.labels if inputs.values is None else inputs.values
    return torch.cat([source[at][:, None].double(), truths[at][:, None].double(), outputs[at].double()], dim=1).cpu()


def range_name(number: int) -> str:
    """Return `0`, `1`, `2-3`, `4-7`, ...: the positions of a range."""
    first, last = (1 << number) >> 1, (1 << number) - 1
    return str(first) if first == last else f"{first}-{last}"
