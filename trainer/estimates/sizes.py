"""How many parameters a job's model has, and how many of them it trains."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.config import DecoderConfig
from ..build import make_model
from ..config import JobConfig


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, adapters included.

    Attributes:
        tables: outside of the blocks.
        blocks: of all blocks.
        trained_tables: of those outside of the blocks.
        trained_blocks: of those of the blocks.
        trained_output: of the output table, or of the head, 0 where it is frozen.
        frozen_products: of those that are frozen and multiply activations: all but an embedding table that is no
            output.
        largest: of the largest parameter that is trained.
        first: block that the backward pass ends with: blocks before it, and the embedding table, train nothing.
    """

    tables: int
    blocks: int
    trained_tables: int
    trained_blocks: int
    trained_output: int
    frozen_products: int
    largest: int
    first: int

    @property
    def all(self) -> int:
        """Number of all parameters, trained or frozen."""
        return self.tables + self.blocks

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return self.trained_tables + self.trained_blocks

    def __str__(self) -> str:
        """`8,030,261,248 parameters`, and where some are frozen how many are trained."""
        trained = "" if self.trained == self.all else f", of which {self.trained:,} ({self.trained / self.all:.2%}) are trained"
        return f"{self.all:,} parameters{trained}"


def sizes_of(config: JobConfig, decoder: DecoderConfig) -> Sizes:
    """Return the numbers of parameters of a job's model."""
    with torch.device("meta"):
        model = make_model(config, decoder)
    tables = [p for name, p in model.named_parameters() if not name.startswith("layers.")]
    last = model.score if decoder.head_outputs else model.output
    looked_up = None if last.weight is model.tok_embeddings.weight else model.tok_embeddings.weight
    trains = [bool(trained(block.parameters())) for block in model.layers]
    return Sizes(
        tables=count(tables),
        blocks=count(model.layers.parameters()),
        trained_tables=count(trained(tables)),
        trained_blocks=count(trained(model.layers.parameters())),
        trained_output=count(trained([last.weight])),
        frozen_products=count(p for p in model.parameters() if not p.requires_grad and p is not looked_up),
        largest=max(p.numel() for p in trained(model.parameters())),
        first=0 if model.tok_embeddings.weight.requires_grad else [*trains, True].index(True),
    )


def trained(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters that are trained."""
    return [p for p in parameters if p.requires_grad]


def count(parameters: Iterable[Tensor]) -> int:
    """Return how many numbers the parameters hold together."""
    return sum(p.numel() for p in parameters)
