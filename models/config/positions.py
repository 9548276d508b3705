"""`[model.rope]` and `[model.attention]`: rotary embedding and its scaling, windows and position maps.

`models/positions/rope.py` and `models/positions/maps.py` have the formulas, `models/attention/masks.py` has the masks.
"""

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ...base import TOKENS, Table, changed

Scaling: TypeAlias = Literal["none", "linear", "ntk", "ntk_mixed", "dynamic_ntk", "ntk_by_parts", "yarn", "llama3", "longrope"]
# options of `RopeConfig` that some scalings alone read
SCALING_OPTIONS = {
    "beta_fast": ("ntk_by_parts", "yarn"),
    "beta_slow": ("ntk_by_parts", "yarn"),
    "ramp": ("ntk_by_parts", "yarn"),
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "short_factor": ("longrope",),
    "long_factor": ("longrope",),
    "attention_factor": ("yarn", "longrope"),
}
# options of `AttentionConfig` that some masks or position maps alone read
ATTENTION_OPTIONS = {"sinks": ("lambda", "distance_cap"), "leak": ("leaky_rerope",), "group": ("self_extend",)}
# scalings that are of use beyond `original_seq_len` only; the others are as trained up to there, or a property of the
# model
EXTENSIONS = ("linear", "ntk", "ntk_mixed", "ntk_by_parts", "yarn")
SLACK = 1 + 1e-9  # a product of decimals that just fit is off by 1e-16 of itself
MEANT = ": tokens of the rows that the weights were first trained on"


Number = Annotated[float, Field(le=1e9)]
Length = Annotated[int, Field(le=TOKENS)]


class RopeConfig(Table):
    """Rotary position embedding."""

    theta: Annotated[float, Field(le=1e15)] = 10_000.0
    """Base of the rotary frequencies: wavelengths from 2 pi to 2 pi theta tokens."""
    scaling: Scaling = "none"
    """How frequencies change for documents longer than in training (docs/length_extrapolation.md)."""
    factor: Number = 1.0
    """Times original_seq_len that the scaling is made for."""
    original_seq_len: Length | None = None
    """Tokens of the rows that the weights were first trained on; never inferred from training.seq_len."""
    beta_fast: Number = 32.0
    """ntk_by_parts, yarn: dimensions with more rotations than this within original_seq_len keep their frequency."""
    beta_slow: Number = 1.0
    """ntk_by_parts, yarn: dimensions with fewer rotations have it divided by factor."""
    ramp: Literal["index", "paper"] = "index"
    """ntk_by_parts, yarn: between the two by the index of the dimension (released code), or by rotations (paper)."""
    low_freq_factor: Number = 1.0
    """llama3: as beta_slow."""
    high_freq_factor: Number = 4.0
    """llama3: as beta_fast."""
    short_factor: list[Number] = Field(default_factory=list)
    """longrope: divisor of each dimension's frequency up to original_seq_len; head_dim / 2 numbers."""
    long_factor: list[Number] = Field(default_factory=list)
    """longrope: likewise beyond it."""
    attention_factor: Number | None = None
    """yarn, longrope: multiplies cosines and sines, hence scores by its square; unset: what the method's paper says."""

    def __hash__(self) -> int:
        """Return a hash by all values, as lists have none of their own."""
        return hash(self.model_dump_json())

    @property
    def trained_length(self) -> int:
        """`original_seq_len`, which callers know to be set."""
        assert self.original_seq_len is not None
        return self.original_seq_len

    @property
    def covered(self) -> int | None:
        """The longest documents that the frequencies are made for, tokens; None where no original_seq_len is set."""
        return None if self.original_seq_len is None else math.floor(self.original_seq_len * self.factor)

    @property
    def by_length(self) -> bool:
        """Whether the table of documents beyond `original_seq_len` is another than that of shorter ones."""
        return self.scaling in ("dynamic_ntk", "longrope")

    def ramp_ends(self, head_dim: int) -> tuple[int, int]:
        """Return the pairs between which the ramp `index` falls from 1 to 0; it is flat if the second comes first."""

        def pair_of(rotations: float) -> float:
            return head_dim * math.log(self.trained_length / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

        return max(math.floor(pair_of(self.beta_fast)), 0), min(math.ceil(pair_of(self.beta_slow)), head_dim - 1)

    def complaints_beside(self, head_dim: int) -> list[str]:
        """Return what does not fit together, or not beside heads of `head_dim`, a line each."""
        wrong = []
        if not self.theta > 1:
            wrong.append(f"model.rope.theta is {self.theta}, it must be above 1")
        if head_dim % 2:
            wrong.append(f"model.head_dim is {head_dim}, it must be even: rotation pairs its two halves")
        if self.original_seq_len is not None and self.original_seq_len < 2:
            wrong.append(f"model.rope.original_seq_len is {self.original_seq_len}, it must be at least 2")
        for key, scalings in SCALING_OPTIONS.items():
            if changed(self, key) and self.scaling not in scalings:
                readers = " or ".join(f'"{name}"' for name in scalings)
                wrong.append(
                    f'model.rope.{key} is {getattr(self, key)!r} with scaling "{self.scaling}": '
                    f"set scaling = {readers}, or leave {key} out"
                )
        if self.scaling == "none":
            if self.factor != 1:
                wrong.append(f'model.rope.factor is {self.factor} with scaling "none": name a scaling, or leave factor out')
            return wrong
        if not self.factor > 1:
            wrong.append(
                f'model.rope.factor is {self.factor} with scaling "{self.scaling}": it must be finite and above 1; '
                'scaling = "none" changes nothing'
            )
        if self.original_seq_len is None:
            wrong.append(f'model.rope.original_seq_len is not set, and scaling "{self.scaling}" needs it{MEANT}')
        if head_dim == 2 and self.scaling in ("ntk", "dynamic_ntk"):
            wrong.append(
                f'model.head_dim is 2, and scaling "{self.scaling}" raises theta to the power of d/(d - 2): '
                'set scaling = "linear", or a larger head_dim'
            )
        if self.scaling in ("ntk_by_parts", "yarn"):
            if not 0 < self.beta_slow < self.beta_fast:
                wrong.append(
                    f"model.rope.beta_fast is {self.beta_fast}, it must be above beta_slow = {self.beta_slow}, and both above 0"
                )
            elif self.ramp == "index" and self.theta > 1 and (self.original_seq_len or 0) > 0:
                low, high = self.ramp_ends(head_dim)
                if low > high:
                    wrong.append(
                        f"model.rope.original_seq_len is {self.original_seq_len}: with theta = {self.theta:g} no pair rotates "
                        f"between beta_slow = {self.beta_slow:g} and beta_fast = {self.beta_fast:g} times in it, and a ramp "
                        f'from pair {low} to pair {high} would run backwards; set ramp = "paper"'
                    )
        if self.attention_factor is not None and not self.attention_factor > 0:
            wrong.append(f"model.rope.attention_factor is {self.attention_factor}, it must be finite and above 0")
        if self.scaling == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            found = f"model.rope.high_freq_factor is {self.high_freq_factor}"
            wrong.append(f"{found}, it must be above low_freq_factor = {self.low_freq_factor}, and both above 0")
        if self.scaling == "longrope":
            for key in ("short_factor", "long_factor"):
                given = getattr(self, key)
                if len(given) != head_dim // 2 or not all(value > 0 for value in given):
                    wrong.append(
                        f"model.rope.{key} has {len(given)} numbers, it must have head_dim / 2 = {head_dim // 2} above 0"
                    )
        return wrong


class AttentionConfig(Table):
    """Which pairs of a document attend, and at which distance."""

    mask: Literal["full", "sliding", "lambda"] = "full"
    """sliding: the last `window` tokens. lambda: these and the first `sinks` of the document."""
    window: Length | None = None
    """sliding, lambda: tokens that one sees, itself included."""
    sinks: Length = 4
    """lambda, distance_cap: first tokens of a document that all later ones see."""
    position_map: Literal["none", "rerope", "leaky_rerope", "self_extend", "distance_cap"] = "none"
    """Distances of far pairs, which take a second pass of attention."""
    map_window: Length | None = None
    """position_map: distance from which on pairs are far; below model.rope.original_seq_len."""
    leak: Number = 16.0
    """leaky_rerope: what distances beyond map_window are divided by."""
    group: Length = 8
    """self_extend: tokens that share a position far away."""
    logn: bool = False
    """Multiply the query at position P by max(1, ln(P + 1) / ln(original_seq_len)) (Su 2021)."""

    @property
    def plain(self) -> bool:
        """Whether every token of a document attends to every earlier one at its own distance."""
        return self.mask == "full" and self.position_map == "none"

    @property
    def named(self) -> str:
        """Its mask or its map, as the TOML has it."""
        if self.position_map != "none":
            return f'model.attention.position_map = "{self.position_map}"'
        return f'model.attention.mask = "{self.mask}"'

    def complaints_beside(self, rope: RopeConfig) -> list[str]:
        """Return what does not fit together, or not beside this rotary embedding, a line each."""
        wrong = []
        for key, users in ATTENTION_OPTIONS.items():
            if changed(self, key) and not {self.mask, self.position_map} & {*users}:
                wrong.append(
                    f'model.attention.{key} is {getattr(self, key)} with mask "{self.mask}" and '
                    f'position_map "{self.position_map}": it belongs to {" and ".join(users)}, leave it out'
                )
        if self.mask == "full" and self.window is not None:
            wrong.append(
                f'model.attention.window is {self.window} with mask "full": set mask = "sliding" or "lambda", or leave it out'
            )
        if self.mask != "full" and (self.window is None or self.window < 1):
            found = "not set" if self.window is None else self.window
            wrong.append(f'model.attention.window is {found}, mask "{self.mask}" needs at least 1')
        sinks = self.mask == "lambda" or self.position_map == "distance_cap"
        width = self.window if self.mask == "lambda" else self.map_window
        if sinks and width is not None and not 0 <= self.sinks < width:
            wrong.append(f"model.attention.sinks is {self.sinks}, it must be at least 0 and below the window of {width}")
        trained = rope.original_seq_len
        if self.logn and trained is None:
            wrong.append(f"model.rope.original_seq_len is not set, and model.attention.logn needs it{MEANT}")
        if self.position_map == "none":
            if self.map_window is not None:
                wrong.append(
                    f'model.attention.map_window is {self.map_window} with position_map "none": name a map, or leave it out'
                )
            return wrong
        if self.mask != "full":
            wrong.append(f'model.attention.mask is "{self.mask}" with position_map "{self.position_map}": one or the other')
        if trained is None:
            wrong.append(f'model.rope.original_seq_len is not set, and position_map "{self.position_map}" needs it{MEANT}')
        covered = rope.covered
        if self.map_window is None or self.map_window < 1 or (covered is not None and self.map_window >= covered):
            limit = f" and below model.rope.original_seq_len{' x factor' * (rope.factor > 1)} = {covered}" if covered else ""
            found = "not set" if self.map_window is None else self.map_window
            wrong.append(f"model.attention.map_window is {found}, it must be at least 1{limit}")
        elif self.position_map == "self_extend" and self.group >= 2 and self.map_window % self.group:
            wrong.append(f"model.attention.map_window is {self.map_window}, it must be a multiple of group = {self.group}")
        if self.position_map == "self_extend" and self.group < 2:
            wrong.append(f"model.attention.group is {self.group}, it must be at least 2")
        if self.position_map == "leaky_rerope" and not self.leak > 1:
            wrong.append(f"model.attention.leak is {self.leak}, it must be above 1")
        return wrong


FULL_ATTENTION = AttentionConfig()


def check_training(rope: RopeConfig, attention: AttentionConfig, seq_len: int, learned: bool = False) -> list[str]:
    """Return what is wrong with training on rows of `seq_len` tokens, a line each.

    Beyond `factor` times the trained length a scaling has untrained frequencies. The factor of `llama3` is no such
    ratio: Llama 3.1 has factor 8 and rows of 16 times 8192 tokens. Nor is that of `dynamic_ntk`, whose frequencies
    follow the length. Up to the trained length the other scalings are of no use, unless the weights were trained with
    them.

    Args:
        rope: the rotary embedding.
        attention: the window or position map.
        seq_len: tokens of the rows.
        learned: whether training begins from weights that may have been trained with this scaling.
    """
    wrong = check_length(rope, attention, seq_len)
    for key, width, owner in (("window", attention.window, "mask"), ("map_window", attention.map_window, "position_map")):
        if width is not None and width >= seq_len:
            wrong.append(
                f"model.attention.{key} is {width}, and no two tokens of a row are as far apart: it must be below "
                f"training.seq_len = {seq_len}; or leave it out together with {owner}"
            )
    trained = rope.original_seq_len
    if trained is None:
        return wrong
    for used, setting, otherwise in (
        (rope.scaling == "dynamic_ntk", 'model.rope.scaling is "dynamic_ntk"', 'set scaling = "none"'),
        (attention.logn, "model.attention.logn is true", "leave logn out"),
    ):
        if used and seq_len <= trained:
            wrong.append(
                f"{setting}, which changes nothing in rows of training.seq_len = {seq_len} tokens: it begins beyond "
                f"model.rope.original_seq_len = {trained}; raise seq_len, or {otherwise}"
            )
    if rope.scaling in EXTENSIONS and seq_len <= trained and not learned:
        wrong.append(
            f'model.rope.scaling is "{rope.scaling}", which makes room beyond model.rope.original_seq_len = {trained}, and '
            f'training.seq_len is {seq_len}: raise seq_len, set scaling = "none", or name weights that were trained with this '
            "scaling in checkpoint.initial_load_path"
        )
    if rope.scaling not in ("none", "dynamic_ntk", "llama3") and seq_len > rope.factor * trained * SLACK:
        wrong.append(
            f"model.rope.factor is {rope.factor:g}, made for {rope.factor:g} x original_seq_len = {rope.factor * trained:g} "
            f"tokens, and training.seq_len is {seq_len}: set factor = {rounded_up(seq_len, trained)}"
        )
    return wrong


def check_length(rope: RopeConfig, attention: AttentionConfig, length: int) -> list[str]:
    """Return what is wrong with documents of up to `length` tokens, a line each."""
    covered, window = rope.covered, attention.map_window
    if covered is None or window is None:
        return []
    if attention.position_map == "leaky_rerope":
        beyond, room = length - 1 - window, covered - 1 - window  # distances beyond the window: the longest, and those known
        if beyond > attention.leak * room * SLACK:
            advice = f"the smallest that works is {rounded_up(beyond, room)}" if room else "none works: lower map_window"
            return [f"model.attention.leak is {attention.leak}, too little for {length} tokens: {advice}"]
    if attention.position_map == "self_extend":

        def reach(group: int) -> int:
            return (length - 1) // group + window - window // group

        if reach(attention.group) > covered - 1:
            works = [g for g in range(2, window + 1) if window % g == 0 and reach(g) <= covered - 1]
            advice = f"the smallest that works is {works[0]}" if works else "none works: lower map_window"
            return [f"model.attention.group is {attention.group}, too little for {length} tokens: {advice}"]
    return []


def rounded_up(above: int, below: int) -> str:
    """Return the least decimal of four places that is no smaller than a ratio."""
    whole, places = divmod(-(-10_000 * above // below), 10_000)
    return f"{whole}.{places:04}".rstrip("0").rstrip(".")


def untrained_attention_warning(trained: AttentionConfig, used: AttentionConfig) -> list[str]:
    """A warning where a model is asked with another window or position map than it was trained with; else nothing."""
    told = [
        f"{name} = {getattr(used, name)!r} instead of {getattr(trained, name)!r}"
        for name in AttentionConfig.model_fields
        if getattr(trained, name) != getattr(used, name)
    ]
    return [f"warning: model.attention is not that of its training: {', '.join(told)}"] if told else []
