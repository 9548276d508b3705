"""DOOR of config: load_config, JobConfig."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError, TomlConfigSettingsSource

from ...base import nearest
from ..errors import ConfigError
from .job import JobConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class OverrideParser(argparse.ArgumentParser):
    """argparse that refuses abbreviations and answers an unknown flag with the nearest known one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """`--training.step` is a misspelling here, not short for `--training.steps`."""
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage (80 lines of keys) and exiting."""
        known = list(self._option_string_actions)
        unknown = [word for word in message.split() if word.startswith("--")] if "unrecognized" in message else []
        if unknown:
            message = "; ".join(f"unknown option {word}{nearest(word.split('=')[0], known)}" for word in unknown)
        raise ConfigError(f"command line: {message}")

    def tables_as_words(self, options: argparse.Namespace) -> str:
        """What is wrong where a table was given a word: pydantic-settings names the section alone. Else nothing."""
        wrong = []
        for key, value in vars(options).items():
            is_table = any(option.startswith(f"--{key}.") for option in self._option_string_actions)
            if is_table and isinstance(value, str) and not value.lstrip().startswith("{"):
                taking = keys_that_take(key.split("."), value)
                what = f"--{key}.{taking[0]} {value}" if len(taking) == 1 else ", ".join(f"--{key}.{name}" for name in taking)
                wrong.append(f"--{key} {value}: it is a table, whose keys are options of their own: {what}")
        return "; ".join(wrong)


def load_config(argv: Sequence[str], prog: str = "cistron train") -> tuple[JobConfig, argparse.Namespace]:
    """Read `--config FILE` (or just `FILE`, before or after the options), the files it extends and the overrides in `argv`.

    Returns:
        The validated configuration and the namespace of the non-config options (`config`, `print_config`).

    Raises:
        ConfigError: one message listing every mistake: file, key, value found, what would be right.
    """
    parser = OverrideParser(prog=prog, description=JobConfig.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", metavar="FILE", nargs="?", help="TOML file of the job")
    parser.add_argument("--config", metavar="FILE", help="the same, as an option")
    parser.add_argument("--print-config", action="store_true", help="print the resolved TOML and exit")
    cli: CliSettingsSource[Any] = CliSettingsSource(JobConfig, root_parser=parser, cli_parse_args=False)
    options = parser.parse_intermixed_args(argv)
    if options.file and options.config:
        raise ConfigError(f"command line: two config files, {options.file} and {options.config}; name one")
    options.config = options.config or options.file
    try:
        overrides = cli(parsed_args=options)()
    except SettingsError as error:
        wrong = parser.tables_as_words(options) or f"{error}; lists and tables are written as JSON"
        raise ConfigError(f"command line: {wrong}") from None
    files = extends_chain(Path(options.config)) if options.config else []
    toml = TomlConfigSettingsSource(JobConfig, toml_file=files or None, deep_merge=True)
    merged = deep_merge(toml() if files else {}, overrides)
    try:
        return JobConfig(**merged), options
    except ValidationError as error:
        where = ", ".join(map(str, files)) or "command line"
        lines = "\n".join(map(describe, error.errors())).split("\n")
        raise ConfigError("\n  ".join([f"{where}: {len(lines)} mistake(s)", *lines])) from None


def extends_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[Path]:
    """The files to merge, base first. Raises ConfigError for a missing or malformed file and for a cycle."""
    if path in seen:
        raise ConfigError(f"{path}: `extends` goes in a circle: {' -> '.join(map(str, [*seen, path]))}")
    try:
        base = tomllib.loads(path.read_text()).get("extends")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return [*extends_chain(path.parent / base, (*seen, path)), path] if isinstance(base, str) else [path]


def deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; anything else in `over` replaces what `base` has."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def describe(problem: Any) -> str:
    """One pydantic error as `section.key: what was found and what would be right`."""
    if problem["type"] == "value_error":  # a check of ours, which names the keys itself
        return str(problem["ctx"]["error"])
    *parents, name = problem["loc"]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(str(name), list(table_at(parents).model_fields))}"
    if problem["type"] == "missing":
        return f"{key}: missing, and it has no default"
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        close = difflib.get_close_matches(problem["input"], re.findall(r"'([^']*)'", problem["ctx"]["expected"]), n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
    if problem["type"] == "model_type":
        taking = keys_that_take(problem["loc"], problem["input"])
        what = f'{taking[0]} = "{problem["input"]}"' if len(taking) == 1 else f"and its keys: {', '.join(taking)}"
        return f"{key} = {problem['input']!r}: it is a table; write [{key}] {what}"
    if problem["type"] == "list_type":
        hint = f": write [[{key}]]" if isinstance(problem["input"], dict) else f": write [{problem['input']!r}]"
    return f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{hint}"


def keys_that_take(path: Sequence[str | int], value: Any) -> list[str]:
    """The key of the table at `path` that has the word `value` among its choices; all keys where none or several have."""
    fields = table_at(path).model_fields
    taking = [name for name, field in fields.items() if isinstance(value, str) and value in choices(field.annotation)]
    return taking if len(taking) == 1 else list(fields)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also of one that may be left out."""
    parts = (annotation, *get_args(annotation))
    return tuple(value for part in parts if get_origin(part) is Literal for value in get_args(part))


def table_at(path: Sequence[str | int]) -> type[BaseModel]:
    """The table at `path`, of which numbers are places in a list."""
    table: Any = JobConfig
    for part in path:
        if isinstance(part, str):
            table = table.model_fields[part].annotation
        if getattr(table, "__args__", None):
            table = table.__args__[0]
    found: type[BaseModel] = table
    return found
