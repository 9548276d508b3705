"""What every rank must have alike, compared before anything is built, and told in a table where they differ.

An old TOML or another version on one host would train on in silence: gradients are summed whatever they were taken of.
So directly after joining ranks compare their options, versions and sources; `start` adds the tokenizer and what else a
host decides, and the data follow once they are open. Ranks that are alike exchange one digest of 32 bytes for each
comparison.

An option that is not in `MAY_DIFFER` must be the same on all ranks. `docs/scaling.md` has the table of all options.
"""

import hashlib
import json
import os
import platform
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...base import aligned, no_file, plugin_modules
from ..config import JobConfig
from ..errors import RanksDifferError
from .world import from_first, gather

BY_CONTENT = "hosts may have the same files at other places: their contents are compared"
OF_RANK_0 = "only rank 0 reports"
OF_THE_HOST = "how a host fetches files; the rows are the same"
EACH_FOR_ITSELF = "a rank records for itself; the steps are the same"
MAY_DIFFER: dict[str, str] = {
    "extends": "where the other options are written",
    "job.description": OF_RANK_0,
    "tokenizer.path": BY_CONTENT,
    "data.sources.*.paths": BY_CONTENT,
    "validation.sources.*.paths": BY_CONTENT,
    "data.cache_dir": OF_THE_HOST,
    "data.cache_gb": OF_THE_HOST,
    "data.retries": OF_THE_HOST,
    "data.allow_private_redirects": OF_THE_HOST,
    "data.num_workers": "hosts may have fewer cores; the rows are the same for any number",
    "metrics.enable_tensorboard": OF_RANK_0,
    "metrics.enable_wandb": OF_RANK_0,
    "metrics.sinks": OF_RANK_0,
    "metrics.peak_flops": OF_RANK_0,
    "profiling.enable_profiling": EACH_FOR_ITSELF,
    "profiling.profile_freq": EACH_FOR_ITSELF,
    "profiling.save_traces_folder": EACH_FOR_ITSELF,
    "profiling.enable_memory_snapshot": EACH_FOR_ITSELF,
    "profiling.save_memory_snapshot_folder": EACH_FOR_ITSELF,
    "comm.trace_buf_size": EACH_FOR_ITSELF,
    "comm.save_traces_folder": EACH_FOR_ITSELF,
}
# What decides ids, rows or arithmetic. Of Python the minor version, as its patches change neither.
PACKAGES = ("torch", "numpy", "tokenizers", "tiktoken", "pyarrow")
ENVIRONMENT = (  # read by torch, and change what it computes
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_COMPILE_DISABLE",
    "TORCHDYNAMO_DISABLE",
)
ROOMS = ("base", "datasets", "models", "trainer")
NO_SOURCES = ("__pycache__", "node_modules")
KEYS_TOLD, GROUPS_TOLD, LETTERS_TOLD = 20, 6, 60
ABSENT = "-"
Table = Mapping[int, tuple[str, Mapping[str, str]]]  # what ranks say: host, and values by key


def agree(what: str, values: Mapping[str, str], right: str) -> None:
    """Return where all ranks of the process group have the same values; every rank must call it.

    Where they do not, rank 0's are sent to all, each finds the keys in which it differs, and of the first of these
    every rank's values are gathered: a table of 100,000 files costs its own size, whatever the number of ranks.

    Args:
        what: differs, as the message begins: "the data files differ between ranks".
        values: of this rank, as text; a key that another rank has and this one lacks differs too.
        right: what would be right, which ends the message.

    Raises:
        RanksDifferError: the same on every rank, with a table of the keys that differ by groups of ranks.
    """
    digest = hashlib.sha256(json.dumps(sorted(values.items())).encode()).digest()
    if len(set(gather(digest))) == 1:
        return
    first = from_first(values)
    differs = sorted(key for key in values.keys() | first.keys() if values.get(key) != first.get(key))
    counts, parts = zip(*gather((len(differs), differs[:KEYS_TOLD])), strict=True)
    keys = sorted({key for part in parts for key in part})[:KEYS_TOLD]
    said = gather((socket.gethostname(), {key: values[key] for key in keys if key in values}))
    more = max(counts) - len(keys)
    lines = differences(dict(enumerate(said)), keys) + ([f"and {more} more"] if more > 0 else [])
    raise RanksDifferError("\n".join([f"{what}:", "", *lines, "", right]))


def differences(said: Table, keys: Iterable[str]) -> list[str]:
    """Return the lines of a table: a row for each key, a column for each group of ranks with the same values.

    Args:
        said: by rank.
        keys: that are shown, in this order.
    """
    keys = list(keys)
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank, (_, values) in sorted(said.items()):
        groups.setdefault(tuple(values.get(key, ABSENT) for key in keys), []).append(rank)
    shown = list(groups.items())[:GROUPS_TOLD]
    heads = [f"rank {in_words(ranks)} ({hosts_of(said, ranks)})" for _, ranks in shown]
    rows = [("", *heads), *((key, *(in_short(group[index]) for group, _ in shown)) for index, key in enumerate(keys))]
    more = len(groups) - len(shown)
    return aligned(rows) + ([f"and {more} more kinds of ranks"] if more else [])


def in_words(ranks: list[int]) -> str:
    """Return `0, 2-7` for ascending ranks."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def hosts_of(said: Table, ranks: list[int]) -> str:
    """Return the hosts of some ranks, by name where they are few."""
    hosts = list(dict.fromkeys(said[rank][0] for rank in ranks))
    return ", ".join(hosts) if len(hosts) <= 3 else f"{hosts[0]} and {len(hosts) - 1} other hosts"


def in_short(value: str) -> str:
    """Return a value as a cell of a table; a long one is cut, with a digest of the whole."""
    if len(value) <= LETTERS_TOLD:
        return value
    return f"{value[:LETTERS_TOLD]}… #{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def compare_settings(config: JobConfig, further: Mapping[str, str]) -> None:
    """Compare options, versions, sources and environment of all ranks; every rank must call it.

    Args:
        config: of the job.
        further: what else must be alike.

    Raises:
        RanksDifferError: with a table of what differs.
    """
    values = {**options(config), **versions(config), **plugin_sources(config), **environment(), **further}
    right = (
        "start every rank with the same TOML and options, in the same environment; docs/scaling.md lists what may differ. "
        "Nothing was built or written"
    )
    agree("the ranks do not run the same job", values, right)


def options(config: JobConfig) -> dict[str, str]:
    """Return the options that must be alike, by TOML key, and which rotary options the TOML itself sets.

    What a checkpoint of other rotary angles is taken for depends on the latter.
    """
    said = {key: value for key, value in leaves(config.to_dict()) if re.sub(r"\.\d+\.", ".*.", key) not in MAY_DIFFER}
    for name, table in (("model.rope", config.model.rope), ("model.attention", config.model.attention)):
        said[f"{name}: keys that are set"] = ", ".join(sorted(table.model_fields_set))
    return said


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and value, as JSON, of all that is no table in nested tables and lists of tables."""
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list) and any(isinstance(element, dict) for element in value):
        inner = [(str(index), element) for index, element in enumerate(value)]
    else:
        yield key, json.dumps(value)
        return
    for name, element in inner:
        yield from leaves(element, f"{key}.{name}".lstrip("."))


def versions(config: JobConfig) -> dict[str, str]:
    """Return the versions of what decides ids, rows or arithmetic of a job, and a digest of Cistron's own sources.

    Hosts with a checkout each have the same version and may have other sources.
    """
    root = Path(__file__).resolve().parents[2]
    sources = digest_of(*(root / room for room in ROOMS))
    used = [*PACKAGES, *(["torchao"] if config.float8.enable else [])]
    found = {name: torch.__version__ if name == "torch" else installed(name) for name in used}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"cistron": f"{own_version()}, sources {sources}", "Python": python, **found}


def own_version() -> str:
    """Return the version of Cistron."""
    return str(sys.modules[__name__.split(".trainer.")[0]].__version__)


def installed(name: str) -> str:
    """Return the version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def plugin_sources(config: JobConfig) -> dict[str, str]:
    """Return a digest of the sources of every plug-in that was loaded."""
    found = {}
    for _, name in plugin_modules(config.job.plugins):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:  # of a namespace package, or built into the interpreter
            continue
        path = Path(file)
        found[f"plug-in {name}"] = f"sources {digest_of(path.parent if path.name == '__init__.py' else path)}"
    return found


def digest_of(*places: Path) -> str:
    """Return a digest of the Python sources that some files are and folders have: 1.1 MB in 7 ms for Cistron's own.

    pathlib would take twice the time. Of what cannot be read the error counts: it may be so on one host only.
    """
    digest = hashlib.sha256()
    for place in places:
        folders = sources_in(place) if place.is_dir() else [(str(place.parent), [place.name])]
        for folder, names in folders:
            within = folder.removeprefix(folders[0][0])
            for name in names:
                try:
                    with open(f"{folder}/{name}", "rb", opener=without_waiting) as file:
                        other = no_file(os.fstat(file.fileno()).st_mode)
                        content = other.encode() if other else file.read()
                except OSError as error:
                    content = f"errno {error.errno}".encode()
                digest.update(os.fsencode(f"{within}/{name} {len(content)}\n") + content)
    return digest.hexdigest()[:12]


def without_waiting(path: str, flags: int) -> int:
    """Open a path as `open` does, but for a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


def sources_in(place: Path) -> list[tuple[str, list[str]]]:
    """Return a folder and those in it, each with the names of its Python sources, all in order.

    Hidden ones are left out, such as the links that an editor makes while a file is changed, and environments.
    """
    found: list[tuple[str, list[str]]] = []
    for folder, inner, names in os.walk(place):
        if found and "pyvenv.cfg" in names:
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".") and name not in NO_SOURCES]
        found.append((folder, sorted(name for name in names if name.endswith(".py") and not name.startswith("."))))
    return sorted(found)


def environment() -> dict[str, str]:
    """Return those environment variables that change what torch computes."""
    return {f"${name}": os.environ[name] for name in ENVIRONMENT if name in os.environ}
