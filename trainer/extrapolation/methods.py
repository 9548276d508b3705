"""The methods that evaluate a trained model on longer documents, each with its settings.

With L tokens in training and documents of T, nothing is trained, and only `[model.rope]` and `[model.attention]`
change:

| method | settings |
|---|---|
| `trained` | as in training; beyond its rows, a table that depends on the length (`dynamic_ntk`, `longrope`) is T's |
| `linear`, `ntk`, `ntk_mixed`, `ntk_by_parts`, `yarn`, `llama3` | factor = T/L; as trained up to L |
| `dynamic_ntk` | factor = 2, its base grows with T; as trained up to L |
| `logn` | queries times ln(P + 1)/ln L beyond L |
| `sliding`, `lambda` | window = L; with `lambda` 4 sinks |
| `distance_cap` | map_window = L - 1, 4 sinks |
| `rerope` | map_window = L/2 |
| `leaky_rerope` | map_window = L/2, leak = 16, or the least that keeps distances below L |
| `self_extend` | group = 8, or the least that keeps distances below L; map_window = the last multiple of it up to L/2 |

`longrope` has two lists of numbers that must be searched for or trained: it is here where a model has them, as
`trained`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...base import nearest
from ...models.config import ATTENTION_OPTIONS, SCALING_OPTIONS, AttentionConfig, DecoderConfig, RopeConfig, check_length
from ...models.errors import ModelError
from ..errors import ConfigError

STRETCHED = ("linear", "ntk", "ntk_mixed", "dynamic_ntk", "ntk_by_parts", "yarn", "llama3")
WINDOWED = ("logn", "sliding", "lambda", "distance_cap", "rerope", "leaky_rerope", "self_extend")
METHODS = ("trained", *STRETCHED, *WINDOWED)
DYNAMIC_FACTOR = 2.0
LEAK, GROUP = 16.0, 8


class Trained(NamedTuple):
    """How a model was trained.

    Attributes:
        decoder: its shape, rotary embedding and attention.
        length: L, the longest documents that it knows: `model.rope.original_seq_len`, or tokens of the rows of its
            training where that is unset or a scaling has led beyond it.
        rows: tokens of the rows of its training, which its rotary table was resolved for.
    """

    decoder: DecoderConfig
    length: int
    rows: int


class MethodSettings(NamedTuple):
    """With what a model is evaluated on documents of one length.

    Attributes:
        rope: rotary embedding.
        attention: which pairs attend, and at which distance.
        length: that a table which depends on it is resolved for.
    """

    rope: RopeConfig
    attention: AttentionConfig
    length: int


def settings_of(method: str, trained: Trained, length: int) -> MethodSettings:
    """Return the settings that a method has for documents of `length` tokens.

    A scaling that the model was trained with stays as it was in training, and is resolved anew for longer documents
    alone.

    Args:
        method: one of `METHODS`.
        trained: the model.
        length: T.

    Raises:
        ModelError: the model was trained by another method of its kind, or the settings do not fit its shape or the
            length.
    """
    decoder, attention, resolved = trained.decoder, trained.decoder.attention, max(length, trained.rows)
    rope = decoder.rope if decoder.rope.scaling != "none" else decoder.rope.replace(original_seq_len=trained.length)
    if method in STRETCHED and rope.scaling != "none":
        raise ModelError(f'method {method}: the model was trained with model.rope.scaling = "{rope.scaling}" already')
    if method in WINDOWED and attention != AttentionConfig():
        own = "model.attention.logn = true" if attention.plain else attention.named
        raise ModelError(f"method {method}: the model was trained with {own} already")
    if method == "trained" or (method in STRETCHED and length <= trained.length):
        rope = decoder.rope
    elif method in STRETCHED:
        factor, resolved = DYNAMIC_FACTOR if method == "dynamic_ntk" else length / trained.length, length
        rope = rope.replace(scaling=method, factor=factor)
    else:
        attention = windowed(method, rope, min(trained.length, rope.covered or trained.length), resolved)
    decoder.replace(rope=rope, attention=attention)  # which raises what does not fit
    if complaints := check_length(rope, attention, resolved):
        raise ModelError("; ".join(complaints))
    return MethodSettings(rope, attention, resolved)


def windowed(method: str, rope: RopeConfig, trained: int, length: int) -> AttentionConfig:
    """Return the window or position map of a method."""
    half = trained // 2
    if method == "logn":
        return AttentionConfig(logn=True)
    if method in ("sliding", "lambda"):
        return AttentionConfig(mask="sliding" if method == "sliding" else "lambda", window=trained)
    if method == "distance_cap":
        return AttentionConfig(position_map="distance_cap", map_window=trained - 1)
    if method == "rerope":
        return AttentionConfig(position_map="rerope", map_window=half)
    if method == "leaky_rerope":
        least = math.ceil((length - 1 - half) / max(trained - 1 - half, 1))
        return AttentionConfig(position_map="leaky_rerope", map_window=half, leak=max(LEAK, float(least)))
    assert method == "self_extend", method
    groups = range(GROUP, half + 1)
    candidates = [AttentionConfig(position_map="self_extend", map_window=half - half % group, group=group) for group in groups]
    reaching = (one for one in candidates if not check_length(rope, one, length))
    return next(reaching, AttentionConfig(position_map="self_extend", map_window=half - half % GROUP))


def choose(named: Sequence[str], trained: Trained, lengths: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return the methods to compare, and what is left out and why, a line for each reason.

    Args:
        named: by the user; empty: all that the model allows at all lengths.
        trained: the model.
        lengths: of documents.

    Raises:
        ConfigError: a name that is no method.
        ModelError: a method that was named does not fit the model.
    """
    for method in named:
        if method not in METHODS:
            raise ConfigError(f"eval.extrapolation.methods: {method!r} is no method{nearest(method, METHODS)}")
    chosen: list[str] = []
    left_out: dict[str, list[str]] = {}
    for method in named or METHODS:
        try:
            for length in lengths:
                settings_of(method, trained, length)
        except ModelError as error:
            if named:
                raise
            left_out.setdefault(str(error).removeprefix(f"method {method}: "), []).append(method)
        else:
            chosen.append(method)
    return chosen, [f"left out {', '.join(methods)}: {reason}" for reason, methods in left_out.items()]


def settings_text(found: MethodSettings, trained: Trained) -> str:
    """Return in what settings differ from training, `scaling=yarn factor=4 beta_fast=32`; empty where in nothing."""
    said: dict[str, Any] = {}
    names = {found.rope.scaling, found.attention.mask, found.attention.position_map}
    for config, plain, readers in (
        (found.rope, trained.decoder.rope, SCALING_OPTIONS),
        (found.attention, trained.decoder.attention, ATTENTION_OPTIONS),
    ):
        if changed := {key: value for key, value in vars(config).items() if value != getattr(plain, key)}:
            # what only some scalings or maps read is told with them, also where it is the usual value
            told = {key: value for key, value in vars(config).items() if names.intersection(readers.get(key, ()))}
            said |= {key: value for key, value in (changed | told).items() if value is not None}
    said.pop("original_seq_len", None)
    if found.rope.by_length and (said or found.length != trained.rows):
        said["length"] = found.length
    return " ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in said.items())
