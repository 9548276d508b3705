"""How a run ends when it cannot go on: one message, once, and an exit status that says whose move it is.

Status 2: the user's (configuration, data, contract, checkpoint). Status 1: the numbers went wrong, or a bug (with traceback).
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable

from ..datasets.errors import DataConfigError, DataError
from ..models.config import ModelError
from .checkpoint import CheckpointError
from .config import ConfigError
from .contract import EosMismatchError

USER_ERRORS = (ConfigError, DataConfigError, DataError, ModelError, EosMismatchError, CheckpointError)


class NonFiniteError(ArithmeticError):
    """Loss or gradient became infinite or NaN; raised on every rank before the optimizer could step."""


def run_command(command: Callable[[], None]) -> None:
    """Run a command line's body; end the process with one message instead of a traceback where the error is expected."""
    ending: tuple[str, int] | None = None
    try:
        command()
    except (*USER_ERRORS, NonFiniteError) as error:
        ending = (f"stopped: {error}", 1) if isinstance(error, NonFiniteError) else (f"error: {error}", 2)
        traceback.clear_frames(error.__traceback__)
    # Process groups live while anything refers to them: those frames, or cycles. A gloo thread that outlives the interpreter
    # ends the process in std::terminate, 1 time in 10, and SIGABRT hides the exit status.
    gc.collect()
    if ending:
        end(*ending)


def end(message: str, status: int) -> None:
    """Exit all ranks with `status`; only the first prints.

    torchrun kills the group as soon as one rank is gone, so the silent ones give the first a moment to speak.
    """
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(2.0)
    sys.exit(status)
