"""From a command line to a `JobConfig`: files, overrides and plug-ins; all mistakes in one message.

`load_config` goes through the words of the command line, the files, the plug-ins, the types, the complaints of the
tables, and those of the command (`further`: layout, tokenizer, device). A mistake does not hide the others: what cannot
be used is taken out, and reading goes on without it.
"""

import argparse
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError
from typing_extensions import override

from ...base import UserError, bounded, load_plugins, nearest, read_toml, shown
from ...models.config import preset_default
from ..errors import ConfigError
from .job import JobConfig
from .mistakes import Values, keys_that_take, names_any, registries, table_at, validate

SHIPPED = Path(__file__).resolve().parents[2] / "train_configs"
EXTENDS = 32  # files that a TOML may lead to, itself included


class CommandLine(JobConfig, BaseSettings):
    """The keys of a `JobConfig` as options: --training.steps is [training] steps."""

    model_config = SettingsConfigDict(cli_use_class_docs_for_groups=True)


def load_config(
    argv: Sequence[str], prog: str = "cistron train", further: Callable[[JobConfig], Iterable[str]] | None = None
) -> tuple[JobConfig, Namespace]:
    """Read `--config FILE` (or `FILE`, before or after the options), the files it extends and the overrides in `argv`.

    Args:
        argv: words of the command line. FILE is a path, or the bare name of a shipped configuration.
        prog: the command, as its help names it.
        further: returns what else the command refuses, as lines; not called with --print-config.

    Returns:
        The validated configuration and the namespace of the non-config options (`config`, `print_config`).

    Raises:
        ConfigError: one message with a line for every mistake: key, value found, what would be right.
    """
    parser, cli = command_line(prog)
    options, lines = parser.read(argv)
    merged, mistakes = read_overrides(cli, options)
    lines += mistakes
    files: list[Path] = []
    unread, passing = "", False
    try:
        for path, values in reversed(extends_chain(find_config(options.config)) if options.config else []):
            files.insert(0, path)
            merged = deep_merge(values, merged)
    except ConfigError as error:
        unread, passing = str(error), error.passing
        lines.append(unread)
    unusable, away = load_job_plugins(merged)
    passing |= away
    if options.help:
        parser.print_help()
        sys.exit(0)
    valid = validate(merged, names_are_known=not unusable)
    lines += [*unusable, *valid.mistakes]
    if not unread:
        complaints = list(valid.complaints)
        if further and not options.print_config:
            complaints += [line for line in further(valid.config) if not any(told in line for told in complaints)]
        lines += [line for line in complaints if not names_any(line, valid.removed)]
    if lines:
        where = ", ".join(map(str, files)) or "command line"
        raise ConfigError("\n  ".join([f"{where}: {len(lines)} mistake(s)", *lines]), passing=passing)
    return valid.config, options


@cache
def command_line(prog: str) -> tuple["OverrideParser", CliSettingsSource[Any]]:
    """Return the parser of a command's options, and what turns them into values. Declaring its options takes 50 ms."""
    parser = OverrideParser(prog=prog, description=JobConfig.__doc__, formatter_class=KeyHelp)
    return parser, CliSettingsSource(CommandLine, root_parser=parser, cli_parse_args=False)


class KeyHelp(argparse.RawTextHelpFormatter):
    """The help of a key, with the registered names that it takes and what presets set, both read when asked for."""

    @override
    def _get_help_string(self, action: argparse.Action) -> str | None:
        *parents, name = action.dest.split(".")
        if not parents or not action.help or name not in table_at(parents).model_fields:
            return action.help
        elements = table_at([*parents, name])
        fields = {"": table_at(parents).model_fields[name], **getattr(elements, "model_fields", {})}
        known = [(key, registry) for key, field in fields.items() for registry in registries(field)]
        said = (f" {key}: {registry.help()}" if key else f" {registry.help()}" for key, registry in known)
        text = action.help
        if parents[0] == "model" and (default := preset_default([*parents[1:], name])):
            text = f"{text.rpartition(' (default: ')[0]} (default: {default})"  # pydantic shows one preset's
        return text + "".join(said).replace("%", "%%")  # argparse formats it


class OverrideParser(argparse.ArgumentParser):
    """argparse without abbreviations that collects mistakes, and names the nearest option for an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Declare the options that are not keys; `--training.step` is a misspelling of `--training.steps`."""
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "add_help": False})
        self.add_argument("file", metavar="FILE", nargs="?", help="TOML of the job, or the name of a shipped one: debug")
        self.add_argument("--config", metavar="FILE", help="the same, as an option")
        self.add_argument("--print-config", action="store_true", help="print the resolved TOML and exit")
        self.add_argument("-h", "--help", action="store_true", help="show this and exit")

    def read(self, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Return the options, without those that cannot be parsed, and a line for each mistake."""
        words, lines = list(argv), []
        for word in [word for word in words if word.startswith("--") and len(word) > 2]:
            name = word.split("=")[0]
            if name not in self._option_string_actions:
                lines.append(f"command line: unknown option {word}{nearest(name, self._option_string_actions)}")
                drop(words, word)
        while True:
            try:
                options, unknown = self.parse_known_intermixed_args(words)
            except ConfigError as error:  # of argparse, about one option
                lines.append(str(error))
                option = re.search(r"argument (?:-\w/)?(--?[\w.-]+)", str(error))
                if not option or option[1] not in words:
                    raise ConfigError("\n  ".join(lines)) from None
                drop(words, option[1])
                continue
            lines += [f"command line: unrecognized arguments: {word}" for word in unknown]
            if options.file and options.config:
                lines.append(f"command line: two config files, {options.file} and {options.config}; name one")
            options.config = options.config or options.file
            return options, lines

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage (80 lines of keys) and exiting."""
        raise ConfigError(f"command line: {message}")


def drop(words: list[str], option: str) -> None:
    """Remove an option from a command line in place, and the word after it unless that is an option or a TOML."""
    index = words.index(option)
    following = words[index + 1 : index + 2]
    is_value = following and "=" not in option and not following[0].startswith("--") and not is_config(following[0])
    del words[index : index + (2 if is_value else 1)]


def is_config(word: str) -> bool:
    """Return whether a word of a command line is a TOML or names a shipped one."""
    return word.endswith(".toml") or is_file(SHIPPED / f"{word}.toml")


def is_file(path: Path) -> bool:
    """Return whether there is a file; of a name that is too long for the system there is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_overrides(cli: CliSettingsSource[Any], options: Namespace) -> tuple[Values, list[str]]:
    """Return the overrides as values of a TOML, and a line for each that is not JSON where it must be."""
    usable, lines = {}, []
    for key, value in vars(options).items():
        text = value[0] if isinstance(value, list) else value
        wrong = table_as_word(key, text) if isinstance(text, str) else ""
        try:
            bounded(cli(parsed_args=Namespace(**{key: value}))(), f"--{key}", ConfigError)
        except ConfigError as error:
            wrong = wrong or str(error)
        except RecursionError:
            wrong = wrong or f"--{key}: has lists or tables that are nested too deeply"
        except SettingsError as error:
            told = shown_error(error) if key in str(error) else f"--{key} {shown(value, 40)}: {shown_error(error)}"
            wrong = wrong or f"{told}; lists and tables are written as JSON"
        if wrong:
            lines.append(f"command line: {wrong}")
        else:
            usable[key] = value
    overrides: Values = cli(parsed_args=Namespace(**usable))()
    for key in usable:
        *tables, name = key.split(".")
        found: Any = overrides
        for table in tables:
            found = found.get(table) if isinstance(found, dict) else None
        if isinstance(found, dict) and isinstance(found.get(name), str):
            found[name] = as_number([*tables, name], found[name])
    return overrides, lines


def as_number(path: list[str], text: str) -> Any:
    """Return a text as the number that a key takes beside None; pydantic leaves one beyond the key's limits a text."""
    field = table_at(path[:-1]).model_fields.get(path[-1])
    members = get_args(field.annotation) if field else ()
    kinds = {get_args(member)[0] if get_origin(member) is Annotated else member for member in members}
    for kind in (int, float):
        if kind in kinds and str not in kinds and len(text) <= 100:
            with suppress(ValueError):
                return kind(text)
    return text


def shown_error(error: Exception) -> str:
    """Return what an error says, of a long text the beginning."""
    text = str(error)
    return text if len(text) <= 400 else f"{text[:400]}..."


def table_as_word(key: str, word: str) -> str:
    """Return what is wrong where a table was given a word; otherwise an empty text."""
    path = key.split(".")
    fields = table_at(path[:-1]).model_fields
    is_table = path[-1] in fields and isinstance(fields[path[-1]].annotation, type(BaseModel))
    if not is_table or word.lstrip().startswith("{"):
        return ""
    taking = keys_that_take(path, word)
    what = f"--{key}.{taking[0]} {word}" if len(taking) == 1 else ", ".join(f"--{key}.{name}" for name in taking)
    return f"--{key} {word}: it is a table, whose keys are options of their own: {what}"


def find_config(name: str, folder: Path = Path()) -> Path:
    """Return the path of a TOML: a file in `folder`, or a shipped one by its bare name.

    Raises:
        ConfigError: a bare name that is neither; names the nearest.
    """
    path = folder / name
    if is_file(path) or Path(name).suffix or Path(name).name != name:
        return path
    if is_file(SHIPPED / f"{name}.toml"):
        return SHIPPED / f"{name}.toml"
    shipped = [file.stem for file in SHIPPED.glob("*.toml")]
    raise ConfigError(f"{path}: no such file, and no shipped configuration of this name{nearest(name, shipped)}", passing=True)


def extends_chain(path: Path) -> list[tuple[Path, Values]]:
    """Return the files to merge and what is in them, base first.

    Raises:
        ConfigError: for a missing or malformed file, for a circle and for more than `EXTENDS` files.
    """
    chain: list[tuple[Path, Values]] = []
    while True:
        values = read_toml(path, ConfigError)
        chain.insert(0, (path, values))
        base = values.get("extends")
        if not isinstance(base, str):
            return chain
        path = find_config(base, path.parent)
        seen = [before for before, _ in reversed(chain)]
        if any(same_file(path, before) for before in seen):
            raise ConfigError(f"{path}: `extends` goes in a circle: {' -> '.join(map(str, [*seen, path]))}")
        if len(seen) == EXTENDS:
            raise ConfigError(f"{path}: `extends` leads through more than {EXTENDS} files; join some of them")


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file; what cannot be found out is refused when it is read."""
    try:
        return one == other or one.samefile(other)
    except (OSError, ValueError):
        return False


def deep_merge(base: Values, over: Values) -> Values:
    """Return `base` with the values of `over`: tables merge key by key, anything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def load_job_plugins(values: Values) -> tuple[list[str], bool]:
    """Import installed plug-ins and those of `job.plugins`; return a line for each that cannot be imported, and whether
    that may pass by itself.
    """
    job = values.get("job")
    modules = job.get("plugins") if isinstance(job, dict) else None
    lines, passing = [], False
    for names in ([], *([name] for name in (modules if isinstance(modules, list) else []) if isinstance(name, str))):
        try:
            load_plugins(names)
        except UserError as error:
            lines.append(str(error))
            passing |= error.passing
    return list(dict.fromkeys(lines)), passing
