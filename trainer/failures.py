"""How a run ends when it cannot go on: one message, once, and an exit status that says whose move it is.

Status 2: the user's (configuration, data, contract, checkpoint). Status 1: the numbers went wrong, a loader process was
killed, another rank was lost, or a bug (with traceback). Status 130: Ctrl-C before there was anything to save.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable

from ..datasets.errors import DataConfigError, DataError, WorkerError
from ..models.config import ModelError
from .config import ConfigError
from .contract import EosMismatchError
from .peers import PeerLostError
from .storage import CheckpointError

USER_ERRORS = (ConfigError, DataConfigError, DataError, ModelError, EosMismatchError, CheckpointError)


class NonFiniteError(ArithmeticError):
    """Loss or gradient was infinite or NaN for too long; raised on every rank, none of those steps was taken (guard.py)."""


def run_command(command: Callable[[], None]) -> None:
    """Run a command line's body; end the process with one message instead of a traceback where the error is expected."""
    ending: tuple[str, int] | None = None
    lost = False
    try:
        command()
    except PeerLostError as error:  # which has spoken
        lost = True
        traceback.clear_frames(error.__traceback__)
    except (*USER_ERRORS, NonFiniteError, WorkerError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):  # before training took the signal over, or in a tool
            ending = ("interrupted", 130)
        else:
            ending = (f"error: {error}", 2) if isinstance(error, USER_ERRORS) else (f"stopped: {error}", 1)
        traceback.clear_frames(error.__traceback__)
    # Process groups live while anything refers to them: those frames, or cycles. A gloo thread that outlives the interpreter
    # ends the process in std::terminate, in 2 of 40 refused runs, and SIGABRT hides the exit status.
    gc.collect()
    if lost:
        sys.exit(1)
    if ending:
        end(*ending)


def end(message: str, status: int) -> None:
    """Exit with `status` and a message that is printed once.

    torchrun kills the group as soon as one rank is gone. So the others give the first time to speak and to end them; one that
    is still there then is alone with its error (a file that only its machine lacks) and speaks itself.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(3.0)
        message = f"[rank {rank}] {message}"
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
