"""Each claim of SECURITY.md and docs/compared.md has a test of the name that stands beside it; those about the sources
are tested here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cistron.base import parse

ROOT = Path(__file__).resolve().parents[1]
POLICY = (ROOT / "SECURITY.md").read_text()
PACKAGES = ("base", "datasets", "models", "trainer", "tools")
# What runs what it is given. `re.compile`, `torch.compile`, `model.eval()` and a file called .pickle do not.
EXECUTING = re.compile(
    r"\bpickle\.\w|import pickle|unpickle|torch\.load\(|weights_only|(?<![\w.])(?:eval|exec|compile|__import__)\("
    r"|trust_remote_code|allow_pickle\s*=\s*True|shell\s*=\s*True|os\.(?:system|popen)\(|yaml|marshal\.|shelve|runpy"
)


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/compared.md"])
def test_every_claim_has_its_test(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 15
    there = {name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert sorted(set(named) - there) == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.endswith(("| its test |", "| test |"))]
    assert [row for row in rows if "`test_" not in row] == []


def test_nothing_from_outside_is_executed() -> None:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            code = "\n".join(line.split("#")[0] for line in re.sub(r'"""(?s:.*?)"""', "", path.read_text()).splitlines())
            if hits := EXECUTING.findall(code):
                found[path.relative_to(ROOT).as_posix()] = hits
    assert found == {}


def test_the_limits_are_those_of_the_parser() -> None:
    limits = (parse.JSON_BYTES, parse.TOML_BYTES, parse.DEPTH, parse.DIGITS)
    assert limits == (64 * 2**20, 2**20, 64, 100), "as SECURITY.md says"
    assert "64 MiB and 1 MiB, 64 levels of nesting and integers of 100 digits" in " ".join(POLICY.split())


def test_the_readme_leads_to_it() -> None:
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
