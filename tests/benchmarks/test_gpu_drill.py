"""The drill runs on a CPU, keeps what was measured before a part was cut off, and fails by what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _drill(out: Path, work: Path, parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {"DEVICE": "cpu", "SLOWER": "40", "OUT": str(out), "WORK": str(work), "PARTS": parts, "PYTHON": sys.executable}
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


def test_the_table_has_what_the_doctor_finds_wrong_and_what_a_cut_off_part_had_measured(tmp_path: Path) -> None:
    line = {"part": "rates", "name": "copy", "value": 0.5, "unit": "TB/s"}
    lines = [line | {"verdict": "ok"}, line | {"verdict": "slow"}]
    (tmp_path / "doctor.json").write_text(json.dumps({"lines": lines}))
    number = {"name": "loss", "value": 2.5, "unit": "", "wrong": "", "goal": ""}
    (tmp_path / "waits.jsonl").write_text(json.dumps(number) + "\n")
    (tmp_path / "parts.tsv").write_text("doctor\t9\t90\tok\nwaits\t60\t60\tcut off after 60 s\n")
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu_summary.py"), str(tmp_path)], capture_output=True)
    table = (tmp_path / "summary.md").read_text()
    assert done.returncode == 1
    assert "| doctor | 9 of 90 | ok | 1 ok; 1 slow; slow: rates, copy 0.5 TB/s |" in table
    assert "| cut off after 60 s | loss 2.5 |" in table


def test_parts_without_time_are_skipped_and_said_so(tmp_path: Path) -> None:
    done = _drill(tmp_path / "out", tmp_path / "work", "rates resume", DEADLINE="5")
    assert done.returncode == 0
    assert done.stdout.count("skipped: no time left") == 2


def test_a_part_that_fails_fails_the_drill_by_its_last_words(tmp_path: Path) -> None:
    done = _drill(tmp_path / "out", tmp_path / "work", "inference")  # there is no checkpoint without the part before
    assert done.returncode == 1
    assert "| failed (" in done.stdout


def test_a_contender_that_does_not_start_fails_the_comparison_and_is_named_in_its_numbers(tmp_path: Path) -> None:
    numbers = tmp_path / "torchtitan.jsonl"
    sizes = ["--rounds", "1", "--warmup", "1", "--rows", "2", "--seq-len", "128", "--numbers", str(numbers)]
    command = [sys.executable, str(ROOT / "benchmarks" / "train_speed.py"), *sizes, "--peers-python", "/bin/false"]
    done = subprocess.run([*command, "--only", "torchtitan", "bare loop"], capture_output=True, text=True)
    assert done.returncode == 1
    assert numbers.exists(), done.stderr
    found = {line["name"]: line for line in map(json.loads, numbers.read_text().splitlines())}
    assert found["torchtitan"]["wrong"] == "left out: it ended without a message"
    assert found["bare loop"]["value"] > 0  # what did start is measured all the same
