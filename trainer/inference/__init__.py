"""trainer/inference."""

from .documents import BATCH_TOKENS, opening_tokens, read_documents
from .embeddings import Pool, embeddings
from .layers import choose_layers, meaning, widths
from .likelihood import Score, score
from .open import DTYPES, OpenedModel, inference_mask, open_model, refuse_encoder, refuse_head
from .sampling import opening, sample

__all__ = [
    "BATCH_TOKENS",
    "DTYPES",
    "OpenedModel",
    "Pool",
    "Score",
    "choose_layers",
    "embeddings",
    "inference_mask",
    "meaning",
    "open_model",
    "opening",
    "opening_tokens",
    "read_documents",
    "refuse_encoder",
    "refuse_head",
    "sample",
    "score",
    "widths",
]
