"""The same decoder under Hugging Face's names: Llama, or Qwen3 when queries and keys are normalised.

Both lay out every matrix as we do, rotary halves included, so a name is all that changes.
"""

from cistron.models.config import DecoderConfig

_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
}
_QK_NORM = {"attention.q_norm.weight": "self_attn.q_norm.weight", "attention.k_norm.weight": "self_attn.k_norm.weight"}


def hf_names(config: DecoderConfig) -> dict[str, str]:
    """Our state-dict key to Hugging Face's, for every key of the decoder's state dict, one to one.

    A tied model has both `output.weight` and `tok_embeddings.weight` here, as it does in either state dict; a
    safetensors export stores the table once and leaves `lm_head.weight` out.
    """
    block = _BLOCK | (_QK_NORM if config.qk_norm else {})
    layers = {
        f"layers.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.n_layers)
        for ours, theirs in block.items()
    }
    return _TOP | layers
