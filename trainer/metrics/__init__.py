"""trainer/metrics."""

from .label_scores import score
from .log import MetricsLog, Outcome
from .profiling import check_profiling, profiling
from .reports import check_reports, finite
from .totals import StepCounts, shares

__all__ = ["MetricsLog", "Outcome", "StepCounts", "check_profiling", "check_reports", "finite", "profiling", "score", "shares"]
