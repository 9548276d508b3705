"""SIGTERM and SIGINT request a stop, which every wait polls. A rank does not outlive its launcher."""

import ctypes
import signal
import sys
from types import FrameType
from typing import Any


class StopRequest:
    """Remembers the first SIGTERM or SIGINT, so that the loop can finish its step and save.

    Schedulers announce a preemption with SIGTERM and kill seconds later. A handler that only sets a flag is safe at any
    moment, compilation and saving included; a repeated signal changes nothing.
    """

    def __init__(self) -> None:
        """Begin without a signal."""
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers of SIGTERM and SIGINT."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            self._previous[sig] = signal.signal(sig, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back; after a stop, ignore signals, so that a repeated one changes nothing."""
        for sig, handler in self._previous.items():
            signal.signal(sig, signal.SIG_IGN if self() else handler)

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.signal_name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name


def end_with_launcher() -> None:
    """Have the kernel send SIGKILL to this process when its parent is gone (Linux; elsewhere it goes on).

    torchrun gives every rank a session of its own, so that a kill -9 of torchrun or of its group leaves the ranks
    training, and a restart would find them writing to its folder.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
