"""What several commands share: options, progress, reports, and files that a killed command can continue.

Read `model_input` first: how a command opens a model. `embedding_files` writes what `cistron embed` computes; `corpus`,
`targets` and `prepare_report` print what `check` and `prepare` found; `progress` shows a bar.
"""

from .corpus import report_sources
from .embedding_files import EmbeddingFile, check_output, writing
from .model_input import add_input_arguments, add_model_arguments, number, open_as_asked, whole_number
from .prepare_report import report_section, write_report
from .progress import progress_bar
from .table_options import add_table_options, given, read_table
from .targets import report_targets

__all__ = [
    "EmbeddingFile",
    "add_input_arguments",
    "add_model_arguments",
    "add_table_options",
    "check_output",
    "given",
    "number",
    "open_as_asked",
    "progress_bar",
    "read_table",
    "report_section",
    "report_sources",
    "report_targets",
    "whole_number",
    "write_report",
    "writing",
]
