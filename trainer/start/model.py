"""The model and its optimizer on this rank's device, with fresh or loaded weights."""

import torch

from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ...models.init import init_weights
from ..build import fresh_parameters, make_model
from ..checkpoints import CheckpointReader, load
from ..config import JobConfig
from ..optim import Optimizer, build_optimizer
from ..parallel import parallelize
from ..processes import DTYPES, World, limit_collectives
from .origin import StartingPoint


def build_model_and_optimizer(
    config: JobConfig, decoder: DecoderConfig, world: World, start: StartingPoint
) -> tuple[Decoder, Optimizer]:
    """Lay the model out on the meta device, and make this rank's part of it real; every rank must call it.

    Args:
        config: of the job.
        decoder: the model's shape.
        world: this process among the others.
        start: where weights and optimizer state come from.
    """
    with torch.device("meta"):
        model = make_model(config, decoder).to(DTYPES[config.training.dtype])
    parallelize(model, config, world)
    model.to_empty(device=world.device)
    model.tie_weights()  # each of a tied pair was given memory of its own
    optimizer = build_optimizer(model, config)
    limit_collectives(config)  # Muon has process groups of its own
    if start.found is None:
        init_weights(model, config.training.seed)
        return model, optimizer
    found, readers = start.found, list[CheckpointReader]()
    world.in_thread_on_every_rank(lambda: readers.append(found.reader()))
    fresh = fresh_parameters(model, readers[0].index)
    init_weights(model, config.training.seed, only=fresh)
    load(found, readers[0], model, optimizer if start.resuming else None, fresh)
    return model, optimizer
