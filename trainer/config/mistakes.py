"""Mistakes in the values of a TOML, as lines: wrong types, unknown keys and names, and complaints of the tables.

Tables can complain only once all types are right. So `validate` describes what pydantic refuses, takes it out, and
validates the rest again until it passes. A complaint that names a key that was taken out may follow from that:
`names_any` finds it.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ...base import Registry, nearest, shown
from .job import JobConfig

Values: TypeAlias = dict[str, Any]  # a TOML as plain values
Place: TypeAlias = tuple[str | int, ...]  # of a value in them: ("data", "sources", 0, "name")
MOST = 100  # mistakes that are described at once
SHAPE = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")
# A key that may be taken out, and the keys whose limits follow from it.
DECIDES = {
    "data.sources": ("data.stages",),
    "model.preset": (
        "fine_tuning.freeze",
        "fine_tuning.lora.targets",
        "float8.filter_fqns",
        *(f"model.{key}" for key in ("rope", *SHAPE)),
    ),
    "tokenizer": ("model.vocab_size",),
    "tokenizer.kind": ("tokenizer", "model.vocab_size"),
    "training.objective": ("head", "mlm"),
}


class Validated(NamedTuple):
    """What is left of the values of a TOML, and what is wrong.

    Attributes:
        config: of the values that are left.
        mistakes: in those that were taken out, a line each.
        removed: their keys, and the keys that they decide.
        complaints: of the tables that are left.
    """

    config: JobConfig
    mistakes: list[str]
    removed: set[str]
    complaints: list[str]


def validate(values: Values, names_are_known: bool = True) -> Validated:
    """Validate the values of a TOML without those that have a wrong type or an unknown name.

    Args:
        values: of the files and overrides.
        names_are_known: False where a plug-in could not be imported: an unknown name may be one that it adds.
    """
    values = deepcopy(values)
    lines: list[str] = []
    removed: set[str] = set()
    while True:
        complaints: list[str] = []
        try:
            return Validated(JobConfig.model_validate(values, context=complaints), lines, removed, complaints)
        except ValidationError as error:
            problems: dict[Place, list[ErrorDetails]] = {}
            for problem in error.errors():
                problems.setdefault(place_of(problem, values), []).append(problem)
        described = dict(islice(problems.items(), MOST))
        if len(problems) > MOST:
            lines.append(f"{len(problems)} keys or values are wrong; the first {MOST} of them:")
        lines += [
            line
            for place, found in described.items()
            if not names_any(dotted(place), removed) and (names_are_known or found[0]["type"] != "unknown_name")
            for line in describe_problems(place, found)
        ]
        for place, found in described.items():
            removed |= decided_by(place, found[0])
        wrong = {place[:-1] if found[0]["type"] == "missing" else place for place, found in problems.items()}
        for place in sorted(wrong, reverse=True):  # from the end of a list: the others keep their places
            if not any(place[:length] in wrong for length in range(1, len(place))):
                take_out(values, place)


def place_of(problem: ErrorDetails, values: Any) -> Place:
    """Return where a problem is, without what pydantic adds for the members of a union."""
    place: list[str | int] = []
    for part in problem["loc"]:
        if not (isinstance(values, list) if isinstance(part, int) else isinstance(values, dict) and part in values):
            return (*place, part) if problem["type"] == "missing" else tuple(place)
        values = values[part]
        place.append(part)
    return tuple(place)


def dotted(place: Place) -> str:
    """Return the key as messages name it: `data.sources.0.name`."""
    return ".".join(map(str, place))


def decided_by(place: Place, problem: ErrorDetails) -> set[str]:
    """Return the keys that complaints may name as a consequence of what is taken out at `place`."""
    keys = {dotted(place)}
    if problem["type"] == "missing" or isinstance(place[-1], int):  # an element goes, and those after it move
        keys.add(dotted(place[: max((index for index, part in enumerate(place) if isinstance(part, int)), default=-1)]))
    if problem["type"] == "extra_forbidden":
        meant = difflib.get_close_matches(str(place[-1]), table_at(place[:-1]).model_fields, n=1)
        keys |= {dotted((*place[:-1], name)) for name in meant}
    return keys | {decided for key in keys for decided in DECIDES.get(key, ())}


def take_out(values: Any, place: Place) -> None:
    """Remove a key, or an element of a list, in place."""
    for part in place[:-1]:
        values = values[part]
    del values[place[-1]]


def names_any(line: str, keys: Iterable[str]) -> bool:
    """Return whether a line names one of the keys, or a key in one of them. A table's bare name must begin the line."""
    inside = [rf"(?<![\w.]){re.escape(key)}{'' if '.' in key else '[.]'}(?!\w)" for key in keys]
    return any(re.search(pattern, line) for pattern in (*inside, *(rf"^{re.escape(key)}\b" for key in keys)))


def describe_problems(place: Place, problems: Sequence[ErrorDetails]) -> list[str]:
    """Return one line: key, value found, what would be right; or the lines of a check that names its keys itself."""
    problem, key = problems[0], dotted(place)
    kind, found = problem["type"], problem["input"]
    quoted = shown(found, 200)
    if kind == "extra_forbidden":
        return [f"{key}: unknown key{nearest(str(place[-1]), table_at(place[:-1]).model_fields)}"]
    if kind == "missing":
        return [f"{key}: missing, and it has no default"]
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return text.split("\n") if text.startswith(key) else [f"{key} = {quoted}: {text}"]
    if kind == "model_type":
        taking = keys_that_take(place, found)
        what = f'{taking[0]} = "{found}"' if len(taking) == 1 else f"and its keys: {', '.join(taking)}"
        return [f"{key} = {quoted}: it is a table; write [{key}] {what}"]
    hint = ""
    if kind == "literal_error" and isinstance(found, str):
        close = difflib.get_close_matches(found, re.findall(r"'([^']*)'", problem["ctx"]["expected"]), n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
    if kind == "list_type":
        hint = f": write [[{key}]]" if isinstance(found, dict) else f": write [{quoted}]"
    if kind == "unknown_name":
        return [f"{key} = {quoted}: {problem['msg']}"]
    messages = dict.fromkeys(problem["msg"][0].lower() + problem["msg"][1:] for problem in problems)
    return [f"{key} = {quoted}: {', or '.join(messages)}{hint}"]


def keys_that_take(path: Sequence[str | int], value: Any) -> list[str]:
    """Return the key of the table at `path` that has `value` among its choices; all keys unless exactly one has."""
    fields = table_at(path).model_fields
    taking = [name for name, field in fields.items() if isinstance(value, str) and value in choices(field)]
    return taking if len(taking) == 1 else list(fields)


def choices(field: FieldInfo) -> list[Any]:
    """Return the values that the `Literal` or registry of a key lists, also of one that may be unset."""
    literals = [part for part in (field.annotation, *get_args(field.annotation)) if get_origin(part) is Literal]
    return [value for part in literals for value in get_args(part)] + [name for part in registries(field) for name in part]


def registries(field: Any) -> list[Registry[Any]]:
    """Return the registries that a key takes names of: `Annotated[str, READERS.choice]`, a list, or optional."""
    metadata = field.metadata if isinstance(field, FieldInfo) else getattr(field, "__metadata__", ())
    inner = [field.annotation] if isinstance(field, FieldInfo) else get_args(field)
    owners = [getattr(getattr(part, "func", None), "__self__", None) for part in metadata]
    own = [owner for owner in owners if isinstance(owner, Registry)]
    return own or [registry for part in inner for registry in registries(part)]


def table_at(path: Sequence[str | int], root: type[BaseModel] = JobConfig) -> type[BaseModel]:
    """Return the table at `path` below `root`, in which numbers are places in a list."""
    table: Any = root
    for part in path:
        if isinstance(part, str):
            table = table.model_fields[part].annotation
        if getattr(table, "__args__", None):
            table = table.__args__[0]
    found: type[BaseModel] = table
    return found
