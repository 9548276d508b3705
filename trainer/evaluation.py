"""What every evaluation between steps has in common. The trainer runs a list of them."""

from abc import ABC, abstractmethod

from ..models.decoder import Decoder
from .heartbeat import Heartbeat
from .metrics import MetricsRecord


class Evaluation(ABC):
    """Something that is measured of the model every so many steps, and after the last one.

    Args:
        done: step of the last evaluation, which is that of a checkpoint to resume from.

    Attributes:
        done: step of the last evaluation; the trainer updates it.
    """

    def __init__(self, done: int) -> None:
        self.done = done

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Return whether to evaluate after `step`. After the last step every evaluation is due."""

    @abstractmethod
    def run(self, step: int, model: Decoder, heartbeat: Heartbeat) -> MetricsRecord | None:
        """Measure the model. Every rank must call it.

        Args:
            step: optimizer steps done.
            model: in any layout.
            heartbeat: called at every wait.

        Returns:
            The record, the same on every rank; None where a rank was told to stop meanwhile.
        """
