"""Rotary scaling as `config.json` has it, in both directions: `rope_parameters` (transformers 5), `rope_scaling` (4).

With s = factor, L = original_seq_len and T = rows of training:

| scaling | rope_type | max_position_embeddings |
|---|---|---|
| `none` | `default` | T |
| `linear` | `linear` | s·L |
| `ntk` | `default`, with the theta that it comes to | s·L |
| `dynamic_ntk` | `dynamic`, whose table is made for the length of each text | L, which it is computed from |
| `ntk_by_parts` | `yarn`, with an attention_factor of 1 | s·L |
| `yarn` | the same | s·L: transformers 4 takes its ratio to L for the factor |
| `longrope` | the same, whose list is chosen by the length of each text | s·L, likewise |
| `llama3` | the same | T where it is above L, else s·L: its factor is no ratio of lengths |

`ntk_mixed` and `ramp = "paper"` have no rope_type. L is written beside these, except for `ntk`, as
`original_max_position_embeddings`, where Phi 3 has it and transformers 4 looks for longrope's; it is read there first,
as transformers 5 does.
"""

import math
from typing import Any

from ...base import shown
from ..config import RopeConfig
from ..positions import ntk_theta

ORIGINAL = "original_max_position_embeddings"
_TYPES = {
    "linear": "linear",
    "dynamic_ntk": "dynamic",
    "ntk_by_parts": "yarn",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
}
_SCALINGS = {"linear": "linear", "dynamic": "dynamic_ntk", "yarn": "yarn", "llama3": "llama3", "longrope": "longrope"}


def inexpressible(config: RopeConfig) -> str | None:
    """Return why no `rope_type` computes this, None where one does."""
    if config.scaling == "ntk_mixed":
        return 'model.rope.scaling is "ntk_mixed", for which there is no rope_type'
    if config.scaling in ("ntk_by_parts", "yarn") and config.ramp != "index":
        return f'model.rope.ramp is "{config.ramp}", and the rope_type yarn has the ramp "index"'
    return None


def rope_to_hf(config: RopeConfig, head_dim: int, seq_len: int) -> dict[str, Any]:
    """Return the keys of `config.json` for the rotary embedding.

    Args:
        config: one that is not `inexpressible`.
        head_dim: width of a head.
        seq_len: tokens of the rows of training.
    """
    assert inexpressible(config) is None
    theta = ntk_theta(config, head_dim) if config.scaling == "ntk" else config.theta
    kind = _TYPES.get(config.scaling, "default")
    original = config.original_seq_len
    scaling: dict[str, Any] = {"rope_type": kind}
    if kind != "default":
        scaling["factor"] = config.factor
    if kind in ("yarn", "llama3", "longrope"):
        scaling[ORIGINAL] = original
    if kind == "yarn":
        scaling |= {"beta_fast": config.beta_fast, "beta_slow": config.beta_slow}
    if kind == "llama3":
        scaling |= {"low_freq_factor": config.low_freq_factor, "high_freq_factor": config.high_freq_factor}
    if kind == "longrope":
        scaling |= {"short_factor": config.short_factor, "long_factor": config.long_factor}
    attention_factor = 1.0 if config.scaling == "ntk_by_parts" else config.attention_factor
    if attention_factor is not None:
        scaling["attention_factor"] = attention_factor
    return {
        "max_position_embeddings": _max_positions(config, seq_len),
        # transformers 5 reads the dictionary, 4 the number and the other dictionary
        "rope_parameters": {**scaling, "rope_theta": theta},
        "rope_theta": theta,
        **({} if kind == "default" else {"rope_scaling": scaling}),
        **({} if original is None or config.scaling == "ntk" else {ORIGINAL: original}),
    }


def _max_positions(config: RopeConfig, seq_len: int) -> int:
    if config.scaling == "none" or (config.scaling == "llama3" and seq_len > config.trained_length):
        return seq_len
    return config.trained_length if config.scaling == "dynamic_ntk" else round(config.factor * config.trained_length)


def rope_from_hf(content: dict[str, Any], max_positions: Any, complaints: list[str]) -> RopeConfig:
    """Return the rotary embedding that a `config.json` describes.

    Args:
        content: of `config.json`.
        max_positions: its `max_position_embeddings`, or the class's default.
        complaints: what the decoder lacks is appended here; the embedding means nothing then.
    """
    key = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    rope: dict[str, Any] = content.get(key) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        complaints.append(f"{key} is {shown(rope)}; supported: one set for all layers, an object")
        return RopeConfig()
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and not (isinstance(kind, str) and kind in _SCALINGS):
        complaints.append(f"{key}: rope_type is {shown(kind)}; supported: 'default', {', '.join(map(repr, _SCALINGS))}")
        return RopeConfig()
    partial = rope.get("partial_rotary_factor", content.get("partial_rotary_factor"))
    if partial not in (None, 1):
        complaints.append(f"partial_rotary_factor is {shown(partial)}; supported: 1.0")
    if rope.get("truncate") is False:
        complaints.append(f"{key}: truncate is False; supported: True")

    def number(name: str, value: Any) -> float:
        if type(value) in (int, float) and 0 < value < math.inf:
            return float(value)
        complaints.append(f"{name} is {shown(value)}; it must be a number above 0")
        return 1.0

    found: dict[str, Any] = {"theta": number("rope_theta", rope.get("rope_theta", content.get("rope_theta", 10_000.0)))}
    trained = content.get(ORIGINAL) or rope.get(ORIGINAL)
    if trained is not None:
        trained = number(ORIGINAL, trained)
    plain = RopeConfig(**found, original_seq_len=None if trained is None else int(trained))
    if kind == "default":
        return plain

    longest, factor = number("max_position_embeddings", max_positions), rope.get("factor")
    if factor is None and kind in ("yarn", "longrope") and trained:
        factor = longest / trained
    found |= {"scaling": _SCALINGS[kind], "factor": number(f"{key}: factor", factor)}
    if factor == 1 and (kind in ("linear", "llama3") or (kind == "yarn" and rope.get("attention_factor") in (None, 1))):
        return plain  # frequencies divided by 1 are what transformers has then too
    if factor == found["factor"] <= 1:
        complaints.append(f"{key}: factor is {factor} with rope_type {kind!r}; supported: above 1")
    if kind == "dynamic":
        trained = longest  # whatever else the file says, see `_compute_dynamic_ntk_parameters` of transformers
    if trained is None:
        trained = longest / found["factor"] if kind == "linear" else longest
    if trained % 1:
        complaints.append(
            f"max_position_embeddings is {max_positions}; supported with rope_type 'linear': a multiple of factor"
        )
    found["original_seq_len"] = int(trained)
    if kind == "yarn":
        rotations = {"beta_fast": 32, "beta_slow": 1}  # 0 counts as absent there
        found |= {name: number(f"{key}: {name}", rope.get(name) or default) for name, default in rotations.items()}
    if kind == "llama3":
        found |= {name: number(f"{key}: {name}", rope.get(name)) for name in ("low_freq_factor", "high_freq_factor")}
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            given = rope.get(name) or []
            if not isinstance(given, list):
                complaints.append(f"{key}: {name} is {shown(given)}; it must be a list of numbers")
                return RopeConfig()
            found[name] = [number(f"{key}: {name}", value) for value in given]
    if kind in ("yarn", "longrope") and rope.get("attention_factor") is not None:
        found["attention_factor"] = number(f"{key}: attention_factor", rope["attention_factor"])
    elif kind == "yarn" and rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = [0.1 * number(f"{key}: {name}", rope[name]) for name in ("mscale", "mscale_all_dim")]
        above, below = (scale * math.log(max(found["factor"], 1)) + 1 for scale in scales)
        found["attention_factor"] = above / below
    return RopeConfig(**found)
