"""The folder of a run: made, and opened for reports, once nothing can be refused any more."""

from pathlib import Path

from ...models.config import DecoderConfig
from ..checkpoints import Folder, prepare_folders
from ..config import JobConfig
from ..errors import ConfigError
from ..metrics import MetricsLog
from ..processes import World


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
    try:
        if world.is_first:
            run.make(parents=True)
            checkpoints.make(parents=True)
            run.write_atomically("config.toml", config.to_toml())
            if config.checkpoint.enable:
                aside = prepare_folders(config.checkpoint, run, checkpoints, history)
                messages += [f"set aside {path}: this run goes on from an earlier step" for path in aside]
        log = MetricsLog(Path(config.job.dump_folder), config, world, history, decoder)
        return log, [*messages, *log.remarks]
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise ConfigError(f"job.dump_folder = {config.job.dump_folder!r}: cannot be written: {reason}") from None
