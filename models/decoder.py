"""The decoder: tokens and their positions to logits, behind whatever mask it is handed.

Plain modules and nothing else: parallelism, compilation and checkpointing are applied from outside by module name.

    tok_embeddings -> layers.N [attention_norm -> attention (+ residual) -> ffn_norm -> feed_forward (+ residual)]
                   -> norm -> output, or given labels straight to their losses
                           -> score instead of output, where the model is asked about whole documents (`head.py`)

State-dict keys correspond one to one to Hugging Face's Llama and Qwen3 (`huggingface/model.py`).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionMask, Cached, KeyValueCache, attend_in_regions
from .config import AttentionConfig, DecoderConfig, RopeConfig, check_length
from .errors import ModelError
from .head import Head, document_losses
from .loss import Output
from .parameters import Kind
from .positions import RotaryTables, rope_table, rotary_tables, rotate


class Decoder(nn.Module):
    """A Llama-style transformer; causal or bidirectional is the mask's affair alone.

    Construction under `torch.device("meta")` is free; give it values with `to_empty` and `init.init_weights`.

    Args:
        config: its shape.
        max_document_length: the longest document that it is meant for, see `rope.rope_table`; 0: up to
            `original_seq_len`.
    """

    kinds: ClassVar[dict[str, Kind]] = {"output.weight": Kind.EMBEDDING}

    def __init__(self, config: DecoderConfig, max_document_length: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        if config.head_outputs:
            self.score = Head(config.dim, config.head_outputs, config.pool)
        else:
            self.output = Output(config.dim, config.vocab_size)
        self.tie_weights()
        self.set_positions(config.rope, config.attention, max_document_length)
        self.compile_loss, self.loss_chunk = False, 0  # a trainer's choice, see `loss.linear_cross_entropy`

    def tie_weights(self) -> None:
        """Make `output` share the embedding table if the config says so; again after parameters were replaced."""
        if self.config.tie_embeddings and not self.config.head_outputs:
            self.output.weight = self.tok_embeddings.weight

    def set_positions(self, rope: RopeConfig, attention: AttentionConfig, max_document_length: int) -> None:
        """Change the positional scheme from now on; no weight changes. The masks it is given must be for `attention`.

        Args:
            rope: rotary embedding.
            attention: which pairs of a document attend, and at which distance.
            max_document_length: the longest document that is meant; 0: up to `original_seq_len`.

        Raises:
            ModelError: what does not fit together, or not with documents of this length.
        """
        config = self.config.replace(rope=rope, attention=attention)
        if complaints := check_length(rope, attention, max_document_length):
            raise ModelError("; ".join(complaints))
        self.config, self.max_document_length = config, max_document_length
        # Attributes, not buffers: `to_empty` would lose the values and `to(bfloat16)` their precision.
        self.inv_freq, self.attention_factor = rope_table(rope, config.head_dim, max_document_length)
        self.inv_freq_there: Tensor | None = None

    def frequencies(self, device: torch.device) -> Tensor:
        """Return `inv_freq` where it is used, copied once: a copy from pageable memory makes the host wait."""
        if self.inv_freq_there is None or self.inv_freq_there.device != device:
            self.inv_freq_there = self.inv_freq.to(device)
        return self.inv_freq_there

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: AttentionMask | Cached,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Logits of every position, or the losses of given labels, for which logits are never all in memory.

        With a head: outputs of every position's document, or the losses of labels that documents have.

        Args:
            tokens: int64 [batch, seq_len].
            positions: int32 [batch, seq_len], restarting at 0 with every document.
            mask: what `DocumentMask.build` made of the batch's `sequence_ids`; or tokens continue rows, and mixers read
                the caches that it holds.
            labels: int64 [batch, seq_len], -100 where no loss is taken.
            weights: float32 [batch, seq_len], which losses are multiplied with; None: all 1.
            values: float32 [batch, seq_len], of each label where a head predicts a value; not read otherwise.

        Returns:
            Without labels [batch, seq_len, vocab_size or head_outputs]. With labels the losses (cross-entropies in
            nats, squared errors of values), float32 [batch, seq_len], 0 where there is no target; those of tokens are
            to be summed before going backward, see `loss.linear_cross_entropy`.
        """
        inv_freq = self.frequencies(positions.device)
        rotary = rotary_tables(self.config.attention, self.config.rope, positions, inv_freq, self.attention_factor)
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, rotary, mask)
        x = self.norm(x)
        if self.config.head_outputs:
            outputs: Tensor = self.score(x, positions)
            return outputs if labels is None else document_losses(outputs, labels, weights, values)
        if labels is None:
            logits: Tensor = self.output(x)
            return logits
        losses: Tensor = self.output(x, labels, weights, compiled=self.compile_loss, chunk=self.loss_chunk)
        return losses


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream and added back to it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)

    def forward(self, x: Tensor, rotary: Sequence[RotaryTables], mask: AttentionMask | Cached) -> Tensor:
        """`x` [batch, seq_len, dim] to the same shape; `rotary` as `positions.rotary_tables` returns them."""
        x = x + self.attention(self.attention_norm(x), rotary, mask)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and optional normalisation of queries and keys.

    Head counts are read off the projections' outputs, so the same code runs on the heads of one tensor-parallel rank.
    The q and k norms see [batch, seq_len, heads, head_dim]: heads are dimension 2.
    """

    kinds: ClassVar[dict[str, Kind]] = {"wo.weight": Kind.RESIDUAL_MATRIX}

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, q_dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(q_dim, config.dim, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        # where a row is spread over ranks: from their own keys and values to all of the row's
        self.gather: nn.Module = nn.Identity()

    def cache(self) -> KeyValueCache:
        """Return an empty cache, for rows that grow, see `Cached`."""
        return KeyValueCache()

    def forward(self, x: Tensor, rotary: Sequence[RotaryTables], mask: AttentionMask | Cached) -> Tensor:
        """`x` [batch, seq_len, dim] to the same shape."""
        batch, seq_len, _ = x.shape
        q, k, v = (w(x).view(batch, seq_len, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        # Rotated as the projections lay them out, then seen by head: a kernel's output has the layout of q, and `wo`
        # reads it without a copy.
        rotated = [
            (rotate(q, *tables.q).transpose(1, 2), self.gather(rotate(k, *tables.k).transpose(1, 2))) for tables in rotary
        ]
        v = self.gather(v.transpose(1, 2))
        if isinstance(mask, Cached):
            cache = mask.caches[self]
            assert isinstance(cache, KeyValueCache)
            heads = cache.attend(rotated, v, mask)
        else:
            heads = attend_in_regions(rotated, v, mask)
        out: Tensor = self.wo(heads.transpose(1, 2).reshape(batch, seq_len, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): `w2(silu(w1(x)) * w3(x))`."""

    kinds: ClassVar[dict[str, Kind]] = {"w2.weight": Kind.RESIDUAL_MATRIX}

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [batch, seq_len, dim] to the same shape."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out
