"""Nothing that a command prints is obeyed by a terminal, whoever wrote it."""

from __future__ import annotations

import argparse
import io
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from cistron.base import UserError
from cistron.base.outside import CONTROLS
from cistron.trainer.processes import Bar, Terminal, run_command
from cistron.trainer.processes.terminal import PrintableStream, data_output, printable_output
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import BarColumn, TextColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "[red]x[/red]:boom:[link=https://evil]\x1b]8;;https://evil\x07\x1b[2J\x9b8m\r\x00\u202e\udc80 https://a:pw@host/"
RICH_OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")  # cursor and colours, no OSC


class Screen(io.StringIO):
    """A stream that says whether it is a terminal, and can be set up like one."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def reconfigure(self, **options: str) -> None:
        assert options == {"encoding": "utf-8", "errors": "surrogateescape"}


def shown(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, terminal: bool = False) -> str:
    """Return what `act` writes to stdout and stderr, which `printable_output` guards."""
    screen = Screen(terminal)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", screen)
        with printable_output():
            act()
    return screen.getvalue()


def logged(text: str) -> None:
    """Log a warning where nobody has set up logging, as libraries do."""
    assert logging.lastResort
    logging.lastResort.handle(logging.LogRecord("library", logging.WARNING, "file", 1, text, None, None))


def parsed(text: str) -> None:
    """Give argparse a wrong option."""
    with pytest.raises(SystemExit):
        argparse.ArgumentParser(prog="cistron").parse_args([f"--{text}"])


def raised(text: str) -> None:
    """Print a traceback."""
    try:
        raise RuntimeError(text)
    except RuntimeError:
        traceback.print_exc()


def tabulated(text: str) -> None:
    """Print a table with the text as its title, a head and a cell."""
    table = Table(text, title=text)
    table.add_row(text)
    Terminal().print(table)


DOORS: dict[str, Callable[[str], object]] = {
    "print": print,
    "print to stderr": lambda text: print(text, file=sys.stderr),
    "lines": lambda text: sys.stdout.writelines([text, text]),
    "logging": logged,
    "argparse": parsed,
    "traceback": raised,
    "console": lambda text: Terminal().print(text),
    "console, as Text": lambda text: Terminal().print(Text(text, style="red")),
    "console, as a link": lambda text: Terminal().print(Text(text, style=Style(link="https://evil"))),
    "rule": lambda text: Terminal().rule(text),
    "table": tabulated,
}


@pytest.mark.parametrize("door", DOORS)
def test_hostile_text_is_shown_as_text(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown(monkeypatch, lambda: DOORS[door](HOSTILE))
    assert not CONTROLS.search(out)
    assert "[red]x" in out.replace("\n", ""), "brackets are only brackets"
    assert ":boom:" in out.replace("\n", "")
    assert "pw@" not in out or "console, as" in door, "documents are shown as they are, messages without credentials"


@settings(max_examples=8, deadline=None)
@given(text=st.text(alphabet=st.characters()) | st.text(alphabet="\x1b]8;0\x07\x9b[m\r\x00a\n"))
def test_through_no_door_comes_a_control_character(text: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for door in DOORS.values():
            assert not CONTROLS.search(shown(monkeypatch, lambda door=door: door(text)))  # type: ignore[misc]


def test_on_a_terminal_only_what_rich_writes_itself_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    def act() -> None:
        with Bar(TextColumn("{task.description}", markup=False), BarColumn(), console=Terminal()) as bar:
            bar.add_task(HOSTILE, total=2)
            print(HOSTILE)
            print("half", end="")
            print(" a line")
            print(HOSTILE, file=sys.stderr)
        print("behind")

    out = shown(monkeypatch, act, terminal=True)
    assert not CONTROLS.search(RICH_OWN.sub("", out))
    assert out.count("\\x1b]8;;https://evil") >= 3
    assert "half a line" in out, "whole lines stand above the bar"
    assert out.endswith("behind\n")


def test_a_line_without_an_end_outlives_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        with Bar("at", console=Terminal()):
            print("half of a line", end="")
        print(", and its end")

    assert "half of a line, and its end" in shown(monkeypatch, act, terminal=True)


def test_an_error_and_a_bug_are_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise UserError(HOSTILE)

    def refuse() -> None:
        with pytest.raises(SystemExit):
            run_command(refused)

    assert not CONTROLS.search(shown(monkeypatch, refuse))

    def bug() -> None:
        raise KeyError(HOSTILE)

    screen = Screen(False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        with pytest.raises(KeyError):
            run_command(bug)
        raised(HOSTILE)  # as the interpreter does at the end
    assert "Traceback" in screen.getvalue()
    assert not CONTROLS.search(screen.getvalue())


def test_data_is_raw_in_a_file_and_harmless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        out = shown(monkeypatch, lambda: print(HOSTILE, file=data_output()), terminal=terminal)
        assert out == HOSTILE + "\n" if not terminal else not CONTROLS.search(out)
        assert "a:pw@host" in out, "data is not redacted"


def test_streams_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    run_command(lambda: None)
    assert (sys.stdout, sys.stderr) == before
    assert shown(monkeypatch, lambda: print(isinstance(sys.stdout, PrintableStream))) == "True\n"


def test_no_module_goes_round_the_door() -> None:
    """Only `terminal.py` makes consoles and bars, and nobody writes to the streams below it."""
    ways = re.compile(r"\b(?:Console|Progress|Live)\(|__std(?:out|err)__|\bRendered\b|sys\.std\w+\.buffer|os\.write\(")
    found = {place: ways.findall(text) for place, text in sources().items() if not place.endswith("terminal.py")}
    assert found.pop("trainer/checkpoints/state.py") == ["Progress("], "the class of that name"
    assert {place: ways for place, ways in found.items() if ways} == {}


def test_every_program_enters_by_the_door() -> None:
    programs = {place: text for place, text in sources().items() if '\nif __name__ == "__main__":' in text}
    assert len(programs) > 10
    past_it = [place for place, text in programs.items() if "run(" not in text]
    assert past_it == ["datasets/synthetic.py"], "which only says what it has written"


def sources() -> dict[str, str]:
    """Return the text of every module of the package."""
    paths = [path for package in ("base", "datasets", "models", "trainer", "tools") for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
