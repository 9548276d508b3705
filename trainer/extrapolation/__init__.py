"""Documents longer than those of training: what a model makes of them, by every method that trains nothing.

Read `methods` first (which settings each has), then `measures`: what is measured, and the plan of an evaluation.
`long_rows` runs the model; `passkey` and `continuation` are measures of their own; `report` draws; `in_training` does
it during a run.
"""

from .in_training import LongEvaluation, plan_of
from .long_rows import LongRowModel
from .measures import LengthResult, evaluate, plan, read_sources, results_json, total_tokens, trained_as
from .methods import METHODS
from .report import draw_curves, make_tables

__all__ = [
    "METHODS",
    "LengthResult",
    "LongEvaluation",
    "LongRowModel",
    "draw_curves",
    "evaluate",
    "make_tables",
    "plan",
    "plan_of",
    "read_sources",
    "results_json",
    "total_tokens",
    "trained_as",
]
