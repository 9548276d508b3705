"""Where the records of a run go: the console, JSON lines, TensorBoard, Weights & Biases, and what plug-ins add.

Rank 0 alone opens sinks, and writes every record to each of them.
"""

import importlib.util
import io
import math
import os
import re
import secrets
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import override

from ...base import output_failure
from ..checkpoints import Folder
from ..config import JobConfig
from ..errors import ConfigError
from ..processes import Bar, Terminal
from .records import append, append_record, forget_after

FILES = ("metrics", "validation", "extrapolation")  # kinds of records that a run may have in its folder, as <kind>.jsonl


@dataclass(frozen=True)
class MetricsRecord:
    """What is reported of one step.

    Attributes:
        kind: `metrics`, or the name of the evaluation that it comes from, such as `validation`.
        values: for JSON, `step` among them. None is unknown; numbers that are not finite become None.
        line: the same for people, in one line.
    """

    kind: str
    values: dict[str, Any]
    line: str

    def __post_init__(self) -> None:
        """Replace what JSON cannot hold."""
        object.__setattr__(self, "values", finite(self.values))

    @property
    def step(self) -> int:
        """Optimizer steps done when the values were measured."""
        return int(self.values["step"])

    @property
    def curves(self) -> dict[str, float]:
        """The numbers by the names of their curves: `loss`, of a source `loss/NAME`, by position `loss_at/8-15`.

        Those of an evaluation begin with its name: `validation/loss`.
        """
        prefix = "" if self.kind == "metrics" else f"{self.kind}/"
        groups = [("{key}", self.values)]
        groups += [("{key}/" + name, of) for name, of in self.values.get("sources", {}).items()]
        groups += [("loss_at/{key}", self.values.get("positions", {}))]
        return {
            prefix + form.format(key=key): value
            for form, group in groups
            for key, value in group.items()
            if isinstance(value, int | float) and key != "step"
        }


class Sink(ABC):
    """One place that records go to. A plug-in adds its own to `SINKS`, and a job names it in `metrics.sinks`.

    Args:
        folder: of the run.
        config: of the job.
        start_step: step resumed from; 0: a run from its first step. Records of later steps, if there are any, are void.

    Attributes:
        remarks: what people should know of how it was opened.
        reopens: whether two failures in a row close it and open it anew; no use where nothing is held open.
    """

    remarks: tuple[str, ...] = ()
    reopens = True

    @abstractmethod
    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None: ...

    @classmethod
    def complaints(cls, config: JobConfig) -> list[str]:
        """Return why this sink cannot be opened: a line for each reason, which begins with a TOML key."""
        return []

    @abstractmethod
    def write(self, record: MetricsRecord) -> None:
        """Write one record.

        Any exception, such as that of a full disk, becomes a warning: it ends no run and reaches no other sink.
        """

    def close(self) -> None:  # noqa: B027  # many sinks hold nothing back
        """Write what is still held back."""


class JsonLines(Sink):
    """`metrics.jsonl`, `validation.jsonl`, `extrapolation.jsonl`: a line per record; floats keep all digits."""

    reopens = False

    @override
    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None:
        self.files = {kind: folder / f"{kind}.jsonl" for kind in FILES}
        self.remarks = tuple(said for file in self.files.values() for said in forget_after(file, start_step))
        forget_files_after(folder / "extrapolation", start_step)

    @override
    def write(self, record: MetricsRecord) -> None:
        append_record(self.files[record.kind], record.values)


class TensorBoard(Sink):
    """A TensorBoard file in the run's folder, to which each record is added whole or not at all.

    `SummaryWriter` writes in a thread, which a full disk ends: what is lost shows at a later record, or at none.
    """

    reopens = False

    @override
    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # 0.3 s, and not every run writes such files
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary, self.framed = Event, Summary, RecordWriter
        (folder / "tensorboard").mkdir(exist_ok=True)
        # files are read in the order of their names
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self.file = folder / "tensorboard" / name
        # points of older files are void from this step on
        void = SessionLog(status=SessionLog.START)
        self.add([Event(file_version="brain.Event:2"), Event(step=start_step + 1, session_log=void)])

    def add(self, events: Sequence[Any]) -> None:
        """Add events to the file, all or none. Raises OSError."""
        data = io.BytesIO()
        writer = self.framed(data)  # length and checksums around each
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        append(self.file, data.getvalue())

    @override
    def write(self, record: MetricsRecord) -> None:
        points = [self.summary.Value(tag=name, simple_value=value) for name, value in record.curves.items()]
        self.add([self.event(step=record.step, summary=self.summary(value=[point])) for point in points])


class WeightsAndBiases(Sink):
    """A Weights & Biases run, which continues that of the steps before `start_step`.

    Its own variables steer it: WANDB_PROJECT (else `cistron`), WANDB_NAME (else the folder's name), WANDB_MODE and
    others.

    Raises:
        ConfigError: W&B refuses, most often because there is no key.
    """

    @override
    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None:
        import wandb  # an optional extra

        file = folder / "wandb_id"
        if start_step == 0 or not file.exists():
            Folder(folder).write_atomically(file.name, secrets.token_hex(4))
        run_id = file.read_bytes().decode("ascii", errors="replace").strip()
        if not re.fullmatch(r"[\w-]{1,64}", run_id, re.ASCII):
            raise ConfigError(f"{file}: holds {run_id[:40]!r}, which is no id of a W&B run; remove it to begin another run")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "cistron"),
                name=os.environ.get("WANDB_NAME", folder.name),
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=config.to_dict(),
                # Other ranks wait for rank 0 meanwhile. W&B's own limit is 90 s.
                settings={"init_timeout": min(90.0, config.comm.timeout_seconds / 4)},
            )
        except wandb.Error as error:
            advice = "run `wandb login`, or set WANDB_MODE=offline"
            raise ConfigError(f"metrics.enable_wandb = true: {error}; {advice}", passing=True) from None

    @override
    @classmethod
    def complaints(cls, config: JobConfig) -> list[str]:
        if importlib.util.find_spec("wandb"):
            return []
        return ["metrics.enable_wandb = true: the package wandb is not installed; pip install 'cistron[wandb]'"]

    @override
    def write(self, record: MetricsRecord) -> None:
        self.run.log(record.curves, step=record.step)

    @override
    def close(self) -> None:
        self.run.finish()


class ConsoleLines(Sink):
    """Lines on stdout and, on a terminal, a progress bar below them.

    Raises:
        OSError: stdout cannot be written: its disk is full, its reader or its terminal has gone.
    """

    reopens = False

    @override
    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None:
        self.console = Terminal()
        self.bar: Bar | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=config.training.steps, completed=start_step)
            self.bar.start()

    def say(self, message: str) -> None:
        """Print a message above the bar. Raises OSError."""
        self.console.print(message)
        if failure := output_failure():
            raise failure

    def advance(self, step: int) -> None:
        """Show how far the run has come."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    @override
    def write(self, record: MetricsRecord) -> None:
        self.say(record.line)

    @override
    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def finite(value: Any) -> Any:
    """Return a record, or anything in it, with None for floats that are not finite."""
    if isinstance(value, dict):
        return {key: finite(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def forget_files_after(folder: Path, step: int) -> None:
    """Delete the files `step-<N>.*` of steps after `step` in a folder; at step 0 set the folder aside."""
    if step == 0 and folder.exists():
        Folder(folder.parent).set_aside(folder.name)
    for file in folder.glob("step-*"):
        number = file.stem.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            file.unlink()
