"""What ranks tell each other at every wait, in training and in evaluations: one small sum through CPU memory."""

from collections.abc import Callable
from dataclasses import dataclass

from .checkpoints import Saver
from .processes import World


@dataclass
class Heartbeat:
    """Lets a checkpoint under way advance, and finds out whether any rank was told to stop.

    Attributes:
        world: whose ranks all call it at the same points.
        stop: whether this process was told to stop.
        saver: may have a checkpoint under way.
    """

    world: World
    stop: Callable[[], bool]
    saver: Saver

    def __call__(self, *counts: int) -> tuple[bool, list[int]]:
        """Return whether any rank was told to stop, and the sums of `counts` over all ranks.

        Raises:
            CheckpointError: a checkpoint could not be written, and it was one failure too many.
        """
        stops, ready, *sums = self.world.sum([int(self.stop()), int(self.saver.ready), *counts])
        if ready == self.world.layout.world_size:
            self.saver.advance()
        return bool(stops), sums
