"""A user's mistake under torchrun's `--max-restarts`: it is examined and told once, not in every life.

torchrun starts its ranks again after any status but 0, and nothing that a rank says or leaves changes that (torch 2.13,
`SimpleElasticAgent._invoke_run`). So a rank that ends in a mistake leaves a note in the folder that torchrun makes for
each launch, and a life that begins soon after ends at once. A life that begins later examines everything, as someone
may have mended it; so does another launch, which has another folder.

A mistake in the job itself is noted as lasting when it is first met. Files and networks may come back by themselves:
what is wrong with data, a checkpoint or a folder lasts when two lives in a row end in the same message, on any rank of
this machine.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ...base import Json, UserError, read_json
from ...datasets.errors import DataConfigError
from ...models.errors import ModelError
from ..errors import ConfigError, EosMismatchError, RanksDifferError

SOON_SECONDS = 60.0
OF_THE_JOB = (ConfigError, DataConfigError, EosMismatchError, ModelError, RanksDifferError)


def life() -> int:
    """Return how often torchrun has started its ranks again; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def note() -> Path | None:
    """Return the file of this rank's note in this life; None where torchrun starts nothing again.

    torchrun names <folder of the launch>/attempt_<life>/<local rank>/error.json to each rank.
    """
    error_file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or not error_file.parent.parent.name.startswith("attempt_"):
        return None
    return error_file.parents[2] / f"cistron_mistake-{life()}-{os.environ.get('LOCAL_RANK', '0')}.json"


def leave_note(error: UserError) -> None:
    """Note a mistake for the next lives, if there can be any."""
    if (path := note()) is None:
        return
    before = path.parent.glob(f"cistron_mistake-{life() - 1}-*.json")
    of_the_job = isinstance(error, OF_THE_JOB) and not error.passing
    again = any(read(other).get("message") == str(error) for other in before)
    noted = {"message": str(error), "lasting": of_the_job or again}
    with suppress(OSError):  # then the next life examines all of it again
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(noted))
        part.replace(path)


def repeats_mistake() -> bool:
    """Return whether a life before this one has just ended in a mistake that lasts."""
    if life() == 0 or (path := note()) is None:
        return False
    with suppress(OSError):
        notes = [other for before in range(life()) for other in path.parent.glob(f"cistron_mistake-{before}-*.json")]
        return any(read(other).get("lasting") for other in notes if time.time() - other.stat().st_mtime < SOON_SECONDS)
    return False


def read(path: Path) -> Json:
    """Return the note; empty where there is none."""
    try:
        return read_json(path, UserError)
    except UserError:
        return {}
