"""Arrows run one way through the rooms, and from another room only what its door names."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("base", "datasets", "models", "trainer", "tools")
# Lowest first: a room, which is a folder or a file beside folders, may import rooms of earlier groups.
ORDER = """
base
datasets.errors datasets.randomness datasets.nucleotides | datasets.synthetic | datasets.tokenizers datasets.files
datasets.documents datasets.rows | datasets.readers datasets.shards | datasets.config | datasets.lanes datasets.prepare
datasets.loading
models.errors models.parameters | models.config models.loss models.lora | models.positions models.head
models.attention models.huggingface
models.decoder | models.init
trainer.errors | trainer.config | trainer.processes
trainer.checkpoints trainer.parallel | trainer.build trainer.optim | trainer.estimates trainer.huggingface
trainer.heartbeat trainer.prefetch trainer.exchange
trainer.metrics trainer.inference | trainer.start trainer.messages trainer.evaluation
trainer.validation trainer.extrapolation trainer.out_of_memory | trainer.train
tools.support tools.cli | tools.extrapolate | tools.check tools.doctor tools.embed tools.evaluate tools.export tools.generate
tools.import tools.inspect tools.prepare tools.train
"""
GROUPS = [group.split() for line in ORDER.strip().splitlines() for group in line.split("|")]
FLOOR = {room: number for number, group in enumerate(GROUPS) for room in group}
# What a worker of `cistron prepare` and a reader of a TOML import: loading torch would be most of their time.
WITHOUT_TORCH = [
    *(f"datasets.{room}" for room in ("files", "readers", "tokenizers", "documents", "rows", "shards", "prepare")),
    "datasets.config",
    "models.config",
    "trainer.config",
]


class Import(NamedTuple):
    """An import of one room by another.

    Attributes:
        place: file and line.
        here: room that imports.
        there: room that is imported from.
        deeper: whether it reaches past the door.
    """

    place: str
    here: str
    there: str
    deeper: bool


def modules() -> Iterator[Path]:
    """All modules of the package, relative to its root."""
    for package in PACKAGES:
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*.py")))


def room_of(module: tuple[str, ...]) -> str:
    """The room of a dotted module: a folder of its package or a file beside the folders. `base` is a room by itself."""
    return "base" if module[0] == "base" else ".".join(module[:2])


@cache
def door(folder: tuple[str, ...]) -> frozenset[str]:
    """What a room's `__init__` names."""
    for node in ast.parse(ROOT.joinpath(*folder, "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def imports(path: Path) -> Iterator[Import]:
    """The imports of other rooms in a file, wherever they stand in it."""
    own = path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        place = f"{path}:{node.lineno}"
        if isinstance(node, ast.Import) or not node.level:
            named = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert "cistron" not in [name.split(".")[0] for name in named], f"{place}: relative inside the package"
            continue
        above = path.parent.parts[: len(path.parent.parts) - node.level + 1]
        target = (*above, *filter(None, (node.module or "").split(".")))
        for name in node.names:
            if not target:  # the package itself, which says its version
                continue
            # `from . import module` names a room; any other form a name in a room
            there = target if room_of(target) == "base" or len(target) > 1 else (*target, name.name)
            is_folder = ROOT.joinpath(*there).is_dir()
            deeper = len(there) > (1 if there[0] == "base" else 2) or (is_folder and name.name not in door(there))
            if room_of(there) != room_of(own):
                yield Import(place, room_of(own), room_of(there), deeper)


def crossings() -> list[Import]:
    """All imports of one room by another."""
    return [crossing for path in modules() for crossing in imports(path)]


def test_the_order_names_every_room() -> None:
    rooms = {room_of(path.with_suffix("").parts) for path in modules() if path.name != "__init__.py"}
    assert rooms == set(FLOOR)
    assert len(crossings()) > 300, "the imports are not seen"


def test_a_room_imports_only_rooms_before_it() -> None:
    assert [crossing for crossing in crossings() if FLOOR[crossing.there] >= FLOOR[crossing.here]] == []


def test_datasets_and_models_never_meet() -> None:
    assert [c for c in crossings() if {c.here.split(".")[0], c.there.split(".")[0]} == {"datasets", "models"}] == []


@pytest.mark.parametrize(("package", "most"), [("datasets", 6), ("models", 6), ("trainer", 10)])
def test_no_chain_of_rooms_is_longer_than_a_reader_can_follow(package: str, most: int) -> None:
    below: dict[str, set[str]] = {}
    for crossing in crossings():
        if crossing.here.startswith(package) and crossing.there.startswith(package):
            below.setdefault(crossing.here, set()).add(crossing.there)
    chains: dict[str, list[str]] = {}
    for room in sorted(FLOOR, key=lambda room: FLOOR[room]):
        longest = max((chains[there] for there in below.get(room, ())), key=len, default=[])
        chains[room] = [*longest, room]
    longest = max(chains.values(), key=len)
    assert len(longest) <= most, " <- ".join(longest)


def test_a_room_has_no_more_files_than_are_taken_in_at_a_glance() -> None:
    doors = ("__init__.py", "__main__.py")
    files = Counter(room_of(path.with_suffix("").parts) for path in modules() if path.name not in doors)
    assert {room: count for room, count in files.items() if count > 11 and (ROOT / room.replace(".", "/")).is_dir()} == {}


def test_from_another_room_only_what_its_door_names() -> None:
    assert [crossing for crossing in crossings() if crossing.deeper] == []


@pytest.mark.parametrize("room", sorted(room for room in FLOOR if (ROOT / room.replace(".", "/")).is_dir()))
def test_a_door_names_what_it_has_and_says_what_the_room_is_for(room: str) -> None:
    module = importlib.import_module(f"cistron.{room}")
    assert len((module.__doc__ or "").split()) >= 20, "say what the room is for, and in which order to read it"
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_door_that_every_worker_passes_loads_no_torch(room: str) -> None:
    code = f"import sys, cistron.{room}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pyproject_names_every_folder_of_the_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({"cistron", *(".".join(("cistron", *path.parent.parts)) for path in modules())})


def test_pytest_passes_over_no_folder_with_tests(pytestconfig: pytest.Config) -> None:
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {part for file in (ROOT / "tests").rglob("test_*.py") for part in file.relative_to(ROOT).parts[:-1]}
    assert "build" in folders, "which pytest passes over by default"
    assert not [folder for folder in folders for pattern in passed_over if fnmatch(folder, pattern)]
