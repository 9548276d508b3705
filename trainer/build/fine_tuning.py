"""`[fine_tuning]` applied to a plain decoder: adapters beside its linear layers, and what is not trained frozen.

A frozen parameter does not require a gradient, and everything else follows from that: it has no gradient and no
optimizer state, norms and clipping and the guard pass over it, FSDP2 gathers it and reduces nothing for it. Checkpoints
hold it.
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
from ..errors import refuse


def fine_tune(model: Decoder, table: FineTuning) -> None:
    """Insert adapters and freeze, in place; before any parallelism.

    Raises:
        ConfigError: with every entry that matches nothing, or because nothing is left to train.
    """
    refuse(fine_tuning_complaints(model, table))
    if table.lora.rank:
        insert_adapters(model, table.lora)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_added(name))
    for name in frozen(model, table.freeze):
        model.get_parameter(name).requires_grad_(False)


def fine_tuning_complaints(model: Decoder, table: FineTuning) -> list[str]:
    """Return why `table` cannot be applied to a plain decoder, such as a line for each entry that matches nothing."""
    if table.lora.rank:
        layers = linear_layers(model)
        return [
            f"fine_tuning.lora.targets: {entry!r} matches no linear layer of a block{nearest(entry, list(layers))}"
            for entry in table.lora.targets
            if not any(fnmatchcase(name, entry) for name in layers)
        ]
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known = {*named, *(name for name, _ in model.named_modules() if name)}
    complaints = [
        f"fine_tuning.freeze: {entry!r} matches no parameter{nearest(entry, list(known))}"
        for entry in table.freeze
        if not frozen(model, [entry])
    ]
    # a tied table is one parameter with two names, and either freezes it
    left = {id(p) for p in model.parameters()} - {id(model.get_parameter(name)) for name in frozen(model, table.freeze)}
    if not left:
        complaints.append(f"fine_tuning.freeze = {table.freeze}: freezes everything, and there is nothing left to train")
    return complaints


def frozen(model: Decoder, entries: list[str]) -> list[str]:
    """Return the parameters that `entries` match, by their own names or those of a module around them."""
    return [
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if any(fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*") for entry in entries)
    ]


def linear_layers(model: Decoder) -> dict[str, nn.Linear]:
    """Return the linear layers that an adapter can stand beside, by name: those of the blocks, no table."""
    names = [name.removesuffix(".weight") for name, _, kind in parameters_with_kinds(model) if kind.multiplies]
    return {name: cast(nn.Linear, model.get_submodule(name)) for name in names}


def insert_adapters(model: Decoder, table: Lora) -> None:
    """Put an adapter beside every linear layer of a block that `targets` match."""
    for name, module in linear_layers(model).items():
        if any(fnmatchcase(name, entry) for entry in table.targets):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraLinear(module, table.rank, table.alpha))


def is_added(name: str) -> bool:
    """Return whether fine-tuning adds this parameter to the model it starts from: adapters, and a head for labels."""
    return is_adapter(name) or name.startswith("score.")


def fresh_parameters(model: nn.Module, saved: Container[str]) -> set[str]:
    """Return what fine-tuning adds to the model and a checkpoint of the tensors `saved` lacks: it is initialised."""
    return {name for name in model.state_dict() if is_added(name) and f"model.{name}" not in saved}


def fine_tuning_differences(saved: FineTuning, table: FineTuning) -> list[tuple[str, str, str]]:
    """Return key, saved value and present value where a checkpoint's `[fine_tuning]` is not `table`."""
    before, now = dotted_keys(saved.model_dump()), dotted_keys(table.model_dump())
    return [(f"fine_tuning.{key}", repr(before[key]), repr(now[key])) for key in sorted(now) if before[key] != now[key]]


def dotted_keys(table: dict[str, object]) -> dict[str, object]:
    """Return nested tables as one with dotted keys: `{"lora": {"rank": 8}}` as `{"lora.rank": 8}`."""
    keys: dict[str, object] = {}
    for key, value in table.items():
        inner = dotted_keys(value) if isinstance(value, dict) else {"": value}
        keys |= {f"{key}.{name}".rstrip("."): content for name, content in inner.items()}
    return keys
