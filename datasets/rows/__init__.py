"""Documents of token ids to rows, and rows to batches: plans, planes of one shape, and an objective's targets.

Read `packing` (plans, the layout of a batch, the row invariants), then `objectives` and `masking` (which tokens are
targets); `config` has the table `[mlm]` and the registry of objectives.
"""

from .config import OBJECTIVES, MaskingConfig, ObjectiveSettings
from .masking import MaskedTokens
from .objectives import DocumentLabels, NextToken, Objective, PackedRow, Weights
from .packing import (
    PAD_MULTIPLE,
    Block,
    Packer,
    Part,
    Planes,
    best_fit,
    document_ends,
    lay_out,
    row_violations,
    rows_of_best_fit,
)

__all__ = [
    "OBJECTIVES",
    "PAD_MULTIPLE",
    "Block",
    "DocumentLabels",
    "MaskedTokens",
    "MaskingConfig",
    "NextToken",
    "Objective",
    "ObjectiveSettings",
    "PackedRow",
    "Packer",
    "Part",
    "Planes",
    "Weights",
    "best_fit",
    "document_ends",
    "lay_out",
    "row_violations",
    "rows_of_best_fit",
]
