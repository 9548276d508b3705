"""When other processes are gone, frozen or unreachable: one message that names the collective, not a traceback out of torch.

gloo raises its transport's exceptions as plain RuntimeErrors, whose text begins with the file that they come from; a broken
assertion of its own ("[enforce fail at ...") is a bug and not meant here. NCCL's watchdog ends the process by itself.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

GLOO = re.compile(r"\[[^\s\]]+/gloo/[^\s\]]+:\d+\] (.+)")
NCCL = re.compile(r"ncclRemoteError|ncclSystemError|communicator was aborted|[Tt]imed? ?out")


class PeerLostError(RuntimeError):
    """A collective failed because of another process; raised on every rank that notices, after it has said so."""


@contextmanager
def lost_peers_named(when: Callable[[], str], timeout_seconds: int) -> Iterator[None]:
    """Turn what torch raises when a peer is lost into a message on stderr and a PeerLostError; everything else passes.

    Each rank speaks, since none knows which others are left, and at once, while SIGTERM still only asks for a stop: torchrun
    sends it 0.1 s after the first rank is gone.

    Args:
        when: says how far the run has come.
        timeout_seconds: after which a collective counts as hanging.

    Raises:
        PeerLostError: names the collective and what the transport says of the peer.
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
        raise PeerLostError(message) from None


def why_lost(error: RuntimeError) -> str | None:
    """What the transport says of a lost peer, in one sentence; None where the error is something else."""
    text = str(error)
    if found := GLOO.search(text):
        return found[1].split(". This is typically")[0]
    network = isinstance(error, (dist.DistNetworkError, dist.DistStoreError))
    if network or (isinstance(error, dist.DistBackendError) and NCCL.search(text)):
        return text.split("\n")[0]
    return None


def collective(error: BaseException) -> str:
    """The innermost function of torch.distributed that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    called = [frame.name for frame in frames if frame.filename.endswith(("distributed_c10d.py", "rendezvous.py"))]
    return called[-1] if called else "a collective"
