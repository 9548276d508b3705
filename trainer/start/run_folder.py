"""The folder of a run: locked first of all, made and opened for reports once nothing can be refused any more."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...base import UserError
from ...datasets.files import TEMPORARY_NAME, Lock
from ...models.config import DecoderConfig
from ..checkpoints import Folder, prepare_folders
from ..config import JobConfig
from ..errors import ConfigError
from ..metrics import MetricsLog
from ..processes import World


@contextmanager
def locked_run(config: JobConfig, world: World, stop: Callable[[], bool] = bool) -> Iterator[None]:
    """Hold the run's folder and that of its checkpoints against other runs; every rank must call it.

    Both, as two runs of different folders may name one for their checkpoints. Rank 0 takes them before anything in them
    is read, and lets them go at the end of the block; those of a run that was killed are taken over.

    Args:
        config: of the job.
        world: this process among the others.
        stop: polled while it is found out whether a run of another machine lives.

    Raises:
        InUseError: a run that lives writes to one of them, or a stop was requested meanwhile.
        ConfigError: a folder cannot be written.
    """
    run = Folder(config.job.dump_folder)
    wanted = [("checkpoint.folder", config.checkpoint.folder, run / config.checkpoint.folder)] * config.checkpoint.enable
    wanted.append(("job.dump_folder", config.job.dump_folder, run))
    # by where a path leads to: two locks in one folder would keep each other out
    places = {os.path.realpath(folder) if folder.is_local else str(folder): (key, name) for key, name, folder in wanted}
    with ExitStack() as held:

        def take() -> None:
            for place, (key, name) in sorted(places.items()):
                with written(key, name):
                    held.enter_context(Lock(place, advice=f"; end it, or name another {key}", stop=stop))

        world.in_thread_on_rank_zero(take)
        yield


@contextmanager
def written(key: str, name: str, kinds: type[Exception] = Exception) -> Iterator[None]:
    """Turn what the system says of a folder, or a store in its own way, into a ConfigError about the option."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:  # of s3fs an OSError without a number, of gcsfs no OSError
        reason = getattr(error, "strerror", None) or str(error)
        kind = "" if reason and isinstance(error, OSError) else f"{type(error).__name__}: "
        where = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        raise ConfigError(f"{key} = {name!r}: cannot be written: {kind}{reason}{where}", passing=True) from None


def open_run_folder(
    config: JobConfig, world: World, decoder: DecoderConfig, run: Folder, checkpoints: Folder, history: int
) -> tuple[MetricsLog, list[str]]:
    """Make the run's folder and open its reports; rank 0 alone writes.

    Args:
        config: of the job, which is written to `config.toml`.
        world: this process among the others.
        decoder: the model's shape.
        run: the folder.
        checkpoints: of the step folders.
        history: step up to which what is in the folder is this run's own; later checkpoints and records are set aside.

    Returns:
        The log, and messages about what was set aside.

    Raises:
        ConfigError: the folder cannot be written, or a metric sink refuses.
    """
    messages: list[str] = []
    name = config.job.dump_folder
    with written("job.dump_folder", name):
        if world.is_first:
            run.make(parents=True)
            checkpoints.make(parents=True)
            for leftover in filter(TEMPORARY_NAME.search, run.names()):  # of a run that was killed: this one has the lock
                run.delete(leftover)
            run.write_atomically("config.toml", config.to_toml())
            if config.checkpoint.enable:
                aside = prepare_folders(config.checkpoint, run, checkpoints, history)
                messages += [f"set aside {path}: this run goes on from an earlier step" for path in aside]
    with written("job.dump_folder", name, OSError):  # others are bugs
        log = MetricsLog(Path(name), config, world, history, decoder)
        return log, [*messages, *log.remarks]
