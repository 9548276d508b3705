"""Where records go: JSON lines, TensorBoard, Weights & Biases. For rank 0 alone."""

import importlib.util
import json
import math
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..checkpoints import Folder
from ..config import JobConfig
from ..errors import ConfigError


def check_reports(config: JobConfig) -> None:
    """Refuse reports that cannot be written. Raises ConfigError."""
    if config.metrics.enable_wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("metrics.enable_wandb = true: the package wandb is not installed; pip install 'cistron[wandb]'")


class Reports:
    """The open files and services of a run.

    Args:
        folder: of the run.
        config: says which of them there are.
        start_step: step resumed from; records of later steps, from a run that was cut off, are removed.
    """

    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None:
        """Open what is asked for."""
        self.files = {kind: folder / f"{kind}.jsonl" for kind in ("metrics", "validation", "extrapolation")}
        for file in self.files.values():
            forget_after(file, start_step)
        forget_files_after(folder / "extrapolation", start_step)
        m = config.metrics
        self.tensorboard = (
            SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1) if m.enable_tensorboard else None
        )
        self.wandb = start_wandb(folder, config, start_step) if m.enable_wandb else None

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Write a record of a step everywhere; `kind` is one of `files`. Floats keep all their digits in the file.

        Numbers that are not finite are null: JSON has no others, and curves no place for them.
        """
        record = finite(record)
        curves = scalars(record, "" if kind == "metrics" else f"{kind}/")
        file = self.files[kind]
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("a") as lines:
                lines.write(json.dumps(record, allow_nan=False) + "\n")
            if self.tensorboard:
                for name, value in curves.items():
                    self.tensorboard.add_scalar(name, value, record["step"])
        except OSError as e:  # a full disk is no reason to stop
            with suppress(OSError):
                os.truncate(file, size)  # no half line
            print(f"warning: step {record['step']} is not in {file}: {e}", file=sys.stderr, flush=True)
        if self.wandb:
            self.wandb.log(curves, step=record["step"])

    def close(self) -> None:
        """Flush everything."""
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def finite(value: Any) -> Any:
    """A record, or anything in it, with None for floats that are not finite."""
    if isinstance(value, dict):
        return {key: finite(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(record: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of a record as curves: `loss`, of a source `loss/NAME`, by position `loss_at/8-15`."""
    groups = [("{key}", record)]
    groups += [("{key}/" + name, of) for name, of in record.get("sources", {}).items()]
    groups += [("loss_at/{key}", record.get("positions", {}))]
    return {
        prefix + form.format(key=key): value
        for form, group in groups
        for key, value in group.items()
        if isinstance(value, int | float) and key != "step"
    }


def start_wandb(folder: Path, config: JobConfig, start_step: int) -> Any:
    """Begin a Weights & Biases run, or go on with that of the steps before `start_step`.

    Its own variables steer it: WANDB_PROJECT (else `cistron`), WANDB_NAME (else the folder's name), WANDB_MODE and others.

    Raises:
        ConfigError: W&B refuses, for want of a key most often.
    """
    import wandb

    file = folder / "wandb_id"
    if start_step == 0 or not file.exists():
        Folder(folder).write_atomically(file.name, secrets.token_hex(4))
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cistron"),
            name=os.environ.get("WANDB_NAME", folder.name),
            id=file.read_text(),
            resume="allow",
            dir=str(folder),
            config=config.to_dict(),
        )
    except wandb.Error as error:
        raise ConfigError(f"metrics.enable_wandb = true: {error}; run `wandb login`, or set WANDB_MODE=offline") from None


def forget_after(file: Path, step: int) -> None:
    """Drop the records of steps after `step`, and a last line that a crash cut in half; at step 0 set the file aside."""
    if not file.exists():
        return
    if step == 0:
        Folder(file.parent).set_aside(file.name)
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            break
    Folder(file.parent).write_atomically(file.name, "".join(kept))


def forget_files_after(folder: Path, step: int) -> None:
    """Likewise of a folder of files named `step-<N>` with any suffix."""
    if step == 0 and folder.exists():
        Folder(folder.parent).set_aside(folder.name)
    for file in folder.glob("step-*"):
        number = file.stem.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            file.unlink()
