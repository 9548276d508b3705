"""models/attention."""

from .block_mask import document_block_mask
from .kernels import attend_in_regions, choose_executor, executor_complaints, has_flash_attention_3
from .masks import AttentionMask, DocumentMask

__all__ = [
    "AttentionMask",
    "DocumentMask",
    "attend_in_regions",
    "choose_executor",
    "document_block_mask",
    "executor_complaints",
    "has_flash_attention_3",
]
