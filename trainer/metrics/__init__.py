"""What a run counts and reports: the tokens and targets of a step, records and the sinks they go to, profiles of steps.

Read `step_counts`, then `log` (from counts to a record), `sinks` (where records go), `guarded` (a sink that fails) and
`records` (files of JSON lines). `label_scores` and `profiling` stand alone.
"""

from .label_scores import SCORES, label_metrics
from .log import MetricsLog, Outcome, sink_complaints
from .profiling import profiling, profiling_complaints
from .records import last_record
from .sinks import MetricsRecord, Sink, finite
from .step_counts import StepCounts, target_weights

__all__ = [
    "SCORES",
    "MetricsLog",
    "MetricsRecord",
    "Outcome",
    "Sink",
    "StepCounts",
    "finite",
    "label_metrics",
    "last_record",
    "profiling",
    "profiling_complaints",
    "sink_complaints",
    "target_weights",
]
