"""What comes out of a decoder's modules, by their names: forward hooks on a plain module."""

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .documents import Rows, make_row
from .open import OpenedModel

# Pattern of a name, and what the output of such a module is.
MEANINGS = (
    (r"tok_embeddings", "token embeddings: the residual stream before the first block"),
    (r"layers\.\d+", "residual stream after this block, before the final norm"),
    (r"norm", "residual stream after the final norm"),
    (r"output", "logits"),
    (r"score", "outputs of the head for labels"),
    (r"layers\.\d+\.attention_norm", "residual stream before this block, normalised for attention"),
    (r"layers\.\d+\.attention", "what attention adds to the residual stream"),
    (r"layers\.\d+\.ffn_norm", "residual stream after attention, normalised for feed_forward"),
    (r"layers\.\d+\.feed_forward", "what feed_forward adds to the residual stream"),
)


class _AllSeen(Exception):
    """The outputs of all chosen modules are there; later modules need not run."""


def meaning(name: str) -> str:
    """Return what a module's output is; it tells whether a norm lies before or behind it."""
    return next((told for pattern, told in MEANINGS if re.fullmatch(pattern, name)), f"a part of {name.rpartition('.')[0]}")


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that compute something, in the order of `named_modules`."""
    return [name for name, module in model.named_modules() if name and not isinstance(module, (nn.ModuleList, nn.Identity))]


def choose_layers(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the layers that some patterns name, in the model's order.

    Args:
        model: the model.
        patterns: names, or globs in which `*`, `?` and `[...]` stand for something between two dots: `layers.*` is
            every block, and nothing inside of one.

    Raises:
        ConfigError: a pattern matches nothing; the nearest names are listed.
    """
    known = layer_names(model)
    chosen: set[str] = set()
    for pattern in patterns:
        if not (matches := [name for name in known if _matches(name, pattern)]):
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.6)
            hint = f", did you mean {' or '.join(map(repr, near))}?" if near else ";"
            raise ConfigError(f"layer {pattern!r}: the model has no such layer{hint} `cistron embed --list-layers` prints all")
        chosen.update(matches)
    return [name for name in known if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def outputs(model: nn.Module, names: Sequence[str], row: Rows) -> dict[str, Tensor]:
    """Outputs of some layers, [tokens of the row, width] each; the model runs up to the last of them and no further.

    Gradients flow unless the caller has disabled them.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        found[name] = output.flatten(2)[0]  # the norms of queries and keys have a dimension of heads
        if len(found) == len(names):
            raise _AllSeen

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        model(row.tokens, row.positions, row.mask)
    except _AllSeen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in names}


@torch.no_grad()
def widths(opened: OpenedModel) -> dict[str, int]:
    """Numbers per token of every layer, seen on a document that is nothing but its eos."""
    row = make_row(opened, [np.array([opened.tokenizer.eos_id])])
    names = layer_names(opened.model)
    return {name: output.shape[1] for name, output in outputs(opened.model, names, row).items()}
