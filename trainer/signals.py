"""SIGTERM and SIGINT ask for a stop; whoever waits for something polls the request."""

import signal
from types import FrameType
from typing import Any


class StopRequest:
    """Remembers the first SIGTERM or SIGINT, so that the loop can finish its step and save.

    Schedulers announce a preemption with SIGTERM and kill seconds later. A handler that only sets a flag is safe at any
    moment, compilation and saving included; a repeated signal changes nothing.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            self._previous[sig] = signal.signal(sig, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back."""
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name
