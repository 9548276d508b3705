"""datasets/rows."""

from .masking import MaskedTokens, MaskingConfig
from .objectives import DocumentLabels, NextToken, Objective, PackedRow, Weights
from .packing import PAD_MULTIPLE, Block, Packer, Part, Planes, best_fit, lay_out, row_violations, rows_of_best_fit

__all__ = [
    "PAD_MULTIPLE",
    "Block",
    "DocumentLabels",
    "MaskedTokens",
    "MaskingConfig",
    "NextToken",
    "Objective",
    "PackedRow",
    "Packer",
    "Part",
    "Planes",
    "Weights",
    "best_fit",
    "lay_out",
    "row_violations",
    "rows_of_best_fit",
]
