"""Micro-batches on the device, one ahead of the one being computed on.

On CUDA, rows are pinned and copied, and their mask is built, on a stream of their own: while one micro-batch computes,
the next arrives. Elsewhere a micro-batch is moved when it is needed.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch

from ..datasets.loading import Batch

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Moves batches to the device, in order.

    What it handed over it holds until the device has passed the point where it was last used, so that the memory is not
    written to by the copies that follow on the other stream. A BlockMask keeps tensors inside a closure, out of the
    reach of `Tensor.record_stream`, which serves this end for tensors one by one.

    Args:
        move: makes of a batch what a forward pass needs, by copies that do not block.
        device: where to.
    """

    def __init__(self, move: Callable[[Batch], T], device: torch.device) -> None:
        self.move = move
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.used: list[tuple[T, torch.cuda.Event]] = []  # the newest last, with the event after its last use

    def __call__(self, batches: Iterable[Batch]) -> Iterator[T]:
        """Yield what `move` makes of each batch."""
        if self.side is None:
            yield from map(self.move, batches)
            return
        main = torch.cuda.current_stream(self.side.device)
        remaining = iter(batches)
        ahead = self.start(next(remaining, None))
        while ahead is not None:
            (moved, arrived), ahead = ahead, self.start(next(remaining, None))
            main.wait_event(arrived)
            yield moved
            self.used.append((moved, main.record_event()))
            del moved

    def start(self, batch: Batch | None) -> tuple[T, torch.cuda.Event] | None:
        """Begin to move a batch; return what it will be, and the event of its arrival."""
        if batch is None or self.side is None:
            return None
        while len(self.used) > 1:  # one may still be computed on
            _, last_use = self.used.pop(0)
            self.side.wait_event(last_use)
        with torch.cuda.stream(self.side):
            return self.move(batch), self.side.record_event()
