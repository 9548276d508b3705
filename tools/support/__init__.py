"""What several commands share: options, progress, reports, and files that a killed command can continue.

Read `model_input` first: how a command opens a model. `partial_output` is a file that a killed command goes on with:
`embedding_files` writes what `cistron embed` computes, `score_files` what `cistron evaluate` does. `corpus`, `targets`
and `prepare_report` print what `check` and `prepare` found; `progress` shows a bar.
"""

from .corpus import report_sources
from .embedding_files import WRITERS as EMBEDDING_WRITERS
from .embedding_files import EmbeddingFile
from .model_input import (
    add_input_arguments,
    add_letter_arguments,
    add_model_arguments,
    input_plan,
    number,
    open_as_asked,
    passing_over,
    read_as_asked,
    whole_number,
)
from .partial_output import check_output, writing
from .prepare_report import report_section, write_report
from .progress import progress_bar
from .score_files import WRITERS as SCORE_WRITERS
from .score_files import Line, ScoreFile, ScoreTable
from .table_options import add_table_options, given, read_table
from .targets import report_targets

__all__ = [
    "EMBEDDING_WRITERS",
    "SCORE_WRITERS",
    "EmbeddingFile",
    "Line",
    "ScoreFile",
    "ScoreTable",
    "add_input_arguments",
    "add_letter_arguments",
    "add_model_arguments",
    "add_table_options",
    "check_output",
    "given",
    "input_plan",
    "number",
    "open_as_asked",
    "passing_over",
    "progress_bar",
    "read_as_asked",
    "read_table",
    "report_section",
    "report_sources",
    "report_targets",
    "whole_number",
    "write_report",
    "writing",
]
