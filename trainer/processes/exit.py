"""How a run ends when it cannot go on: one message, once, and an exit status that says who can help.

Status 2: the user's (configuration, data, contract, checkpoint, memory, a full disk under stdout). Status 1: the
numbers went wrong, a loader process was killed, another rank was lost, or a bug (with traceback). Status 130: Ctrl-C
before there was anything to save. Status 0 too where the reader of stdout has left, as after `| head`.
"""

import errno
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from ...base import OutputError, UserError, discard_unwritten, guarded_output
from ...datasets.errors import WorkerError
from ..errors import MeetingError, NonFiniteError, OutOfMemoryError, RankLostError
from .memory import ran_out, request
from .restarts import leave_note, life, repeats_mistake
from .terminal import printable_output


@guarded_output()
@printable_output()
def run_command(command: Callable[[], None]) -> None:
    """Run a command line's body; end the process with one message, no traceback, where an error is expected."""
    if repeats_mistake():
        if os.environ.get("LOCAL_RANK") == "0":
            speak(f"error: the mistake above is not tried again so soon (torchrun's restart {life()})")
        sys.exit(2)
    try:
        if ending := how_it_ends(command):
            message, status = ending
            if message and first_may_speak():
                time.sleep(FIRST_SPEAKS_SECONDS)
            if message:
                speak(message)
            sys.exit(status)
    finally:
        discard_unwritten()


def how_it_ends(command: Callable[[], None]) -> tuple[str, int] | None:
    """Run a command, and return the message and exit status where an error is expected; raise others."""
    ending: tuple[str, int] | None = None
    try:
        try:
            command()
        except SystemExit:  # of argparse, which has printed the help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if (ending := ending_of(error)) is None:
            raise
        if isinstance(error, UserError):
            leave_note(error)
        traceback.clear_frames(error.__traceback__)
    # Process groups live while anything refers to them: those frames, or cycles. A gloo thread that outlives the
    # interpreter ends the process in std::terminate, in 2 of 40 refused runs, and SIGABRT hides the exit status.
    gc.collect()
    return ending


def ending_of(error: BaseException) -> tuple[str, int] | None:
    """Return the message, empty where it was printed, and the exit status of an expected error; None: it is a bug."""
    if isinstance(error, (RankLostError, OutOfMemoryError)):
        return "", 1 if isinstance(error, RankLostError) else 2
    if isinstance(error, OutputError):
        lost = f"error: standard output: {error.strerror}; what was printed is not whole"
        return ("", 0) if error.errno == errno.EPIPE else (lost, 2)
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, (NonFiniteError, WorkerError, MeetingError)):
        return f"stopped: {error}", 1
    if isinstance(error, KeyboardInterrupt):  # before training took the signal over, or in a tool
        return "interrupted", 130
    if owner := ran_out(error):  # outside of training, which says more
        return f"error: out of memory of the {owner}: {request(error)}; take fewer or shorter rows at once", 2
    return None


def first_may_speak() -> bool:
    """Return whether this rank gives the first one time to say the same, and to end all of them.

    torchrun kills the group as soon as one rank is gone. One that is still there after `FIRST_SPEAKS_SECONDS` is alone
    with its error (a file that only its machine lacks, a device that others use) and speaks itself.
    """
    return os.environ.get("RANK", "0") != "0"


def speak(message: str) -> None:
    """Print a message on stderr; of several ranks each names itself, but the first."""
    rank = os.environ.get("RANK", "0")
    with suppress(OSError, ValueError):  # stderr may be gone
        print(f"[rank {rank}] {message}" if rank != "0" else message, file=sys.stderr, flush=True)


FIRST_SPEAKS_SECONDS = 3.0
GLOO = re.compile(r"\[[^\s\]]+/gloo/[^\s\]]+:\d+\] (.+)")
NCCL = re.compile(r"ncclRemoteError|ncclSystemError|communicator was aborted|[Tt]imed? ?out")


@contextmanager
def lost_ranks_named(when: Callable[[], str], timeout_seconds: int) -> Iterator[None]:
    """Turn what torch raises when a rank is lost into a message on stderr and a RankLostError; let the rest pass.

    Each rank speaks, since none knows which others are left, and at once, while SIGTERM still only asks for a stop:
    torchrun sends it 0.1 s after the first rank is gone.

    Args:
        when: says how far the run has come.
        timeout_seconds: after which a collective counts as hanging.

    Raises:
        RankLostError: names the collective and what the transport says of the lost rank.
    """
    try:
        yield
    except RuntimeError as error:
        reason = why_lost(error)
        if reason is None:
            raise
        message = (
            f"{when()}: {collective(error)} with the other processes failed: {reason} "
            f"(comm.timeout_seconds = {timeout_seconds}); a process or machine is gone, frozen or unreachable. "
            "The same command goes on from the newest checkpoint"
        )
        print(f"[rank {os.environ.get('RANK', '0')}] stopped: {message}", file=sys.stderr, flush=True)
        traceback.clear_frames(error.__traceback__)  # the process groups in them must go before the interpreter does
        raise RankLostError(message) from None


def why_lost(error: RuntimeError) -> str | None:
    """Return what the transport says of a lost rank, in one sentence; None where the error is something else."""
    text = str(error)
    if found := GLOO.search(text):
        return found[1].split(". This is typically")[0]
    network = isinstance(error, (dist.DistNetworkError, dist.DistStoreError))
    if network or (isinstance(error, dist.DistBackendError) and NCCL.search(text)):
        return text.split("\n")[0]
    return None


def collective(error: BaseException) -> str:
    """Return the innermost function of torch.distributed that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    called = [frame.name for frame in frames if frame.filename.endswith(("distributed_c10d.py", "rendezvous.py"))]
    return called[-1] if called else "a collective"
