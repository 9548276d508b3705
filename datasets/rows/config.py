"""The table `[mlm]`, and the registry of objectives: what each needs of model and data, and is built from."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from typing_extensions import override

from ...base import Fraction, Registry, Table, changed
from ..tokenizers import Tokenizer

if TYPE_CHECKING:
    from .objectives import Objective


class MaskingConfig(Table):
    """Masked language modelling, for training.objective = "mlm"."""

    mask_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.15
    """Share of each document's tokens that are targets; special tokens never are."""
    rate_schedule: Literal["constant", "esm3"] = "constant"
    """esm3: a rate for every document, 80 % of them from Beta(3, 9) and 20 % uniform, in place of mask_rate."""
    mask_share: Fraction = 0.8
    """Share of these tokens that is shown as the mask token."""
    random_share: Fraction = 0.1
    """Share that is shown as a random letter of the alphabet; what is left is shown as it is."""

    @override
    def complaints(self) -> list[str]:
        wrong = []
        if self.mask_share + self.random_share > 1:
            wrong.append(f"mlm.mask_share + mlm.random_share = {self.mask_share} + {self.random_share}: must be at most 1")
        if self.rate_schedule == "esm3" and changed(self, "mask_rate"):
            wrong.append(f'mlm.mask_rate = {self.mask_rate}: is not read with rate_schedule = "esm3"; leave it out')
        return wrong


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What of a job an objective is built from.

    Attributes:
        tokenizer: Names special tokens.
        seed: Of all random choices.
        masking: The table `[mlm]`.
        classes: Names of the classes of `[head]`; empty where labels are values.
    """

    tokenizer: Tokenizer
    seed: int
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    classes: tuple[str, ...] = ()


OBJECTIVES: Registry[type["Objective"]] = Registry("objective")
