"""A share of the fuzz drill, another one each day; and the drill finds what it is there to find."""

import datetime
import os
import signal
import time
from pathlib import Path

import pytest
from cistron.base import UserError
from cistron.tests.drills.fuzz import Kind, mangled, run_kind
from cistron.tests.drills.fuzzed_kinds import MAKERS, make_kinds

CASES = 60  # of each kind


@pytest.mark.parametrize("name", MAKERS)
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    seed = datetime.datetime.now(datetime.timezone.utc).date().toordinal()
    (kind,) = make_kinds(tmp_path, [name]).values()
    found = run_kind(name, kind, seed, range(CASES), seconds=60)
    assert not found.faults, "\n".join(found.faults)
    assert sum(found.outcomes.values()) == CASES


def refuse(folder: Path) -> None:
    raise UserError("no")


def fail(folder: Path) -> None:
    raise KeyError("bug")


def take_memory(folder: Path) -> None:
    bytearray(2**28)


def sleep_without_end(folder: Path) -> None:
    time.sleep(100)


def end_without_a_word(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_fault_is_found_and_named_by_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cistron.tests.drills.fuzz.SECONDS", 1.0)
    monkeypatch.setattr("cistron.tests.drills.fuzz.BYTES", 2**27)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "file").write_bytes(b"content")
    outcomes = {
        refuse: "UserError",
        fail: "traceback KeyError",
        take_memory: "memory",
        sleep_without_end: "hang",
        end_without_a_word: "killed by SIGKILL",
    }
    for read, outcome in outcomes.items():
        found = run_kind("x", Kind(tmp_path / "whole", {"file": mangled}, read), 1, range(2), seconds=60)
        assert found.outcomes == {outcome: 2}
        assert len(found.faults) == (0 if outcome == "UserError" else 2)
        assert all("--kind x --seed 1 --only" in fault for fault in found.faults)
