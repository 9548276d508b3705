"""What people add by name: one registry for each kind of part, and the plug-ins that fill them.

A TOML key whose choices are the names in a registry is annotated with `Annotated[str, registry.choice]`: what a plug-in
adds can then be named in a TOML, and stands in `--help`, without a change elsewhere. Plug-ins are modules that register
on import:

    from cistron.datasets.readers import READERS

    @READERS.add("gff", says="a line is a document")
    class GffReader: ...

A TOML names them in `job.plugins`, the environment variable CISTRON_PLUGINS does (with commas between them), and an
installed package names its own in the entry-point group `cistron.plugins`. A checkpoint names those of its job, and is
not believed: it may be of others, and importing a module runs it.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from .errors import UserError, nearest

GROUP, VARIABLE = "cistron.plugins", "CISTRON_PLUGINS"
T = TypeVar("T")
Part = TypeVar("Part")


class Registry(Generic[T]):
    """Parts of one kind by name, in the order in which they were added.

    Args:
        kind: what they are, in one or two words, as messages name them: "tokenizer".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._says: dict[str, str] = {}
        self._parts: dict[str, T] = {}
        self._announced: dict[str, str] = {}

    def add(self, name: str, *, says: str) -> Callable[[Part], Part]:
        """Return a decorator that adds a part.

        Args:
            name: as a TOML names it.
            says: what it is, in a few words; stands in `--help`.

        Raises:
            UserError: the name is taken by another part.
        """

        def add(part: Part) -> Part:
            if name in self._says and self._parts.get(name) is not part:
                raise UserError(f"{self.kind} {name!r}: a part of this name is there already; give the plug-in's another one")
            self._parts[name], self._says[name] = cast("T", part), says
            return part

        return add

    def announce(self, name: str, *, says: str, where: str) -> None:
        """Name a part that is imported when it is first asked for: its name is known without loading what it imports.

        Args:
            name: as a TOML names it.
            says: what it is, in a few words; stands in `--help`.
            where: `module:attribute`.
        """
        self._says[name], self._announced[name] = says, where

    def __getitem__(self, name: str) -> T:
        """Return the part called `name`. Raises UserError with the nearest name where there is none."""
        if name not in self._says:
            raise UserError(self._unknown(name))
        if name not in self._parts:
            module, _, attribute = self._announced[name].partition(":")
            self._parts[name] = getattr(importlib.import_module(module), attribute)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order in which they were added."""
        return iter(self._says)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a part of this name."""
        return name in self._says

    def help(self) -> str:
        """Return every name with what it says, as one line of `--help`."""
        return " ".join(f"{name}: {says}." for name, says in self._says.items())

    @property
    def choice(self) -> Any:
        """What a TOML key that takes one of the names is annotated with: `name: Annotated[str, READERS.choice]`."""
        return AfterValidator(self._known)

    def _known(self, name: str) -> str:
        if name not in self._says:
            raise PydanticCustomError("unknown_name", "{message}", {"message": self._unknown(name)})
        return name

    def _unknown(self, name: str) -> str:
        return f"no such {self.kind}{nearest(name, self._says)}"


@cache
def installed_plugins() -> list[tuple[str, str]]:
    """Return who names each plug-in of an installed package, and its module. To ask all packages takes 10 ms."""
    return [(f"the entry point {point.name} = {point.value!r} of {GROUP}", point.value) for point in entry_points(group=GROUP)]


def plugin_modules(modules: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return who names each plug-in, and its module: installed packages, CISTRON_PLUGINS, then `modules`."""
    named = [(f"{VARIABLE}: {module!r}", module) for module in os.environ.get(VARIABLE, "").split(",") if module.strip()]
    listed = [*installed_plugins(), *named, *((f"job.plugins: {module!r}", module) for module in modules)]
    return [(where, module.strip().partition(":")[0]) for where, module in listed]


def load_plugins(modules: Sequence[str] = ()) -> None:
    """Import the plug-ins of installed packages and of CISTRON_PLUGINS, then `modules`; each is imported once.

    Raises:
        UserError: one cannot be imported; names it and the reason.
    """
    for where, module in plugin_modules(modules):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of others raises on import
            # A folder of PYTHONPATH that is not there may be on a disk that is away.
            folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
            away = [folder for folder in folders if not os.path.exists(folder)]  # noqa: PTH110 (pathlib is not loaded)
            passing = isinstance(error, ModuleNotFoundError) and module.startswith(f"{error.name}") and bool(away)
            there = f"; PYTHONPATH names {', '.join(away)}, which is not there" if passing else ""
            raise UserError(f"{where}: cannot be imported: {type(error).__name__}: {error}{there}", passing=passing) from error


def load_saved_plugins(modules: Sequence[str]) -> None:
    """Import the plug-ins of installed packages and of CISTRON_PLUGINS, and expect `modules` among what is imported.

    Args:
        modules: That a checkpoint names.

    Raises:
        UserError: One is not imported: only the user can say that it may run.
    """
    load_plugins()
    if unknown := [module for module in modules if module not in sys.modules]:
        raise UserError(
            f"job.plugins = {unknown}: modules that a checkpoint names are not imported for that, since they run when they "
            f"are; where you trust them, name them in job.plugins of the TOML, or set {VARIABLE}={','.join(unknown)}"
        )
