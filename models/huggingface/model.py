"""The same decoder in Hugging Face's words: parameter names and `config.json`, in both directions.

| decoder | class |
|---|---|
| causal | `LlamaForCausalLM` |
| causal, queries and keys normalised | `Qwen3ForCausalLM` |
| bidirectional | `EuroBertForMaskedLM` |

All three lay out every matrix as the decoder does, rotary halves included, so that a name is all that changes. Rotary
embeddings are those of `rope.py`. What one side cannot say is refused, all of it at once.
"""

from types import NoneType
from typing import Any

from pydantic import ValidationError

from ...base import TOKENS, shown
from ..config import AttentionConfig, DecoderConfig, RopeConfig
from ..errors import ModelError
from .rope import inexpressible, rope_from_hf, rope_to_hf

LLAMA, QWEN3, EUROBERT = "LlamaForCausalLM", "Qwen3ForCausalLM", "EuroBertForMaskedLM"
MODEL_TYPES = {LLAMA: "llama", QWEN3: "qwen3", EUROBERT: "eurobert"}
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
# What `config.json` may leave out, by the defaults of the classes in transformers 5; a key of no class here is not
# read.
_DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMA: {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    QWEN3: {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128},
    EUROBERT: {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192},
}
# Keys that change what a model computes, and the one value that the decoder has; absent means that value.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "quantization_config": None,
}
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")


def hf_names(config: DecoderConfig) -> dict[str, str]:
    """Return the decoder's state-dict key to Hugging Face's, for every key of the decoder's state dict, one to one.

    A tied model has both `output.weight` and `tok_embeddings.weight` here, as it does in either state dict; a
    safetensors file stores the table once and leaves `lm_head.weight` out.
    """
    block = _BLOCK | (_QK_NORM if config.qk_norm else {})
    layers = {
        f"layers.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.n_layers)
        for ours, theirs in block.items()
    }
    return _TOP | layers


def architecture(config: DecoderConfig) -> str:
    """Return Hugging Face's class that computes what this decoder does.

    Raises:
        ModelError: where there is none.
    """
    if config.head_outputs:
        raise ModelError(
            f"this model has a head for labels of documents ({config.head_outputs} output(s), head.pool = {config.pool!r}); "
            "language models alone are exported"
        )
    if config.qk_norm and not config.causal:
        raise ModelError(
            f"no Hugging Face class holds this model: {EUROBERT}, which is bidirectional, does not normalise queries and keys "
            "(model.qk_norm is true)"
        )
    if not config.qk_norm and config.dim % config.n_heads:
        raise ModelError(
            f"no Hugging Face class holds this model: model.dim is {config.dim} and model.n_heads {config.n_heads}, of which "
            f"{LLAMA if config.causal else EUROBERT} wants one to be a multiple of the other; {QWEN3} (model.qk_norm) does not"
        )
    far, attention = [inexpressible(config.rope)], config.attention
    if attention.position_map != "none":
        far.append(f'model.attention.position_map is "{attention.position_map}"')
    if attention.logn:
        far.append("model.attention.logn is true")
    if attention.mask == "lambda" or (attention.mask == "sliding" and not config.qk_norm):
        far.append(f'model.attention.mask is "{attention.mask}"; {QWEN3} (model.qk_norm) alone has another, "sliding"')
    if reasons := [reason for reason in far if reason]:
        raise ModelError(f"no Hugging Face class computes what this model does: {'; '.join(reasons)}")
    if not config.causal:
        return EUROBERT
    return QWEN3 if config.qk_norm else LLAMA


def to_hf(
    config: DecoderConfig,
    *,
    max_positions: int,
    eos_id: int,
    pad_id: int,
    bos_id: int | None = None,
    mask_id: int | None = None,
    dtype: str,
) -> dict[str, Any]:
    """Return the content of `config.json`, for transformers 4 and 5 alike.

    Args:
        config: the decoder.
        max_positions: longest row in training, which `max_position_embeddings` tells the world unless a rotary scaling
            does.
        eos_id: id that ends a document.
        pad_id: id that fills rows. Left out where it is the eos: the classes freeze the embedding of their
            `pad_token_id`, and fine-tuning there would never train the eos.
        bos_id: id that opens a document, None where nothing does.
        mask_id: id that hides a token from a bidirectional model, None where there is none.
        dtype: of the weights, in torch's words: `float32`, `bfloat16`.

    Raises:
        ModelError: where no class can hold the decoder.
    """
    name = architecture(config)
    window: dict[str, Any] = {"use_sliding_window": False} if name == QWEN3 else {"mlp_bias": False}
    if config.attention.mask == "sliding":
        window = {"use_sliding_window": True, "sliding_window": config.attention.window, "max_window_layers": 0}
        window["layer_types"] = ["sliding_attention"] * config.n_layers
    return {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        **window,
        "tie_word_embeddings": config.tie_embeddings,
        **rope_to_hf(config.rope, config.head_dim, max_positions),
        "bos_token_id": bos_id,  # written even if there is none: Llama's default would be 1
        "eos_token_id": eos_id,
        "pad_token_id": None if pad_id == eos_id else pad_id,
        **({} if config.causal or mask_id is None else {"mask_token_id": mask_id}),
    }


def from_hf(content: dict[str, Any]) -> DecoderConfig:
    """Return the decoder that computes what a `config.json` describes.

    Keys are read as transformers reads them: what is absent has the class's default, `rope_scaling` comes before
    `rope_parameters`, and keys that the class does not know mean nothing.

    Args:
        content: of `config.json`.

    Raises:
        ModelError: listing every key whose value the decoder does not have, with the value found and what is supported.
    """
    name = _architecture_of(content)
    complaints = [
        f"{key} is {shown(content[key])}; supported: {value!r}"
        for key, value in _FIXED.items()
        if content.get(key) is not None and content[key] != value
    ]
    values = _DEFAULTS[name] | content
    sizes = [*_SIZES, *(key for key in _OPTIONAL_SIZES if values.get(key) is not None)]
    complaints += [
        f"{key} is {shown(value)}; it must be an integer above 0"
        for key in sizes
        if type(value := values.get(key)) is not int or value < 1
    ]
    if type(values["rms_norm_eps"]) not in (int, float):
        complaints.append(f"rms_norm_eps is {shown(values['rms_norm_eps'])}; it must be a number")
    if not isinstance(values.get("tie_word_embeddings"), (bool, NoneType)):
        complaints.append(f"tie_word_embeddings is {shown(values['tie_word_embeddings'])}; it must be true or false")
    longest = values["max_position_embeddings"]
    if longest is not None and (type(longest) is not int or not 2 <= longest <= TOKENS):
        complaints.append(f"max_position_embeddings is {shown(longest)}; it must be an integer from 2 to {TOKENS}")
    rope, attention = RopeConfig(), AttentionConfig()
    try:
        attention = attention if complaints else _attention_of(name, values, complaints)
        rope = rope_from_hf(content, longest, complaints)
    except ValidationError as error:
        beyond = ((wrong["loc"][0], shown(wrong["input"]), wrong["msg"]) for wrong in error.errors())
        complaints += [f"{key} is {value}: {problem}" for key, value, problem in beyond]
    if complaints:
        raise ModelError("\n  ".join([f"config.json: {name} with settings that this decoder does not have:", *complaints]))
    heads = values["num_attention_heads"]
    return DecoderConfig(
        vocab_size=values["vocab_size"],
        dim=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        hidden_dim=values["intermediate_size"],
        norm_eps=float(values["rms_norm_eps"]),
        qk_norm=name == QWEN3,
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        rope=rope,
        attention=attention,
        causal=name != EUROBERT,
    )


def _architecture_of(content: dict[str, Any]) -> str:
    """Return the class that `config.json` names, or its `model_type` does. Raises ModelError for any other."""
    kind = content.get("model_type")
    named = content.get("architectures") or [name for name in MODEL_TYPES if MODEL_TYPES[name] == kind]
    known = [name for name in MODEL_TYPES if [name] == named]
    if not known:
        inner = content.get("text_config")
        part = inner.get("model_type") if isinstance(inner, dict) else None
        advice = (
            f"; docs/huggingface.md shows how its text part, a {part}, is saved alone" if part in MODEL_TYPES.values() else ""
        )
        raise ModelError(
            f"config.json: architectures is {shown(content.get('architectures'))} (model_type {shown(kind)}); "
            f"supported: {', '.join(MODEL_TYPES)}{advice}"
        )
    return known[0]


def _attention_of(name: str, values: dict[str, Any], complaints: list[str]) -> AttentionConfig:
    """Return the window that all layers have, or none; add to `complaints` a window that the decoder cannot have."""
    listed = values.get("layer_types") or []
    if not isinstance(listed, list) or not all(isinstance(kind, str) for kind in listed):
        complaints.append(f"layer_types is {shown(listed)}; it must be a list of names")
        return AttentionConfig()
    types = set(listed)
    if values.get("use_sliding_window") and name == QWEN3:
        window, full = values.get("sliding_window", 4096), values.get("max_window_layers", 28)
        if type(full) is not int:
            complaints.append(f"max_window_layers is {shown(full)}; it must be an integer")
            return AttentionConfig()
        if not types and full < values["num_hidden_layers"]:
            types = {"sliding_attention", "full_attention"} if full else {"sliding_attention"}
        if types == {"sliding_attention"} and type(window) is int:
            return AttentionConfig(mask="sliding", window=window)
        if "sliding_attention" in types:
            what = "supported: one window in every layer, or none"
            complaints.append(f"sliding_window is {shown(window)} in some layers; {what}")
    elif values.get("use_sliding_window"):
        complaints.append("use_sliding_window is True; supported: False")
    elif strange := sorted(types - {"full_attention"}):
        complaints.append(f"layer_types has {', '.join(map(repr, strange))}; supported: 'full_attention' in every layer")
    return AttentionConfig()
