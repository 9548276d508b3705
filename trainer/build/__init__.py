"""trainer/build."""

from .contract import (
    Statement,
    check_rows,
    check_statements,
    checkpoint_statement,
    contract_of,
    gather_statements,
    ids,
    other_roles,
    table,
    tokenizer_statement,
)
from .fine_tuning import differences, fine_tune, fine_tuning_complaints, fresh_parameters
from .parts import (
    attention_complaints,
    attention_of,
    make_decoder_config,
    make_mask,
    make_model,
    make_tokenizer,
    open_tokenizer,
    rows_complaints,
)

__all__ = [
    "Statement",
    "attention_complaints",
    "attention_of",
    "check_rows",
    "check_statements",
    "checkpoint_statement",
    "contract_of",
    "differences",
    "fine_tune",
    "fine_tuning_complaints",
    "fresh_parameters",
    "gather_statements",
    "ids",
    "make_decoder_config",
    "make_mask",
    "make_model",
    "make_tokenizer",
    "open_tokenizer",
    "other_roles",
    "rows_complaints",
    "table",
    "tokenizer_statement",
]
