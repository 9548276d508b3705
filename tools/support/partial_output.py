"""An output that a killed command goes on with when it is given again: its folder, its settings, its move into place.

    <output>.partial/plan.json      the settings that decide the content
    <output>.partial/...            what is finished, in a form of its own, with the number of records read for it
    <output>.partial/<output>       the output, written when all is finished
    <output>.partial/finished       says that it is whole, and is being moved into place

A lock in that folder keeps the same command away while one runs. A rerun goes on behind what is finished under the same
settings and refuses others by name.
"""

import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import JsonValue
from typing_extensions import Self

from ...base import LISTING_BYTES, read_json
from ...datasets.files import Lock, check_writable, check_writable_folder
from ...trainer.checkpoints import Folder
from ...trainer.errors import ConfigError

PLAN, FINISHED = "plan.json", "finished"


class PartialOutput(ABC):
    """The output of a command that may be killed: a context manager, which holds the folder of what is finished.

    Args:
        output: a file that is not there yet.
        plan: JSON values that decide its content; those of a half-done output must be the same. `on_bad_record` and
            `max_length`, which only refuse, may change as long as they have left nothing out.
        endings: of its name, one of which it must have.

    Attributes:
        partial: the folder.
        done: sequences that are finished.
        records: records that were read for them, from the first one on.
        complete: whether an earlier command had written the output whole, and was killed as it moved it into place.

    Raises:
        InUseError: another process writes it.
        ConfigError: the output is there, is of an unknown kind, cannot be written or hold what there is of it, or is
            half done under another plan.
    """

    def __init__(self, output: Path, plan: Mapping[str, JsonValue], endings: Sequence[str]) -> None:
        self.output, self.endings = output, endings
        self.plan: dict[str, JsonValue] = json.loads(json.dumps(plan))
        self.partial = partial_folder(output)
        self.lock = Lock(self.partial, advice="; wait for its end, or name another --output")
        self.done, self.records, self.complete = 0, 0, False

    def __enter__(self) -> Self:
        """Take the folder, and go on behind what is finished."""
        with writing(self.output), ExitStack() as undo:
            self.lock.__enter__()
            undo.callback(self.lock.release)
            check_output(self.output, self.endings)
            self.complete = moved(self.output)
            if not self.complete:
                self.find_finished()
            self.agree()
            if self.complete:
                self.tidy()
                print(f"{self.output}: was whole already", file=sys.stderr)
            elif self.done:
                print(f"{self.partial} holds {self.done} sequences: going on behind them", file=sys.stderr)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go; where nothing is finished, leave nothing."""
        if not self.records:
            with suppress(OSError):
                (self.partial / PLAN).unlink(missing_ok=True)
        self.lock.release()

    @property
    def left_out(self) -> int:
        """Records that were read and are not in the output."""
        return self.records - self.done

    @abstractmethod
    def find_finished(self) -> None:
        """Set `done` and `records` to what the folder holds. Raises ConfigError where that cannot be used."""

    def agree(self) -> None:
        """Write the plan, or compare it with the one of what is finished. Raises ConfigError where they differ."""
        if not (self.records or self.complete):
            Folder(self.partial).write_atomically(PLAN, json.dumps(self.plan, indent=1))
            return
        before = read_json(self.partial / PLAN, ConfigError, LISTING_BYTES)
        free = set() if self.left_out or self.complete else {"on_bad_record"}
        if not (self.left_out or self.complete) and not stricter(self.plan.get("max_length"), before.get("max_length")):
            free.add("max_length")
        if different := [
            f"{key} was {before.get(key)!r}, is {value!r}"
            for key, value in self.plan.items()
            if before.get(key) != value and key not in free
        ]:
            if self.complete:
                refuse_existing(self.output)
            raise ConfigError(
                "\n  ".join([f"{self.partial}: half an output of another command; finish that, or remove it:", *different])
            )

    def publish(self, *beside: str) -> None:
        """Move the output, and files beside it, from the folder into place, and remove the folder."""
        (self.partial / FINISHED).touch()
        for name in (*beside, self.output.name):
            (self.partial / name).replace(self.output.with_name(name))
        self.tidy()

    def tidy(self) -> None:
        """Remove the folder, what says that the output is whole behind all that was finished."""
        for path in self.partial.iterdir():
            if path.name not in (PLAN, FINISHED):
                path.unlink(missing_ok=True)
        (self.partial / FINISHED).unlink()
        shutil.rmtree(self.partial)


def partial_folder(output: Path) -> Path:
    """Return the folder of what is finished of an output."""
    return output.with_name(f"{output.name}.partial")


def moved(output: Path) -> bool:
    """Return whether an output was moved into place by a command that was killed right after."""
    partial = partial_folder(output)
    return output.exists() and (partial / FINISHED).exists() and not (partial / output.name).exists()


def stricter(most: JsonValue, before: JsonValue) -> bool:
    """Return whether a limit refuses something that the one before it let pass; None: there is none."""
    return isinstance(most, int) and (not isinstance(before, int) or most < before)


def check_output(output: Path, endings: Sequence[str]) -> None:
    """Raise ConfigError where an output cannot become what is asked for, before anything expensive is done."""
    if output.suffix not in endings:
        raise ConfigError(f"--output {output}: its name must end in one of {', '.join(endings)}")
    if output.exists() and not moved(output):
        refuse_existing(output)
    if output.parent.is_dir():
        check_writable(output, "--output", ConfigError)
    else:
        check_writable_folder(output.parent, "--output", ConfigError)


def refuse_existing(output: Path) -> None:
    """Raise ConfigError: what is there is never replaced."""
    raise ConfigError(f"--output {output}: exists already; name another file, or remove it")


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raises ConfigError for what the system says of an output."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error}") from None
