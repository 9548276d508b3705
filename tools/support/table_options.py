"""Options of a command that are keys of a TOML table: their type, choices and help text are those of the table."""

import argparse
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from ...base import Table
from ...trainer.config import describe_problems
from ...trainer.errors import ConfigError

T = TypeVar("T", bound=Table)


class OptionGroup(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *flags: str, **options: Any) -> argparse.Action:
        """Add an option, as `argparse` does."""
        ...


def add_table_options(group: OptionGroup, table: type[Table], *keys: str, prefix: str = "", defaults: bool = True) -> None:
    """Add an option `--some-key` for each key; one that is left out is None, so that the default stays the table's.

    Args:
        group: Takes the options.
        table: Declares the keys.
        keys: Whose values are text, numbers, truth values, one of some names, or a list of these.
        prefix: Begins the names of the options.
        defaults: Whether a key that is left out has the table's default, which the help names.
    """
    for key in keys:
        field = table.model_fields[key]
        kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
        kind = next(kind for kind in kinds if kind is not NoneType)
        default = f" (default: {field.default})" if defaults and field.default is not None else ""
        help = f"{field.description}{default}".replace("%", "%%")
        flag = f"--{f'{prefix}{key}'.replace('_', '-')}"
        many: dict[str, Any] = {}
        if get_origin(kind) is list:
            (kind,), many = get_args(kind), {"nargs": "+"}
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if kind is bool:
            action = "store_true" if defaults else argparse.BooleanOptionalAction  # which has --no-some-key
            group.add_argument(flag, action=action, default=None, help=help)
        elif get_origin(kind) is Literal:
            group.add_argument(flag, choices=get_args(kind), help=help, **many)
        else:
            parse = kind if isinstance(kind, type) else str  # the validation of the table tells text from numbers
            group.add_argument(flag, type=parse, help=help, **many)


def given(options: argparse.Namespace, table: type[Table], prefix: str = "") -> dict[str, Any]:
    """Return the keys of a table that the command line sets, with their values."""
    values = {key: getattr(options, f"{prefix}{key}", None) for key in table.model_fields}
    return {key: value for key, value in values.items() if value is not None}


def read_table(table: type[T], section: str, values: dict[str, Any]) -> T:
    """Return the table `section` of a TOML with these values. Raises ConfigError with each wrong one."""
    try:
        return table(**values)
    except ValidationError as error:
        wrong = [line for problem in error.errors() for line in describe_problems((section, *problem["loc"]), [problem])]
        raise ConfigError("\n".join(wrong)) from None
