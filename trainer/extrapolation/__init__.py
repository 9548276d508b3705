"""trainer/extrapolation."""

from .in_training import LongEvaluation, plan_of
from .measures import Result, evaluate, plan, read_sources, report, total_tokens, trained_as
from .methods import METHODS
from .report import draw, make_tables
from .runner import Runner

__all__ = [
    "METHODS",
    "LongEvaluation",
    "Result",
    "Runner",
    "draw",
    "evaluate",
    "make_tables",
    "plan",
    "plan_of",
    "read_sources",
    "report",
    "total_tokens",
    "trained_as",
]
