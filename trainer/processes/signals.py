"""SIGTERM and its like request a stop, which every wait polls. A rank does not outlive its launcher."""

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

# A scheduler's, Ctrl-C, a terminal that is closed, Slurm's --signal.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
END = b"\0"  # no signal has this number
ANSWER_SECONDS = 2.0  # that the end waits for an answer: the store it asks may hang


class StopRequest:
    """Remembers the first of the signals that ask for a stop, so that the loop can finish its step and save.

    Schedulers announce a preemption with a signal and kill seconds later. A handler that only sets a flag is safe at
    any moment, compilation and saving included; a repeated signal changes nothing. Python runs it between two of its
    own instructions, which a step of long rows keeps it from for minutes. So a thread, which the signal wakes through a
    socket, answers at once.

    Args:
        doing: says what the run will do about it, for the answer.
    """

    def __init__(self, doing: Callable[[], str] = lambda: "stopping") -> None:
        self.signal_name: str | None = None
        self.doing = doing
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers. A SIGHUP that is ignored, as under nohup, stays so."""
        for sig in STOPS:
            if sig is not signal.SIGHUP or signal.getsignal(sig) is not signal.SIG_IGN:
                self._previous[sig] = signal.signal(sig, self._remember)
        self._wakes, self._woken = socket.socketpair()
        self._wakes.setblocking(False)
        self._thread = threading.Thread(target=self._answer, name="cistron-signals", daemon=True)
        self._thread.start()
        self._before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back; after a stop, ignore signals, so that a repeated one changes nothing."""
        for sig, handler in self._previous.items():
            signal.signal(sig, signal.SIG_IGN if self() else handler)
        signal.set_wakeup_fd(self._before)
        self._wakes.send(END)  # to close it would not do: forked compilers have it too
        self._thread.join(ANSWER_SECONDS)
        if not self._thread.is_alive():
            self._wakes.close()
            self._woken.close()

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.signal_name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name

    def _answer(self) -> None:
        """Answer the first signal; the body of the thread."""
        told = False
        while (number := self._woken.recv(1)) != END:
            if not told and number[0] in self._previous:
                told = True
                if is_first_told():
                    rank = os.environ.get("RANK", "0")
                    who = f"[rank {rank}] " if rank != "0" else ""
                    with suppress(OSError, ValueError):
                        print(f"{who}{signal.Signals(number[0]).name}: {self.doing()}", file=sys.stderr, flush=True)


def is_first_told() -> bool:
    """Return whether this rank is to answer a signal: rank 0, and of others the first to get one."""
    first = os.environ.get("RANK", "0") == "0"
    if not dist.is_initialized():
        return first
    # RuntimeError: the process that holds the store is gone. ValueError: this one's group, which ends meanwhile
    with suppress(RuntimeError, ValueError):
        first |= distributed_c10d._get_default_store().add("told to stop", 1) == 1
    return first


def forget_socket() -> None:
    """In a forked process: its signals are not the parent's."""
    with suppress(ValueError):  # forked by a thread of a subinterpreter
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=forget_socket)


def end_with_launcher() -> None:
    """Have the kernel send SIGKILL to this process when its parent is gone (Linux; elsewhere it goes on).

    torchrun gives every rank a session of its own, so that a kill -9 of torchrun or of its group leaves the ranks
    training, and a restart would find them writing to its folder.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
