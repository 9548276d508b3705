"""The data of a run where its checkpoint left it or, if the data changed and the job accepts that, anew."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ...datasets.errors import DataOrderError
from ...datasets.loading import DataShard, DataState
from ..checkpoints import Found
from ..config import JobConfig
from ..errors import CheckpointError
from ..processes import World, global_batch_size
from .data import TrainData
from .origin import StartingPoint

Opener = Callable[[DataShard], TrainData]


def resume_data(
    config: JobConfig, world: World, start: StartingPoint, step: int, open_shard: Opener
) -> tuple[TrainData, DataState | None, str]:
    """Open this rank's data; every rank must call it.

    Where one rank finds the data changed, all ranks begin it anew if `data.on_change` says so.

    Args:
        config: of the job.
        world: this process among the others.
        start: the checkpoint to resume from, if there is one.
        step: optimizer steps done.
        open_shard: opens a part of the data.

    Returns:
        The data, open; the state of the loader where the checkpoint left it, None where it begins anew; and why it
        does although the run resumes, empty otherwise.

    Raises:
        CheckpointError: the data is not that of the checkpoint.
        DataConfigError, DataError, EosMismatchError: as `open_data` says.
    """
    shard = DataShard(dp_rank=world.dp_rank, dp_degree=world.layout.data_parallel)
    if start.resumed is None:
        return world.on_every_rank(lambda: open_shard(shard)), None, ""
    row = step * global_batch_size(config, world.layout)
    opened, state, refusal = world.on_every_rank(
        partial(continue_or_refuse, config, start.resumed, step, row, shard, open_shard)
    )
    refusal = next(filter(None, world.gather(refusal)), "")
    if opened and not refusal:
        return opened, state, ""
    if opened:
        opened.loader.close()
    anew = world.on_every_rank(lambda: open_shard(replace(shard, row=row)))
    return anew, None, f'{refusal}; data.on_change = "restart": the data begins anew, at row {row}'


def continue_or_refuse(
    config: JobConfig, found: Found, step: int, row: int, shard: DataShard, open_shard: Opener
) -> tuple[TrainData | None, DataState | None, str]:
    """Open the data where the checkpoint left it, or return why it must begin anew."""
    try:
        state = found.state.data_state()
        if config.data.stages and state.rows != row:
            raise DataOrderError(
                f"data.stages begin at steps, and step {step} ended at row {state.rows}, which by the present "
                f"training.global_batch_size is row {row}; keep that of the checkpoint"
            )
        return open_shard(replace(shard, state=state, inventory=found.inventory())), state, ""
    except DataOrderError as error:
        refusal = f"{found.path}: {error}"
        if config.data.on_change == "refuse":
            raise CheckpointError(f'{refusal}; data.on_change = "restart" accepts it') from None
        return None, None, refusal
