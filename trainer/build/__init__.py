"""From the configuration to the parts that datasets and models provide, and the contract that they must agree on.

Read `contract` (who states which special ids, and how the statements are compared), `parts` (tokenizer, decoder, mask),
then `fine_tuning` (what is frozen, and adapters).
"""

from .contract import Contract, Statement, contract_of
from .fine_tuning import dotted_keys, fine_tune, fine_tuning_complaints, fine_tuning_differences, fresh_parameters
from .parts import (
    attention_complaints,
    attention_of,
    attention_said,
    make_decoder_config,
    make_model,
    make_tokenizer,
    rows_complaints,
    training_mask,
)

__all__ = [
    "Contract",
    "Statement",
    "attention_complaints",
    "attention_of",
    "attention_said",
    "contract_of",
    "dotted_keys",
    "fine_tune",
    "fine_tuning_complaints",
    "fine_tuning_differences",
    "fresh_parameters",
    "make_decoder_config",
    "make_model",
    "make_tokenizer",
    "rows_complaints",
    "training_mask",
]
