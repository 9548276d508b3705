"""`[fine_tuning]` applied to a plain decoder: adapters beside its linear layers, and what is not trained frozen.

A frozen parameter does not require a gradient, and everything else follows from that: it has no gradient and no optimizer
state, norms and clipping and the guard pass over it, FSDP2 gathers it and reduces nothing for it. Checkpoints hold it.
"""

from collections.abc import Container
from fnmatch import fnmatchcase
from typing import cast

from torch import nn

from ...base import nearest
from ...models.decoder import Decoder
from ...models.lora import LoraLinear, is_adapter
from ...models.parameters import parameters_with_kinds
from ..config import FineTuning, Lora
from ..errors import ConfigError


def fine_tune(model: Decoder, table: FineTuning) -> None:
    """Insert adapters and freeze, in place; before any parallelism.

    Raises:
        ConfigError: an entry that matches nothing, or nothing left to train.
    """
    if table.lora.rank:
        insert_adapters(model, table.lora)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_added(name))
    else:
        freeze(model, table.freeze)


def insert_adapters(model: Decoder, table: Lora) -> None:
    """Put an adapter beside every linear layer of a block that `targets` match. Raises ConfigError where one matches none."""
    names = [name.removesuffix(".weight") for name, _, kind in parameters_with_kinds(model) if kind.multiplies]
    linear = {name: cast(nn.Linear, model.get_submodule(name)) for name in names}
    for entry in table.targets:
        if not any(fnmatchcase(name, entry) for name in linear):
            raise ConfigError(
                f"fine_tuning.lora.targets: {entry!r} matches no linear layer of a block{nearest(entry, list(linear))}"
            )
    for name, module in linear.items():
        if any(fnmatchcase(name, entry) for entry in table.targets):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraLinear(module, table.rank, table.alpha))


def freeze(model: Decoder, entries: list[str]) -> None:
    """Freeze the parameters that `entries` match, by their own names or those of a module around them.

    A tied table is one parameter with two names, and either freezes it.

    Raises:
        ConfigError: an entry matches nothing, or all parameters are matched.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for entry in entries:
        matched = [name for name in named if fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*")]
        if not matched:
            known = {*named, *(name for name, _ in model.named_modules() if name)}
            raise ConfigError(f"fine_tuning.freeze: {entry!r} matches no parameter{nearest(entry, list(known))}")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError(f"fine_tuning.freeze = {entries}: freezes everything, and there is nothing left to train")


def is_added(name: str) -> bool:
    """Whether fine-tuning adds this parameter to those of the model that it starts from: adapters, and a head for labels."""
    return is_adapter(name) or name.startswith("score.")


def fresh_parameters(model: nn.Module, saved: Container[str]) -> set[str]:
    """What fine-tuning adds to the model and a checkpoint of the tensors `saved` has not, so that it begins afresh."""
    return {name for name in model.state_dict() if is_added(name) and f"model.{name}" not in saved}


def differences(saved: dict[str, object], table: FineTuning) -> list[tuple[str, str, str]]:
    """Key, saved value and present value where a checkpoint's `[fine_tuning]` is not `table`."""
    before, now = flat(saved), flat(table.model_dump())
    defaults = flat(FineTuning().model_dump())
    rows = [(key, before.get(key, defaults.get(key)), now.get(key)) for key in sorted(before.keys() | now.keys())]
    return [(f"fine_tuning.{key}", repr(a), repr(b)) for key, a, b in rows if a != b]


def flat(table: dict[str, object]) -> dict[str, object]:
    """`{"lora": {"rank": 8}}` as `{"lora.rank": 8}`."""
    keys: dict[str, object] = {}
    for key, value in table.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        keys |= {f"{key}.{name}".rstrip("."): content for name, content in inner.items()}
    return keys
