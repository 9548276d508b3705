"""The drill runs on a CPU, keeps what was measured before a part was cut off, and fails by what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _drill(out: Path, work: Path, parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {"DEVICE": "cpu", "OUT": str(out), "WORK": str(work), "PARTS": parts, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh")]
    return subprocess.run(command, env={**os.environ, **told, **environment}, capture_output=True, text=True)


def test_a_part_runs_and_stands_in_the_table(tmp_path: Path) -> None:
    done = _drill(tmp_path / "out", tmp_path / "work", "rates")
    table = (tmp_path / "out" / "summary.md").read_text()
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "rates.log").read_text()
    assert "| rates |" in table
    assert "| ok | torch" in table
    assert "TFLOP/s" in table
    assert (tmp_path / "out" / "rates.jsonl").read_text().count("\n") == 3


def test_parts_without_time_are_skipped_and_said_so(tmp_path: Path) -> None:
    done = _drill(tmp_path / "out", tmp_path / "work", "rates resume", DEADLINE="5")
    assert done.returncode == 0
    assert done.stdout.count("skipped: no time left") == 2


def test_a_part_that_fails_fails_the_drill_by_its_last_words(tmp_path: Path) -> None:
    done = _drill(tmp_path / "out", tmp_path / "work", "inference")  # there is no checkpoint without the part before
    assert done.returncode == 1
    assert "| failed (" in done.stdout
