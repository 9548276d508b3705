"""What each parameter of a model is: initial values, weight decay, Muon and adapters follow from its kind.

A module says what its parameters are in a class attribute, by their names as it sees them:

    class Attention(nn.Module):
        kinds = {"wo.weight": Kind.RESIDUAL_MATRIX}

What no module says follows from the type of the module that holds the parameter (`BY_TYPE`). There is no default: a
parameter without a rule is an error that names it, so that a new one is never initialised or decayed by accident.
"""

from collections.abc import Iterator
from enum import Enum, auto

from torch import nn

# What torch.compile and activation checkpointing insert into the names of the modules they wrap.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


class Kind(Enum):
    """What a parameter is for: initialisation, weight decay and the optimizer depend on it."""

    MATRIX = auto()  # of a linear layer
    RESIDUAL_MATRIX = auto()  # of a linear layer whose result is added to the residual stream
    EMBEDDING = auto()  # a table with a row for each id or class: the embedding, the output projection, a head
    NORM = auto()  # the scale of a norm
    BIAS = auto()  # what is added to a result
    ADAPTER_A = auto()  # the factor of an adapter that sees its input
    ADAPTER_B = auto()  # the other one

    @property
    def multiplies(self) -> bool:
        """Whether it is the matrix of a linear layer, which an adapter can stand beside and Muon can train."""
        return self in (Kind.MATRIX, Kind.RESIDUAL_MATRIX)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies to it."""
        return self not in (Kind.NORM, Kind.BIAS)


BY_TYPE: dict[tuple[type[nn.Module], str], Kind] = {
    (nn.Embedding, "weight"): Kind.EMBEDDING,
    (nn.Linear, "weight"): Kind.MATRIX,
    (nn.Linear, "bias"): Kind.BIAS,
    (nn.RMSNorm, "weight"): Kind.NORM,
    (nn.LayerNorm, "weight"): Kind.NORM,
    (nn.LayerNorm, "bias"): Kind.BIAS,
}


def parameters_with_kinds(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Kind]]:
    """Yield name, parameter and kind in the order of `model.named_parameters()`, a tied parameter once.

    Names are those of the plain model, whatever wraps its modules.

    Raises:
        AssertionError: no module says what a parameter is, and its module is of no known type.
    """
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        above, _, child = path.rpartition(".")
        module, parent = model.get_submodule(path), model.get_submodule(above)
        kind = getattr(parent, "kinds", {}).get(f"{child}.{own}") or getattr(module, "kinds", {}).get(own)
        by_type = (found for (type_, key), found in BY_TYPE.items() if key == own and isinstance(module, type_))
        kind = kind or next(by_type, None)
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        if kind is None:
            raise AssertionError(f"{name}: what kind of parameter is it? {type(module).__name__} must say so in its `kinds`")
        yield name, parameter, kind
