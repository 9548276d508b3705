"""Attention within documents: the mask of a packed batch, and the kernels that compute under it.

Read `masks.py` first: one rule in three forms. `block_mask.py` writes the form of FlexAttention from two ids per block,
with the rules of `rules.py` for partial ones; `kernels.py` chooses and calls the kernel of each form, and joins the two
regions of a position map; `flex_backend.py` says whose kernels FlexAttention's are. `cache.py` has what layers remember
of a row that grows.
"""

from .block_mask import document_block_mask
from .cache import KEYS_MULTIPLE, Cache, Cached, KeyValueCache, empty_caches
from .flex_backend import (
    FlashFacts,
    choose_flex_backend,
    flash_facts,
    flash_obstacles,
    flex_backend_complaints,
    has_flash_attention_4,
)
from .kernels import attend_in_regions, choose_executor, executor_complaints, has_flash_attention_3
from .masks import AttentionMask, DocumentMask

__all__ = [
    "KEYS_MULTIPLE",
    "AttentionMask",
    "Cache",
    "Cached",
    "DocumentMask",
    "FlashFacts",
    "KeyValueCache",
    "attend_in_regions",
    "choose_executor",
    "choose_flex_backend",
    "document_block_mask",
    "empty_caches",
    "executor_complaints",
    "flash_facts",
    "flash_obstacles",
    "flex_backend_complaints",
    "has_flash_attention_3",
    "has_flash_attention_4",
]
