"""The wheel holds all that a run needs: installed into an empty environment, it trains outside of the clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
SMALL = {"dim": "32", "n_layers": "1", "n_heads": "2", "n_kv_heads": "1", "head_dim": "16", "hidden_dim": "32"}


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints, run in `folder` by an interpreter that finds no clone."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its folders in what it builds from."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.strip("\0").split("\0"):
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).exists():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "copy" / name)
    run(sys.executable, "-c", BUILD, folder, folder=folder / "copy")
    return next(folder.glob("cistron-*.whl"))


def test_the_wheel_holds_the_configurations_and_says_that_it_is_typed(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"cistron/train_configs/{path.name}" for path in (ROOT / "train_configs").glob("*.toml")}
    assert {"cistron/py.typed", *shipped} <= held
    assert not [name for name in held if name.startswith(("cistron/tests", "cistron/benchmarks"))]


def test_the_wheel_trains_outside_of_the_clone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", folder=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    run(sys.executable, *install, folder=tmp_path)
    assert run(python, "-c", "import cistron; print(cistron.__file__)", folder=tmp_path).strip() == str(
        site / "cistron/__init__.py"
    )
    words = [word for key, value in SMALL.items() for word in (f"--model.{key}", value)]
    words += ["--training.steps", "3", "--training.seq_len", "64", "--training.global_batch_size", "8"]
    words += ["--validation.enable", "false", "--metrics.enable_tensorboard", "false", "--metrics.log_freq", "1"]
    run(python.with_name("cistron"), "train", "--config", "debug", *words, "--job.dump_folder", "run", folder=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
