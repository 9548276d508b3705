"""Arrows run one way: tools -> trainer -> {datasets, models}, and those two never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"datasets": set(), "models": set(), "trainer": {"datasets", "models"}, "tools": {"datasets", "models", "trainer"}}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_before_it(room: str) -> None:
    files = sorted((ROOT / room).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                assert node.module.split(".")[0] in MAY_IMPORT[room] | {room}, f"{file}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith("cistron"), f"{file}:{node.lineno}: relative inside the package"
            elif isinstance(node, ast.Import):
                assert not any(name.name.startswith("cistron") for name in node.names), f"{file}:{node.lineno}"
