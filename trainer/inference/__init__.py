"""A trained model in use: open it, and ask it for embeddings, likelihoods or text. `import cistron` offers this.

Read `open` first, then `documents`: how sequences become a row. `embeddings` (with `layers`), `likelihood` and
`sampling` (with `decoding`) stand beside each other: each has the function for what is in memory and the one for a
stream, which the commands use.
"""

from .decoding import Decoding, logits_of
from .documents import BATCH_TOKENS, Document, Rows, make_rows, opening_tokens, read_documents, with_positions
from .embeddings import Pool, embed, embeddings
from .layers import choose_layers, meaning, widths
from .likelihood import Score, log_likelihoods, score
from .open import DTYPES, OpenedModel, inference_mask, open_model
from .sampling import NewText, Sampling, prompt_ids, sample, sample_tokens, samples, text_behind

__all__ = [
    "BATCH_TOKENS",
    "DTYPES",
    "Decoding",
    "Document",
    "NewText",
    "OpenedModel",
    "Pool",
    "Rows",
    "Sampling",
    "Score",
    "choose_layers",
    "embed",
    "embeddings",
    "inference_mask",
    "log_likelihoods",
    "logits_of",
    "make_rows",
    "meaning",
    "open_model",
    "opening_tokens",
    "prompt_ids",
    "read_documents",
    "sample",
    "sample_tokens",
    "samples",
    "score",
    "text_behind",
    "widths",
    "with_positions",
]
