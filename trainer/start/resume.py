"""The data of a run where its checkpoint left it or, if the data changed and the job accepts that, anew."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ...base import aligned
from ...datasets.errors import DataOrderError
from ...datasets.files import DataFile, FileStore, deviations, fingerprint
from ...datasets.loading import DataShard, DataState
from ...datasets.readers import in_folder
from ..checkpoints import Found
from ..config import JobConfig
from ..errors import CheckpointError, RanksDifferError
from ..processes import World, global_batch_size
from .data import TrainData
from .origin import StartingPoint

Opener = Callable[[DataShard], TrainData]


def resume_data(
    config: JobConfig, world: World, start: StartingPoint, step: int, open_shard: Opener
) -> tuple[TrainData, DataState | None, str]:
    """Open this rank's data, the same on all hosts; every rank must call it.

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
        RanksDifferError: ranks have found other files.
        DataConfigError, DataError, EosMismatchError: as `open_data` says.
    """
    opened, state, refusal = opened_anywhere(config, world, start, step, open_shard)
    try:
        agree_on_files(world, world.on_every_rank(lambda: files_of(config, opened)))
    except BaseException:
        opened.loader.close()
        raise
    return opened, state, refusal


def opened_anywhere(
    config: JobConfig, world: World, start: StartingPoint, step: int, open_shard: Opener
) -> tuple[TrainData, DataState | None, str]:
    """Open this rank's data with the files that its host has; see `resume_data`."""
    shard = DataShard(dp_rank=world.dp_rank, dp_degree=world.layout.data_parallel)
    if start.resumed is None:
        return world.slowly_on_every_rank(lambda: open_shard(shard)), None, ""
    row = step * global_batch_size(config, world.layout)
    opened, state, refusal = world.slowly_on_every_rank(
        partial(continue_or_refuse, config, start.resumed, step, row, shard, open_shard)
    )
    refusal = next(filter(None, world.gather(refusal)), "")
    if opened and not refusal:
        return opened, state, ""
    if opened:
        opened.loader.close()
    anew = world.slowly_on_every_rank(lambda: open_shard(replace(shard, row=row)))
    return anew, None, f'{refusal}; data.on_change = "restart": the data begins anew, at row {row}'


def files_of(config: JobConfig, data: TrainData) -> Mapping[str, Sequence[DataFile]]:
    """Return the files of each source that the job reads, `[eval.extrapolation]` included, by the source's key.

    Raises:
        DataError: those of `[eval.extrapolation]` alone cannot be found.
    """
    opened = {"data": data.loader.sources, "validation": data.validation.sources if data.validation else []}
    found: dict[str, Sequence[DataFile]] = {
        f"{table}.sources.{source.config.name}": source.files for table in opened for source in opened[table]
    }
    if config.eval.extrapolation.enable and not data.validation:
        storage = FileStore(config.data)
        for source in config.validation.sources:
            within = ("*.json",) if source.format == "tokens" else in_folder(source.format)
            found[f"validation.sources.{source.name}"] = storage.expand(source.paths, *within)
    return found


def agree_on_files(world: World, sources: Mapping[str, Sequence[DataFile]]) -> None:
    """Return where all ranks have found the same files: by their order, last names, sizes and contents.

    Folders and times may differ between hosts. All ranks exchange a hash for each source, and files only where these
    differ.

    Args:
        world: this process among the others.
        sources: the files of each source, as this rank found them.

    Raises:
        RanksDifferError: with the files in which ranks differ from the first.
    """
    hashes = {key: fingerprint(files) for key, files in sources.items()}
    said = world.gather(hashes)
    if all(other == said[0] for other in said):
        return
    differing = {
        key: [file.public for file in sources[key]] for key in sources if any(other.get(key) != hashes[key] for other in said)
    }
    first = world.from_first(differing)
    lines = [f"{key}: {line}" for key, files in differing.items() for line in deviations(first.get(key, []), files)]
    ranks: dict[tuple[str, ...], list[str]] = {}
    for rank, (host, own) in enumerate(world.gather((socket.gethostname(), tuple(lines)))):
        ranks.setdefault(own, []).append(f"rank {rank} ({host})")
    table = [(", ".join(who) if place == 0 else "", line) for own, who in ranks.items() for place, line in enumerate(own)]
    shown = "\n".join(aligned(table))
    right = "give every host the same files; their folders and times may differ"
    raise RanksDifferError(f"the data files of ranks differ from those of rank 0; {right}:\n\n{shown}")


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
